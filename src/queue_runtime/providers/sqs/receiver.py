"""Reading a queue under leases: trio's side of it. One crossing to the bridge's loop per call."""

# ruff: noqa: D102 - the methods are documented where they are declared, in queue_runtime.abc

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import final

import trio

from queue_runtime.abc import Lease, Receiver, ReceiverOptions
from queue_runtime.errors import QueueError, Unsupported, ValidationError
from queue_runtime.messages import (
    DeadLetterInfo,
    Delivery,
    SessionId,
    Settlement,
    SettlementAction,
)

from ..asyncio_bridge import AsyncioBridge
from ..envelope import Extras
from ..leases import invalid_receipt
from ..malformed import bury_malformed
from ..wire_ids import digest
from .claims import MAX_RECEIVED, Change, not_held
from .codec import decode
from .holds import Flight, FlightState, Hold, lock_lost
from .polls import Claimed, Poller
from .queues import Queue
from .settling import Burial, Work, Workshop

__all__ = ["SqsReceiver"]


@final
class SqsReceiver(Receiver):
    """Reads one queue. Made by :meth:`.provider.SqsProvider.open_receiver`.

    Calls may overlap, ``receive`` included; each ``receive`` is one long poll, or several one after the other.
    """

    def __init__(
        self,
        bridge: AsyncioBridge,
        queue: Queue,
        poller: Poller,
        workshop: Workshop,
        options: ReceiverOptions,
        lock_duration: int,
        closed: Callable[[SqsReceiver], Awaitable[None]],
    ) -> None:
        self.provider_name = "sqs"
        self.lock_duration = float(lock_duration)
        self.max_delivery_count = queue.max_delivery_count
        self._bridge = bridge
        self._queue = queue
        self._poller = poller
        self._workshop = workshop
        self._options = options
        self._when_closed = closed
        self._closed = False
        self._holds: dict[Hold, None] = {}  # in the order of their deadlines
        self._sessions: dict[SessionId, Hold] = {}
        self._accepted: deque[Delivery] = deque()
        self._reserved = 0  # sessions that polls under way may bring
        self._calls = 0  # polls under way
        self._renewing: dict[Hold, trio.Event] = {}
        self._changed = trio.Event()

    # --- receiving ---------------------------------------------------------------------------------

    async def receive(self, max_messages: int, timeout: float) -> list[Delivery]:
        if max_messages < 1:
            raise ValidationError(f"max_messages is {max_messages}: ask for at least 1")
        self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        deadline = trio.current_time() + timeout
        most = min(max_messages, MAX_RECEIVED, self._options.max_per_session)
        while True:
            if self._accepted:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return self._first_accepted(max_messages)
            room = min(most, self._room()) if self._options.auto_accept else 0
            left = max(0.0, deadline - trio.current_time())
            if room > 0:
                deliveries = await self._receive(room, left)
                if deliveries or trio.current_time() >= deadline:
                    return deliveries
            elif left > 0:
                with trio.move_on_after(left):
                    await self._changed.wait()
                self._check_open()
            else:
                await trio.lowlevel.checkpoint()
                return []

    def _room(self) -> int:
        """How many more sessions may be held; any message received may open one."""
        if not self._queue.fifo:
            return MAX_RECEIVED
        self._lose_expired()
        return self._options.max_sessions - len(self._sessions) - self._reserved

    async def _receive(self, count: int, timeout: float) -> list[Delivery]:
        """One answer of SQS, empty at the timeout; what cannot be read is buried on the way."""
        self._reserved += count
        try:
            claimed, asked_at = await self._claim(count, timeout)
        finally:
            self._reserved -= count
            self._wake()
        if claimed is None:
            return []
        deliveries, broken = self._deliveries(claimed, asked_at)
        if broken:
            deliveries = await bury_malformed(self.settle, broken, deliveries)
        return deliveries

    async def _claim(self, count: int, timeout: float) -> tuple[Claimed | None, float]:
        """What a poll brought, and when it was asked for by trio's clock."""
        now, ticks = trio.current_time(), time.monotonic()
        self._calls += 1
        try:
            claimed = await self._bridge.run(self._poller.receive, count, timeout)
            if claimed is None:
                return None, now
            if self._closed:
                with trio.CancelScope(shield=True):
                    await self._bridge.run(self._poller.give_back, claimed.messages)
                self._check_open()
            return claimed, now + claimed.asked_at - ticks
        finally:
            self._calls -= 1
            self._wake()

    def _deliveries(
        self, claimed: Claimed, asked_at: float
    ) -> tuple[list[Delivery], list[tuple[Delivery, str]]]:
        """Leases and deliveries for what was claimed; and those that say something that cannot be."""
        self._lose_expired()
        now = trio.current_time()
        deliveries: list[Delivery] = []
        broken: list[tuple[Delivery, str]] = []
        opened: dict[SessionId, Hold] = {}
        for raw in claimed.messages:
            received = decode(raw, self._queue.kind)
            session = received.message.session_id
            hold = None if session is None else opened.get(session)
            if hold is None:
                hold = self._new_hold(session, asked_at, now)
                if session is not None:
                    opened[session] = hold
            delivery = received.delivery(hold.add(raw).receipt, hold.lease)
            deliveries.append(delivery)
            if received.malformed is not None:
                broken.append((delivery, received.malformed))
        return deliveries, broken

    def _new_hold(self, session: SessionId | None, asked_at: float, now: float) -> Hold:
        """A new lease for a message; there is never more than one of a session."""
        before = None if session is None else self._sessions.get(session)
        if before is not None and (before.unsettled() or not before.is_live(now)):
            self._lose(before)  # SQS would not have let anybody in
        hold = Hold(self, session, asked_at, self.lock_duration)
        self._holds[hold] = None
        if session is not None:
            self._sessions[session] = hold
        return hold

    async def accept(self, session_id: SessionId | None, timeout: float) -> Lease | None:
        self._check_open()
        if not self._queue.fifo:
            raise Unsupported("sessions", self.provider_name, "use a FIFO queue")
        if session_id is not None:
            raise Unsupported(
                "accept_by_name", self.provider_name, "SQS hands out message groups as it likes"
            )
        await trio.lowlevel.checkpoint_if_cancelled()
        # One message: of several, each might be of another session.
        deliveries = await self._receive(1, timeout)
        if not deliveries:
            return None
        self._accepted.extend(deliveries)
        self._wake()
        return deliveries[0].lease

    def _first_accepted(self, count: int) -> list[Delivery]:
        return [self._accepted.popleft() for _ in range(min(count, len(self._accepted)))]

    # --- settling ----------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> list[QueueError | None]:
        self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        answers: list[QueueError | None] = [None] * len(settlements)
        taken: list[tuple[int, Settlement, Hold, Flight]] = []
        now = trio.current_time()
        for number, settlement in enumerate(settlements):
            found = self._take(settlement, now)
            if isinstance(found, QueueError):
                answers[number] = found
            else:
                taken.append((number, settlement, *found))
        work, flights = self._work(
            [(settlement, hold, flight) for _, settlement, hold, flight in taken]
        )
        if not flights:
            await trio.lowlevel.checkpoint()
            return answers
        holds = {hold for _, _, hold, _ in taken}
        said: dict[str, QueueError | None] = {}
        try:
            if work.changes:
                await self._until_renewed(holds)
            said = await self._bridge.run(self._workshop.do, work)
        finally:
            # Whatever has no answer may or may not have happened, and can be tried again.
            _conclude(flights, said, {flight for *_, flight in taken})
            self._end(holds)
        for number, _, _, flight in taken:
            answers[number] = said.get(flight.receipt)
        return answers

    def _take(self, settlement: Settlement, now: float) -> tuple[Hold, Flight] | QueueError:
        """The message in flight that a settlement is about, marked as being settled; or the refusal."""
        delivery = settlement.delivery
        hold = delivery.lease.provider_data
        if not isinstance(hold, Hold) or hold.owner is not self:
            return invalid_receipt(settlement)
        flight = hold.flights.get(delivery.receipt)
        if flight is None or flight.state is not FlightState.HELD:
            return invalid_receipt(settlement)
        if not hold.is_live(now):
            self._lose(hold)
            return lock_lost(hold.lease)
        if settlement.halt:
            return Unsupported("session_halt", self.provider_name)
        if settlement.action in (SettlementAction.COMPLETE, SettlementAction.DEAD_LETTER):
            flight.state = FlightState.DELETING
        else:
            flight.state = FlightState.POSTPONED
            delay = settlement.delay if settlement.action is SettlementAction.ABANDON else 0.0
            flight.visible_at = now + delay
        return hold, flight

    def _work(self, taken: Sequence[tuple[Settlement, Hold, Flight]]) -> tuple[Work, list[Flight]]:
        """What is to be done, and the messages that it is about.

        SQS would deliver the head of a group as soon as it is visible, also while what lies behind is in flight:
        the session would have two holders. So nothing is made visible before the last of a lease is settled.
        """
        deletions: list[str] = []
        burials: list[Burial] = []
        flights: list[Flight] = []
        for settlement, _, flight in taken:
            if settlement.action is SettlementAction.COMPLETE:
                deletions.append(flight.receipt)
                flights.append(flight)
            elif settlement.action is SettlementAction.DEAD_LETTER:
                burials.append(self._burial(settlement, flight))
                flights.append(flight)
        changes: list[Change] = []
        for hold in dict.fromkeys(hold for _, hold, _ in taken):
            if not hold.unsettled():
                changes += self._return(hold, hold.postponed())
                flights += hold.postponed()
        for flight in flights:
            if flight.state is FlightState.POSTPONED:
                flight.state = FlightState.RETURNING
        return Work(deletions, changes, burials), flights

    def _return(self, hold: Hold, flights: Iterable[Flight]) -> list[Change]:
        """Make messages visible, the last first: what lies behind a message in flight waits for it."""
        now = trio.current_time()
        return [
            Change(flight.receipt, hold.visibility(flight.visible_at, now), hold)
            for flight in reversed(list(flights))
        ]

    def _burial(self, settlement: Settlement, flight: Flight) -> Burial:
        delivery = settlement.delivery
        history = delivery.dead_letter
        info = DeadLetterInfo(
            reason=settlement.reason,
            description=settlement.description,
            dead_lettered_at=datetime.now(UTC),
            first_failed_at=None if history is None else history.first_failed_at,
            delivery_count=delivery.delivery_count,
        )
        extras = Extras(
            message_id=delivery.message_id,
            dead_letter=info,
            enqueued_at=delivery.enqueued_at,
            sequence_number=delivery.sequence_number,
        )
        token = digest("dead letter", self._queue.url, str(flight.raw.get("MessageId")))
        original = decode(flight.raw, self._queue.kind).message
        return Burial(flight.receipt, original, extras, token, flight.raw)

    # --- leases ------------------------------------------------------------------------------------

    async def renew(self, leases: Sequence[Lease]) -> list[QueueError | None]:
        self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        now = trio.current_time()
        answers: list[QueueError | None] = [None] * len(leases)
        due: dict[int, Hold] = {}
        for number, lease in enumerate(leases):
            hold = self._held(lease)
            if hold is None:
                answers[number] = lock_lost(lease)
            elif not hold.is_live(now) or hold.visibility_left(now) < self.lock_duration:
                answers[number] = self._lose(hold)
            else:
                due[number] = hold
        holds = list(dict.fromkeys(due.values()))
        if not holds:
            await trio.lowlevel.checkpoint()
            return answers
        said = await self._renew(holds)
        for number, hold in due.items():
            answers[number] = said[hold]
        return answers

    async def _renew(self, holds: Sequence[Hold]) -> dict[Hold, QueueError | None]:
        asked_at = trio.current_time()
        seconds = int(self.lock_duration)
        # What is being deleted goes along, in case that fails; what is being given back must not.
        changes = [
            Change(flight.receipt, seconds)
            for hold in holds
            for flight in hold.flights.values()
            if flight.state not in (FlightState.RETURNING, FlightState.OVER)
        ]
        done = trio.Event()
        for hold in holds:
            self._renewing[hold] = done
        try:
            said = (
                await self._bridge.run(self._workshop.do, Work((), changes, ())) if changes else {}
            )
        finally:
            done.set()
            for hold in holds:
                self._renewing.pop(hold, None)
        return {hold: self._renewed(hold, said, asked_at) for hold in holds}

    def _renewed(
        self, hold: Hold, said: dict[str, QueueError | None], asked_at: float
    ) -> QueueError | None:
        """What the answers to its messages mean for a lease."""
        # What was settled meanwhile is refused and does not matter.
        errors = [said.get(flight.receipt) for flight in (*hold.unsettled(), *hold.postponed())]
        for error in errors:
            if not_held(error):
                self._lose(hold)
                return lock_lost(hold.lease)
        for error in errors:
            if error is not None:
                return error
        if hold.lease.lost is not None or hold not in self._holds:
            return lock_lost(hold.lease)
        if said:
            hold.renewed(asked_at, self.lock_duration)
            del self._holds[hold]
            self._holds[hold] = None
        return None

    async def _until_renewed(self, holds: Iterable[Hold]) -> None:
        """Wait for renewals under way: one that comes after giving back would hide the message again."""
        for hold in holds:
            renewal = self._renewing.get(hold)
            if renewal is not None:
                await renewal.wait()

    async def release(self, leases: Sequence[Lease]) -> None:
        self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        holds = {hold for lease in leases if (hold := self._held(lease)) is not None}
        if not await self._release(holds):
            await trio.lowlevel.checkpoint()

    async def _release(self, holds: Iterable[Hold]) -> bool:
        """Give back what is not settled and end the leases; whether there was anything to ask SQS for."""
        holds = list(holds)
        now = trio.current_time()
        flights: list[Flight] = []
        changes: list[Change] = []
        for hold in holds:
            for flight in hold.unsettled():
                flight.state = FlightState.POSTPONED
                flight.visible_at = now
            returning = hold.postponed()
            flights += returning
            if now < hold.expires and hold.lease.lost is None:
                changes += self._return(hold, returning)
        for flight in flights:
            flight.state = FlightState.RETURNING
        said: dict[str, QueueError | None] = {}
        try:
            await self._until_renewed(holds)
            given_back = (
                await self._bridge.run(self._workshop.do, Work((), changes, ())) if changes else {}
            )
            said = {flight.receipt: given_back.get(flight.receipt) for flight in flights}
        finally:
            _conclude(flights, said, set(flights))
        failures = [error for error in said.values() if error is not None and not not_held(error)]
        if failures:
            raise failures[0]
        for hold in holds:
            self._drop(hold)
        return bool(changes)

    def _held(self, lease: Lease) -> Hold | None:
        hold = lease.provider_data
        return hold if isinstance(hold, Hold) and hold in self._holds else None

    def _end(self, holds: Iterable[Hold]) -> None:
        """Forget the leases under which nothing is unsettled."""
        for hold in holds:
            if hold.is_over():
                self._drop(hold)

    def _drop(self, hold: Hold) -> None:
        """The lease is over in good order."""
        self._forget(hold)
        for flight in hold.flights.values():
            if flight.state is FlightState.HELD:
                flight.state = FlightState.OVER

    def _forget(self, hold: Hold) -> None:
        self._holds.pop(hold, None)
        session = hold.lease.session_id
        if session is not None and self._sessions.get(session) is hold:
            del self._sessions[session]
        if self._accepted:
            self._accepted = deque(d for d in self._accepted if d.lease is not hold.lease)
        self._wake()

    def _lose_expired(self) -> None:
        """Leases that nobody renewed or settled in time take no room."""
        now = trio.current_time()
        while self._holds:
            first = next(iter(self._holds))
            if first.is_live(now):
                break
            self._lose(first)

    def _lose(self, hold: Hold) -> QueueError:
        """The lock is over: tell the lease's holder, unless it gave the lock back itself."""
        error = lock_lost(hold.lease)
        if hold in self._holds:
            self._forget(hold)
            hold.lease.lose(error)
        return error

    def _wake(self) -> None:
        """Something changed that a waiting call may wait for."""
        self._changed.set()
        self._changed = trio.Event()

    # --- closing -----------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"the receiver of queue {self._queue.name} is closed")

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._wake()
            with trio.CancelScope(shield=True):
                # What cannot be given back comes again when its lock expires.
                with suppress(QueueError, trio.ClosedResourceError):
                    await self._bridge.run(self._poller.aclose)
                while self._calls:
                    await self._changed.wait()
                with suppress(QueueError, trio.ClosedResourceError):
                    await self._release(list(self._holds))
                await self._when_closed(self)
        await trio.lowlevel.checkpoint()


def _conclude(
    flights: Iterable[Flight], said: dict[str, QueueError | None], asked: Collection[Flight]
) -> None:
    """Note what became of messages: settled, no longer ours, or as they were before.

    Args:
        flights: What the call was about.
        said: The answers it got.
        asked: What the caller can ask for again; the others were promised to somebody before.
    """
    for flight in flights:
        error = said.get(flight.receipt)
        if flight.receipt in said and (error is None or not_held(error)):
            flight.state = FlightState.OVER
        else:
            flight.state = FlightState.HELD if flight in asked else FlightState.POSTPONED
