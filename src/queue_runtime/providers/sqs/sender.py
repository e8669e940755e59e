"""Putting messages into one queue: trio's side of it. One crossing to the bridge's loop per call."""

# ruff: noqa: D102 - the methods are documented where they are declared, in queue_runtime.abc

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate, count
from typing import Final, final

import attrs
import trio

from queue_runtime.abc import Sender
from queue_runtime.errors import (
    BatchTooLarge,
    MessageTooLarge,
    QueueError,
    Unsupported,
    ValidationError,
)
from queue_runtime.messages import Message, MessageId, QueueName, SendResult

from ..asyncio_bridge import AsyncioBridge
from .api import SqsApi
from .claims import Claims, Sent
from .codec import Entry, encode, wire_size
from .queues import Queue, Queues

__all__ = ["MAX_NATIVE_DELAY", "MAX_SENT", "SqsSender"]

MAX_NATIVE_DELAY: Final = 900.0
"""Longest ``DelaySeconds``; standard queues only.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-timers.html
"""

MAX_SENT: Final = 500
"""Most messages of one ``send``: ours; it is divided into calls of ten, which overlap where order allows."""

_REMEMBERED: Final = 290.0
"""Seconds that the token of a send with an unknown end is good for: SQS remembers it for 300."""

_MOST_REMEMBERED: Final = 10_000


@final
@attrs.frozen(eq=False)
class _Try:
    """What is known of one message of an earlier send.

    Args:
        token: It was sent with.
        result: Of its being stored; ``None`` when nobody knows whether it was.
    """

    token: str
    result: SendResult | None = None


@final
class _Tries:
    """Messages of sends that failed with an unknown end, for when they are sent again.

    A token is the deduplication id of a message that has none: with the same one a repeated send is harmless. What
    is known to be stored need not be sent again. The messages are told apart as objects: two equal ones are two
    messages; one object sent twice in one call is two as well, in that order.
    """

    def __init__(self) -> None:
        self._tries: dict[int, tuple[Message, float, list[_Try]]] = {}
        # A random id for each would be a system call for each.
        self._prefix = secrets.token_hex(12)
        self._numbers = count(1)

    def take(self, message: Message) -> _Try:
        """The earlier try of this object, or a new one."""
        if self._tries:
            _, until, tries = self._tries.get(id(message), (None, 0.0, []))
            if tries and trio.current_time() < until:
                tried = tries.pop(0)
                if not tries:
                    del self._tries[id(message)]
                return tried
        return _Try(f"{self._prefix}{next(self._numbers):012x}")

    def remember(self, message: Message, tried: _Try) -> None:
        """``message`` may be sent again, as a repetition of that try."""
        until = trio.current_time() + _REMEMBERED
        _, until, tries = self._tries.pop(id(message), (message, until, []))
        # Holding the object keeps its id from being given to another one.
        self._tries[id(message)] = (message, until, [*tries, tried])
        if len(self._tries) > _MOST_REMEMBERED:
            del self._tries[next(iter(self._tries))]


@final
class SqsSender(Sender):
    """Sends to one queue. Made by :meth:`.provider.SqsProvider.open_sender`."""

    def __init__(
        self,
        bridge: AsyncioBridge,
        api: SqsApi,
        queues: Queues,
        name: QueueName,
        queue: Queue,
        max_batch_bytes: int,
    ) -> None:
        self.provider_name = "sqs"
        self._bridge = bridge
        self._api = api
        self._queues = queues
        self._name = name
        self._queue = queue
        self._claims = Claims(api, queue)
        self._holding: Claims | None = None
        self._tries = _Tries()
        self._max_batch_bytes = max_batch_bytes
        self._closed = False

    async def send(self, messages: Sequence[Message]) -> list[SendResult]:
        self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_sizes(messages)
        delays = [self._delay(message) for message in messages]
        late = [delay is not None for delay in delays]
        if any(late) and (self._queue.fifo or max(filter(None, delays)) > MAX_NATIVE_DELAY):
            self._holding = self._holding or await self._find_holding()
        tries = [self._tries.take(message) for message in messages]
        results = [tried.result for tried in tries]
        outgoing = {
            number: self._outgoing(message, delay, tries[number].token)
            for number, (message, delay) in enumerate(zip(messages, delays, strict=True))
            if results[number] is None
        }
        failure: QueueError | None = None
        repeatable = True
        try:
            for claims in (self._claims, self._holding):
                chosen = [number for number, (there, _) in outgoing.items() if there is claims]
                if not chosen or claims is None:
                    continue
                entries = [outgoing[number][1] for number in chosen]
                sent, error = await self._bridge.run(claims.try_send, entries)
                failure = failure or error
                for number, answer in zip(chosen, sent, strict=True):
                    results[number] = self._result(messages[number], answer, claims)
            answers = [result for result in results if result is not None]
            refused = all(result.error for result in answers)
            if failure is not None and (failure.is_transient or refused):
                # To be repeated with all its messages; those that are stored are not sent again.
                raise failure
            repeatable = False
            return answers
        finally:
            for message, tried, result in zip(messages, tries, results, strict=True):
                error = None if result is None else result.error
                if result is None or (error is not None and error.is_transient):
                    self._tries.remember(message, _Try(tried.token))
                elif repeatable and error is None:
                    self._tries.remember(message, _Try(tried.token, result))

    def _check_sizes(self, messages: Sequence[Message]) -> None:
        limit = self._max_batch_bytes
        if len(messages) > MAX_SENT:
            raise BatchTooLarge(len(messages), MAX_SENT)
        if limit < sum(message.size for message in messages):
            sizes = accumulate(message.size for message in messages)
            raise BatchTooLarge(len(messages), sum(size <= limit for size in sizes))

    def _delay(self, message: Message) -> float | None:
        """Seconds until the message is due; ``None``: at once. Raises what forbids to send it at all."""
        if message.time_to_live is not None:
            raise Unsupported(
                "time_to_live", self.provider_name, "a queue has one retention period for all"
            )
        if not self._queue.fifo:
            if message.session_id is not None:
                raise Unsupported("sessions", self.provider_name, "use a FIFO queue")
            if message.deduplication_id is not None:
                raise Unsupported("deduplication", self.provider_name, "use a FIFO queue")
        if message.scheduled_at is None:
            return None
        delay = (message.scheduled_at - datetime.now(UTC)).total_seconds()
        return delay if delay > 0 else None

    def _outgoing(self, message: Message, delay: float | None, token: str) -> tuple[Claims, Entry]:
        """Where a message goes, and as what."""
        claims = self._claims
        native = not self._queue.fifo and delay is not None and delay <= MAX_NATIVE_DELAY
        if delay is not None and not native:
            assert self._holding is not None, "it was looked for"
            claims = self._holding
            self._check_retention(message, delay, claims.queue)
        entry = encode(message, token, claims.queue.kind)
        size, limit = wire_size(entry), self._queue.max_message_bytes
        if size > limit:
            raise MessageTooLarge(size, limit)
        if native and delay is not None:
            entry["DelaySeconds"] = math.ceil(delay)
        return claims, entry

    def _check_retention(self, message: Message, delay: float, holding: Queue) -> None:
        if delay >= holding.retention - 60:
            latest = datetime.now(UTC) + timedelta(seconds=holding.retention - 60)
            raise ValidationError(
                f"scheduled_at {message.scheduled_at} is later than {latest.isoformat()}: queue {holding.name}, "
                f"where it would wait, keeps messages for {holding.retention} seconds; "
                "raise that (14 days at most), or schedule it nearer"
            )

    async def _find_holding(self) -> Claims:
        queue = await self._bridge.run(self._queues.holding, self._name)
        if queue is None:
            raise Unsupported(
                "scheduling",
                self.provider_name,
                f"queue {self._queue.name} delays no message for so long by itself, and has no holding queue; "
                "make one with queue-runtime provision",
            )
        return Claims(self._api, queue)

    def _result(self, message: Message, sent: Sent, claims: Claims) -> SendResult:
        if sent.error is not None:
            return SendResult(None, error=sent.error)
        number = sent.sequence_number if claims is self._claims else None
        return SendResult(message.message_id or MessageId(sent.sqs_id), number)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"the sender of queue {self._queue.name} is closed")

    async def aclose(self) -> None:
        self._closed = True
        await trio.lowlevel.checkpoint()
