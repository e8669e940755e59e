"""The embedded broker's rules as a naive model, and a state machine that holds an engine to them.

The model keeps one list of records and scans it for every question: slow, and too simple to be wrong in the
same way as an engine. Where the rules leave a choice (whose turn it is), it judges the engine's answer instead
of predicting it. Subclass :class:`EngineMachine` with a ``make_engine`` to run it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from queue_runtime.abc import Lease, ReceiverOptions
from queue_runtime.errors import LockLost, QueueFull, SessionLocked
from queue_runtime.messages import (
    Delivery,
    Message,
    MessageId,
    QueueName,
    SessionId,
    Settlement,
    SettlementAction,
)
from queue_runtime.providers.memory.engine import (
    FAIR_CHUNK,
    MAX_DELIVERY_COUNT_EXCEEDED,
    TIME_TO_LIVE_EXPIRED,
    Engine,
    Grant,
    QueueOptions,
    Refusal,
    Signals,
)

QUEUE = QueueName("machine")
START = 1_700_000_000.0
LOCK = 10.0
WINDOW = 20.0
MAX_SIZE = 14
WAITING = ("ready", "delayed")


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@dataclass
class Record:
    """A message, whatever became of it."""

    sequence: int
    message: Message
    message_id: str
    state: str
    at: float  # enqueued; when scheduled: due
    expires: float = math.inf
    delayed_until: float = 0.0
    count: int = 0
    token: int = 0
    receipt: str = ""
    failed: bool = False
    reason: str = ""
    halting: bool = False
    redriven: bool = False

    @property
    def session(self) -> SessionId | None:
        return self.message.session_id


@dataclass
class HeldLock:
    token: int
    holder: str
    session: SessionId | None
    until: float


@dataclass
class Model:
    options: QueueOptions
    now: float = START
    sequence: int = 0
    records: list[Record] = field(default_factory=list)
    locks: dict[int, HeldLock] = field(default_factory=dict)
    holders: dict[str, ReceiverOptions] = field(default_factory=dict)
    seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    states: dict[str, bytes] = field(default_factory=dict)
    expired_locks: list[tuple[str, int]] = field(default_factory=list)

    # Questions

    def all(self, *states: str) -> list[Record]:
        return sorted((r for r in self.records if r.state in states), key=lambda r: r.sequence)

    def lock_of(self, session: SessionId) -> HeldLock | None:
        return next((lock for lock in self.locks.values() if lock.session == session), None)

    def in_flight(self, token: int) -> list[Record]:
        return [r for r in self.all("flight") if r.token == token]

    def sessions_held(self, holder: str) -> int:
        return sum(k.holder == holder and k.session is not None for k in self.locks.values())

    def head(self, session: SessionId | None) -> Record | None:
        """What may be delivered next of a session, locks aside."""
        waiting = [r for r in self.all(*WAITING) if r.session == session]
        if session is None:
            return next((r for r in waiting if r.state == "ready"), None)
        barrier = min(
            (r.sequence for r in self.all("dead") if r.session == session and r.halting),
            default=math.inf,
        )
        if waiting and waiting[0].state == "ready" and waiting[0].sequence < barrier:
            return waiting[0]
        return None

    def sessions(self) -> set[SessionId]:
        return {r.session for r in self.all(*WAITING) if r.session is not None}

    def free(self) -> set[SessionId | None]:
        """Sources under no lock that can be delivered."""
        found: set[SessionId | None] = {
            s for s in self.sessions() if self.head(s) is not None and self.lock_of(s) is None
        }
        return found | {None} if self.head(None) is not None else found

    def own(self, holder: str) -> set[SessionId]:
        """Sessions of the holder from which it may take more."""
        most = self.holders[holder].max_per_session
        return {
            lock.session
            for lock in self.locks.values()
            if lock.holder == holder
            and lock.session is not None
            and self.head(lock.session) is not None
            and len(self.in_flight(lock.token)) < most
        }

    def may_take_new(self, holder: str) -> bool:
        options = self.holders[holder]
        return options.auto_accept and self.sessions_held(holder) < options.max_sessions

    def next_timer(self) -> float:
        times = [lock.until for lock in self.locks.values()]
        times += [r.delayed_until for r in self.all("delayed")]
        times += [r.at for r in self.all("scheduled")]
        times += [r.expires for r in self.all(*WAITING)]
        return min(times, default=math.inf)

    # Changes

    def life(self, message: Message) -> float:
        ttl = message.time_to_live
        ttl = self.options.default_time_to_live if ttl is None else ttl
        return math.inf if ttl is None else ttl

    def enqueue(self, message: Message, message_id: str, at: float) -> Record:
        self.sequence += 1
        record = Record(self.sequence, message, message_id, "ready", at)
        record.expires = at + self.life(message)
        self.records.append(record)
        return record

    def bury(self, record: Record, reason: str) -> None:
        record.state, record.reason = "dead", reason

    def wait_again(self, record: Record, delay: float = 0.0) -> None:
        record.state, record.delayed_until = "delayed" if delay else "ready", self.now + delay
        self.expire(record)

    def fail(self, record: Record, delay: float = 0.0) -> None:
        record.failed = True
        if self.options.max_delivery_count and record.count >= self.options.max_delivery_count:
            self.bury(record, MAX_DELIVERY_COUNT_EXCEEDED)
        else:
            self.wait_again(record, delay)

    def restore(self, record: Record) -> None:
        record.count -= 1
        self.wait_again(record)

    def expire(self, record: Record) -> None:
        if record.state in WAITING and record.expires <= self.now:
            if self.options.dead_letter_expired:
                self.bury(record, TIME_TO_LIVE_EXPIRED)
            else:
                record.state = "gone"

    def release(self, token: int) -> None:
        for record in self.in_flight(token):
            self.restore(record)
        del self.locks[token]

    def advance(self, now: float) -> None:
        self.now = now
        for lock in sorted(self.locks.values(), key=lambda lock: lock.until):
            if lock.until <= now:
                self.expired_locks.append((lock.holder, lock.token))
                for record in self.in_flight(lock.token)[:1]:
                    self.fail(record)
                self.release(lock.token)
        for record in sorted(self.all("scheduled"), key=lambda r: (r.at, r.sequence)):
            if record.at <= now:
                record.state = "gone"
                self.enqueue(record.message, record.message_id, record.at)
        for record in self.all(*WAITING):
            if record.state == "delayed" and record.delayed_until <= now:
                record.state = "ready"
            self.expire(record)


RARELY = st.integers(0, 5).map(lambda number: number == 5)


def messages() -> st.SearchStrategy[dict[str, Any]]:
    rarely = st.integers(0, 3).map(lambda n: n == 0)
    return st.fixed_dictionaries(
        {
            "session_id": st.sampled_from([None, "a", "a", "b", "c"]),
            "time_to_live": rarely.flatmap(lambda y: st.sampled_from([4.0, 15.0] if y else [None])),
            "delay": rarely.flatmap(lambda y: st.sampled_from([-1.0, 3.0, 7.0] if y else [None])),
            "deduplication_id": rarely.flatmap(
                lambda y: st.sampled_from(["x", "y"] if y else [None])
            ),
            "message_id": rarely.flatmap(lambda y: st.sampled_from(["own"] if y else [None])),
        }
    )


class EngineMachine(RuleBasedStateMachine):
    """Drives an engine and the model side by side. Times are multiples of half a second, so they are exact."""

    engine: Engine
    model: Model

    def make_engine(self, options: QueueOptions) -> Engine:
        raise NotImplementedError

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()

    @initialize(
        limit=st.sampled_from([0, 1, 2, 3]),
        keep=st.booleans(),
        ttl=st.sampled_from([None, None, 12.0]),
        most=st.sampled_from([1, 3, 64]),
    )
    def begin(self, limit: int, keep: bool, ttl: float | None, most: int) -> None:
        options = QueueOptions(
            lock_duration=LOCK,
            max_delivery_count=limit,
            max_queue_size=MAX_SIZE,
            default_time_to_live=ttl,
            deduplication_window=WINDOW,
            dead_letter_expired=keep,
        )
        self.engine = self.make_engine(options)
        self.model = Model(options)
        self.engine.open_queue(QUEUE, START)
        self.deliveries: list[Delivery] = []
        self.leases: list[Lease] = []
        self.last_claim: tuple[str, list[Grant]] | None = None
        self.tokens: list[int] = [0]
        self.receipts: set[str] = set()
        self.owning: set[str] = set()
        self.holders = [
            self.add_holder(ReceiverOptions(max_per_session=most)),
            self.add_holder(ReceiverOptions(max_sessions=1, max_per_session=most)),
            self.add_holder(ReceiverOptions(auto_accept=False)),
        ]

    def add_holder(self, options: ReceiverOptions) -> str:
        holder = self.engine.open_holder(QUEUE, options, self.model.now)
        assert holder not in self.model.holders
        self.model.holders[holder] = options
        return holder

    def done(self) -> Signals:
        """After every call: compare what it signalled with what it had to."""
        model, signals = self.model, self.engine.take_signals(QUEUE)
        assert signals.anyone or not model.free()
        owning = {holder for holder in model.holders if model.own(holder)}
        assert set(signals.holders) >= owning - self.owning
        self.owning = owning
        assert set(signals.lost) >= {
            lock for lock in model.expired_locks if lock[0] in model.holders
        }
        model.expired_locks.clear()
        timer = math.inf if signals.next_timer is None else signals.next_timer
        assert timer <= model.next_timer()
        return signals

    # Time

    @rule(steps=st.sampled_from([1, 1, 2, 4, 9, 20, 41]), call=st.booleans())
    def time_passes(self, steps: int, call: bool) -> None:
        self.model.now += steps / 2
        if call:
            self.advance()
            self.engine.advance(QUEUE, self.model.now)
            self.done()

    def advance(self) -> float:
        self.model.advance(self.model.now)
        return self.model.now

    # Sending

    @rule(batch=st.lists(messages(), min_size=2, max_size=8))
    def send_more(self, batch: list[dict[str, Any]]) -> None:
        """As for :meth:`claim_first`."""
        self.send(batch)

    @rule(batch=st.lists(messages(), min_size=1, max_size=6))
    def send(self, batch: list[dict[str, Any]]) -> None:
        now, model = self.advance(), self.model
        sent = []
        for number, fields in enumerate(batch):
            delay = fields.pop("delay")
            at = None if delay is None else moment(now + delay)
            sent.append(Message(b"%d" % number, scheduled_at=at, **fields))
        results = self.engine.send(QUEUE, sent, now)
        assert len(results) == len(sent)
        for message, result in zip(sent, results, strict=True):
            known = model.seen.get(message.deduplication_id or "")
            if known is not None and known[1] > now:
                assert (result.duplicate, result.message_id, result.error) == (True, known[0], None)
                continue
            assert not result.duplicate
            if len(model.all("ready", "delayed", "scheduled", "flight")) >= MAX_SIZE:
                assert isinstance(result.error, QueueFull)
                assert result.message_id is None
                continue
            assert result.error is None
            assert result.message_id == (message.message_id or result.message_id)
            assert isinstance(result.message_id, MessageId)
            if message.deduplication_id:
                model.seen[message.deduplication_id] = (result.message_id, now + WINDOW)
            due = now if message.scheduled_at is None else message.scheduled_at.timestamp()
            record = model.enqueue(message, result.message_id, max(now, due))
            if due > now:
                record.state, record.expires = "scheduled", math.inf
            assert result.sequence_number == record.sequence
        self.done()

    @precondition(lambda self: self.model.all("scheduled"))
    @rule(numbers=st.lists(st.integers(0, 40), max_size=4))
    def cancel_scheduled(self, numbers: list[int]) -> None:
        now, model = self.advance(), self.model
        scheduled = [r.sequence for r in model.all("scheduled")]
        wanted = numbers + scheduled[:1]
        expected = []
        for number in wanted:
            found = next((r for r in model.all("scheduled") if r.sequence == number), None)
            expected.append(found is not None)
            if found is not None:
                found.state = "gone"
        assert self.engine.cancel_scheduled(QUEUE, wanted, now) == expected
        self.done()

    # Receiving

    @rule(which=st.sampled_from([0, 0, 1, 2]), most=st.sampled_from([1, 2, 5, 20]))
    def claim_first(self, which: int, most: int) -> None:
        """Twice among the rules, as most of them need something claimed."""
        self.claim(which, most)

    @rule(which=st.integers(0, 2), most=st.sampled_from([1, 2, 5, 20]))
    def claim(self, which: int, most: int) -> None:
        now, model, holder = self.advance(), self.model, self.holders[which]
        grants = self.engine.claim(QUEUE, holder, most, now)
        for grant in grants:
            self.judge(holder, grant, now)
        total = sum(len(grant.messages) for grant in grants)
        assert total <= most
        if total < most:
            assert not model.own(holder)
            assert not (model.may_take_new(holder) and model.free())
        self.last_claim = (holder, grants)
        self.done()

    def judge(self, holder: str, grant: Grant, now: float) -> None:
        model = self.model
        options = model.holders[holder]
        assert 1 <= len(grant.messages) <= (1 if grant.session_id is None else FAIR_CHUNK)
        if grant.is_new:
            assert model.may_take_new(holder)
            assert grant.session_id is None or model.lock_of(grant.session_id) is None
            lease = self.granted(holder, grant, now)
        else:
            lock = model.locks[grant.token]
            assert (lock.holder, lock.session, lock.until) == (
                holder,
                grant.session_id,
                grant.locked_until,
            )
            lease = next(lease for lease in self.leases if lease.token == grant.token)
        for message, message_id, receipt, count, at, sequence, history in grant.messages:
            record = model.head(grant.session_id)
            assert record is not None
            if grant.session_id is None:  # any order is allowed
                record = next(r for r in model.all("ready") if r.sequence == sequence)
            else:
                assert len(model.in_flight(grant.token)) < options.max_per_session
            record.state, record.token, record.count = "flight", grant.token, record.count + 1
            record.receipt = receipt
            assert (sequence, message_id, count) == (
                record.sequence,
                record.message_id,
                record.count,
            )
            assert (message.body, message.session_id) == (record.message.body, grant.session_id)
            assert at == moment(record.at)
            assert (history is not None) == record.redriven
            assert receipt not in self.receipts
            self.receipts.add(receipt)
            self.deliveries.append(
                Delivery(message, message_id, receipt, lease, count, at, sequence, history)
            )

    def granted(self, holder: str, grant: Grant, now: float) -> Lease:
        assert grant.is_new
        assert grant.locked_until == now + LOCK
        assert grant.token > self.tokens[-1]
        self.tokens.append(grant.token)
        session, token = grant.session_id, grant.token
        self.model.locks[token] = HeldLock(token, holder, session, grant.locked_until)
        lease = Lease(session, token, 0.0, moment(grant.locked_until))
        if session is None:
            lease.provider_data = grant.messages[0][5]
        self.leases.append(lease)
        return lease

    @precondition(lambda self: self.last_claim is not None)
    @rule()
    def unclaim(self) -> None:
        assert self.last_claim is not None
        now, model = self.advance(), self.model
        holder, grants = self.last_claim
        self.last_claim = None
        for grant in grants:
            lock = model.locks.get(grant.token)
            if lock is None or lock.holder != holder:
                continue
            receipts = {message[2] for message in grant.messages}
            for record in model.in_flight(grant.token):
                if record.receipt in receipts:
                    model.restore(record)
            if grant.is_new:
                model.release(grant.token)
        self.engine.unclaim(QUEUE, holder, grants, now)
        self.done()

    @rule(which=st.integers(0, 2), session=st.sampled_from([None, "a", "b", "new"]))
    def accept(self, which: int, session: str | None) -> None:
        now, model, holder = self.advance(), self.model, self.holders[which]
        free = {s for s in model.free() if s is not None}
        session_id = None if session is None else SessionId(session)
        try:
            grant = self.engine.accept(QUEUE, holder, session_id, now)
        except SessionLocked:
            assert session_id is not None
            assert model.lock_of(session_id) is not None
        else:
            if grant is None:
                assert session_id is None
                assert not free
            else:
                assert not grant.messages
                assert grant.session_id is not None
                assert model.lock_of(grant.session_id) is None
                assert grant.session_id == session_id if session_id else grant.session_id in free
                self.granted(holder, grant, now)
        self.done()

    def in_flight(self) -> list[Delivery]:
        receipts = {r.receipt for r in self.model.all("flight") if r.token in self.model.locks}
        return [delivery for delivery in self.deliveries if delivery.receipt in receipts]

    @precondition(lambda self: self.in_flight())
    @rule(data=st.data(), action=st.sampled_from(SettlementAction), halt=st.booleans())
    def settle(self, data: st.DataObject, action: SettlementAction, halt: bool) -> None:
        """As a good receiver does: what is in flight, by its holder."""
        chosen = data.draw(st.lists(st.sampled_from(self.in_flight()), min_size=1, max_size=4))
        delay = data.draw(st.sampled_from([0.0, 2.0, 6.0]))
        holder = self.model.locks[chosen[0].lease.token].holder
        self.settle_all(
            holder, [Settlement(d, action, delay=delay, reason="Word", halt=halt) for d in chosen]
        )

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data(), which=st.integers(0, 2))
    def settle_anything(self, data: st.DataObject, which: int) -> None:
        """Old and foreign receipts."""
        known = st.sampled_from(self.deliveries[-12:])
        actions = st.sampled_from(SettlementAction)
        chosen = data.draw(st.lists(st.builds(Settlement, known, actions), min_size=1, max_size=4))
        self.settle_all(self.holders[which], chosen)

    def settle_all(self, holder: str, settlements: list[Settlement]) -> None:
        now = self.advance()
        expected = [self.settle_one(holder, settlement) for settlement in settlements]
        assert self.engine.settle(QUEUE, holder, settlements, now) == expected
        self.done()

    def settle_one(self, holder: str, settlement: Settlement) -> Refusal | None:
        model, delivery = self.model, settlement.delivery
        lock = model.locks.get(delivery.lease.token)
        if lock is None:
            return Refusal.LOCK_LOST
        record = next(
            (r for r in model.in_flight(lock.token) if r.receipt == delivery.receipt), None
        )
        if lock.holder != holder or record is None:
            return Refusal.INVALID_RECEIPT
        if settlement.action is SettlementAction.COMPLETE:
            record.state = "gone"
        elif settlement.action is SettlementAction.ABANDON:
            model.fail(record, settlement.delay)
        elif settlement.action is SettlementAction.RELEASE:
            model.restore(record)
        else:
            record.failed = True
            record.halting = settlement.halt and lock.session is not None
            model.bury(record, settlement.reason)
        if lock.session is None:
            del model.locks[lock.token]
        return None

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), which=st.integers(0, 2))
    def renew(self, data: st.DataObject, which: int) -> None:
        now, model, holder = self.advance(), self.model, self.holders[which]
        leases = data.draw(st.lists(st.sampled_from(self.leases[-8:]), min_size=1, max_size=3))
        expected = []
        for lease in leases:
            lock = model.locks.get(lease.token)
            if lock is None or lock.holder != holder:
                expected.append(None)
            else:
                lock.until = now + LOCK
                expected.append(lock.until)
        assert self.engine.renew(QUEUE, holder, leases, now) == expected
        self.done()

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), which=st.integers(0, 2))
    def release(self, data: st.DataObject, which: int) -> None:
        now, model, holder = self.advance(), self.model, self.holders[which]
        leases = data.draw(st.lists(st.sampled_from(self.leases[-8:]), min_size=1, max_size=3))
        for lease in leases:
            lock = model.locks.get(lease.token)
            if lock is not None and lock.holder == holder:
                model.release(lease.token)
        self.engine.release(QUEUE, holder, leases, now)
        self.done()

    @rule(data=st.data(), which=st.integers(0, 2), state=st.sampled_from([None, b"", b"one"]))
    def session_state(self, data: st.DataObject, which: int, state: bytes | None) -> None:
        leases = [lease for lease in self.leases if lease.session_id is not None][-8:]
        if not leases:
            return
        now, model, holder = self.advance(), self.model, self.holders[which]
        lease = data.draw(st.sampled_from(leases))
        assert lease.session_id is not None
        lock = model.locks.get(lease.token)
        try:
            before = self.engine.get_state(QUEUE, holder, lease, now)
            self.engine.set_state(QUEUE, holder, lease, state, now)
        except LockLost:
            assert lock is None or lock.holder != holder
        else:
            assert lock is not None
            assert lock.holder == holder
            assert before == model.states.pop(lease.session_id, None)
            if state is not None:
                model.states[lease.session_id] = state
        self.done()

    @rule(which=st.integers(0, 2), rarely=RARELY)
    def reopen_holder(self, which: int, rarely: bool) -> None:
        if not rarely:
            return
        now, model, holder = self.advance(), self.model, self.holders[which]
        for token in [k.token for k in model.locks.values() if k.holder == holder]:
            model.release(token)
        options = model.holders.pop(holder)
        self.engine.close_holder(QUEUE, holder, now)
        self.engine.close_holder(QUEUE, holder, now)
        assert self.engine.claim(QUEUE, holder, 1, now) == []
        assert self.engine.accept(QUEUE, holder, None, now) is None
        self.done()
        self.holders[which] = self.add_holder(options)

    # Operating

    @rule(rarely=RARELY)
    def purge(self, rarely: bool) -> None:
        if not rarely:
            return
        now, model = self.advance(), self.model
        purged = model.all("ready", "delayed", "scheduled")
        for record in purged:
            record.state = "gone"
        assert self.engine.purge(QUEUE, now) == len(purged)
        self.done()

    @precondition(lambda self: self.model.all("dead"))
    @rule(data=st.data(), redrive=st.booleans(), everything=st.booleans())
    def dead_letters(self, data: st.DataObject, redrive: bool, everything: bool) -> None:
        now, model = self.advance(), self.model
        dead = model.all("dead")
        numbers: set[int] | None = None
        if not everything:
            known = st.sampled_from([r.sequence for r in dead] or [1])
            numbers = data.draw(st.sets(known | st.integers(0, 40), max_size=3))
        chosen = [r for r in dead if numbers is None or r.sequence in numbers]
        for record in chosen:
            record.halting = False
            record.state = "gone"
            if redrive:
                record.state, record.count, record.redriven = "ready", 0, True
                record.expires = now + model.life(record.message)
        call = self.engine.redrive if redrive else self.engine.purge_dead
        assert call(QUEUE, numbers, now) == len(chosen)
        self.done()

    # Looking

    @invariant()
    def same_contents(self) -> None:
        if not hasattr(self, "engine"):
            return
        now, model = self.advance(), self.model
        states = {"flight": "in_flight"}
        stored = model.all("ready", "delayed", "scheduled", "flight")
        peeked = self.engine.peek(QUEUE, 1_000, 0, now)
        assert [(p.sequence_number, p.state.value, p.delivery_count) for p in peeked] == [
            (r.sequence, states.get(r.state, r.state), r.count) for r in stored
        ]
        assert [p.enqueued_at for p in peeked] == [moment(r.at) for r in stored]
        dead = model.all("dead")
        letters = self.engine.peek_dead(QUEUE, 1_000, 0, now)
        assert [p.sequence_number for p in letters] == [r.sequence for r in dead]
        for letter, record in zip(letters, dead, strict=True):
            info = letter.dead_letter
            assert info is not None
            assert (info.reason, info.delivery_count) == (record.reason, record.count)
            assert (info.first_failed_at is not None) == record.failed
        self.done()

    @invariant()
    def same_figures(self) -> None:
        if not hasattr(self, "engine"):
            return
        now, model = self.advance(), self.model
        stats = self.engine.stats(QUEUE, now)
        waiting = model.all(*WAITING)
        assert stats.depth == len(waiting)
        assert stats.in_flight == len(model.all("flight"))
        assert stats.scheduled == len(model.all("scheduled"))
        assert stats.dead_lettered == len(model.all("dead"))
        assert stats.sessions == len(
            {r.session for r in model.all(*WAITING, "flight") if r.session is not None}
        )
        assert stats.locked_sessions == sum(k.session is not None for k in model.locks.values())
        assert stats.oldest_age == (now - waiting[0].at if waiting else None)

    @rule(after=st.integers(0, 40), most=st.integers(1, 3))
    def pages(self, after: int, most: int) -> None:
        now, model = self.advance(), self.model
        for call, states in (
            (self.engine.peek, ("ready", "delayed", "scheduled", "flight")),
            (self.engine.peek_dead, ("dead",)),
        ):
            expected = [r.sequence for r in model.all(*states) if r.sequence > after][:most]
            assert [p.sequence_number for p in call(QUEUE, most, after, now)] == expected
        self.done()
