"""The ports over an engine: one provider for ``memory://`` and ``sqlite://``."""

# ruff: noqa: D102 - the methods are documented where they are declared, in queue_runtime.abc

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar, Final, final

import trio

from queue_runtime.abc import DeadLetters, Provider, Receiver, ReceiverOptions, Sender
from queue_runtime.errors import BatchTooLarge, MessageTooLarge, QueueError
from queue_runtime.messages import (
    Capabilities,
    Message,
    PeekedMessage,
    QueueName,
    QueueStats,
    SendResult,
)

from .connection import Clock, Connection, Hubs
from .engine import Engine
from .receiver import EngineReceiver

__all__ = [
    "MAX_BATCH",
    "EngineDeadLetters",
    "EngineProvider",
    "EngineSender",
    "MemoryProvider",
    "SqliteProvider",
]

_MAX_SETTLE: Final = 4_096
"""Above the supervisor's usual ``max_in_flight``, so that one call settles whatever came with one."""
MAX_BATCH: Final = 1_000
"""Most messages in one call: a bigger one would hold up everybody else for milliseconds."""


class EngineProvider(Provider):
    """A connection to an embedded broker. Made by the factories of this package.

    Args:
        engine: Where the queues are. The provider closes it.
        clock: Wall-clock seconds for the engine.
        hubs: Those who wait, by queue; shared by the connections of one store in memory.
    """

    _outlives_process: ClassVar[bool]

    def __init__(self, engine: Engine, clock: Clock, hubs: Hubs | None = None) -> None:
        self._connection = Connection(engine, clock, {} if hubs is None else hubs)
        self._engine = engine
        self._closed = False
        self._known: set[QueueName] = set()
        self._receivers: set[EngineReceiver] = set()
        self.capabilities = Capabilities(
            sessions=True,
            session_state=True,
            session_halt=True,
            accept_by_name=True,
            lock_renewal=True,
            abandon_delay=True,
            release_restores_count=True,
            keeps_empty_sessions=True,
            scheduling=True,
            cancel_scheduled=True,
            time_to_live=True,
            deduplication=engine.options.deduplication_window > 0,
            peek=True,
            purge=True,
            stats=True,
            dead_letters=True,
            durable=self._outlives_process,
            multi_process=self._outlives_process,
            max_message_bytes=engine.options.max_message_bytes,
            max_batch_messages=MAX_BATCH,
            max_settle_messages=_MAX_SETTLE,
        )

    async def _open(self, queue: QueueName) -> None:
        """Make sure that the queue is there. A checkpoint."""
        if self._closed:
            raise trio.ClosedResourceError("the provider is closed")
        if queue in self._known:
            await trio.lowlevel.checkpoint()
        else:
            await self._connection.call(queue, lambda now: self._engine.open_queue(queue, now))
            self._known.add(queue)

    async def open_sender(self, queue: QueueName) -> Sender:
        await self._open(queue)
        return EngineSender(self.name, self._connection, queue)

    async def open_receiver(self, queue: QueueName, options: ReceiverOptions) -> Receiver:
        await self._open(queue)
        connection, engine = self._connection, self._engine
        holder = await connection.call(queue, lambda now: engine.open_holder(queue, options, now))
        receiver = EngineReceiver(
            self.name, connection, queue, holder, options, self._receivers.discard
        )
        self._receivers.add(receiver)
        if self._closed:  # meanwhile
            await receiver.aclose()
            raise trio.ClosedResourceError("the provider is closed")
        return receiver

    async def open_dead_letters(self, queue: QueueName) -> DeadLetters:
        await self._open(queue)
        return EngineDeadLetters(self._connection, queue)

    async def peek(
        self, queue: QueueName, max_messages: int, after: int = 0
    ) -> list[PeekedMessage]:
        await self._open(queue)
        return await self._connection.call(
            queue, lambda now: self._engine.peek(queue, max_messages, after, now)
        )

    async def purge(self, queue: QueueName) -> int:
        await self._open(queue)
        return await self._connection.call(queue, lambda now: self._engine.purge(queue, now))

    async def stats(self, queue: QueueName) -> QueueStats:
        await self._open(queue)
        return await self._connection.call(queue, lambda now: self._engine.stats(queue, now))

    async def aclose(self) -> None:
        self._closed = True
        failure: QueueError | None = None
        with trio.CancelScope(shield=True):
            for receiver in list(self._receivers):
                try:
                    await receiver.aclose()
                except QueueError as error:
                    failure = failure or error
            await self._connection.aclose()
        await trio.lowlevel.checkpoint()
        if failure is not None:
            raise failure


@final
class MemoryProvider(EngineProvider):
    """A connection to a broker in this process's memory."""

    name = "memory"
    _outlives_process = False


@final
class SqliteProvider(EngineProvider):
    """A connection to a broker in an SQLite file."""

    name = "sqlite"
    _outlives_process = True


@final
class EngineSender(Sender):
    """Sends to one queue. Made by :meth:`EngineProvider.open_sender`."""

    def __init__(self, provider_name: str, connection: Connection, queue: QueueName) -> None:
        self.provider_name = provider_name
        self._connection = connection
        self._engine = connection.engine
        self._queue = queue
        self._closed = False

    async def send(self, messages: Sequence[Message]) -> list[SendResult]:
        self._check_open()
        if len(messages) > MAX_BATCH:
            raise BatchTooLarge(len(messages), MAX_BATCH)
        limit = self._engine.options.max_message_bytes
        for message in messages:
            if message.size > limit:
                raise MessageTooLarge(message.size, limit)
        return await self._connection.call(
            self._queue, lambda now: self._engine.send(self._queue, messages, now)
        )

    async def cancel_scheduled(self, sequence_numbers: Sequence[int]) -> list[bool]:
        self._check_open()
        return await self._connection.call(
            self._queue,
            lambda now: self._engine.cancel_scheduled(self._queue, sequence_numbers, now),
        )

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"the sender of queue {self._queue!s} is closed")

    async def aclose(self) -> None:
        self._closed = True
        await trio.lowlevel.checkpoint()


@final
class EngineDeadLetters(DeadLetters):
    """The dead letters of one queue. Made by :meth:`EngineProvider.open_dead_letters`."""

    def __init__(self, connection: Connection, queue: QueueName) -> None:
        self._connection = connection
        self._engine = connection.engine
        self._queue = queue

    async def peek(self, max_messages: int, after: int = 0) -> list[PeekedMessage]:
        return await self._connection.call(
            self._queue,
            lambda now: self._engine.peek_dead(self._queue, max_messages, after, now),
        )

    async def redrive(self, sequence_numbers: Collection[int] | None = None) -> int:
        return await self._connection.call(
            self._queue, lambda now: self._engine.redrive(self._queue, sequence_numbers, now)
        )

    async def purge(self, sequence_numbers: Collection[int] | None = None) -> int:
        return await self._connection.call(
            self._queue, lambda now: self._engine.purge_dead(self._queue, sequence_numbers, now)
        )
