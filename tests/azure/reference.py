"""What must hold of a queue on Service Bus, whatever was done with it: a model that is told what the adapter answered.

It predicts nothing that a broker may choose. It keeps a record of each message and of each lease, and after every
step compares them with what lies in the queue: :meth:`Model.observe`. What a step leaves open, as when a call was
cancelled, is in ``may`` and ``growth`` of a record until then. No I/O here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import final

from queue_runtime import Delivery, Message, MessageState, PeekedMessage, SettlementAction
from queue_runtime.abc import Lease, Receiver

__all__ = ["Held", "Model", "Record", "Where"]

EARLY = 0.02
"""Seconds by which a delayed message may come too early: two clocks are read."""


class Where:
    """Where a message is."""

    ALIVE, DEAD, GONE = "alive", "dead", "gone"


@final
@dataclass(eq=False, repr=False)
class Record:
    """A message that was sent, whatever became of it."""

    def __repr__(self) -> str:
        return (
            f"<{self.number} of {self.session} {self.where} {self.count} {self.may} {self.growth}>"
        )

    number: int
    message: Message
    where: str = Where.GONE
    sequence: int = 0
    first_sequence: int = 0
    count: int = 0
    scheduled: bool = False
    due: float = 0.0  # by the broker's clock
    keeps_order: bool = True  # not scheduled, never redriven: it stands as it was sent
    delayed_until: float = (
        0.0  # time.monotonic(); it was abandoned with a delay that was not seen to end
    )
    held: Held | None = None  # the lease under which it is in flight, as far as its holder knows
    may: set[str] = field(default_factory=set)
    growth: tuple[int, int] = (0, 0)
    restarts: bool = False

    @property
    def session(self) -> str | None:
        return self.message.session_id

    @property
    def is_flying(self) -> bool:
        """In flight under a lease that still holds."""
        return self.held is not None and self.held.is_live

    @property
    def is_ready(self) -> bool:
        return self.where == Where.ALIVE and not self.scheduled and not self.delayed_until


@final
@dataclass(eq=False)
class Held:
    """A lease that was handed out."""

    lease: Lease
    receiver: Receiver
    flights: dict[str, Record] = field(default_factory=dict)
    is_doomed: bool = False  # the broker has ended it, and its holder may not know yet
    is_stolen: bool = False  # and its holder is not told
    is_shaky: bool = False  # a call was cancelled or failed: the adapter may take it for lost
    is_cut: bool = False  # its link is gone: without it, what is given back is counted
    is_given_back: bool = False

    @property
    def session(self) -> str | None:
        return self.lease.session_id

    @property
    def is_known(self) -> bool:
        """Its holder takes it for held."""
        return self.lease.lost is None and not self.is_given_back

    @property
    def is_live(self) -> bool:
        return self.is_known and not self.is_doomed

    def end(self) -> None:
        self.is_given_back = True
        for record in self.flights.values():
            record.growth = (0, record.growth[1] + self.is_cut)
        self.land()

    def land(self) -> None:
        """Nothing is in flight under it any more."""
        for record in self.flights.values():
            if record.held is self:
                record.held = None
        self.flights.clear()


@final
class Model:
    """A queue and who reads it.

    Args:
        limit: Deliveries after which the broker dead-letters.
    """

    def __init__(self, *, limit: int) -> None:
        self.limit = limit
        self.records: list[Record] = []
        self.helds: list[Held] = []
        self.deliveries: list[tuple[Delivery, Held, Record]] = []
        self.states: dict[str, bytes] = {}
        self.deduplicated: set[str] = set()
        self.tokens: dict[str, int] = {}
        self.lingering = False  # locks that nobody has may last until their time is over

    # Questions

    def find(self, where: str) -> list[Record]:
        return [record for record in self.records if record.where == where]

    def of_session(self, session: str) -> list[Record]:
        """What is alive of a session, in order."""
        found = [r for r in self.find(Where.ALIVE) if r.session == session and not r.scheduled]
        return sorted(found, key=lambda record: record.sequence)

    def holder(self, session: str) -> Held | None:
        """The live lease of a session."""
        return next((h for h in self.helds if h.session == session and h.is_live), None)

    def known(self, receiver: Receiver | None = None) -> list[Held]:
        return [h for h in self.helds if h.is_known and receiver in (None, h.receiver)]

    def is_delayed(self, session: str) -> bool:
        return any(record.delayed_until for record in self.of_session(session))

    def next_of(self, held: Held) -> Record | None:
        """What a session has to bring next under a lease."""
        assert held.session is not None
        if self.is_delayed(held.session):
            return None
        return next((r for r in self.of_session(held.session) if r.held is not held), None)

    def free_sessions(self) -> list[str]:
        """Sessions with messages that anybody can have."""
        names = {record.session for record in self.find(Where.ALIVE) if record.is_ready}
        return [
            name
            for name in sorted(filter(None, names))
            if self.holder(name) is None and not self.is_delayed(name)
        ]

    def free_singles(self) -> list[Record]:
        """Messages without a session that anybody can have."""
        return [
            record
            for record in self.find(Where.ALIVE)
            if record.is_ready and record.session is None and not record.is_flying
        ]

    def owes(self, receiver: Receiver, *, accepts: bool, room: int, most: int) -> bool:
        """Whether a receiver has to get something when it asks now and waits."""
        for held in self.known(receiver):
            may_bring = held.session is not None and held.is_live and not held.is_shaky
            if may_bring and len(held.flights) < most and self.next_of(held) is not None:
                return True
        if self.lingering or not accepts or room <= 0:
            return False
        return bool(self.free_sessions() or self.free_singles())

    # What happened

    def sent(self, record: Record, *, is_sure: bool) -> None:
        """A message was sent: acknowledged, or nobody knows."""
        self.records.append(record)
        record.may = {Where.ALIVE} if is_sure else {Where.ALIVE, Where.GONE}
        name = record.message.deduplication_id
        if name is not None:
            if name in self.deduplicated:
                record.may = {Where.GONE}
            elif is_sure:
                self.deduplicated.add(name)

    def leased(self, lease: Lease, receiver: Receiver) -> Held:
        """A delivery or an accept brought this lease."""
        for held in self.helds:
            if held.lease is lease:
                assert held.receiver is receiver, "two receivers share a lease"
                assert not held.is_given_back, "a lease that is over brings something"
                return held
        if lease.session_id is not None:
            other = self.holder(lease.session_id)
            assert other is None, f"two leases of one session: {lease!r} beside {other.lease!r}"
            assert lease.token > self.tokens.get(lease.session_id, 0), "a token did not grow"
            self.tokens[lease.session_id] = lease.token
        held = Held(lease, receiver)
        self.helds.append(held)
        return held

    def received(self, receiver: Receiver, deliveries: Iterable[Delivery]) -> None:
        """Each session's deliveries have to be its lowest that are not in flight."""
        for delivery in deliveries:
            record = self.records[int(delivery.body)]
            assert delivery.message_id
            assert delivery.message.headers == record.message.headers
            assert delivery.session_id == record.session
            stale = next((h for h in self.helds if h.lease is delivery.lease), None)
            if stale is not None and stale.is_doomed and stale.is_known:
                # It had come before the lock ended, of which nobody could tell the receiver.
                stale.flights[delivery.receipt] = record
                self.deliveries.append((delivery, stale, record))
                continue
            assert record.where == Where.ALIVE, f"{record.number} is {record.where}, and came"
            assert not record.scheduled, f"{record.number} came before it was due"
            count = record.count + 1 + (record.delayed_until > 0)
            assert delivery.delivery_count == count, (
                f"{record} comes for time {delivery.delivery_count}"
            )
            if record.delayed_until:
                assert time.monotonic() >= record.delayed_until - EARLY, "it came before its delay"
                self._delay_ends(record)
            held = self.leased(delivery.lease, receiver)
            assert delivery.receipt not in held.flights
            if held.session is None:
                assert not record.is_flying, f"{record.number} is in flight twice"
                assert not held.flights, "a lease for one message has two"
            else:
                assert delivery.sequence_number == record.sequence
                expected = self.next_of(held)
                assert expected is record, f"{record.number} came instead of {expected}"
            if record.held is not None:
                record.held.flights = {
                    receipt: each
                    for receipt, each in record.held.flights.items()
                    if each is not record
                }
            held.flights[delivery.receipt] = record
            record.held = held
            self.deliveries.append((delivery, held, record))

    def _delay_ends(self, record: Record) -> None:
        record.delayed_until = 0.0
        low, high = record.growth
        record.growth = (low + 1, high + 1)

    def applied(self, delivery: Delivery, action: SettlementAction, delay: float = 0.0) -> None:
        """A settlement was confirmed."""
        held, record = self.landed(delivery)
        assert record.where == Where.ALIVE
        match action:
            case SettlementAction.COMPLETE:
                record.may = {Where.GONE}
            case SettlementAction.DEAD_LETTER:
                record.may = {Where.DEAD}
            case SettlementAction.ABANDON if delay:
                record.delayed_until = time.monotonic() + delay
            case SettlementAction.ABANDON:
                record.growth = (1, 1)
            case SettlementAction.RELEASE:
                record.growth = (0, int(held.is_cut))
        if held.session is None:
            held.end()

    def doubtful(self, delivery: Delivery, action: SettlementAction) -> None:
        """A settlement was asked for, and nobody knows whether it happened; it is over by now."""
        held, record = self.landed(delivery)
        match action:
            case SettlementAction.COMPLETE:
                record.may = {Where.ALIVE, Where.GONE}
            case SettlementAction.DEAD_LETTER:
                record.may = {Where.ALIVE, Where.DEAD}
            case _:
                record.growth = (0, 1)
        if held.session is None:
            held.end()

    def landed(self, delivery: Delivery) -> tuple[Held, Record]:
        """It is not in flight any more."""
        held = next(held for held in self.helds if held.lease is delivery.lease)
        record = held.flights.pop(delivery.receipt, None) or self.records[int(delivery.body)]
        if record.held is held:
            record.held = None
        return held, record

    def time_passed(self, now: float) -> None:
        """All locks ended at the broker, and what was due by then is there."""
        self.lingering = False
        for held in self.known():
            held.is_doomed = True
        for record in self.find(Where.ALIVE):
            low, high = record.growth
            record.growth = (low, high + 1)
            if record.scheduled and record.due <= now:
                record.scheduled = False

    # What is there

    def observe(self, alive: Sequence[PeekedMessage], dead: Sequence[PeekedMessage]) -> None:
        """Compare with what the broker has, after every step; what was open is known then."""
        here = {int(each.message.body): each for each in alive}
        buried = {int(each.message.body): each for each in dead}
        assert len(here) == len(alive), "a message is in the queue twice"
        assert len(buried) == len(dead), "a message is in the dead letters twice"
        assert not here.keys() & buried.keys(), "a message is in the queue and dead"
        for record in self.records:
            self._compare(record, here.get(record.number), buried.get(record.number))
        for session in {record.session for record in self.records} - {None}:
            assert session is not None
            in_order = [r.number for r in self.of_session(session) if r.keeps_order]
            assert in_order == sorted(in_order), f"{session} has {in_order}"
        for held in self.helds:
            if held.lease.lost is not None:
                assert held.is_doomed or held.is_shaky, f"lost for no reason: {held.lease.lost}"
                held.land()

    def _compare(
        self, record: Record, alive: PeekedMessage | None, dead: PeekedMessage | None
    ) -> None:
        where = Where.ALIVE if alive else Where.DEAD if dead else Where.GONE
        low, high = record.growth
        may = record.may or {record.where}
        count = 0 if record.restarts else record.count
        if Where.ALIVE in may and count + high + bool(record.delayed_until) >= self.limit:
            may = may | {Where.DEAD}
        assert where in may, f"{record} is {where}"
        if alive is not None:
            grown = alive.delivery_count - count
            if record.delayed_until and grown > high:
                self._delay_ends(record)
                low, high = record.growth
            assert low <= grown <= high, f"{record} is counted {alive.delivery_count}"
            assert alive.delivery_count < self.limit
            assert (alive.state is MessageState.SCHEDULED) == record.scheduled
            record.count = alive.delivery_count
            if record.where != Where.ALIVE and not record.restarts:
                record.first_sequence = alive.sequence_number
                if record.message.deduplication_id is not None:
                    self.deduplicated.add(record.message.deduplication_id)
            record.sequence = alive.sequence_number
        else:
            record.delayed_until = 0.0
            if record.held is not None and where == Where.GONE:
                assert not record.held.is_live or record.held.is_shaky or record.may
        if dead is not None:
            record.sequence = dead.sequence_number
            assert dead.dead_letter is not None
            assert dead.state is MessageState.DEAD_LETTERED
        record.where = where
        record.may, record.growth, record.restarts = set(), (0, 0), False
