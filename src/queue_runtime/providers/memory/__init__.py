"""The embedded broker: in the process (``memory://``) or in a file (``sqlite://``), one set of semantics.

* ``engine``: the calls, values and rules that both stores share;
* ``heap_engine``, ``heap_queue``, ``heap_lane``: the store in memory, the reference of the semantics;
* ``sqlite_engine`` with its ``sqlite_…`` modules: the store in a file;
* ``connection``, ``waiting``: how trio's tasks call an engine, and wait for work;
* ``provider``, ``receiver``: the ports;
* ``factory``, ``config``, ``errors``: from a URL to a provider, and from SQLite's errors to ours.

Importing the package loads neither ``sqlite3`` nor an engine.
"""

from __future__ import annotations

from typing import Final

from .config import MemoryConfig as MemoryConfig
from .config import SqliteConfig as SqliteConfig
from .factory import MemoryFactory as MemoryFactory
from .factory import SqliteFactory as SqliteFactory

__all__ = [
    "MEMORY_FACTORY",
    "SQLITE_FACTORY",
    "MemoryConfig",
    "MemoryFactory",
    "SqliteConfig",
    "SqliteFactory",
]

MEMORY_FACTORY: Final = MemoryFactory()
"""The factory of ``memory://``."""

SQLITE_FACTORY: Final = SqliteFactory()
"""The factory of ``sqlite://``."""
