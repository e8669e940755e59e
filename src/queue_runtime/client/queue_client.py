"""The client's public face."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import final

import attrs
import trio

from ..abc import Provider, ReceiverOptions
from ..actors.supervisor import Supervisor, supervise
from ..config import SupervisorConfig
from ..errors import QueueError, Unsupported
from ..handlers import HandlerFactory
from ..instrumentation import Instrument
from ..messages import (
    Capabilities,
    Delivery,
    Message,
    PeekedMessage,
    QueueName,
    QueueStats,
    SendResult,
    SessionId,
    Settlement,
    SettlementAction,
)
from ._checks import check_positive, check_timeout
from .blocks import Block
from .calls import Calls
from .dead_letters import DeadLetterClient
from .holding import EVERYTHING, Holding, Inbox
from .sending import Sending
from .sessions import SessionReceiver

__all__ = ["QueueClient"]


@final
class QueueClient:
    """Sends, receives and settles, on any broker. Made by :func:`open_client`; no public constructor.

    Methods may be called from any number of tasks. Transient errors are retried as the configuration says;
    what still fails is raised.
    """

    def __init__(self, provider: Provider, calls: Calls, nursery: trio.Nursery) -> None:
        self._provider = provider
        self._calls = calls
        self._sending = Sending(provider, calls, nursery)
        self._holding = Holding(provider, calls)

    @property
    def provider(self) -> Provider:
        """The provider behind the client."""
        return self._provider

    @property
    def capabilities(self) -> Capabilities:
        """What the broker can do."""
        return self._provider.capabilities

    # Sending.

    async def send(self, queue: str, message: Message) -> SendResult:
        """Send one message; sends from several tasks at once travel together.

        At least once: a message whose acknowledgement is lost is sent again and may then be stored twice, or
        be stored although this raises. All tries of one call carry one message id, made here for a message
        without one, so that a consumer can tell. Where ``Capabilities.deduplication`` holds, a
        ``deduplication_id`` has the broker drop repetitions, also those of another call: without it, and
        without an id of its own, a message sent by another call is another message.

        Returns:
            The message's id and position. The broker has stored it.

        Raises:
            MessageTooLarge: Before anything is sent.
            QueueFull, QueueNotFound, …: It was not stored.
        """
        result = await self._sending.send(QueueName(queue), message)
        if result.error is not None:
            raise result.error
        return result

    async def send_batch(self, queue: str, messages: Iterable[Message]) -> list[SendResult]:
        """Send messages in order, split into as many calls as the broker's limits ask for.

        At least once, as :meth:`send`.

        Returns:
            One result per message, in order. Look at ``result.error``: part of a batch can fail. When a
            call fails as a whole, its messages and those behind them carry that error: nothing overtakes.

        Raises:
            MessageTooLarge: One of them is too large; nothing was sent.
        """
        return await self._sending.send_batch(QueueName(queue), messages)

    async def schedule(self, queue: str, message: Message, at: datetime) -> SendResult:
        """Send a message to be delivered at ``at`` (an aware datetime), not before.

        Returns:
            Its ``sequence_number`` cancels it.

        Raises:
            Unsupported: The broker cannot schedule.
        """
        return await self.send(queue, attrs.evolve(message, scheduled_at=at))

    async def cancel_scheduled(self, queue: str, sequence_number: int) -> bool:
        """Take back a scheduled message; whether it was still waiting."""
        sender = await self._sending.sender(QueueName(queue))
        return (await self._calls(sender.cancel_scheduled, [sequence_number]))[0]

    # Receiving.

    async def receive(self, queue: str, *, timeout: float | None = None) -> Delivery | None:
        """The next message, or ``None`` when none came in ``timeout`` seconds.

        Its session is locked until everything received of it is settled. The lock expires unless renewed.

        Args:
            queue: Where to read.
            timeout: Seconds to wait; 0 looks once; ``None``: as configured.
        """
        deliveries = await self.receive_batch(queue, max_messages=1, timeout=timeout)
        return deliveries[0] if deliveries else None

    async def receive_batch(
        self, queue: str, *, max_messages: int, timeout: float | None = None
    ) -> list[Delivery]:
        """Up to ``max_messages`` messages, as soon as there is one; ``[]`` at the timeout. See :meth:`receive`."""
        check_positive("max_messages", max_messages)
        seconds = check_timeout(timeout, self._calls.config.receive_timeout)
        inbox = await self._holding.inbox(QueueName(queue))
        return await self._holding.receive(inbox, max_messages, seconds)

    @asynccontextmanager
    async def stream(
        self, queue: str, *, max_messages: int = 16
    ) -> AsyncIterator[AsyncIterator[Delivery]]:
        """An endless iterator of deliveries, closed by leaving the block.

        ::

            async with client.stream("orders") as deliveries:
                async for delivery in deliveries:
                    await client.complete(delivery)

        What was fetched and not handed out goes back to the queue when the block is left.

        Args:
            queue: Where to read.
            max_messages: How many are fetched at once.
        """
        check_positive("max_messages", max_messages)
        fetched: list[Delivery] = []

        async def deliveries() -> AsyncIterator[Delivery]:
            while True:
                batch = await self.receive_batch(queue, max_messages=max_messages)
                fetched.extend(batch)
                while fetched:
                    yield fetched.pop(0)

        iterator = deliveries()
        block = Block()
        with block.outside():
            try:
                with block.inside():
                    yield iterator
            finally:
                with (
                    trio.CancelScope(shield=True),
                    trio.move_on_after(self._calls.config.operation_timeout),
                ):
                    await iterator.aclose()  # type: ignore[attr-defined]  # an async generator
                    await self.settle([Settlement(d, SettlementAction.RELEASE) for d in fetched])

    @asynccontextmanager
    async def accept_session(
        self, queue: str, session_id: str | None = None, *, timeout: float | None = None
    ) -> AsyncIterator[SessionReceiver | None]:
        """Hold one session's lock for the length of the block.

        Where a lease ends with its last message (``Capabilities.keeps_empty_sessions`` is false, as on SQS) the
        block reads one lease: the messages that came with it. When all of these are settled the session is free
        for others, whatever the block still does; reading ends with ``None`` at its timeout, ``renew`` raises
        ``LockLost``, and the session's next messages take another ``accept_session``.

        Args:
            queue: Where to read.
            session_id: The session, existing or not; ``None``: the next one that has messages.
            timeout: Seconds to wait for the next available session; ``None``: as configured.

        Yields:
            The session, or ``None`` if ``session_id`` is ``None`` and none turned up in time.

        Raises:
            SessionLocked: Somebody else holds the named session.
            Unsupported: The broker has no sessions, or cannot lock them by name.
        """
        capabilities = self._provider.capabilities
        if not capabilities.sessions:
            raise Unsupported("sessions", self._provider.name)
        if session_id is not None and not capabilities.accept_by_name:
            raise Unsupported(
                "accept_by_name", self._provider.name, "accept the next available one"
            )
        seconds = check_timeout(timeout, self._calls.config.receive_timeout)
        name = QueueName(queue)
        wanted = None if session_id is None else SessionId(session_id)
        options = ReceiverOptions(auto_accept=False, max_sessions=1, max_per_session=EVERYTHING)
        receiver = await self._calls(self._provider.open_receiver, name, options)
        block = Block()
        with block.outside():
            try:
                lease = await self._calls(receiver.accept, wanted, seconds, allowance=seconds)
                inbox = Inbox(receiver, keeps_leases=True)
                session = (
                    None
                    if lease is None
                    else SessionReceiver(self._calls, self._holding, inbox, lease)
                )
                with block.inside():
                    yield session
            finally:
                self._holding.disown(receiver)
                await self._calls.close([receiver])

    # Settling.

    async def complete(self, delivery: Delivery) -> None:
        """The message is done: remove it.

        Raises:
            InvalidReceipt: It was settled before, or was not received through this client.
            LockLost: The lock is gone; the message will be delivered again.
        """
        await self._settle_one(Settlement(delivery, SettlementAction.COMPLETE))

    async def abandon(self, delivery: Delivery, *, delay: float = 0.0) -> None:
        """The message failed: deliver it again, after ``delay`` seconds. Raises as :meth:`complete`.

        Messages of its session that you still hold stay yours; settle or release them too, or the order of
        the session suffers.
        """
        await self._settle_one(Settlement(delivery, SettlementAction.ABANDON, delay=delay))

    async def release(self, delivery: Delivery) -> None:
        """Give the message back untried; it is delivered again at once. Raises as :meth:`complete`."""
        await self._settle_one(Settlement(delivery, SettlementAction.RELEASE))

    async def dead_letter(self, delivery: Delivery, reason: str, description: str = "") -> None:
        """Move the message to the dead-letter queue. Raises as :meth:`complete`.

        Args:
            delivery: The message.
            reason: Short and stable, for grouping.
            description: Text for people; cut at 4,096 characters.
        """
        await self._settle_one(
            Settlement(
                delivery,
                SettlementAction.DEAD_LETTER,
                reason=reason,
                description=description[:4096],
            )
        )

    async def settle(self, settlements: Sequence[Settlement]) -> list[QueueError | None]:
        """Settle many at once; for each ``None``, or why it was refused.

        Raises:
            ValidationError: A delay is no number of seconds from 0 to ten years; nothing was settled.
            QueueError: A call failed as a whole. Settling again is safe.
        """
        return await self._holding.settle(settlements)

    async def renew(self, delivery: Delivery) -> None:
        """Extend the lock the message was delivered under; ``delivery.locked_until`` moves.

        Raises:
            LockLost: It is gone.
            InvalidReceipt: The message was not received through this client, or everything is settled.
        """
        await self._holding.renew(delivery)

    # Looking and administering.

    async def peek(
        self, queue: str, *, max_messages: int = 10, after: int = 0
    ) -> list[PeekedMessage]:
        """Stored messages in sequence order, without taking them; page on with ``after``."""
        check_positive("max_messages", max_messages)
        return await self._calls(self._provider.peek, QueueName(queue), max_messages, after)

    async def purge(self, queue: str) -> int:
        """Delete every waiting and scheduled message for good; return how many."""
        return await self._calls(self._provider.purge, QueueName(queue))

    async def queue_stats(self, queue: str) -> QueueStats:
        """How the queue stands."""
        return await self._calls(self._provider.stats, QueueName(queue))

    async def provision(self, queue: str) -> list[str]:
        """Create the queue and what belongs to it, where the broker wants that done beforehand.

        What exists is never changed; calling again creates what is still missing.

        Returns:
            Lines for people: what was created, what was kept, and what differs from what would be created.

        Raises:
            Unsupported: The broker creates queues by itself.
        """
        return await self._calls(self._provider.provision, QueueName(queue))

    async def dead_letters(self, queue: str) -> DeadLetterClient:
        """The queue's dead-letter queue."""
        port = await self._calls(self._provider.open_dead_letters, QueueName(queue))
        return DeadLetterClient(self._calls, port)

    def supervise(
        self,
        queue: str,
        handler: HandlerFactory,
        *,
        config: SupervisorConfig | None = None,
        instruments: Iterable[Instrument] = (),
        task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED,
    ) -> Awaitable[None]:
        """Run a supervisor over this client's connection; for ``await nursery.start(client.supervise, …)``.

        See :func:`open_supervisor` for the arguments. It ends when drained or cancelled.
        """
        return supervise(
            self._provider,
            queue,
            handler,
            config=config,
            instruments=instruments,
            task_status=task_status,
        )

    # Inside.

    async def _settle_one(self, settlement: Settlement) -> None:
        error = (await self.settle([settlement]))[0]
        if error is not None:
            raise error

    async def _aclose(self) -> None:
        """Close what was opened for sending and receiving, even when cancelled."""
        self._calls.closed = True
        self._sending.close()
        await self._calls.close([*self._sending.opened, *self._holding.opened])
