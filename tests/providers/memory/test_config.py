"""From a URL to a provider; options that are refused; what SQLite's errors become; what an import loads."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from queue_runtime.abc import ProviderFactory, ReceiverOptions
from queue_runtime.errors import (
    ConfigurationError,
    ConnectionFailed,
    PermissionDenied,
    ProviderError,
    QueueError,
    QueueFull,
    Throttled,
    ValidationError,
)
from queue_runtime.messages import Message, QueueName
from queue_runtime.providers import open_provider
from queue_runtime.providers.memory import (
    MEMORY_FACTORY,
    SQLITE_FACTORY,
    MemoryConfig,
    SqliteConfig,
    SqliteFactory,
)
from queue_runtime.providers.memory.engine import QueueOptions
from queue_runtime.providers.memory.errors import from_sqlite

from ...fresh_python import run_python

QUEUE = QueueName("orders")


# --- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("lock_duration", 0, "lock_duration is 0: expected seconds, more than 0 and at most 3"),
        ("lock_duration", math.nan, "lock_duration is nan"),
        ("lock_duration", "5", "lock_duration is '5': expected seconds"),
        ("lock_duration", True, "lock_duration is True"),
        ("lock_duration", 1e12, "at most 315360000"),
        ("max_delivery_count", -1, "expected a whole number, at least 0, or none"),
        ("max_delivery_count", 1.5, "max_delivery_count is 1.5"),
        ("max_queue_size", 0, "max_queue_size is 0: expected a whole number, at least 1"),
        ("max_queue_size", None, "max_queue_size is None"),
        ("max_message_bytes", True, "max_message_bytes is True"),
        ("default_time_to_live", 0, "more than 0 and at most 315360000, or none"),
        ("deduplication_window", -0.1, "at least 0 and at most"),
    ],
)
def test_options_that_are_refused(name: str, value: Any, problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        QueueOptions(**{name: value})
    assert problem in str(caught.value)


@pytest.mark.parametrize("name", ["declare", "dead_letter_expired"])
def test_flags_are_bools(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        QueueOptions(**{name: "yes"})


@pytest.mark.parametrize("limit", [0, None])
def test_no_limit_of_deliveries(limit: int | None) -> None:
    assert QueueOptions(max_delivery_count=limit).delivery_limit == math.inf
    assert QueueOptions(deduplication_window=0, default_time_to_live=None).delivery_limit == 10


@pytest.mark.parametrize("path", ["", None, "a\0b"])
def test_paths_that_are_refused(path: Any) -> None:
    with pytest.raises(ValidationError, match="path is"):
        SqliteConfig(path=path)


# --- URLs ----------------------------------------------------------------------------------------------


def test_memory_urls() -> None:
    read = MEMORY_FACTORY.config_from_url
    assert read("memory://") == read("memory:///") == MemoryConfig()
    url = "memory://a%20b?lock_duration=0.5&max_delivery_count=none&declare=no&max_queue_size=7"
    assert read(url) == MemoryConfig(
        name="a b", lock_duration=0.5, max_delivery_count=None, declare=False, max_queue_size=7
    )


def test_sqlite_urls() -> None:
    read = SQLITE_FACTORY.config_from_url
    assert read("sqlite:///relative.db") == SqliteConfig(path="relative.db")
    assert read("sqlite:////dir/a%20b.db?synchronous=normal&busy_timeout=0") == SqliteConfig(
        path="/dir/a b.db", synchronous="normal", busy_timeout=0.0
    )


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sqlite://", "no path: write sqlite:///file.db"),
        ("sqlite:///", "no path"),
        ("sqlite:///?declare=true", "no path"),
        ("sqlite://relative.db", "names a host 'relative.db'"),
        ("sqlite://me:secret@host/x.db", "names a host 'host'"),
        ("sqlite:///a%00b.db", "NUL"),
        ("memory:///file.db", "has a path '/file.db'"),
        ("memory://?declare", "option 1"),
    ],
)
def test_urls_that_are_refused(url: str, problem: str) -> None:
    factory = SQLITE_FACTORY if url.startswith("sqlite") else MEMORY_FACTORY
    with pytest.raises(ConfigurationError) as caught:
        factory.config_from_url(url)
    assert problem in str(caught.value)
    assert "secret" not in str(caught.value)


def test_all_problems_at_once() -> None:
    url = "sqlite:///a.db?lock_duration=-1&synchronous=off&busy_timeout=soon&colour=blue&name=x"
    with pytest.raises(ConfigurationError) as caught:
        SQLITE_FACTORY.config_from_url(url)
    places = sorted(problem.rpartition(" @ ")[2] for problem in caught.value.problems)
    assert places == ["busy_timeout", "colour", "lock_duration", "name", "synchronous"]
    assert "max_queue_size" in str(caught.value)  # the known ones are listed


# --- opening -------------------------------------------------------------------------------------------


def test_the_factories_are_factories() -> None:
    for factory, config in ((MEMORY_FACTORY, MemoryConfig), (SQLITE_FACTORY, SqliteConfig)):
        assert isinstance(factory, ProviderFactory)
        assert factory.config_type is config


async def test_a_file_keeps_messages_between_connections(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'file.db'}"
    async with open_provider(url) as provider:
        assert (provider.name, provider.capabilities.durable) == ("sqlite", True)
        assert provider.capabilities.multi_process
        sender = await provider.open_sender(QUEUE)
        await sender.send([Message(b"kept", session_id="s")])
    async with open_provider(SqliteConfig(path=str(tmp_path / "file.db"))) as provider:
        source = await provider.open_receiver(QUEUE, ReceiverOptions())
        (delivery,) = await source.receive(1, 5)
        assert delivery.body == b"kept"


async def test_the_clock_of_a_file_can_be_given(tmp_path: Path) -> None:
    factory = SqliteFactory(clock=lambda: 1_000_000_000.0)
    provider = await factory.open(SqliteConfig(path=str(tmp_path / "file.db")))
    sender = await provider.open_sender(QUEUE)
    await sender.send([Message(b"")])
    (peeked,) = await provider.peek(QUEUE, 1)
    assert peeked.enqueued_at.timestamp() == 1_000_000_000.0
    await provider.aclose()


async def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match=r"missing.*check that the directory exists"):
        await SQLITE_FACTORY.open(SqliteConfig(path=str(tmp_path / "missing" / "file.db")))
    (tmp_path / "text.db").write_text("no database at all, but long enough to look like one" * 40)
    with pytest.raises(ProviderError, match="not an SQLite database") as caught:
        await SQLITE_FACTORY.open(SqliteConfig(path=str(tmp_path / "text.db")))
    assert caught.value.code == "SQLITE_NOTADB"


def test_importing_the_package_loads_no_store() -> None:
    code = (
        "import json, sys, queue_runtime.providers.memory\nprint(json.dumps(sorted(sys.modules)))\n"
    )
    [printed] = run_python(code)
    loaded = set(json.loads(printed))
    assert "queue_runtime.providers.memory.config" in loaded
    assert not loaded & {"sqlite3", "queue_runtime.providers.memory.heap_engine"}


# --- SQLite's errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected", "transient"),
    [
        ("SQLITE_BUSY", Throttled, True),
        ("SQLITE_BUSY_SNAPSHOT", Throttled, True),
        ("SQLITE_LOCKED_SHAREDCACHE", Throttled, True),
        ("SQLITE_CANTOPEN", ConnectionFailed, True),
        ("SQLITE_IOERR_READ", ConnectionFailed, True),
        ("SQLITE_READONLY_DIRECTORY", PermissionDenied, False),
        ("SQLITE_PERM", PermissionDenied, False),
        ("SQLITE_FULL", QueueFull, True),
        ("SQLITE_CORRUPT_VTAB", ProviderError, False),
        ("SQLITE_NOTADB", ProviderError, False),
        ("SQLITE_MISUSE", ProviderError, False),
        (None, ProviderError, False),
    ],
)
def test_what_sqlite_errors_become(
    name: str | None, expected: type[QueueError], transient: bool
) -> None:
    error = sqlite3.OperationalError("what SQLite said")
    if name is not None:
        error.sqlite_errorname = name
    mapped = from_sqlite(error, "some.db")
    assert type(mapped) is expected
    assert mapped.is_transient is transient
    assert "some.db" in str(mapped)
    assert "what SQLite said" in str(mapped)
    assert (name or "OperationalError") in str(mapped)
