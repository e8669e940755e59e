"""The receiving half of the client: what was received and not settled, and the locks it is held under."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, final

import trio

from ..abc import Lease, Provider, Receiver, ReceiverOptions
from ..actors.settlement import RepeatableSettle
from ..errors import InvalidReceipt, LockLost, QueueError, ValidationError
from ..messages import MAX_DURATION, Delivery, QueueName, Settlement
from .calls import Calls

__all__ = ["EVERYTHING", "Holding", "Inbox"]

EVERYTHING: Final = 1_000_000
"""For limits that a caller keeps by what it asks for."""


@final
class Inbox:
    """A receiver of the client, and what was received and not settled, by lease and receipt.

    Args:
        receiver: The provider's receiver.
        keeps_leases: Whether a session stays locked when nothing of it is owed any more.
    """

    def __init__(self, receiver: Receiver, *, keeps_leases: bool = False) -> None:
        self.receiver = receiver
        self.keeps_leases = keeps_leases
        self.owed: dict[Lease, dict[str, Delivery]] = {}


@final
class Holding:
    """Everything one client has received and not settled.

    Args:
        provider: Opens the receivers.
        calls: How the broker is called.

    Attributes:
        owners: The inbox of every lease under which something is owed.
    """

    def __init__(self, provider: Provider, calls: Calls) -> None:
        self._provider = provider
        self._calls = calls
        self._opening = trio.Lock()
        self._inboxes: dict[QueueName, Inbox] = {}
        self.owners: dict[Lease, Inbox] = {}

    @property
    def opened(self) -> Iterable[Receiver]:
        """The receivers opened so far for whole queues."""
        return [inbox.receiver for inbox in self._inboxes.values()]

    async def inbox(self, queue: QueueName) -> Inbox:
        """The inbox for all of ``queue``, opened when it is first needed."""
        inbox = self._inboxes.get(queue)
        if inbox is None:
            async with self._opening:
                inbox = self._inboxes.get(queue)
                if inbox is None:
                    options = ReceiverOptions(max_per_session=EVERYTHING)
                    inbox = Inbox(await self._calls(self._provider.open_receiver, queue, options))
                    self._inboxes[queue] = inbox
        return inbox

    async def receive(self, inbox: Inbox, max_messages: int, timeout: float) -> list[Delivery]:
        """Up to ``max_messages`` deliveries, remembered as owed; ``[]`` at the timeout."""
        deadline = trio.current_time() + timeout
        while True:
            deliveries = await self._calls(
                inbox.receiver.receive, max_messages, timeout, allowance=timeout
            )
            # What came under a lease that is being given back goes back with it.
            held = [delivery for delivery in deliveries if not delivery.lease.released]
            for delivery in held:
                lease = delivery.lease
                if lease not in inbox.owed:
                    inbox.owed[lease] = {}
                    self.owners[lease] = inbox
                    lease.on_lost(self._lost)
                inbox.owed[lease][delivery.receipt] = delivery
            timeout = max(0.0, deadline - trio.current_time())
            if held or not deliveries:
                return held

    async def settle(self, settlements: Sequence[Settlement]) -> list[QueueError | None]:
        """Settle what is owed; for each ``None``, or why it was refused. Raises as the client's."""
        for settlement in settlements:
            if not 0.0 <= settlement.delay <= MAX_DURATION:
                raise ValidationError(
                    f"delay is {settlement.delay!r}: it must be seconds from 0 to {MAX_DURATION:.0f}"
                )
        answers: list[QueueError | None] = [None] * len(settlements)
        by_inbox: dict[Inbox, list[int]] = {}
        for index, settlement in enumerate(settlements):
            delivery = settlement.delivery
            inbox = self.owners.get(delivery.lease)
            if inbox is None or delivery.receipt not in inbox.owed.get(delivery.lease, {}):
                answers[index] = delivery.lease.lost or InvalidReceipt(
                    f"message {delivery.message_id!r} was settled before, "
                    "or was not received through this client"
                )
            else:
                by_inbox.setdefault(inbox, []).append(index)
        limit = self._provider.capabilities.max_settle_messages
        for inbox, indices in by_inbox.items():
            for start in range(0, len(indices), limit):
                chunk = indices[start : start + limit]
                results = await self._calls(
                    RepeatableSettle(inbox.receiver), [settlements[index] for index in chunk]
                )
                for index, result in zip(chunk, results, strict=True):
                    answers[index] = result
                await self._forget(
                    inbox,
                    [
                        settlements[index].delivery
                        for index in chunk
                        if answers[index] is None
                        or isinstance(answers[index], (InvalidReceipt, LockLost))
                    ],
                )
        return answers

    async def renew(self, delivery: Delivery) -> None:
        """Extend the lock of a delivery. Raises as the client's."""
        inbox = self.owners.get(delivery.lease)
        if inbox is None:
            raise delivery.lease.lost or InvalidReceipt(
                f"message {delivery.message_id!r} is not held by this client"
            )
        error = (await self._calls(inbox.receiver.renew, [delivery.lease]))[0]
        if error is not None:
            raise error

    def disown(self, receiver: Receiver) -> None:
        """Forget what was received by ``receiver``, which is about to be closed."""
        for lease in [lease for lease, owner in self.owners.items() if owner.receiver is receiver]:
            del self.owners[lease]

    def _lost(self, lease: Lease) -> None:
        """Nothing is owed under a lease that is gone; what is settled all the same is told so."""
        inbox = self.owners.pop(lease, None)
        if inbox is not None:
            inbox.owed.pop(lease, None)

    async def _forget(self, inbox: Inbox, deliveries: Iterable[Delivery]) -> None:
        """Strike deliveries off; a session under which nothing is owed any more is given back."""
        over: list[Lease] = []
        for delivery in deliveries:
            lease = delivery.lease
            owed = inbox.owed.get(lease)
            if owed is None:
                continue
            owed.pop(delivery.receipt, None)
            if not owed and lease not in over:
                over.append(lease)
        for lease in over:
            inbox.owed.pop(lease, None)
            self.owners.pop(lease, None)
        given_back = [
            lease for lease in over if lease.session_id is not None and lease.lost is None
        ]
        if given_back and not inbox.keeps_leases:
            for lease in given_back:
                lease.released = True
            try:
                await self._calls(inbox.receiver.release, given_back)
            except QueueError:
                # The settlements stand. A lock that cannot be given back expires.
                pass
