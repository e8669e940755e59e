"""Options that commands share, and how they become a configuration and a connection."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar, final

import attrs
import click
import trio

from queue_runtime import (
    ConfigurationError,
    QueueClient,
    QueueName,
    RuntimeConfig,
    load_config,
    open_client,
)
from queue_runtime.instrumentation import Instrument, StructlogInstrument, configure_logging
from queue_runtime.secret import SecretUrl

__all__ = ["Settings", "run_async", "shared_options", "yes_option"]

T = TypeVar("T")
_Command = TypeVar("_Command", bound=Callable[..., Any])

_LEVELS: Final = ("debug", "info", "warning", "error", "critical")


@final
@attrs.frozen(kw_only=True)
class Settings:
    """What the shared options say. The configuration is read when first asked for.

    Args:
        url: The provider, above file and environment.
        queue: The queue, above file and environment.
        file: The configuration file.
        json: Output for machines.
        log_level: Above file and environment.
    """

    url: SecretUrl | None = None
    queue: str | None = None
    file: Path | None = None
    json: bool = False
    log_level: str | None = None

    def load(self, overrides: Mapping[str, Any] | None = None) -> RuntimeConfig:
        """The configuration with the options on top.

        Raises:
            ConfigurationError: With every problem of every layer.
        """
        arguments: dict[str, Any] = dict(overrides or {})
        if self.url is not None:
            arguments["provider"] = self.url
        if self.queue is not None:
            arguments["queue"] = self.queue
        if self.log_level is not None:
            arguments["logging"] = {"level": self.log_level}
        return load_config(self.file, overrides=arguments)

    def queue_of(self, config: RuntimeConfig) -> QueueName:
        """The queue to work on.

        Raises:
            ConfigurationError: None was named anywhere.
        """
        if config.queue is None:
            raise ConfigurationError(
                "no queue: give --queue, set queue in the configuration file, or QUEUE_NAME"
            )
        return config.queue

    def instruments(
        self, config: RuntimeConfig, *, quiet_level: str | None = None
    ) -> list[Instrument]:
        """The log on stderr, where somebody asked for one (or ``quiet_level`` is given as the default)."""
        chosen = any(path.startswith("logging") for path in config.origins)
        level = config.logging.level if chosen else quiet_level
        if level is None:
            return []
        configure_logging(level, self.json or config.logging.json, sys.stderr)
        return [StructlogInstrument(level=level)]

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple[QueueClient, QueueName]]:
        """A client and the queue to work on.

        Raises:
            QueueError: The configuration is wrong, or the broker cannot be reached.
        """
        config = self.load()
        source = config.provider_source()
        queue = self.queue_of(config)
        async with open_client(
            source, config=config.client, instruments=self.instruments(config)
        ) as client:
            yield client, queue


def run_async(function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run ``function(*args)`` under trio; a lone error in exception groups comes out as itself."""
    try:
        return trio.run(functools.partial(_awaited, function, *args))
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__


async def _awaited(function: Callable[..., Awaitable[T]], *args: Any) -> T:
    return await function(*args)


def _read_path(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _guard_url(_ctx: click.Context, _param: click.Parameter, value: str | None) -> SecretUrl | None:
    return None if value is None else SecretUrl(value)


def shared_options(function: _Command) -> _Command:
    """The options every command has; the command gets them as ``settings``."""

    @click.option(
        "--url",
        metavar="URL",
        callback=_guard_url,
        help="Provider, such as sqlite:///jobs.db; default: the configuration or QUEUE_URL. "
        "Keep credentials out of it: put them into QUEUE_URL or QUEUE_URL_FILE.",
    )
    @click.option(
        "--queue", metavar="NAME", help="Queue; default: the configuration or QUEUE_NAME."
    )
    @click.option(
        "--config",
        "file",
        metavar="FILE",
        callback=_read_path,
        help="Configuration file; default: config.toml or config.yaml here, if there is one.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Output for machines.")
    @click.option(
        "--log-level",
        type=click.Choice(_LEVELS, case_sensitive=False),
        help="Log to stderr from this level on.",
    )
    @click.option("-v", "--verbose", count=True, help="Log what happens; -vv: in detail.")
    @functools.wraps(function)
    def command(
        *,
        url: SecretUrl | None,
        queue: str | None,
        file: Path | None,
        as_json: bool,
        log_level: str | None,
        verbose: int,
        **options: Any,
    ) -> Any:
        if log_level is None and verbose:
            log_level = "info" if verbose == 1 else "debug"
        settings = Settings(url=url, queue=queue, file=file, json=as_json, log_level=log_level)
        return function(settings=settings, **options)

    return command  # type: ignore[return-value]  # the same, with the shared options taken out


def yes_option(function: _Command) -> _Command:
    """``--yes``: do not ask."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(function)
