"""The sending half of the client: message ids, splitting, and what travels together."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count
from typing import Final, final

import attrs
import trio

from ..abc import Provider, Sender
from ..actors.coalescer import Coalescer
from ..errors import MessageTooLarge, QueueError
from ..messages import Capabilities, Message, MessageId, QueueName, SendResult
from .calls import Calls

__all__ = ["Sending", "with_message_id"]

_new_message: Final = object.__new__
_new_id: Final = str.__new__
(
    _set_body,
    _set_session_id,
    _set_headers,
    _set_message_id,
    _set_correlation_id,
    _set_content_type,
    _set_time_to_live,
    _set_scheduled_at,
    _set_deduplication_id,
) = (vars(Message)[field.name].__set__ for field in attrs.fields(Message))


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
        return await outbox.ask(self._identified([message])[0])

    async def send_batch(self, queue: QueueName, messages: Iterable[Message]) -> list[SendResult]:
        """Send messages in order."""
        batch = list(messages)
        for message in batch:
            self._check_size(message)
        sender = await self.sender(queue)
        return await self._send_all(sender, self._identified(batch))

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

    def _identified(self, messages: Sequence[Message]) -> list[Message]:
        """The messages, each with an id, so that every try to send one carries the same."""
        prefix, numbers = self._prefix, self._numbers
        return [
            # Skips the validation, which hexadecimal digits and a number cannot fail.
            with_message_id(message, _new_id(MessageId, f"{prefix}-{next(numbers)}"))
            if message.message_id is None
            else message
            for message in messages
        ]

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
                    lets_call=True,
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
    # Every message sent may come through here, and its values were checked when it was made: filling the slots
    # costs a seventh of the constructor, and setting them by name would cost half as much again.
    copy = _new_message(Message)
    _set_body(copy, message.body)
    _set_session_id(copy, message.session_id)
    _set_headers(copy, message.headers)
    _set_message_id(copy, message_id)
    _set_correlation_id(copy, message.correlation_id)
    _set_content_type(copy, message.content_type)
    _set_time_to_live(copy, message.time_to_live)
    _set_scheduled_at(copy, message.scheduled_at)
    _set_deduplication_id(copy, message.deduplication_id)
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
