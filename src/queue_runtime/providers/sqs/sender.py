"""Putting messages into one queue: trio's side of it. One crossing to the bridge's loop per call."""

# ruff: noqa: D102 - the methods are documented where they are declared, in queue_runtime.abc

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
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
from ..doubtful import DoubtfulTokens
from .api import SqsApi
from .batches import MAX_ENTRIES
from .claims import Claims, Sent
from .codec import Entry, encode, wire_size
from .queues import Queue, Queues

__all__ = ["MAX_NATIVE_DELAY", "SqsSender"]

MAX_NATIVE_DELAY: Final = 900.0
"""Longest ``DelaySeconds``; standard queues only.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-timers.html
"""

_REMEMBERED: Final = 290.0
"""Seconds that the token of a send with an unknown end is good for: SQS remembers it for 300."""


@attrs.frozen(eq=False)
class _Outgoing:
    message: Message
    token: str
    entry: Entry


@final
class SqsSender(Sender):
    """Sends to one queue. Made by :meth:`.provider.SqsProvider.open_sender`."""

    def __init__(
        self, bridge: AsyncioBridge, api: SqsApi, queues: Queues, name: QueueName, queue: Queue
    ) -> None:
        self.provider_name = "sqs"
        self._bridge = bridge
        self._api = api
        self._queues = queues
        self._name = name
        self._queue = queue
        self._claims = Claims(api, queue)
        self._holding: Claims | None = None
        self._doubtful = DoubtfulTokens(_REMEMBERED)
        self._closed = False

    async def send(self, messages: Sequence[Message]) -> list[SendResult]:
        self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        if len(messages) > MAX_ENTRIES:
            raise BatchTooLarge(len(messages), MAX_ENTRIES)
        delays = [self._delay(message) for message in messages]
        late = [delay is not None for delay in delays]
        if any(late) and (self._queue.fifo or max(filter(None, delays)) > MAX_NATIVE_DELAY):
            self._holding = self._holding or await self._find_holding()
        with self._doubtful.unless_refused(messages):
            outgoing = [
                self._outgoing(message, delay)
                for message, delay in zip(messages, delays, strict=True)
            ]
        results: list[SendResult | None] = [None] * len(messages)
        failure: QueueError | None = None
        for claims in (self._claims, self._holding):
            chosen = [number for number, (there, _) in enumerate(outgoing) if there is claims]
            if not chosen or claims is None:
                continue
            try:
                sent = await self._send(claims, [outgoing[number][1] for number in chosen])
            except QueueError as error:
                failure = error
                sent = [Sent(error=error)] * len(chosen)
            for number, answer in zip(chosen, sent, strict=True):
                results[number] = self._result(messages[number], answer, claims)
        if failure is not None and all(result and result.error for result in results):
            raise failure
        return [result for result in results if result is not None]

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

    def _outgoing(self, message: Message, delay: float | None) -> tuple[Claims, _Outgoing]:
        """Where a message goes, and as what."""
        token = self._doubtful.token(message)
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
        return claims, _Outgoing(message, token, entry)

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

    async def _send(self, claims: Claims, outgoing: Sequence[_Outgoing]) -> list[Sent]:
        sent: list[Sent] | None = None
        try:
            sent = await self._bridge.run(claims.send, [one.entry for one in outgoing])
        finally:
            for number, one in enumerate(outgoing):
                error = None if sent is None else sent[number].error
                if sent is None or (error is not None and error.is_transient):
                    self._doubtful.remember(one.message, one.token)
        return sent

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
