"""Reading a queue under leases: trio's side of it. One crossing to the bridge's loop per call."""

# ruff: noqa: D102 - the methods are documented where they are declared, in queue_runtime.abc

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, TypeVar, TypeVarTuple, final

import trio

from queue_runtime.abc import Lease, Receiver, ReceiverOptions
from queue_runtime.errors import LockLost, QueueError, Unsupported, ValidationError
from queue_runtime.messages import Delivery, SessionId, Settlement, SettlementAction

from ..asyncio_bridge import AsyncioBridge
from ..leases import invalid_receipt
from ..malformed import bury_malformed
from .api import AzureApi, mapped
from .codec import Received, decode
from .holds import Flight, Hold, lock_lost
from .ids import decode_id, encode_id, is_lone
from .inlet import Arrival
from .intake import Intake, Take
from .plain_source import PlainSource
from .session_source import SessionSource
from .settling import Work, is_settled, work_of
from .sources import Source

__all__ = ["AzureReceiver"]

T = TypeVar("T")
_Ts = TypeVarTuple("_Ts")

_MOST_UNSETTLED: Final = 5_000
"""Most messages of a session that may be unsettled, whatever was asked for: what an AMQP window holds."""


@final
class AzureReceiver(Receiver):
    """Reads one queue. Made by :meth:`.provider.AzureProvider.open_receiver`."""

    @classmethod
    async def open(
        cls,
        bridge: AsyncioBridge,
        api: AzureApi,
        entity: str,
        options: ReceiverOptions,
        closed: Callable[[AzureReceiver], None],
    ) -> AzureReceiver:
        """Made on trio's side; its intake on the loop's."""
        receiver = cls(bridge, api, entity, closed)

        def tell(source: SessionSource, error: QueueError) -> None:
            bridge.post(receiver._source_lost, source, error)

        async def make() -> Intake:
            return Intake(
                api,
                entity,
                sessions=api.config.sessions,
                auto_accept=options.auto_accept,
                max_sessions=options.max_sessions,
                max_per_session=min(options.max_per_session, _MOST_UNSETTLED),
                on_lost=tell,
            )

        receiver._intake = await bridge.run(make)
        return receiver

    def __init__(
        self,
        bridge: AsyncioBridge,
        api: AzureApi,
        entity: str,
        closed: Callable[[AzureReceiver], None],
    ) -> None:
        config = api.config
        self.provider_name = "azure"
        self.lock_duration = config.lock_duration
        self.max_delivery_count = config.max_delivery_count
        self._bridge = bridge
        self._entity = entity
        self._has_sessions = config.sessions
        self._when_closed = closed
        self._intake: Intake
        self._closed = False
        self._was_closed = trio.Event()
        self._sessions: dict[SessionSource, Hold] = {}
        self._singles: dict[Hold, None] = {}
        # What the broker would not take back yet, for who tries again; nobody holds it any more.
        self._unreturned: dict[Hold, list[Arrival]] = {}

    # --- receiving ---------------------------------------------------------------------------------

    async def receive(self, max_messages: int, timeout: float) -> list[Delivery]:
        if max_messages < 1:
            raise ValidationError(f"max_messages is {max_messages}: ask for at least 1")
        self._check_open()
        deadline = trio.current_time() + timeout
        while True:
            left = max(0.0, deadline - trio.current_time())
            takes = await self._bridge.run(self._intake.receive, max_messages, left)
            if self._closed:
                self._check_open()  # what was taken is given back by closing
            deliveries, broken = self._deliveries(takes)
            if broken:
                deliveries = await bury_malformed(self.settle, broken, deliveries)
            if deliveries or not takes:
                return deliveries

    def _deliveries(
        self, takes: Sequence[Take]
    ) -> tuple[list[Delivery], list[tuple[Delivery, str]]]:
        """Leases and deliveries for what was taken; and those that say something that cannot be."""
        self.lock_duration = self._intake.locks.duration
        deliveries: list[Delivery] = []
        broken: list[tuple[Delivery, str]] = []
        for take in takes:
            if isinstance(take.source, SessionSource) and take.source.is_disowned:
                continue  # it was on its way when the lease ended, and returns with the link
            for arrival in take.arrivals:
                received = decode(arrival.message, sessions=self._has_sessions)
                hold = self._hold_for(take.source, received, arrival)
                delivery = received.delivery(hold.add(arrival).receipt, hold.lease)
                deliveries.append(delivery)
                if received.malformed is not None:
                    broken.append((delivery, received.malformed))
        return deliveries, broken

    def _hold_for(self, source: Source, received: Received, arrival: Arrival) -> Hold:
        if isinstance(source, PlainSource):
            asked_at = _trio_time(source.locked_at(arrival))
            hold = Hold(self, source, None, asked_at, self.lock_duration)
            self._singles[hold] = None
            return hold
        assert isinstance(source, SessionSource)
        return self._sessions.get(source) or self._new_session(source, received.message.session_id)

    def _new_session(self, source: SessionSource, session_id: SessionId | None) -> Hold:
        name = None if is_lone(source.session_id) else session_id
        hold = Hold(self, source, name, _trio_time(source.asked_at), self.lock_duration)
        self._sessions[source] = hold
        return hold

    async def accept(self, session_id: SessionId | None, timeout: float) -> Lease | None:
        self._check_open()
        if not self._has_sessions:
            raise Unsupported(
                "sessions",
                self.provider_name,
                "use a queue that requires sessions, and sessions=true",
            )
        source: SessionSource | None
        if session_id is None:
            source = await self._bridge.run(self._intake.accept, timeout)
        else:
            source = await self._bridge.run(self._intake.accept_named, encode_id(session_id))
        self._check_open()
        if source is None:
            return None
        self.lock_duration = self._intake.locks.duration
        name = session_id if session_id is not None else decode_id(source.session_id)
        hold = self._new_session(source, name)
        if source.is_disowned:  # lost on its way here
            self._lose(hold)
        return hold.lease

    # --- settling ----------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> list[QueueError | None]:
        self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        answers: list[QueueError | None] = [None] * len(settlements)
        taken: list[tuple[int, Hold, Flight, Work]] = []
        now = trio.current_time()
        for number, settlement in enumerate(settlements):
            found = self._find(settlement, now)
            if isinstance(found, QueueError):
                answers[number] = found
            else:
                hold, flight = found
                flight.is_settling = True
                taken.append((number, hold, flight, work_of(settlement, flight.arrival)))
        if not taken:
            await trio.lowlevel.checkpoint()
            return answers
        said: Sequence[QueueError | None] | None = None
        try:
            said = await self._bridge.run(
                self._intake.settle, [(hold.source, work) for _, hold, _, work in taken]
            )
        finally:
            # Whatever has no answer may or may not have happened, and can be tried again.
            for position, (number, hold, flight, _) in enumerate(taken):
                answer = None if said is None else said[position]
                over = said is not None and is_settled(answer)
                hold.conclude(flight, over=over)
                if isinstance(answer, LockLost):
                    answer = self._lose(hold)
                elif over and hold.is_alone:
                    self._end_alone(hold)
                answers[number] = answer
        return answers

    def _find(self, settlement: Settlement, now: float) -> tuple[Hold, Flight] | QueueError:
        """The message in flight that a settlement is about; or the refusal."""
        delivery = settlement.delivery
        hold = delivery.lease.provider_data
        if not isinstance(hold, Hold) or hold.owner is not self:
            return invalid_receipt(settlement)
        flight = hold.flights.get(delivery.receipt)
        if flight is None or flight.is_settling:
            if hold.lease.lost is not None:
                return lock_lost(hold.lease)
            return invalid_receipt(settlement)
        if not hold.is_live(now):
            self._lose(hold)
            return lock_lost(hold.lease)
        if settlement.halt:
            return Unsupported("session_halt", self.provider_name)
        return hold, flight

    def _end_alone(self, hold: Hold) -> None:
        """The lock of a message without a session ends with its settlement."""
        self._drop(hold)
        if isinstance(hold.source, SessionSource):
            # Its session was made for it alone.
            hold.lease.released = True
            with suppress(QueueError, trio.ClosedResourceError):
                self._bridge.start(hold.source.release)

    # --- leases ------------------------------------------------------------------------------------

    async def renew(self, leases: Sequence[Lease]) -> list[QueueError | None]:
        self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        now = trio.current_time()
        answers: list[QueueError | None] = [None] * len(leases)
        asked: list[tuple[int, Hold]] = []
        sources: list[SessionSource] = []
        messages: list[Arrival] = []
        for number, lease in enumerate(leases):
            hold = self._held(lease)
            if hold is None:
                answers[number] = lock_lost(lease)
            elif not hold.is_live(now):
                answers[number] = self._lose(hold)
            else:
                asked.append((number, hold))
                if isinstance(hold.source, SessionSource):
                    sources.append(hold.source)
                else:
                    messages += [flight.arrival for flight in hold.flights.values()]
        if not asked:
            await trio.lowlevel.checkpoint()
            return answers
        asked_at = trio.current_time()
        said = await self._bridge.run(self._intake.renew, sources, messages)
        self.lock_duration = self._intake.locks.duration
        for (number, hold), error in zip(asked, said, strict=True):
            answers[number] = self._renewed(hold, error, asked_at)
        return answers

    def _renewed(self, hold: Hold, error: QueueError | None, asked_at: float) -> QueueError | None:
        if isinstance(error, LockLost):
            if hold.is_alone and not hold.unsettled():
                return lock_lost(hold.lease)  # it ended with its settlement meanwhile
            return self._lose(hold)
        if error is not None:
            return error
        if hold.lease.lost is not None or self._held(hold.lease) is None:
            return lock_lost(hold.lease)
        hold.renewed(asked_at, self.lock_duration)
        return None

    async def release(self, leases: Sequence[Lease]) -> None:
        self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        holds = {
            hold: None
            for lease in leases
            if (hold := self._held(lease) or self._owed(lease)) is not None
        }
        if not holds:
            await trio.lowlevel.checkpoint()
            return
        await self._release(holds)

    async def _release(self, holds: Iterable[Hold]) -> None:
        sessions: list[SessionSource] = []
        messages: list[tuple[Hold, Arrival]] = []
        for hold in holds:
            self._drop(hold)
            if isinstance(hold.source, SessionSource):
                sessions.append(hold.source)
            else:
                arrivals = self._unreturned.pop(hold, [])
                arrivals += [flight.arrival for flight in hold.unsettled()]
                messages += [(hold, arrival) for arrival in arrivals]
            for flight in hold.unsettled():
                hold.conclude(flight, over=True)
        works = [Work(arrival, SettlementAction.RELEASE) for _, arrival in messages]
        failure: QueueError | None = None
        # Begun, it goes through: half given back would be held by nobody.
        with trio.CancelScope(shield=True):
            errors = await self._bridge.run(self._intake.release, sessions, works)
        for (hold, arrival), error in zip(messages, errors, strict=True):
            if error is not None and not is_settled(error):
                self._unreturned.setdefault(hold, []).append(arrival)
                failure = failure or error
        if failure is not None:
            raise failure

    def _owed(self, lease: Lease) -> Hold | None:
        """A lease whose message the broker would not take back yet, while its lock lasts."""
        now = trio.current_time()
        for hold in [hold for hold in self._unreturned if hold.lease.deadline <= now]:
            del self._unreturned[hold]
        hold = lease.provider_data
        return hold if isinstance(hold, Hold) and hold in self._unreturned else None

    async def get_state(self, lease: Lease) -> bytes | None:
        return await self._with_state(lease, "get session state", SessionSource.get_state)

    async def set_state(self, lease: Lease, state: bytes | None) -> None:
        await self._with_state(lease, "set session state", SessionSource.set_state, state)

    async def _with_state(
        self,
        lease: Lease,
        operation: str,
        function: Callable[[SessionSource, *_Ts], Awaitable[T]],
        *args: *_Ts,
    ) -> T:
        self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._has_sessions:
            raise Unsupported("session_state", self.provider_name, "use a queue with sessions")
        hold = self._held(lease)
        if hold is None:
            raise lock_lost(lease)
        if not hold.is_live(trio.current_time()):
            raise self._lose(hold)
        source = hold.source
        assert isinstance(source, SessionSource)

        async def ask() -> T:
            with mapped(operation, self._entity):
                return await function(source, *args)

        try:
            return await self._bridge.run(ask)
        except LockLost:
            raise self._lose(hold) from None

    def _held(self, lease: Lease) -> Hold | None:
        hold = lease.provider_data
        if not isinstance(hold, Hold):
            return None
        if isinstance(hold.source, SessionSource):
            return hold if self._sessions.get(hold.source) is hold else None
        return hold if hold in self._singles else None

    def _drop(self, hold: Hold) -> None:
        """Forget a lease, which is over, as is what its session brought that is still on its way here."""
        self._singles.pop(hold, None)
        if isinstance(hold.source, SessionSource):
            self._sessions.pop(hold.source, None)
            hold.source.is_disowned = True

    def _lose(self, hold: Hold, cause: QueueError | None = None) -> LockLost:
        """The lock is over: tell the lease's holder, unless it gave the lock back itself."""
        error = lock_lost(hold.lease)
        error.__cause__ = cause
        if self._held(hold.lease) is not None:
            self._drop(hold)
            hold.lease.lose(error)
        return error

    def _source_lost(self, source: SessionSource, error: QueueError) -> None:
        """The broker took a session away, or its connection is gone."""
        source.is_disowned = True  # what was taken from it may still be on its way here
        hold = self._sessions.get(source)
        if hold is not None:
            self._lose(hold, error)

    # --- closing -----------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"the receiver of queue {self._entity} is closed")

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            if not self._closed:
                self._closed = True
                try:
                    # What cannot be given back comes again when its lock expires.
                    with suppress(QueueError, trio.ClosedResourceError):
                        await self._bridge.run(self._intake.aclose)
                finally:
                    self._was_closed.set()
                    self._when_closed(self)
            await self._was_closed.wait()
        await trio.lowlevel.checkpoint()


def _trio_time(monotonic: float) -> float:
    """A moment by ``time.monotonic()`` as trio's clock counts."""
    return trio.current_time() - (time.monotonic() - monotonic)
