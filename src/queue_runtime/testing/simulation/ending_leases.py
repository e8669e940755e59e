"""A broker whose leases end with their last delivery, made of one that keeps empty sessions.

SQS is such a broker, and its calls return ten messages at most. The embedded broker can play it with this around it.
"""

# ruff: noqa: D102 - the methods are documented where they are declared, in queue_runtime.abc

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, final

import attrs
import trio

from ...abc import DeadLetters, Lease, Provider, Receiver, ReceiverOptions, Sender
from ...errors import InvalidReceipt, LockLost, QueueError
from ...messages import (
    Delivery,
    PeekedMessage,
    QueueName,
    QueueStats,
    SessionId,
    Settlement,
    SettlementAction,
)

__all__ = ["EndingLeases"]

_LOOK: Final = 0.05
"""Seconds after which a receiver looks again whether other sessions than those it holds have messages."""


@final
class EndingLeases(Provider):
    """``inner`` without empty sessions.

    Args:
        inner: A provider that keeps them. Closed with this one.
        max_receive_messages: Most deliveries one receive call returns; ``None``: as ``inner`` does.
    """

    name: ClassVar[str] = "ending_leases"

    def __init__(self, inner: Provider, *, max_receive_messages: int | None = None) -> None:
        self._inner = inner
        self.capabilities = attrs.evolve(
            inner.capabilities,
            keeps_empty_sessions=False,
            max_receive_messages=max_receive_messages,
        )

    async def open_sender(self, queue: QueueName) -> Sender:
        return await self._inner.open_sender(queue)

    async def open_receiver(self, queue: QueueName, options: ReceiverOptions) -> Receiver:
        receiver = await self._inner.open_receiver(queue, options)
        return _EndingReceiver(receiver, self.capabilities.max_receive_messages)

    async def open_dead_letters(self, queue: QueueName) -> DeadLetters:
        return await self._inner.open_dead_letters(queue)

    async def peek(
        self, queue: QueueName, max_messages: int, after: int = 0
    ) -> list[PeekedMessage]:
        return await self._inner.peek(queue, max_messages, after)

    async def purge(self, queue: QueueName) -> int:
        return await self._inner.purge(queue)

    async def stats(self, queue: QueueName) -> QueueStats:
        return await self._inner.stats(queue)

    async def aclose(self) -> None:
        await self._inner.aclose()


@final
class _EndingReceiver(Receiver):
    """Gives a session back in the moment its last unsettled delivery is settled.

    While anything of a session is unsettled, no other call returns more of it.
    """

    def __init__(self, inner: Receiver, most: int | None) -> None:
        self._inner = inner
        self._most = most
        self._unsettled: dict[Lease, set[str]] = {}
        self._ended: set[Lease] = set()
        self._changed = trio.Event()
        # What is done in two steps is not interrupted by what another task does.
        self._turn = trio.Lock()
        self.provider_name = inner.provider_name
        self.lock_duration = inner.lock_duration
        self.max_delivery_count = inner.max_delivery_count

    async def receive(self, max_messages: int, timeout: float) -> list[Delivery]:
        most = max_messages if self._most is None else min(max_messages, self._most)
        until = trio.current_time() + timeout
        while True:
            changed = self._changed
            left = max(0.0, until - trio.current_time())
            received = await self._inner.receive(most, left)
            with trio.CancelScope(shield=True):
                deliveries = await self._keep(received)
            if deliveries or not received or trio.current_time() >= until:
                return deliveries
            with trio.move_on_at(min(until, trio.current_time() + _LOOK)):
                await changed.wait()

    async def _keep(self, received: list[Delivery]) -> list[Delivery]:
        """What may be delivered: nothing under a lease that is over, or that an earlier call delivered under."""
        async with self._turn:
            kept: list[Delivery] = []
            early: list[Settlement] = []
            earlier = {lease for lease, unsettled in self._unsettled.items() if unsettled}
            for delivery in received:
                lease = delivery.lease
                if lease in self._ended:
                    continue  # it went back with its lease
                if lease in earlier:
                    early.append(Settlement(delivery, SettlementAction.RELEASE))
                    continue
                kept.append(delivery)
                if lease.session_id is not None:
                    self._unsettled.setdefault(lease, set()).add(delivery.receipt)
            if early:
                await self._inner.settle(early)
            return kept

    async def settle(self, settlements: Sequence[Settlement]) -> list[QueueError | None]:
        # Not even a cancellation may come between a settlement and the end of its lease.
        await trio.lowlevel.checkpoint_if_cancelled()
        results: list[QueueError | None] = []
        with trio.CancelScope(shield=True):
            async with self._turn:
                results = await self._settle(settlements)
        return results

    async def _settle(self, settlements: Sequence[Settlement]) -> list[QueueError | None]:
        live = [each for each in settlements if each.delivery.lease not in self._ended]
        answers = iter(await self._inner.settle(live))
        results: list[QueueError | None] = []
        over: list[Lease] = []
        for settlement in settlements:
            delivery = settlement.delivery
            lease = delivery.lease
            if lease in self._ended:
                results.append(InvalidReceipt(f"{delivery.message_id!a} was settled before"))
                continue
            answer = next(answers)
            results.append(answer)
            unsettled = self._unsettled.get(lease, set())
            if answer is None and delivery.receipt in unsettled:
                unsettled.discard(delivery.receipt)
                if not unsettled:
                    over.append(lease)
        self._ended.update(over)
        if over:
            await self._inner.release(over)
        self._forget(over)
        return results

    async def renew(self, leases: Sequence[Lease]) -> list[QueueError | None]:
        # A lease that ended was not lost: the broker behind would tell it so.
        async with self._turn:
            live = {lease: None for lease in leases if lease not in self._ended}
            answers = dict(zip(live, await self._inner.renew(list(live)), strict=True))
        return [
            answers[lease]
            if lease in answers
            else LockLost(f"the lease on session {lease.session_id!r} has ended")
            for lease in leases
        ]

    async def release(self, leases: Sequence[Lease]) -> None:
        async with self._turn:
            await self._inner.release([lease for lease in leases if lease not in self._ended])
            self._forget(leases)

    async def accept(self, session_id: SessionId | None, timeout: float) -> Lease | None:
        return await self._inner.accept(session_id, timeout)

    async def get_state(self, lease: Lease) -> bytes | None:
        return await self._inner.get_state(lease)

    async def set_state(self, lease: Lease, state: bytes | None) -> None:
        await self._inner.set_state(lease, state)

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _forget(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._unsettled.pop(lease, None)
        self._changed.set()
        self._changed = trio.Event()
