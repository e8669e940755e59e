"""The file behind ``sqlite://``: its tables, how it is opened, and how messages lie in its rows.

Where a message is
    ``messages`` holds what was sent, from the time it can be delivered until it is settled. A row is written
    once and deleted once (and updated only when a delivery failed), because it carries the body. Two narrow
    tables say where the message stands: ``waiting`` (in its session's order) or ``flights`` (delivered, not
    settled). Scheduled messages and dead letters live in tables of their own, so that they cost nothing.

Whose turn it is
    A row of ``sessions`` (a *lane*: one per session, and one without a name for all messages without a
    session) has a ``turn`` exactly while it can be delivered. The index over holder and turn therefore lists
    what a receiver may take next, whatever else the file holds. Timers are found the same way: each kind has
    an index over nothing but the rows that wait for a time.

Ids
    A message's id is its queue's number followed by :data:`SEQUENCE_BITS` bits of its sequence number, so one
    b-tree keeps each queue's messages together and in order without a second index.
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from queue_runtime.errors import ConfigurationError
from queue_runtime.messages import DeadLetterInfo, Message, MessageId, SessionId

from .errors import from_sqlite

__all__ = [
    "APPLICATION_ID",
    "HISTORY",
    "LOG_LIMIT",
    "MAX_INTEGER",
    "MAX_SEQUENCE",
    "OLDEST_LIBRARY",
    "SCHEMA_VERSION",
    "SEQUENCE_BITS",
    "Synchronous",
    "bound_log",
    "check_library",
    "decode_history",
    "decode_message",
    "encode_details",
    "moment",
    "open_database",
    "storable",
    "transaction",
    "translated",
]

Synchronous = Literal["full", "normal"]

SEQUENCE_BITS: Final = 44
"""Bits of a message's id that hold its sequence number: 17 million million messages in each of 500,000 queues."""

MAX_SEQUENCE: Final = (1 << SEQUENCE_BITS) - 1
"""The highest sequence number."""

MAX_INTEGER: Final = (1 << 62) - 1
"""What larger numbers from callers are cut to, so that they fit SQLite's integers."""

APPLICATION_ID: Final = 0x51525431
"""``QRT1``, in the file's header: tells our files from other applications'."""

SCHEMA_VERSION: Final = 1
"""Grows with every change of the tables; kept in the file's ``user_version``."""

OLDEST_LIBRARY: Final = (3, 37, 0)
"""The first SQLite with ``STRICT`` tables (``RETURNING`` came with 3.35)."""

LOG_LIMIT: Final = 32 << 20
"""Bytes of the write-ahead log beyond which writers are made to wait until it is empty."""

_SLICE: Final = 10
"""Milliseconds SQLite itself waits for a lock. Its waits grow to 100 ms, which starves some of many writers for
seconds; so :func:`transaction` asks again and again instead."""

_SCHEMA: Final = """
CREATE TABLE queues (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    prefix TEXT NOT NULL,
    lane INTEGER NOT NULL,
    last_sequence INTEGER NOT NULL DEFAULT 0,
    last_token INTEGER NOT NULL DEFAULT 0,
    last_delivery INTEGER NOT NULL DEFAULT 0,
    last_turn INTEGER NOT NULL DEFAULT 0,
    waiting INTEGER NOT NULL DEFAULT 0,
    in_flight INTEGER NOT NULL DEFAULT 0,
    scheduled INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0,
    active INTEGER NOT NULL DEFAULT 0,
    locked INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    queue INTEGER NOT NULL,
    name TEXT,
    token INTEGER NOT NULL DEFAULT 0,
    holder TEXT,
    locked_until REAL,
    capacity INTEGER NOT NULL DEFAULT 0,
    in_flight INTEGER NOT NULL DEFAULT 0,
    messages INTEGER NOT NULL DEFAULT 0,
    turn INTEGER,
    halted_by INTEGER,
    has_state INTEGER NOT NULL DEFAULT 0,
    UNIQUE (queue, name)
) STRICT;
CREATE INDEX sessions_turn ON sessions (queue, holder, turn) WHERE turn IS NOT NULL;
CREATE INDEX sessions_lock ON sessions (queue, locked_until) WHERE locked_until IS NOT NULL;

CREATE TABLE session_states (
    lane INTEGER PRIMARY KEY,
    state BLOB NOT NULL
) STRICT;

CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    lane INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    own_id INTEGER NOT NULL,
    enqueued_at REAL NOT NULL,
    time_to_live REAL,
    expires_at REAL,
    deliveries INTEGER NOT NULL DEFAULT 0,
    first_failed_at REAL,
    history TEXT,
    details TEXT,
    body BLOB NOT NULL
) STRICT;

CREATE TABLE waiting (
    lane INTEGER NOT NULL,
    id INTEGER NOT NULL,
    queue INTEGER NOT NULL,
    delayed_until REAL,
    expires_at REAL,
    PRIMARY KEY (lane, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX waiting_delay ON waiting (queue, delayed_until) WHERE delayed_until IS NOT NULL;
CREATE INDEX waiting_life ON waiting (queue, expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE flights (
    id INTEGER PRIMARY KEY,
    lane INTEGER NOT NULL,
    queue INTEGER NOT NULL,
    number INTEGER NOT NULL,
    deliveries INTEGER NOT NULL,
    token INTEGER NOT NULL,
    holder TEXT,
    locked_until REAL
) STRICT;
CREATE INDEX flights_lane ON flights (lane, id) WHERE locked_until IS NULL;
CREATE INDEX flights_lock ON flights (queue, locked_until) WHERE locked_until IS NOT NULL;

CREATE TABLE scheduled (
    id INTEGER PRIMARY KEY,
    queue INTEGER NOT NULL,
    due REAL NOT NULL,
    session TEXT,
    message_id TEXT NOT NULL,
    own_id INTEGER NOT NULL,
    time_to_live REAL,
    details TEXT,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX scheduled_due ON scheduled (queue, due, id);

CREATE TABLE dead (
    id INTEGER PRIMARY KEY,
    session TEXT,
    message_id TEXT NOT NULL,
    own_id INTEGER NOT NULL,
    enqueued_at REAL NOT NULL,
    time_to_live REAL,
    deliveries INTEGER NOT NULL,
    first_failed_at REAL,
    dead_lettered_at REAL NOT NULL,
    reason TEXT NOT NULL,
    description TEXT NOT NULL,
    halting INTEGER NOT NULL,
    details TEXT,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX dead_halting ON dead (session, id) WHERE halting = 1;

CREATE TABLE seen (
    queue INTEGER NOT NULL,
    deduplication_id TEXT NOT NULL,
    message_id TEXT NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (queue, deduplication_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX seen_until ON seen (queue, until);
"""


# Opening


def check_library(version: tuple[int, ...]) -> None:
    """Refuse an SQLite older than :data:`OLDEST_LIBRARY`.

    Raises:
        ConfigurationError: It is older.
    """
    if version < OLDEST_LIBRARY:
        raise ConfigurationError(
            f"this Python was built with SQLite {_dotted(version)}, sqlite:// needs "
            f"{_dotted(OLDEST_LIBRARY)} or later: use a newer Python or SQLite library, or memory://"
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@contextlib.contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn SQLite's errors into the runtime's."""
    try:
        yield
    except sqlite3.Error as error:
        raise from_sqlite(error, path) from error


def open_database(path: str, synchronous: Synchronous, busy_timeout: float) -> sqlite3.Connection:
    """Connect to the file at ``path``; create it with its tables if it does not exist.

    The connection is in autocommit mode, may be used by one thread at a time, and is to be closed by the caller.

    Args:
        path: The file.
        synchronous: ``full``: a commit is on the disk when it returns. ``normal``: the newest commits may be
            undone by a power failure (never by the end of a process); the file stays sound.
        busy_timeout: Seconds to wait while other processes write.

    Raises:
        ConfigurationError: The file belongs to something else, or to a newer version of this package.
        QueueError: As :func:`.errors.from_sqlite`; nothing is left open.
    """
    check_library(sqlite3.sqlite_version_info)
    with translated(path):
        db = sqlite3.connect(
            path,
            timeout=busy_timeout,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            db.execute("BEGIN")  # while another process may be creating the tables
            is_new = _is_new(db, path)
            db.execute("COMMIT")
            _use_wal(db, path, busy_timeout)
            db.execute(f"PRAGMA synchronous = {'FULL' if synchronous == 'full' else 'NORMAL'}")
            db.execute("PRAGMA temp_store = MEMORY")
            db.execute("PRAGMA cache_size = -16384")  # 16 MiB
            # The log is moved into the file at 16 MiB; four times rarer than by default, as most pages
            # change again soon. What a large transaction made it grow beyond is given back afterwards.
            db.execute("PRAGMA wal_autocheckpoint = 4096")
            db.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")
            if is_new:
                _create(db, path, busy_timeout)
            db.execute(f"PRAGMA busy_timeout = {_SLICE}")
        except BaseException:
            db.close()
            raise
    return db


def _is_new(db: sqlite3.Connection, path: str) -> bool:
    """Whether the file has no tables yet; raises unless it is new or ours. To be asked in a transaction."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application == APPLICATION_ID:
        if version != SCHEMA_VERSION:
            raise ConfigurationError(
                f"{path} has schema version {version}, this version of queue-runtime reads "
                f"{SCHEMA_VERSION}: install the version that wrote the file, or use another file"
            )
        return False
    if application != 0 or version != 0 or tables != 0:
        raise ConfigurationError(
            f"{path} is another application's SQLite database (application id {application:#x}, "
            f"{tables} tables, indexes and views; expected {APPLICATION_ID:#x}, or an empty file): "
            "use another path"
        )
    return True


def _use_wal(db: sqlite3.Connection, path: str, busy_timeout: float) -> None:
    """Switch to the write-ahead log: readers do not wait for writers, and a commit is one write and one sync."""
    deadline = time.monotonic() + busy_timeout
    while True:
        try:
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError:
            # While two processes open a new file, SQLite refuses one of them without waiting.
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.005)
            continue
        if mode != "wal":
            raise ConfigurationError(
                f"{path} cannot use a write-ahead log (its journal mode is {mode!r}): "
                "use a file on a local disk, or memory:// for a queue in memory"
            )
        return


def _create(db: sqlite3.Connection, path: str, busy_timeout: float) -> None:
    with transaction(db, busy_timeout):
        if _is_new(db, path):  # nobody else was faster
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


# Transactions


@contextlib.contextmanager
def transaction(db: sqlite3.Connection, busy_timeout: float) -> Iterator[None]:
    """A write transaction, once other processes' are over: committed at the end, undone by any exception.

    Raises:
        sqlite3.OperationalError: The file is still locked after ``busy_timeout`` seconds; or any other reason.
    """
    _begin(db, busy_timeout)
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # some errors end it
            db.execute("ROLLBACK")
        raise


def _begin(db: sqlite3.Connection, busy_timeout: float) -> None:
    deadline = time.monotonic() + busy_timeout
    while True:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() >= deadline:
                raise
            time.sleep(random.uniform(0.0005, 0.004))  # spreads those who wait
        else:
            return


def bound_log(db: sqlite3.Connection, log: Path) -> None:
    """After a commit: empty the log if it has outgrown :data:`LOG_LIMIT`.

    It is emptied by the way when nobody writes for a moment; between many writers that moment may not come.
    """
    try:
        size = log.stat().st_size
    except OSError:  # somebody moved it, which is not for the commit to complain about
        return
    if size > LOG_LIMIT:
        # Answers that it was too busy, rather than fail: then the next commit tries again.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


# Rows

# Times as text: json_array keeps only 15 digits of a number.
HISTORY: Final = (
    "json_array(reason, description, printf('%!.17g', dead_lettered_at),"
    " iif(first_failed_at IS NULL, NULL, printf('%!.17g', first_failed_at)), deliveries)"
)
"""What a dead letter tells of itself, as an expression over ``dead``: see :func:`decode_history`."""


def moment(seconds: float) -> datetime:
    """A time of day as a message shows it."""
    return datetime.fromtimestamp(seconds, UTC)


def storable(text: str) -> str:
    """``text`` with what UTF-8 cannot hold (lone surrogates) escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def encode_details(message: Message) -> str | None:
    """The fields that few messages have, as JSON; ``None``: it has none of them."""
    details: dict[str, Any] = {}
    if message.headers:
        details["headers"] = dict(message.headers)
    if message.correlation_id is not None:
        details["correlation_id"] = message.correlation_id
    if message.content_type is not None:
        details["content_type"] = message.content_type
    if message.deduplication_id is not None:
        details["deduplication_id"] = message.deduplication_id
    if message.scheduled_at is not None:
        details["scheduled_at"] = message.scheduled_at.isoformat()
    return json.dumps(details) if details else None


def decode_message(
    session_id: SessionId | None,
    message_id: MessageId | None,
    time_to_live: float | None,
    details: str | None,
    body: bytes,
) -> Message:
    """The message that was sent, with its own id (``None``: it had none)."""
    fields: dict[str, Any] = {} if details is None else json.loads(details)
    if "scheduled_at" in fields:
        fields["scheduled_at"] = datetime.fromisoformat(fields["scheduled_at"])
    return Message(
        body, session_id=session_id, message_id=message_id, time_to_live=time_to_live, **fields
    )


def decode_history(text: str | None) -> DeadLetterInfo | None:
    """Read what :data:`HISTORY` says."""
    if text is None:
        return None
    reason, description, at, failed, deliveries = json.loads(text)
    return DeadLetterInfo(
        reason,
        description,
        moment(float(at)),
        None if failed is None else moment(float(failed)),
        deliveries,
    )
