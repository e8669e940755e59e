"""Putting messages into a queue in memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from queue_runtime.messages import Message, MessageId, QueueName, SendResult

from .engine import QueueOptions
from .errors import queue_full
from .heap_queue import HeapQueue

__all__ = ["store"]


def store(
    q: HeapQueue, name: QueueName, messages: Sequence[Message], options: QueueOptions, now: float
) -> list[SendResult]:
    """Store messages in order; a result for each. See :meth:`.engine.Engine.send`."""
    at = datetime.fromtimestamp(now, UTC)
    limit = options.max_queue_size
    results: list[SendResult] = []
    for message in messages:
        window = 0.0 if message.deduplication_id is None else options.deduplication_window
        if window and (first := _first_seen(q, message.deduplication_id, now)) is not None:
            results.append(SendResult(first, duplicate=True))
            continue
        if q.waiting + q.in_flight + len(q.scheduled) >= limit:
            results.append(SendResult(None, error=queue_full(name, limit)))
            continue
        message_id = message.message_id
        if message_id is None:
            message_id = q.new_id(q.sequence + 1)
        if window:
            q.seen[message.deduplication_id] = (message_id, now + window)
        if message.scheduled_at is not None and message.scheduled_at > at:
            sequence = q.schedule(message, message_id, message.scheduled_at.timestamp())
        else:
            sequence = q.enqueue(message, message_id, at, now, q.life(message, options))
        results.append(SendResult(message_id, sequence))
    q.sweep()
    return results


def _first_seen(q: HeapQueue, deduplication_id: str | None, now: float) -> MessageId | None:
    """The id of the message that used the deduplication id inside its window."""
    seen = q.seen
    while seen and seen[oldest := next(iter(seen))][1] <= now:
        del seen[oldest]
    known = seen.get(deduplication_id)
    if known is None:
        return None
    if known[1] > now:
        return known[0]
    del seen[deduplication_id]  # recorded by a connection with a shorter window
    return None
