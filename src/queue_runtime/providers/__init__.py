"""Provider selection: from a URL or a configuration object to the provider, importing nothing that is not used.

The built-in providers stand in a table; all others are entry points of the group ``queue_runtime.providers``,
which are looked for only when the table does not know the scheme.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, final

import attrs

from queue_runtime.abc import Provider, ProviderFactory
from queue_runtime.config import split_url
from queue_runtime.config.structuring import did_you_mean, shown
from queue_runtime.errors import ConfigurationError
from queue_runtime.secret import SecretUrl

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["ENTRY_POINT_GROUP", "Registry", "Target", "open_provider", "resolve_provider"]

ENTRY_POINT_GROUP: Final = "queue_runtime.providers"
"""Where a third party's package names its factory; the entry point's name is the URL's scheme."""


@final
@attrs.frozen
class Target:
    """Where a factory is, without importing it.

    Args:
        module: The module to import.
        attribute: The factory's name in it.
        extra: The extra of this distribution that installs what the provider needs.
    """

    module: str
    attribute: str
    extra: str | None = None


_MEMORY: Final = "queue_runtime.providers.memory"
_BUILT_IN: Final[Mapping[str, Target]] = {
    "azure": Target("queue_runtime.providers.azure", "FACTORY", extra="azure"),
    "memory": Target(_MEMORY, "MEMORY_FACTORY"),
    "sqlite": Target(_MEMORY, "SQLITE_FACTORY"),
    "sqs": Target("queue_runtime.providers.sqs", "FACTORY", extra="sqs"),
}


def _entry_points() -> Iterable[EntryPoint]:
    from importlib.metadata import (
        entry_points,
    )  # slow to import, and not needed for what is built in

    return entry_points(group=ENTRY_POINT_GROUP)


@final
class Registry:
    """Knows the providers: a table of built-in ones, and a way to find others.

    Args:
        built_in: Scheme to factory.
        find_entry_points: Finds the others; called only when a scheme or type is not built in.
    """

    def __init__(
        self,
        built_in: Mapping[str, Target] = _BUILT_IN,
        find_entry_points: Callable[[], Iterable[EntryPoint]] = _entry_points,
    ) -> None:
        self._built_in = built_in
        self._find_entry_points = find_entry_points

    def resolve(self, source: object) -> tuple[ProviderFactory, Any]:
        """See :func:`resolve_provider`."""
        found = self._find(source)
        return found.factory, found.config

    @asynccontextmanager
    async def open(self, source: object) -> AsyncIterator[Provider]:
        """See :func:`open_provider`."""
        found = self._find(source)
        with _explained(found.scheme, found.target):
            provider = await found.factory.open(found.config)
        try:
            yield provider
        finally:
            await provider.aclose()

    def _find(self, source: object) -> _Found:
        if isinstance(source, SecretUrl):
            source = source.reveal()
        if not isinstance(source, str):
            return self._by_type(source)
        scheme = self._scheme(source)
        target = self._target(scheme)
        factory = _load(scheme, target)
        with _explained(scheme, target):
            return _Found(scheme, target, factory, factory.config_from_url(source))

    def _scheme(self, url: str) -> str:
        if "://" not in url and url.lower() in self._schemes():
            raise ConfigurationError(f"{shown(url)} is not a provider URL: did you mean {url}://?")
        parts, _ = split_url(url)
        return parts.scheme.lower()

    def _target(self, scheme: str) -> Target:
        targets = self._built_in if scheme in self._built_in else self._schemes()
        if scheme not in targets:
            raise ConfigurationError(
                f"no provider for {shown(scheme + '://')}"
                + did_you_mean(scheme, targets)
                + f"; others come from packages with an entry point in {ENTRY_POINT_GROUP!r}"
            )
        return targets[scheme]

    def _schemes(self) -> dict[str, Target]:
        """Every scheme there is; what is built in goes before what is installed."""
        installed = {
            point.name.lower(): Target(point.module, point.attr)
            for point in self._find_entry_points()
        }
        return {**installed, **self._built_in}

    def _by_type(self, config: object) -> _Found:
        """The provider whose configuration class made ``config``.

        The object exists, so the package of its class has been imported, and with it - or in it - its factory:
        providers of packages that nobody imported are not touched.
        """
        for scheme, target in self._imported():
            factory = _load(scheme, target)
            if type(config) is factory.config_type:
                return _Found(scheme, target, factory, config)
        raise ConfigurationError(
            f"an object of type {type(config).__name__} is not a provider: expected a URL or a provider's "
            f"configuration object; known schemes: {', '.join(sorted(self._schemes()))}"
        )

    def _imported(self) -> Iterator[tuple[str, Target]]:
        for scheme, target in self._built_in.items():
            if target.module in sys.modules:
                yield scheme, target
        for scheme, target in self._schemes().items():
            if scheme not in self._built_in and target.module.partition(".")[0] in sys.modules:
                yield scheme, target


@attrs.frozen
class _Found:
    scheme: str
    target: Target
    factory: ProviderFactory
    config: Any


def _load(scheme: str, target: Target) -> ProviderFactory:
    with _explained(scheme, target):
        module = import_module(target.module)
    factory = getattr(module, target.attribute, None)
    if not isinstance(factory, ProviderFactory):
        raise ConfigurationError(
            f"provider {scheme!r} is registered as {target.module}:{target.attribute}, "
            "which is not a ProviderFactory (config_type, config_from_url, open)"
        )
    return factory


@contextmanager
def _explained(scheme: str, target: Target) -> Iterator[None]:
    """Turn a missing package into advice; what this package itself lacks is a bug and stays one."""
    try:
        yield
    except ImportError as error:
        missing = error.name or ""
        if missing.partition(".")[0] == "queue_runtime":
            raise
        cure = (
            "install what it needs"
            if target.extra is None
            else f"pip install 'queue-runtime[{target.extra}]'"
        )
        raise ConfigurationError(
            f"provider {scheme!r} needs {missing or 'a package'}, which cannot be imported: {cure}"
        ) from error


_REGISTRY: Final = Registry()


def resolve_provider(source: object) -> tuple[ProviderFactory, Any]:
    """The factory for ``source``, and the configuration to open it with.

    Args:
        source: A URL (``str`` or :class:`~queue_runtime.secret.SecretUrl`), or a provider's configuration
            object.

    Raises:
        ConfigurationError: Not a URL, an unknown scheme, a package that is not installed, bad options, or an
            object that is no provider's configuration. Secrets are masked.
    """
    return _REGISTRY.resolve(source)


@asynccontextmanager
async def open_provider(source: object) -> AsyncIterator[Provider]:
    """Connect to the provider of ``source`` for the time of an ``async with`` block.

    Args:
        source: As for :func:`resolve_provider`.

    Raises:
        ConfigurationError: As :func:`resolve_provider`.
        AuthenticationFailed, ConnectionFailed, PermissionDenied: As the provider's factory.
    """
    async with _REGISTRY.open(source) as provider:
        yield provider
