"""The engine in memory against the model; what the model leaves open; and that costs stay flat."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

from queue_runtime.abc import Lease, ReceiverOptions
from queue_runtime.errors import QueueNotFound
from queue_runtime.messages import Delivery, Message, QueueName, Settlement, SettlementAction
from queue_runtime.providers.memory.connection import moment
from queue_runtime.providers.memory.engine import (
    FAIR_CHUNK,
    MAX_DESCRIPTION,
    Engine,
    Grant,
    QueueOptions,
)
from queue_runtime.providers.memory.heap_engine import HeapEngine, HeapStore
from queue_runtime.providers.memory.heap_queue import HeapQueue

from .engine_machine import EngineMachine

QUEUE = QueueName("orders")
NOW = 1_700_000_000.0
COMPLETE, ABANDON, RELEASE, DEAD_LETTER = (
    SettlementAction.COMPLETE,
    SettlementAction.ABANDON,
    SettlementAction.RELEASE,
    SettlementAction.DEAD_LETTER,
)


class HeapMachine(EngineMachine):
    def make_engine(self, options: QueueOptions) -> Engine:
        return HeapEngine(HeapStore(), options)


TestHeapMachine = HeapMachine.TestCase
TestHeapMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


class Bench:
    """An engine with one queue and one holder, and shorthand for using them."""

    def __init__(self, receiver: ReceiverOptions | None = None, **options: Any) -> None:
        self.store = HeapStore()
        self.engine = HeapEngine(self.store, QueueOptions(**options))
        self.engine.open_queue(QUEUE, NOW)
        self.holder = self.engine.open_holder(QUEUE, receiver or ReceiverOptions(), NOW)
        self.leases: dict[int, Lease] = {}

    @property
    def queue(self) -> HeapQueue:
        return self.store.queues[QUEUE]

    def send(
        self, session: str | None, count: int = 1, now: float = NOW, **fields: Any
    ) -> list[int]:
        batch = [Message(b"", session_id=session, **fields) for _ in range(count)]
        results = self.engine.send(QUEUE, batch, now)
        return [result.sequence_number or 0 for result in results]

    def claim(self, most: int, now: float = NOW) -> list[Delivery]:
        return self.deliveries(self.engine.claim(QUEUE, self.holder, most, now))

    def deliveries(self, grants: list[Grant]) -> list[Delivery]:
        found = []
        for grant in grants:
            if grant.token not in self.leases:
                until = moment(grant.locked_until)
                self.leases[grant.token] = Lease(grant.session_id, grant.token, 0.0, until)
            lease = self.leases[grant.token]
            for message, message_id, receipt, count, at, sequence, history in grant.messages:
                found.append(
                    Delivery(message, message_id, receipt, lease, count, at, sequence, history)
                )
        return found

    def settle(
        self, deliveries: list[Delivery], action: SettlementAction, now: float = NOW, **fields: Any
    ) -> None:
        batch = [Settlement(delivery, action, **fields) for delivery in deliveries]
        assert self.engine.settle(QUEUE, self.holder, batch, now) == [None] * len(batch)


def sequences(deliveries: list[Delivery]) -> list[int | None]:
    return [delivery.sequence_number for delivery in deliveries]


# --- what the model leaves open ------------------------------------------------------------------------


def test_sessions_take_turns() -> None:
    bench = Bench()
    bench.send("hot", 30)
    bench.send("cold", 2)
    bench.send(None, 10)
    grants = bench.engine.claim(QUEUE, bench.holder, 1_000, NOW)
    turns: list[tuple[str | None, int]] = []
    for grant in grants:
        if grant.session_id is None and turns[-1][0] is None:
            turns[-1] = (None, turns[-1][1] + 1)
        else:
            turns.append((grant.session_id, len(grant.messages)))
    chunk = FAIR_CHUNK
    assert turns == [
        ("hot", chunk),
        ("cold", 2),
        (None, chunk),
        ("hot", chunk),
        (None, 2),
        ("hot", chunk),
        ("hot", 30 - 3 * chunk),
    ]


def test_held_and_free_sessions_take_turns() -> None:
    bench = Bench()
    bench.send("held", 20)
    assert len(bench.claim(FAIR_CHUNK)) == FAIR_CHUNK
    bench.send("free", 1)
    assert [d.session_id for d in bench.claim(FAIR_CHUNK + 1)] == ["held"] * FAIR_CHUNK + ["free"]


def test_a_halt_holds_back_what_is_behind_it_until_redriven() -> None:
    bench = Bench()
    first, second, third, fourth = bench.send("s", 4)
    taken = bench.claim(3)
    bench.settle(taken[:2], DEAD_LETTER, halt=True)
    bench.settle(taken[2:], RELEASE)
    assert bench.claim(9) == []
    assert bench.engine.redrive(QUEUE, [second], NOW) == 1
    assert bench.claim(9) == []  # the first still halts
    assert bench.engine.redrive(QUEUE, [first], NOW) == 1
    again = bench.claim(9)
    assert sequences(again) == [first, second, third, fourth]
    assert [d.dead_letter is None for d in again] == [False, False, True, True]


def test_an_earlier_dead_letter_is_deliverable_while_a_later_one_halts() -> None:
    bench = Bench()
    first, second, _ = bench.send("s", 3)
    taken = bench.claim(2)
    bench.settle(taken[:1], DEAD_LETTER)
    bench.settle(taken[1:], DEAD_LETTER, halt=True)
    bench.engine.redrive(QUEUE, [first], NOW)
    assert sequences(bench.claim(9)) == [first]
    assert bench.engine.purge_dead(QUEUE, [second], NOW) == 1
    assert sequences(bench.claim(9)) == [3]


def test_a_halt_outlives_the_lock_and_the_queue_being_empty() -> None:
    bench = Bench()
    bench.send("s")
    bench.settle(bench.claim(1), DEAD_LETTER, halt=True)
    bench.engine.release(QUEUE, bench.holder, list(bench.leases.values()), NOW)
    assert set(bench.queue.lanes) == {"s"}
    bench.send("s")
    assert bench.claim(1) == []
    assert bench.engine.purge_dead(QUEUE, None, NOW) == 1
    assert sequences(bench.claim(1)) == [2]


def test_a_message_without_a_session_cannot_halt() -> None:
    bench = Bench()
    bench.send(None, 2)
    bench.settle(bench.claim(1), DEAD_LETTER, halt=True)
    assert len(bench.claim(1)) == 1


@pytest.mark.parametrize("session", ["s", None])
def test_redriven_one_by_one_in_any_order_they_stand_in_theirs(session: str | None) -> None:
    bench = Bench()
    numbers = bench.send(session, 40)
    bench.settle(bench.claim(40), DEAD_LETTER)
    bench.send(session, 3)
    order = numbers[:]
    random.Random(7).shuffle(order)
    for number in order:
        bench.engine.redrive(QUEUE, [number], NOW)
    assert sequences(bench.claim(100)) == [*numbers, 41, 42, 43]


def test_a_place_is_not_looked_for_behind_what_is_in_flight() -> None:
    bench = Bench()
    bench.send("s", 8)
    bench.settle(bench.claim(6), DEAD_LETTER)
    for number in (5, 1):
        bench.engine.redrive(QUEUE, [number], NOW)
    assert sequences(bench.claim(1)) == [1]
    bench.engine.redrive(QUEUE, [6], NOW)
    assert sequences(bench.claim(9)) == [5, 6, 7, 8]


def test_what_was_delivered_behind_another_can_return_and_expire() -> None:
    bench = Bench()
    bench.send("s")
    bench.send("s", time_to_live=20.0)
    bench.send("s")
    first, second = bench.claim(2)
    bench.settle([second], RELEASE)
    bench.settle([first], COMPLETE, NOW + 21)
    assert sequences(bench.claim(9, NOW + 21)) == [3]
    assert bench.engine.stats(QUEUE, NOW + 21).dead_lettered == 1


def test_sessions_are_forgotten_when_nothing_is_left_of_them() -> None:
    bench = Bench()
    bench.send("s")
    bench.settle(bench.claim(1), COMPLETE)
    lease = next(iter(bench.leases.values()))
    bench.engine.set_state(QUEUE, bench.holder, lease, b"state", NOW)
    bench.engine.release(QUEUE, bench.holder, [lease], NOW)
    assert set(bench.queue.lanes) == {"s"}
    grant = bench.engine.accept(QUEUE, bench.holder, lease.session_id, NOW)
    assert grant is not None
    again = Lease(lease.session_id, grant.token, 0.0, lease.expires_at)
    assert bench.engine.get_state(QUEUE, bench.holder, again, NOW) == b"state"
    bench.engine.set_state(QUEUE, bench.holder, again, None, NOW)
    bench.engine.release(QUEUE, bench.holder, [again], NOW)
    assert bench.queue.lanes == {}


def test_a_dead_letter_of_a_forgotten_session_joins_the_one_that_came_after() -> None:
    bench = Bench()
    bench.send("s", 2)
    bench.settle(bench.claim(2), DEAD_LETTER)
    bench.engine.release(QUEUE, bench.holder, list(bench.leases.values()), NOW)
    assert bench.queue.lanes == {}
    bench.send("s")
    assert bench.engine.redrive(QUEUE, [1], NOW) == 1
    assert bench.engine.purge_dead(QUEUE, [2], NOW) == 1
    assert bench.engine.stats(QUEUE, NOW).sessions == 1
    assert sequences(bench.claim(9)) == [1, 3]


def test_descriptions_are_cut() -> None:
    bench = Bench()
    bench.send("s")
    bench.settle(bench.claim(1), DEAD_LETTER, reason="Why", description="x" * 10_000)
    (letter,) = bench.engine.peek_dead(QUEUE, 9, 0, NOW)
    assert letter.dead_letter is not None
    assert letter.dead_letter.description == "x" * MAX_DESCRIPTION


def test_a_queue_that_does_not_exist() -> None:
    store = HeapStore()
    strict = HeapEngine(store, QueueOptions(declare=False))
    with pytest.raises(QueueNotFound, match=r"orders does not exist.*declare"):
        strict.open_queue(QUEUE, NOW)
    HeapEngine(store, QueueOptions()).open_queue(QUEUE, NOW)
    strict.open_queue(QUEUE, NOW)
    assert strict.stats(QUEUE, NOW).depth == 0


def test_each_connection_applies_its_own_options() -> None:
    bench = Bench(lock_duration=5.0, deduplication_window=100.0)
    short = HeapEngine(bench.store, QueueOptions(lock_duration=1.0, deduplication_window=10.0))
    message = Message(b"", session_id="s", deduplication_id="one")
    other = Message(b"", session_id="s", deduplication_id="two")
    assert not bench.engine.send(QUEUE, [message], NOW)[0].duplicate
    assert not short.send(QUEUE, [other], NOW)[0].duplicate
    assert short.send(QUEUE, [message], NOW + 50)[0].duplicate
    assert not short.send(QUEUE, [other], NOW + 50)[0].duplicate  # its window was the shorter one
    (grant,) = short.claim(QUEUE, bench.holder, 1, NOW)
    assert grant.locked_until == NOW + 1


def test_deduplication_can_be_off() -> None:
    bench = Bench(deduplication_window=0)
    assert bench.send("s", 2, deduplication_id="same") == [1, 2]


def test_a_duplicate_is_recognised_though_the_queue_is_full() -> None:
    bench = Bench(max_queue_size=1)
    message = Message(b"", deduplication_id="one")
    first, again = bench.engine.send(QUEUE, [message, message], NOW)
    assert again.duplicate
    assert again.message_id == first.message_id


def test_only_sessions_count_towards_max_sessions() -> None:
    bench = Bench(ReceiverOptions(max_sessions=1))
    bench.send(None, 3)
    bench.send("a")
    bench.send("b")
    bench.send(None)
    assert [d.session_id for d in bench.claim(9)] == [None, None, None, None, "a"]
    assert bench.claim(9) == []


def test_the_next_available_session_is_never_the_messages_without_one() -> None:
    bench = Bench()
    bench.send(None)
    assert bench.engine.accept(QUEUE, bench.holder, None, NOW) is None
    bench.send("s")
    grant = bench.engine.accept(QUEUE, bench.holder, None, NOW)
    assert grant is not None
    assert grant.session_id == "s"


def test_purge_spares_what_is_in_flight_and_dead() -> None:
    bench = Bench()
    bench.send("s", 3)
    bench.send(None, 3)
    taken = bench.claim(5)
    bench.settle(taken[:1], DEAD_LETTER)
    bench.settle(taken[3:4], ABANDON, delay=5.0)
    bench.send("s", scheduled_at=moment(NOW + 5))
    assert bench.engine.purge(QUEUE, NOW) == 3
    stats = bench.engine.stats(QUEUE, NOW + 10)
    assert (stats.depth, stats.in_flight, stats.scheduled, stats.dead_lettered) == (0, 3, 0, 1)
    bench.settle([*taken[1:3], taken[4]], COMPLETE)
    assert bench.engine.stats(QUEUE, NOW + 10).sessions == 0


def test_nobody_else_changes_the_memory() -> None:
    bench = Bench()
    bench.send("s")
    assert bench.engine.poll(QUEUE, NOW) is None
    bench.engine.close()
    assert bench.engine.stats(QUEUE, NOW).depth == 1


# --- costs ---------------------------------------------------------------------------------------------


def calls(work: Callable[[], object]) -> int:
    """How many Python and C functions ``work`` calls: unlike seconds, the same in every run."""
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_costs_do_not_grow_with_depth_or_idle_sessions() -> None:
    def round_trip(bench: Bench) -> int:
        def work() -> None:
            for number in range(20):
                bench.send(f"s{number % 5}", 5)
                taken = bench.claim(5)
                bench.settle(taken[:3], COMPLETE)
                bench.settle(taken[3:], ABANDON)
                bench.engine.stats(QUEUE, NOW)
                bench.engine.take_signals(QUEUE)
                bench.engine.peek(QUEUE, 5, 0, NOW)

        return calls(work)

    shallow, deep = Bench(), Bench()
    for bench, depth, idle in ((shallow, 100, 10), (deep, 20_000, 2_000)):
        for number in range(idle):
            bench.send(f"idle{number}", time_to_live=1_000.0)
        taken = bench.claim(idle)
        bench.settle(taken, COMPLETE)
        for number in range(5):
            bench.send(f"s{number}", depth // 5)
    cheap, dear = round_trip(shallow), round_trip(deep)
    # The few more are steps of binary searches.
    assert dear < 1.2 * cheap


def test_what_is_left_behind_is_swept() -> None:
    bench = Bench()
    for _ in range(60):
        bench.send(None, 100, time_to_live=1_000.0)
        bench.settle(bench.claim(100), COMPLETE)
    queue = bench.queue
    assert len(queue.index) < 2_000
    assert len(queue.timers) < 5_000
    assert bench.engine.take_signals(QUEUE).next_timer is None
    assert queue.timers == []
    assert (queue.locks, queue.lanes, queue.dead, queue.scheduled) == ({}, {}, {}, {})


def test_a_completed_body_is_not_kept() -> None:
    bench = Bench()
    bench.send("s", 3)
    bench.settle(bench.claim(2), COMPLETE)
    assert [entry.state for entry in bench.queue.index] != [0, 0, 0]
    assert len({id(entry.message) for entry in bench.queue.index}) == 2  # the third, and nothing
