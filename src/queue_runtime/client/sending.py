"""The sending half of the client: message ids, splitting, and what travels together."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count
from typing import final

import attrs
import trio

from ..abc import Provider, Sender
from ..actors.coalescer import Coalescer
from ..errors import MessageTooLarge, QueueError
from ..messages import Capabilities, Message, MessageId, QueueName, SendResult
from .calls import Calls

__all__ = ["Sending", "with_message_id"]


@final
class Sending:
    """The senders of one client, opened when they are first needed.

    Args:
        provider: Opens them.
        calls: How the broker is called.
        nursery: Where the tasks run that send what several callers gave.
    """

    def __init__(self, provider: Provider, calls: Calls, nursery: trio.Nursery) -> None:
        self._provider = provider
        self._calls = calls
        self._nursery = nursery
        self._opening = trio.Lock()
        self._senders: dict[QueueName, Sender] = {}
        self._outboxes: dict[QueueName, Coalescer[Message, SendResult]] = {}
        self._prefix = secrets.token_hex(8)  # makes ids differ from any other client's
        self._numbers = count(1)

    @property
    def opened(self) -> Iterable[Sender]:
        """The senders opened so far."""
        return self._senders.values()

    async def send(self, queue: QueueName, message: Message) -> SendResult:
        """Send one message together with what others send at the same time."""
        self._check_size(message)
        outbox = await self._outbox(queue)
        return await outbox.ask(self._identified(message))

    async def send_batch(self, queue: QueueName, messages: Iterable[Message]) -> list[SendResult]:
        """Send messages in order."""
        batch = list(messages)
        for message in batch:
            self._check_size(message)
        sender = await self.sender(queue)
        return await self._send_all(sender, [self._identified(message) for message in batch])

    async def sender(self, queue: QueueName) -> Sender:
        """The sender of ``queue``."""
        sender = self._senders.get(queue)
        if sender is None:
            async with self._opening:
                sender = self._senders.get(queue)
                if sender is None:
                    sender = await self._calls(self._provider.open_sender, queue)
                    self._senders[queue] = sender
        return sender

    def close(self) -> None:
        """Leave whoever waits for an answer without it; the senders are closed by the caller."""
        for outbox in self._outboxes.values():
            outbox.close()

    def _check_size(self, message: Message) -> None:
        limit = self._provider.capabilities.max_message_bytes
        if message.size > limit:
            raise MessageTooLarge(message.size, limit)

    def _identified(self, message: Message) -> Message:
        """The message with an id, so that every try to send it carries the same one."""
        if message.message_id is not None:
            return message
        # Skips the validation, which hexadecimal digits and a number cannot fail.
        text = f"{self._prefix}-{next(self._numbers)}"
        return with_message_id(message, str.__new__(MessageId, text))

    async def _outbox(self, queue: QueueName) -> Coalescer[Message, SendResult]:
        outbox = self._outboxes.get(queue)
        if outbox is None:
            sender = await self.sender(queue)
            outbox = self._outboxes.get(queue)
            self._calls.check_open()
            if outbox is None:
                outbox = Coalescer(
                    partial(self._send_all, sender),
                    max_batch=self._provider.capabilities.max_batch_messages,
                )
                self._outboxes[queue] = outbox
                self._nursery.start_soon(outbox.run)
        return outbox

    async def _send_all(self, sender: Sender, messages: Sequence[Message]) -> list[SendResult]:
        results: list[SendResult] = []
        for chunk in _split(messages, self._provider.capabilities):
            try:
                results += await self._calls(sender.send, chunk)
            except QueueError as error:
                failed = SendResult(message_id=None, error=error)
                results += [failed] * (len(messages) - len(results))
                break
        return results


def with_message_id(message: Message, message_id: MessageId) -> Message:
    """A copy of ``message`` with that id."""
    if type(message) is not Message:
        return attrs.evolve(message, message_id=message_id)
    # Every message sent may come through here, and its values were checked: without the constructor a copy
    # costs a sixth.
    copy = object.__new__(Message)
    assign = object.__setattr__
    assign(copy, "body", message.body)
    assign(copy, "session_id", message.session_id)
    assign(copy, "headers", message.headers)
    assign(copy, "message_id", message_id)
    assign(copy, "correlation_id", message.correlation_id)
    assign(copy, "content_type", message.content_type)
    assign(copy, "time_to_live", message.time_to_live)
    assign(copy, "scheduled_at", message.scheduled_at)
    assign(copy, "deduplication_id", message.deduplication_id)
    return copy


def _split(messages: Sequence[Message], capabilities: Capabilities) -> Iterable[Sequence[Message]]:
    """``messages`` in order, in chunks the broker accepts in one call."""
    most, most_bytes = capabilities.max_batch_messages, capabilities.max_batch_bytes
    if most_bytes is None:
        for start in range(0, len(messages), most):
            yield messages[start : start + most]
        return
    chunk: list[Message] = []
    size = 0
    for message in messages:
        if chunk and (len(chunk) == most or size + message.size > most_bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(message)
        size += message.size
    if chunk:
        yield chunk
