"""The embedded broker's own refusals, and what SQLite's errors mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from queue_runtime.abc import Lease
from queue_runtime.errors import (
    ConnectionFailed,
    InvalidReceipt,
    LockLost,
    PermissionDenied,
    ProviderError,
    QueueError,
    QueueFull,
    QueueNotFound,
    SessionLocked,
    Throttled,
)
from queue_runtime.messages import QueueName, SessionId, Settlement

from ..leases import lock_is_over

if TYPE_CHECKING:
    import sqlite3  # not loaded for a broker in memory

__all__ = [
    "from_sqlite",
    "invalid_receipt",
    "lock_lost",
    "queue_full",
    "queue_not_found",
    "session_locked",
]


def lock_lost(lease: Lease) -> LockLost:
    """The refusal of a call under a lock that is over."""
    return lock_is_over(
        lease,
        "it expired, was released or was taken over",
        "handle for less than the lock's duration, renew the lock or make lock_duration longer",
    )


def invalid_receipt(settlement: Settlement) -> InvalidReceipt:
    """The refusal of a settlement whose delivery is not in flight here."""
    return InvalidReceipt(
        f"delivery {settlement.delivery.receipt!a} of message {settlement.delivery.message_id!a} is not "
        "in flight at this receiver: it was settled before, or came from another receiver; nothing changed"
    )


def queue_full(queue: QueueName, limit: int) -> QueueFull:
    """The refusal of a message above ``max_queue_size``."""
    return QueueFull(
        f"queue {queue!s} holds {limit} messages, which is its max_queue_size: "
        "wait for consumers, or raise the limit"
    )


def queue_not_found(queue: QueueName, store: str) -> QueueNotFound:
    """The refusal to use a queue that does not exist where ``declare`` is false."""
    return QueueNotFound(
        f"queue {queue!s} does not exist in {store} and declare is false: "
        "check the name, or open with declare=true to create it"
    )


def session_locked(session_id: SessionId) -> SessionLocked:
    """The refusal to lock a session twice."""
    return SessionLocked(
        f"session {session_id!a} is locked by a receiver: wait until it is released or its lock expires"
    )


_BUSY: Final = frozenset({"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"})
_UNREACHABLE: Final = frozenset({"SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_NOLFS"})
_FORBIDDEN: Final = frozenset({"SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH"})
_NOT_OURS: Final = {
    "SQLITE_CORRUPT": "the file is damaged: restore it from a backup, or salvage it with sqlite3's .recover",
    "SQLITE_NOTADB": "the file is not an SQLite database: check the path",
}


def from_sqlite(error: sqlite3.Error, path: str) -> QueueError:
    """What an SQLite error means to the caller; to be raised ``from`` it.

    Judged by the primary result code (https://www.sqlite.org/rescode.html); its name, with the extended part
    as SQLite gives it, is the code of a ``ProviderError``.

    Args:
        error: The error.
        path: The database file, for the text.
    """
    code = getattr(error, "sqlite_errorname", None) or type(error).__name__
    primary = "_".join(code.split("_")[:2])
    text = f"{path}: {error}"
    if primary in _BUSY:
        return Throttled(
            f"{text} ({code}): other processes kept the file locked for the whole busy_timeout; "
            "try again, or raise busy_timeout"
        )
    if primary in _UNREACHABLE:
        return ConnectionFailed(
            f"{text} ({code}): check that the directory exists and that the file can be read and written"
        )
    if primary in _FORBIDDEN:
        return PermissionDenied(f"{text} ({code}): the file and its directory must be writable")
    if primary == "SQLITE_FULL":
        return QueueFull(f"{text} ({code}): the disk is full; nothing was stored")
    return ProviderError(
        f"{text}; {_NOT_OURS[primary]}" if primary in _NOT_OURS else text, code=code
    )
