"""What senders do inside a transaction: store or schedule messages, drop duplicates. See :mod:`.sqlite_engine`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from queue_runtime.messages import Message, MessageId, QueueName, SendResult

from .errors import queue_full
from .sqlite_lane import Lane
from .sqlite_queue import QueueTransaction
from .sqlite_schema import encode_details, moment

__all__ = ["store"]


def store(
    work: QueueTransaction, queue: QueueName, messages: Sequence[Message]
) -> list[SendResult]:
    """Store messages: see :meth:`.engine.Engine.send`."""
    intake = _Intake(work)
    limit = work.options.max_queue_size
    room = limit - work.waiting - work.in_flight - work.scheduled
    results: list[SendResult] = []
    for message in messages:
        first = _first_seen(work, message)
        if first is not None:
            results.append(SendResult(first, duplicate=True))
        elif room <= 0:
            results.append(SendResult(None, error=queue_full(queue, limit)))
        else:
            room -= 1
            results.append(intake.take(message))
    intake.write()
    return results


@final
class _Intake:
    """The messages being stored by one call."""

    def __init__(self, work: QueueTransaction) -> None:
        self._work = work
        self._at = moment(work.now)
        self._lanes: dict[str | None, Lane] = {}
        self._counts: dict[Lane, int] = {}
        self._stored: list[tuple[Any, ...]] = []
        self._waiting: list[tuple[Any, ...]] = []

    def take(self, message: Message) -> SendResult:
        """Accept a message, for :meth:`write` or for later."""
        work, own_id = self._work, message.message_id
        work.last_sequence = sequence = work.last_sequence + 1
        # Skips the validation, which a prefix of hexadecimal digits and a number cannot fail.
        message_id = own_id or str.__new__(MessageId, f"{work.prefix}-{sequence}")
        _remember(work, message, message_id)
        # What every table of messages begins and ends with.
        head = (work.base + sequence, message_id, own_id is not None, message.time_to_live)
        tail = (encode_details(message), message.body)
        if message.scheduled_at is not None and message.scheduled_at > self._at:
            work.scheduled += 1
            work.db.execute(
                "INSERT INTO scheduled (id, message_id, own_id, time_to_live, queue, due, session,"
                " details, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*head, work.queue, message.scheduled_at.timestamp(), message.session_id, *tail),
            )
        else:
            lane = self._lane(message.session_id)
            expires_at = work.expiry(message.time_to_live, work.now)
            self._stored.append((*head, lane.id, work.now, expires_at, *tail))
            self._waiting.append((lane.id, head[0], work.queue, expires_at))
        return SendResult(message_id, sequence)

    def _lane(self, session: str | None) -> Lane:
        """The lane of one more message."""
        lane = self._lanes.get(session)
        if lane is None:
            lane = self._lanes[session] = self._work.open_lane(session)
        self._counts[lane] = self._counts.get(lane, 0) + 1
        return lane

    def write(self) -> None:
        """Put the accepted messages at the end of their lanes."""
        work = self._work
        work.db.executemany(
            "INSERT INTO messages (id, message_id, own_id, time_to_live, lane, enqueued_at, expires_at,"
            " details, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            self._stored,
        )
        work.db.executemany(
            "INSERT INTO waiting (lane, id, queue, expires_at) VALUES (?, ?, ?, ?)", self._waiting
        )
        work.waiting += len(self._waiting)
        for lane, count in self._counts.items():
            work.count(lane, count)
            if lane.turn is None:  # else its head stays what it was
                work.refresh(lane)


def _first_seen(work: QueueTransaction, message: Message) -> MessageId | None:
    """The id of the message that used the deduplication id inside its window."""
    if message.deduplication_id is None or not work.options.deduplication_window:
        return None
    execute = work.db.execute
    execute("DELETE FROM seen WHERE queue = ? AND until <= ?", (work.queue, work.now))
    row = execute(
        "SELECT message_id FROM seen WHERE queue = ? AND deduplication_id = ?",
        (work.queue, message.deduplication_id),
    ).fetchone()
    return None if row is None else MessageId(row[0])


def _remember(work: QueueTransaction, message: Message, message_id: MessageId) -> None:
    """Keep the deduplication id for its window."""
    window = work.options.deduplication_window
    if message.deduplication_id is not None and window:
        work.db.execute(
            "INSERT INTO seen (queue, deduplication_id, message_id, until) VALUES (?, ?, ?, ?)",
            (work.queue, message.deduplication_id, message_id, work.now + window),
        )
