"""How the embedded brokers are opened."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, final

import trio

from .config import MemoryConfig, SqliteConfig, memory_config_from_url, sqlite_config_from_url

if TYPE_CHECKING:
    from .connection import Clock, Hubs
    from .heap_engine import HeapStore
    from .provider import MemoryProvider, SqliteProvider

__all__ = ["MemoryFactory", "SqliteFactory"]


@final
class _Broker:
    """What the connections to one broker in memory share."""

    def __init__(self, store: HeapStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.hubs: Hubs = {}


# Of the trio run, not of the process: runs are isolated, and their brokers go with them.
_BROKERS: Final = trio.lowlevel.RunVar[dict[str, _Broker]]("queue_runtime memory brokers")


@final
class MemoryFactory:
    """Opens ``memory://`` brokers."""

    config_type: type[MemoryConfig] = MemoryConfig

    def config_from_url(self, url: str) -> MemoryConfig:
        """As :func:`.config.memory_config_from_url`."""
        return memory_config_from_url(url)

    async def open(self, config: MemoryConfig) -> MemoryProvider:
        """Connect to the broker of that name in this trio run; the first connection makes it."""
        from .connection import wall_clock
        from .heap_engine import HeapEngine, HeapStore
        from .provider import MemoryProvider

        await trio.lowlevel.checkpoint()
        try:
            brokers = _BROKERS.get()
        except LookupError:
            brokers = {}
            _BROKERS.set(brokers)
        if config.name not in brokers:
            brokers[config.name] = _Broker(HeapStore(), wall_clock())
        broker = brokers[config.name]
        return MemoryProvider(HeapEngine(broker.store, config), broker.clock, broker.hubs)


@final
class SqliteFactory:
    """Opens ``sqlite://`` brokers.

    Args:
        clock: Wall-clock seconds, the same for all processes that share a file.
    """

    config_type: type[SqliteConfig] = SqliteConfig

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock

    def config_from_url(self, url: str) -> SqliteConfig:
        """As :func:`.config.sqlite_config_from_url`."""
        return sqlite_config_from_url(url)

    async def open(self, config: SqliteConfig) -> SqliteProvider:
        """Open the file, and create it if it does not exist.

        Raises:
            ConfigurationError: It is another application's file, or a newer version's.
            ConnectionFailed, PermissionDenied, Throttled, ProviderError: See :func:`.errors.from_sqlite`.
        """
        from .provider import SqliteProvider
        from .sqlite_engine import SqliteEngine

        def connect() -> SqliteEngine:
            return SqliteEngine(
                config.path,
                config,
                synchronous=config.synchronous,
                busy_timeout=config.busy_timeout,
            )

        return SqliteProvider(await trio.to_thread.run_sync(connect), self._clock)
