"""The layered loader: defaults, preset, file, environment, arguments - the later one wins, value by value."""

from __future__ import annotations

import enum
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import attrs

from queue_runtime.errors import ConfigurationError
from queue_runtime.secret import MASK, Secret, SecretUrl, is_secret_name, mask_url
from queue_runtime.text import escape

from .environment import read_environment
from .presets import PRESETS
from .structuring import INTERNAL, Problem, shown, step, structure
from .values import RuntimeConfig, provider_url

__all__ = ["Explained", "explain", "load_config"]

_DEFAULT_FILES: Final = ("config.toml", "config.yaml")
_MAX_FILE: Final = 1_048_576
"""Bytes read of a configuration file."""
_MAX_DEPTH: Final = 6
"""Tables within tables that are merged; there are no settings that deep."""
_COMMON_OPTIONS: Final = frozenset({"declare", "lock_duration", "max_delivery_count"})
"""Options that mean the same for every provider, so they stay when a later layer names another provider."""


class Explained(NamedTuple):
    """One value of a configuration and where it came from.

    Args:
        path: Where the value is, as in a configuration file.
        value: The value as text, masked if secret.
        origin: ``default``, ``preset NAME``, the file, ``environment NAME`` or ``arguments``.
    """

    path: str
    value: str
    origin: str


def load_config(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RuntimeConfig:
    """Put a configuration together from all its layers.

    Defaults, then the preset, then the file, then the environment
    (:data:`~queue_runtime.config.ENVIRONMENT`), then ``overrides``. A provider URL's query counts as
    ``provider_options`` of the layer the URL stands in; a URL of another scheme discards the options of
    the layers below it, but for the three that all providers share.

    Args:
        path: A TOML or YAML file, told apart by its ending; ``None``: ``config.toml`` or ``config.yaml`` in the
            current directory, if there is one.
        environ: Environment variables; ``None``: those of the process.
        overrides: Nested like a file; values may also be finished configuration objects.

    Raises:
        ConfigurationError: With every problem of every layer, each as ``problem @ path (origin)``; secrets are
            not shown.
    """
    layers = _Layers()
    arguments = overrides or {}
    contents, file = _read_file(path, layers.problems)
    name = arguments.get("preset", contents.get("preset"))
    if isinstance(name, str) and name in PRESETS:  # otherwise it is reported with the rest
        layers.add(PRESETS[name], f"preset {name}")
    layers.add(contents, file)
    settings, problems = read_environment(os.environ if environ is None else environ)
    layers.problems += problems
    layers.start_layer()
    for setting in sorted(settings, key=lambda setting: setting.path != "provider"):
        layers.set(tuple(setting.path.split(".")), setting.value, setting.origin)
    layers.add(arguments, "arguments")
    return layers.finish()


@final
class _Layers:
    """The merged tree, the origin of every leaf, and the problems so far."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        # The defaults are a layer too: whoever sets one field of a part keeps that part's other defaults.
        self._tree: dict[Any, Any] = _as_tree(RuntimeConfig())
        self._origins: dict[str, str] = {}
        self._set_here: set[str] = set()

    def start_layer(self) -> None:
        """What is set from now on overrides what was set before."""
        self._set_here.clear()

    def add(self, contents: Mapping[Any, Any], origin: str) -> None:
        """Put a layer on top."""
        self.start_layer()
        # First, as it discards options of the layers below.
        if "provider" in contents:
            self.set(("provider",), contents["provider"], origin)
        others = {key: value for key, value in contents.items() if key != "provider"}
        self._descend((), others, origin)

    def _descend(self, path: tuple[Any, ...], table: Mapping[Any, Any], origin: str) -> None:
        if not table and path:
            self._table(path, origin)
        for key, value in table.items():
            if isinstance(value, Mapping) and len(path) < _MAX_DEPTH:
                self._descend((*path, key), value, origin)
            else:
                self.set((*path, key), value, origin)

    def set(self, path: tuple[Any, ...], value: Any, origin: str) -> None:
        """Set one leaf."""
        if path == ("provider",):
            self._set_provider(value, origin)
        elif path[0] == "provider_options" and _dotted(path) in self._set_here:
            self._problem("given in the URL's query too: keep one", path, origin)
        else:
            self._table(path[:-1], origin)[path[-1]] = value
            self._remember(path, origin)

    def _table(self, path: tuple[Any, ...], origin: str) -> dict[Any, Any]:
        """The table at ``path``, made where there is none."""
        table = self._tree
        for depth, key in enumerate(path, 1):
            below = table.get(key)
            if not isinstance(below, dict):
                was = self._origins.get(_dotted(path[:depth]))
                if was is not None:
                    # Said here, because structuring will only see what is put in its place.
                    self._problem("expected a table", path[:depth], was)
                below = table[key] = {}
                self._remember(path[:depth], origin)
            table = below
        return table

    def _set_provider(self, value: Any, origin: str) -> None:
        path = ("provider",)
        url: object = value
        options: dict[str, str] = {}
        if isinstance(value, (str, Secret, SecretUrl)):
            try:
                url, options = provider_url(value if isinstance(value, str) else value.reveal())
            except ConfigurationError as error:
                for problem in error.problems or (str(error),):
                    self._problem(problem, path, origin)
                return
        before = self._tree["provider"]
        if not isinstance(url, SecretUrl):
            self._discard_options(keep=frozenset())
        elif before is not None and _scheme(before) != _scheme(url):
            self._discard_options(keep=_COMMON_OPTIONS)
        self._tree["provider"] = url
        self._remember(path, origin)
        for name, option in options.items():
            self.set(("provider_options", name), option, origin)

    def _discard_options(self, keep: frozenset[str]) -> None:
        options = self._tree["provider_options"]
        if isinstance(options, dict):
            for name in [name for name in options if name not in keep]:
                del options[name]
                self._forget(_dotted(("provider_options", name)))

    def _remember(self, path: tuple[Any, ...], origin: str) -> None:
        where = _dotted(path)
        self._forget(where)
        self._origins[where] = origin
        self._set_here.add(where)

    def _forget(self, where: str) -> None:
        for old in [old for old in self._origins if f"{old}.".startswith(f"{where}.")]:
            del self._origins[old]

    def _problem(self, text: str, path: tuple[Any, ...], origin: str) -> None:
        self.problems.append(Problem(text, f"{_dotted(path)} ({origin})"))

    def finish(self) -> RuntimeConfig:
        """The configuration, or every problem of every layer."""
        config, found = structure(RuntimeConfig, self._tree)
        for problem in found:
            origin = self._origin_at_or_below(problem.path)
            where = f"{problem.path} ({origin})" if origin else problem.path
            self.problems.append(attrs.evolve(problem, path=where))
        if config is None or self.problems:
            count = len(self.problems)
            raise ConfigurationError(
                f"the configuration has {count} problem{'s' if count > 1 else ''}",
                tuple(str(problem) for problem in self.problems),
            )
        return attrs.evolve(config, origins=dict(self._origins))

    def _origin_at_or_below(self, where: str) -> str | None:
        below = (self._origins[path] for path in self._origins if path.startswith(f"{where}."))
        return _origin(self._origins, where) or next(below, None)


def _scheme(provider: object) -> str:
    return provider.reveal().partition("://")[0] if isinstance(provider, SecretUrl) else ""


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(step(key) for key in path)


def _origin(origins: Mapping[str, str], where: str) -> str | None:
    """The origin of a path, or of the whole that was set with it."""
    while where:
        if where in origins:
            return origins[where]
        where = where.rpartition(".")[0]
    return None


def _as_tree(config: Any) -> dict[Any, Any]:
    """The fields of an attrs object as nested tables; everything that is no attrs object is a leaf."""
    tree: dict[Any, Any] = {}
    for field in attrs.fields(type(config)):
        if INTERNAL in field.metadata:
            continue
        value = getattr(config, field.name)
        if attrs.has(type(value)):
            tree[field.name] = _as_tree(value)
        else:
            tree[field.name] = dict(value) if isinstance(value, Mapping) else value
    return tree


def _read_file(path: Path | None, problems: list[Problem]) -> tuple[Mapping[Any, Any], str]:
    """The contents of the configuration file and its name; nothing where there is none."""
    if path is None:
        present = [name for name in _DEFAULT_FILES if Path(name).is_file()]
        if len(present) > 1:
            problems.append(Problem("both are here: name the one to use", " and ".join(present)))
        if len(present) != 1:
            return {}, ""
        path = Path(present[0])
    origin = escape(str(path))
    try:
        return _parse(path), origin
    except _Unreadable as error:
        problems.append(Problem(str(error), origin))
        return {}, origin


class _Unreadable(Exception):
    """A configuration file cannot be used; the text says why and quotes nothing of it."""


def _parse(path: Path) -> Mapping[Any, Any]:
    is_toml = path.suffix.lower() == ".toml"
    if not is_toml and path.suffix.lower() not in {".yaml", ".yml"}:
        raise _Unreadable(
            f"{shown(path.suffix)} is not a known ending: expected .toml, .yaml or .yml"
        )
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise _Unreadable(f"cannot be read: {reason}") from None
    if len(data) > _MAX_FILE:
        raise _Unreadable(f"is larger than {_MAX_FILE} bytes, the most that is read")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _Unreadable(f"is not UTF-8 text (byte {error.start})") from None
    try:
        contents = tomllib.loads(text) if is_toml else _parse_yaml(text)
    except ValueError as error:  # TOMLDecodeError, or a number of too many digits
        raise _Unreadable(f"is not valid TOML: {error}") from None
    except RecursionError:
        raise _Unreadable("is nested too deeply") from None
    if not isinstance(contents, Mapping):
        raise _Unreadable("expected a table of settings at the top")
    return contents


def _parse_yaml(text: str) -> Any:
    import yaml  # only who has a YAML file pays for it

    try:
        contents = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        # Its own text quotes the line, and there may be a secret on it.
        mark = error.problem_mark
        where = f" (at line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        raise _Unreadable(f"is not valid YAML{where}") from None
    except (yaml.YAMLError, ValueError):
        raise _Unreadable("is not valid YAML") from None
    return {} if contents is None else contents


def explain(config: RuntimeConfig) -> list[Explained]:
    """Every value of a configuration with its origin, in the order of the documentation; secrets masked."""
    return list(_explain(config, "", config.origins))


def _explain(config: Any, prefix: str, origins: Mapping[str, str]) -> Iterator[Explained]:
    for field in attrs.fields(type(config)):
        if INTERNAL in field.metadata:
            continue
        value = getattr(config, field.name)
        path = f"{prefix}{field.name}"
        if attrs.has(type(value)):
            yield from _explain(value, f"{path}.", origins)
        elif isinstance(value, Mapping):
            for name, entry in value.items():
                where = f"{path}.{step(name)}"
                yield Explained(where, _shown(name, entry), _origin(origins, where) or "default")
        else:
            yield Explained(path, _shown(field.name, value), _origin(origins, path) or "default")


def _shown(name: str, value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, str) and is_secret_name(name):
        return MASK
    return escape(mask_url(str(value)))
