"""Sending to one queue."""

# ruff: noqa: D102 - the methods are documented where they are declared, in queue_runtime.abc

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, final

import attrs
import trio
from azure.servicebus._common.constants import (
    REQUEST_RESPONSE_CANCEL_SCHEDULED_MESSAGE_OPERATION,
    REQUEST_RESPONSE_SCHEDULE_MESSAGE_OPERATION,
)

from queue_runtime.abc import Sender
from queue_runtime.errors import (
    BatchTooLarge,
    MessageTooLarge,
    ProviderError,
    QueueError,
    Unsupported,
)
from queue_runtime.messages import Message, SendResult

from ..asyncio_bridge import AsyncioBridge
from ..doubtful import DoubtfulTokens
from .amqp import array, long
from .api import AzureApi, mapped
from .codec import encode, identity
from .entries import Entry, in_batch, wire_size
from .ids import with_lone_session
from .outgoing import as_batch, as_message, encoded
from .outlet import Outlet
from .shared import Attempt

__all__ = ["MAX_BATCH", "AzureSender", "Exit", "Outgoing"]

MAX_BATCH: Final = 1_000
"""Most messages in one call; they travel in as few transfers as their size allows."""

_MOST_IN_TRANSFER: Final = 500
"""Most messages of one transfer; Service Bus takes 4,500."""

_ENVELOPE: Final = 1_024
"""Bytes of a transfer's own, above its messages: two ids of 128 characters, at three bytes each, and the rest."""

_NAMES: Final = 64
"""Bytes that a request takes for each message it is about, beside the message and its ids."""

_WINDOW: Final = 32
"""Transfers under way at once; the SDK's engine looks through all of them at every answer."""

_REMEMBERED: Final = 600.0
"""Seconds for which a message of unknown fate may be sent again as the same; queues detect duplicates for as long
by default."""


@final
@attrs.frozen(eq=False)
class Outgoing:
    """A message on its way.

    Args:
        entry: Its fields.
        size: Bytes of it, encoded.
    """

    entry: Entry
    size: int

    @property
    def payload(self) -> bytes:
        """All of it, encoded."""
        return encoded(as_message(self.entry))


@final
class Exit:
    """Sends to one queue by a link that is opened when needed. On the bridge's loop."""

    def __init__(self, api: AzureApi, entity: str) -> None:
        self._api = api
        self._entity = entity
        self._outlet: Outlet | None = None
        self._opening = Attempt(self._open)
        self._window = asyncio.Semaphore(_WINDOW)
        self._timeout = api.config.operation_timeout

    async def open(self) -> Outlet:
        """The link; another one if there is none, or it was lost, opened once for all who wait for it.

        Raises:
            QueueError: The broker refuses, or cannot be reached.
        """
        if self._outlet is not None and self._outlet.error is None:
            return self._outlet
        with mapped("open sender", self._entity):
            return await self._opening.join()

    async def _open(self) -> Outlet:
        self._outlet = await self._api.outlet(self._entity, _ignore)
        return self._outlet

    async def limit(self) -> int:
        """Bytes of the largest message that the queue takes. Raises as :meth:`open`."""
        return self._limit_on(await self.open())

    async def prepare(self, entries: Sequence[Entry]) -> list[Outgoing]:
        """Measure messages.

        Raises:
            MessageTooLarge: One exceeds what the queue takes.
            QueueError: As :meth:`open`.
        """
        limit = await self.limit()
        prepared = []
        for entry in entries:
            size = wire_size(entry)
            if size > limit:
                raise MessageTooLarge(size, limit)
            prepared.append(Outgoing(entry, size))
        return prepared

    async def send(self, messages: Sequence[Outgoing]) -> list[QueueError | None]:
        """Send in order; for each ``None`` when it is stored, or why not. After a failure nothing more is sent."""
        answers: list[QueueError | None] = [None] * len(messages)
        position = 0
        for group in _groups(messages, await self._room(), lambda each: in_batch(each.size)):
            try:
                await self._transfer(group)
            except QueueError as error:
                answers[position : position + len(group)] = [error] * len(group)
                rest = position + len(group)
                answers[rest:] = [_held_back(error)] * (len(messages) - rest)
                return answers
            position += len(group)
        return answers

    async def _room(self) -> int:
        """Bytes of messages that are sent as one."""
        outlet = await self.open()
        return min(self._limit_on(outlet), outlet.max_batch_size) - _ENVELOPE

    def _limit_on(self, outlet: Outlet) -> int:
        limit = self._api.config.max_message_bytes
        return min(limit, outlet.max_message_size or limit)

    async def _transfer(self, group: Sequence[Outgoing]) -> None:
        single = len(group) == 1
        async with self._window:
            outlet = await self.open()
            with mapped("send", self._entity, group[0].size if single else 0):
                message = (
                    as_message(group[0].entry)
                    if single
                    else as_batch([each.payload for each in group], group[0].entry)
                )
                async with asyncio.timeout(self._timeout):
                    await (await outlet.send(message, self._timeout))

    async def schedule(self, messages: Sequence[Outgoing]) -> list[int | QueueError]:
        """Leave messages for later, in order; for each its sequence number, or why it was not stored.

        After a failure nothing more is sent.
        """
        answers: list[int | QueueError] = []
        try:
            room = await self._room()
        except QueueError as error:  # what was sent beside them may be stored
            return [error] * len(messages)
        for group in _groups(messages, room, _in_request):
            try:
                answers += await self._request(group)
            except QueueError as error:
                answers += [error] * len(group)
                return answers + [_held_back(error)] * (len(messages) - len(answers))
        return answers

    async def _request(self, group: Sequence[Outgoing]) -> list[int]:
        body = {
            "messages": [
                {
                    "message-id": each.entry["message_id"],
                    "message": bytearray(each.payload),
                    **(
                        {"session-id": each.entry["session_id"]}
                        if "session_id" in each.entry
                        else {}
                    ),
                }
                for each in group
            ]
        }
        with mapped("schedule", self._entity):
            answer = await self._api.manage(
                self._entity, REQUEST_RESPONSE_SCHEDULE_MESSAGE_OPERATION, body
            )
            return [int(number) for number in answer[b"sequence-numbers"]]

    async def cancel(self, numbers: Sequence[int]) -> list[bool]:
        """Take back scheduled messages; for each, whether it was still waiting.

        Raises:
            QueueError: Some may have been taken back.
        """
        return list(await asyncio.gather(*(self._cancel(number) for number in numbers)))

    async def _cancel(self, number: int) -> bool:
        body = {"sequence-numbers": array([long(number)])}
        try:
            await self._api.manage(
                self._entity, REQUEST_RESPONSE_CANCEL_SCHEDULED_MESSAGE_OPERATION, body
            )
        except Exception as error:
            if getattr(error, "status", None) == 404 and _is_about_message(error):
                return False
            with mapped("cancel scheduled", self._entity):
                raise
        return True

    async def aclose(self) -> None:
        """Close the link; never fails."""
        await self._opening.aclose()
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            await outlet.aclose()


def _is_about_message(error: Exception) -> bool:
    condition = getattr(error, "condition", None) or b""
    return b"message-not-found" in (
        condition if isinstance(condition, bytes) else str(condition).encode()
    )


def _ignore(_: BaseException) -> None:
    """The link is opened again when needed."""


def _in_request(message: Outgoing) -> int:
    """Bytes that a message takes at most in a request to schedule it, which names its ids too."""
    ids = (message.entry.get("message_id", ""), message.entry.get("session_id", ""))
    return message.size + _NAMES + sum(len(each.encode()) for each in ids)


def _groups(
    messages: Sequence[Outgoing], most_bytes: int, measure: Callable[[Outgoing], int]
) -> Iterator[list[Outgoing]]:
    """Runs of messages that fit into one transfer."""
    group: list[Outgoing] = []
    size = 0
    for message in messages:
        own = measure(message)
        if group and (size + own > most_bytes or len(group) == _MOST_IN_TRANSFER):
            yield group
            group, size = [], 0
        group.append(message)
        size += own
    if group:
        yield group


def _held_back(before: QueueError) -> QueueError:
    error = ProviderError(
        f"not tried, to keep the order: a message before it was not stored: {before}",
        code="HeldBack",
        transient=before.is_transient,
        retry_after=before.retry_after,
    )
    error.__cause__ = before
    return error


@final
class AzureSender(Sender):
    """Sends to one queue. Made by :meth:`.provider.AzureProvider.open_sender`.

    Calls may overlap: their transfers are under way side by side.
    """

    @classmethod
    async def open(cls, bridge: AsyncioBridge, api: AzureApi, entity: str) -> AzureSender:
        """Attach to the queue.

        Raises:
            QueueError: The broker refuses, or cannot be reached.
        """

        async def make() -> Exit:
            out = Exit(api, entity)
            await out.open()
            return out

        return cls(bridge, api, entity, await bridge.run(make))

    def __init__(self, bridge: AsyncioBridge, api: AzureApi, entity: str, out: Exit) -> None:
        self.provider_name = "azure"
        self._bridge = bridge
        self._entity = entity
        self._exit = out
        self._has_sessions = api.config.sessions
        self._deduplicates = api.config.deduplication
        self._max_bytes = api.config.max_message_bytes
        self._doubtful = DoubtfulTokens(_REMEMBERED)
        self._closed = False

    async def send(self, messages: Sequence[Message]) -> list[SendResult]:
        self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        if len(messages) > MAX_BATCH:
            raise BatchTooLarge(len(messages), MAX_BATCH)
        with self._doubtful.unless_refused(messages):
            tokens = [self._doubtful.token(message) for message in messages]
            entries = [
                self._entry(message, token) for message, token in zip(messages, tokens, strict=True)
            ]
        if not messages:
            await trio.lowlevel.checkpoint()
            return []
        now = datetime.now(UTC)
        later = [
            message.scheduled_at is not None and message.scheduled_at > now for message in messages
        ]
        answers: list[QueueError | int | None] | None = None
        try:
            answers = await self._bridge.run(self._send, entries, later)
        finally:
            for number, (message, token) in enumerate(zip(messages, tokens, strict=True)):
                answer = None if answers is None else answers[number]
                if answers is None or (isinstance(answer, QueueError) and answer.is_transient):
                    self._doubtful.remember(message, token)
        errors = [answer for answer in answers if isinstance(answer, QueueError)]
        if len(errors) == len(messages):
            raise errors[0]
        return [
            SendResult(None, error=answer)
            if isinstance(answer, QueueError)
            else SendResult(identity(message, token), answer)
            for message, token, answer in zip(messages, tokens, answers, strict=True)
        ]

    def _entry(self, message: Message, token: str) -> Entry:
        if message.session_id is not None and not self._has_sessions:
            raise Unsupported(
                "sessions",
                self.provider_name,
                "use a queue that requires sessions, and sessions=true",
            )
        if message.deduplication_id is not None and not self._deduplicates:
            raise Unsupported(
                "deduplication",
                self.provider_name,
                "use a queue that detects duplicates, and deduplication=true",
            )
        if message.size > self._max_bytes:
            raise MessageTooLarge(message.size, self._max_bytes)
        entry = encode(message, token, deduplicates=self._deduplicates)
        return with_lone_session(entry, token) if self._has_sessions else entry

    async def _send(
        self, entries: Sequence[Entry], later: Sequence[bool]
    ) -> list[QueueError | int | None]:
        """On the loop: for each message why it was not stored, its sequence number, or ``None``."""
        prepared = await self._exit.prepare(entries)
        answers: list[QueueError | int | None] = [None] * len(entries)
        at_once = [number for number, is_later in enumerate(later) if not is_later]
        scheduled = [number for number, is_later in enumerate(later) if is_later]
        if at_once:
            said = await self._exit.send([prepared[number] for number in at_once])
            for number, answer in zip(at_once, said, strict=True):
                answers[number] = answer
        if scheduled:
            numbers = await self._exit.schedule([prepared[number] for number in scheduled])
            for number, sequence in zip(scheduled, numbers, strict=True):
                answers[number] = sequence
        return answers

    async def cancel_scheduled(self, sequence_numbers: Sequence[int]) -> list[bool]:
        self._check_open()
        return await self._bridge.run(self._exit.cancel, list(sequence_numbers))

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"the sender of queue {self._entity} is closed")

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            with trio.CancelScope(shield=True):
                try:
                    await self._bridge.run(self._exit.aclose)
                except (QueueError, trio.ClosedResourceError):
                    pass  # the connection is gone, and the link with it
        await trio.lowlevel.checkpoint()
