"""What ``memory://`` and ``sqlite://`` URLs say, as frozen values."""

from __future__ import annotations

from typing import Any, Literal, final
from urllib.parse import unquote

import attrs

from queue_runtime.config import split_url, structure_options
from queue_runtime.errors import ConfigurationError, ValidationError

from .engine import QueueOptions, seconds

__all__ = ["MemoryConfig", "SqliteConfig", "memory_config_from_url", "sqlite_config_from_url"]


@final
@attrs.frozen(kw_only=True)
class MemoryConfig(QueueOptions):
    """A broker in this process's memory: ``memory://``, or ``memory://name`` for one of several.

    It lives as long as the trio run: everything opened with the same name in one ``trio.run`` shares it.

    Args:
        name: Which broker.

    The options are those of :class:`~queue_runtime.providers.memory.engine.QueueOptions`.
    """

    name: str = ""


def _check_path(_instance: object, _attribute: object, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ValidationError(f"path is {value!r}: expected the path of a file as text")
    if "\0" in value:
        raise ValidationError(f"path is {value!r}: it holds a NUL character, which no path can")


@final
@attrs.frozen(kw_only=True)
class SqliteConfig(QueueOptions):
    """A broker in an SQLite file, shared safely by several processes of one machine.

    Args:
        path: The database file; created when missing. A relative path starts at the current directory.
        synchronous: ``full``: what was acknowledged survives a power failure; ``normal``: it survives a crash
            of the process, not always one of the machine, and writing is faster.
        busy_timeout: Seconds to wait for other processes' transactions.

    The other options are those of :class:`~queue_runtime.providers.memory.engine.QueueOptions`.
    """

    path: str = attrs.field(validator=_check_path)
    synchronous: Literal["full", "normal"] = attrs.field(
        default="full", validator=attrs.validators.in_(("full", "normal"))
    )
    busy_timeout: float = attrs.field(default=5.0, validator=seconds(zero=True))


def memory_config_from_url(url: str) -> MemoryConfig:
    """Read ``memory://[name][?option=value&…]``.

    Raises:
        ConfigurationError: With every problem at once.
    """
    parts, options = split_url(url)
    if parts.path not in ("", "/"):
        raise ConfigurationError(
            f"memory URL has a path {parts.path!a}: write memory://name, or sqlite:///file to keep messages"
        )
    return structure_options(
        MemoryConfig, options, where=url, fixed={"name": unquote(parts.netloc)}
    )


def sqlite_config_from_url(url: str) -> SqliteConfig:
    """Read ``sqlite:///relative.db`` or ``sqlite:////absolute.db``, with ``?option=value&…``.

    Raises:
        ConfigurationError: With every problem at once; or there is no path, or a host.
    """
    parts, options = split_url(url)
    cure = "write sqlite:///file.db for a file in the current directory, sqlite:////dir/file.db for any other"
    if parts.netloc:
        raise ConfigurationError(
            f"sqlite URL names a host {parts.netloc.rpartition('@')[2]!a}: {cure}"
        )
    path = unquote(parts.path).removeprefix("/")
    if not path:
        raise ConfigurationError(f"sqlite URL has no path: {cure}")
    return structure_options(SqliteConfig, options, where=url, fixed={"path": path})
