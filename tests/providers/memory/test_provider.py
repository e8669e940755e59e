"""The embedded provider over its engines: waiting, wake-ups, cancellation, leases and closing."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from queue_runtime.abc import LOCAL_DEADLINE_FRACTION, Lease, Receiver, ReceiverOptions
from queue_runtime.errors import (
    BatchTooLarge,
    InvalidReceipt,
    LockLost,
    MessageTooLarge,
    QueueError,
    QueueNotFound,
    SessionLocked,
    Throttled,
    ValidationError,
)
from queue_runtime.messages import (
    Delivery,
    Message,
    MessageState,
    QueueName,
    SessionId,
    Settlement,
    SettlementAction,
)
from queue_runtime.providers.memory import MEMORY_FACTORY, MemoryConfig
from queue_runtime.providers.memory.connection import moment
from queue_runtime.providers.memory.engine import QueueOptions, Signals
from queue_runtime.providers.memory.heap_engine import HeapEngine, HeapStore
from queue_runtime.providers.memory.provider import (
    MAX_BATCH,
    EngineProvider,
    SqliteProvider,
)

QUEUE = QueueName("orders")
COMPLETE, ABANDON = SettlementAction.COMPLETE, SettlementAction.ABANDON


@asynccontextmanager
async def memory(**options: Any) -> AsyncIterator[EngineProvider]:
    provider = await MEMORY_FACTORY.open(MemoryConfig(**options))
    try:
        yield provider
    finally:
        await provider.aclose()


async def send(provider: EngineProvider, *sessions: str | None, **fields: Any) -> list[int | None]:
    sender = await provider.open_sender(QUEUE)
    results = await sender.send([Message(b"x", session_id=s, **fields) for s in sessions])
    assert all(result.error is None for result in results)
    return [result.sequence_number for result in results]


async def receiver(provider: EngineProvider, **options: Any) -> Receiver:
    return await provider.open_receiver(QUEUE, ReceiverOptions(**options))


async def one(source: Receiver, timeout: float = 0.0) -> Delivery:
    (delivery,) = await source.receive(1, timeout)
    return delivery


async def settled(
    source: Receiver, *deliveries: Delivery, action: SettlementAction = COMPLETE, **fields: Any
) -> list[QueueError | None]:
    return await source.settle([Settlement(d, action, **fields) for d in deliveries])


class Started:
    """Runs calls in the background and keeps when each ended and what came of it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._one_more = trio.Event()
        self.ended: dict[str, tuple[float, Any]] = {}

    def __call__(self, name: str, call: Callable[[], Any]) -> None:
        async def run() -> None:
            answer: Any
            try:
                answer = await call()
            except (QueueError, trio.ClosedResourceError) as error:
                answer = error
            self.ended[name] = trio.current_time(), answer
            self._one_more.set()

        self._nursery.start_soon(run)

    async def have_ended(self, count: int) -> None:
        with trio.fail_after(5):
            while len(self.ended) < count:
                await self._one_more.wait()
                self._one_more = trio.Event()


@asynccontextmanager
async def background() -> AsyncIterator[Started]:
    async with trio.open_nursery() as nursery:
        yield Started(nursery)
        nursery.cancel_scope.cancel()


# --- receiving -----------------------------------------------------------------------------------------


async def test_a_delivery_carries_everything(autojump_clock: MockClock) -> None:
    async with memory(lock_duration=20.0) as provider:
        source = await receiver(provider)
        asked_at = trio.current_time()
        sender = await provider.open_sender(QUEUE)
        message = Message(b"body", session_id="s", headers={"a": "b"}, message_id="mine")
        (result,) = await sender.send([message])
        delivery = await one(source)
        assert delivery.message is message
        assert (delivery.message_id, delivery.sequence_number) == ("mine", result.sequence_number)
        assert (delivery.delivery_count, delivery.dead_letter) == (1, None)
        assert delivery.lease.session_id == "s"
        assert delivery.lease.deadline == asked_at + LOCAL_DEADLINE_FRACTION * 20
        assert delivery.locked_until == delivery.enqueued_at + timedelta(seconds=20)
        assert await settled(source, delivery) == [None]


async def test_one_lease_per_session_and_one_per_message_without(autojump_clock: MockClock) -> None:
    async with memory() as provider:
        source = await receiver(provider)
        await send(provider, "s", None, None)
        first, *singles = await source.receive(9, 0)
        await send(provider, "s")
        second = await one(source)
        assert second.lease is first.lease
        assert len({delivery.lease.token for delivery in singles}) == 2
        assert {delivery.lease.session_id for delivery in singles} == {None}


async def test_an_empty_answer_comes_at_the_timeout(autojump_clock: MockClock) -> None:
    async with memory() as provider:
        source = await receiver(provider)
        start = trio.current_time()
        assert await source.receive(1, 0) == []
        assert trio.current_time() == start
        assert await source.receive(1, 5) == []
        assert trio.current_time() == pytest.approx(start + 5, abs=0.001)


async def test_asking_for_nothing_is_refused(autojump_clock: MockClock) -> None:
    async with memory() as provider:
        source = await receiver(provider)
        with pytest.raises(ValidationError, match="max_messages is 0"):
            await source.receive(0, 0)


async def test_every_call_is_a_checkpoint(autojump_clock: MockClock) -> None:
    async with memory() as provider:
        source, sender = await receiver(provider), await provider.open_sender(QUEUE)
        letters = await provider.open_dead_letters(QUEUE)
        await send(provider, "s", "s")
        delivery = await one(source)
        calls: list[Callable[[], Any]] = [
            lambda: sender.send([]),
            lambda: sender.cancel_scheduled([]),
            lambda: source.receive(1, 0),
            lambda: source.settle([]),
            lambda: source.renew([]),
            lambda: source.release([]),
            lambda: source.accept(SessionId("t"), 0),
            lambda: source.get_state(delivery.lease),
            lambda: source.set_state(delivery.lease, b""),
            lambda: provider.open_sender(QUEUE),
            lambda: provider.stats(QUEUE),
            lambda: provider.peek(QUEUE, 1),
            lambda: provider.purge(QUEUE),
            lambda: letters.peek(1),
            letters.redrive,
            letters.purge,
            sender.aclose,
        ]
        for call in calls:
            with trio.testing.assert_checkpoints():
                await call()
            with trio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught


async def test_a_cancelled_receive_takes_nothing(autojump_clock: MockClock) -> None:
    async with memory() as provider:
        source = await receiver(provider)
        await send(provider, "s")
        with trio.CancelScope() as scope:
            scope.cancel()
            await source.receive(1, 10)
        assert scope.cancelled_caught
        stats = await provider.stats(QUEUE)
        assert (stats.depth, stats.in_flight, stats.locked_sessions) == (1, 0, 0)
        with trio.move_on_after(1):
            await (await receiver(provider)).receive(1, 10)
        assert (await provider.stats(QUEUE)).in_flight == 1


# --- waking up -----------------------------------------------------------------------------------------


async def test_sending_wakes_as_many_as_there_is_work_for(autojump_clock: MockClock) -> None:
    async with memory() as provider, background() as start:
        for number in range(200):
            source = await receiver(provider)
            start(str(number), lambda source=source: source.receive(1, 60))
        await trio.testing.wait_all_tasks_blocked()
        hub = provider._connection.hub(QUEUE)
        assert hub.waiting == 200
        await send(provider, "a", "a", "b", "c")
        await trio.testing.wait_all_tasks_blocked()
        assert [d.session_id for _, (d,) in start.ended.values()] == ["a", "b", "c"]
        assert hub.waiting == 197


async def test_only_the_holder_is_woken_for_its_session(autojump_clock: MockClock) -> None:
    async with memory() as provider, background() as start:
        await send(provider, "s")
        others = [await receiver(provider) for _ in range(3)]
        holder = await receiver(provider)
        await one(holder)
        for number, source in enumerate([*others, holder]):
            start(str(number), lambda source=source: source.receive(10, 60))
        await trio.testing.wait_all_tasks_blocked()
        await send(provider, "s")
        await trio.testing.wait_all_tasks_blocked()
        assert list(start.ended) == ["3"]


async def test_settling_wakes_when_a_session_has_room_again(autojump_clock: MockClock) -> None:
    async with memory() as provider, background() as start:
        source = await receiver(provider, max_per_session=1)
        await send(provider, "s", "s")
        delivery = await one(source)
        start("next", lambda: source.receive(1, 60))
        await trio.testing.wait_all_tasks_blocked()
        await settled(source, delivery)
        await trio.testing.wait_all_tasks_blocked()
        assert start.ended["next"][1][0].sequence_number == 2


async def test_releasing_wakes_another_and_gives_room_to_oneself(autojump_clock: MockClock) -> None:
    async with memory() as provider, background() as start:
        full, other = await receiver(provider, max_sessions=1), await receiver(provider)
        await send(provider, "a", "b")
        delivery = await one(full)
        start("other", lambda: other.receive(1, 60))
        await trio.testing.wait_all_tasks_blocked()
        start("full", lambda: full.receive(1, 60))
        await trio.testing.wait_all_tasks_blocked()
        assert list(start.ended) == ["other"]
        await send(provider, "c")
        await trio.testing.wait_all_tasks_blocked()
        assert list(start.ended) == ["other"]
        await full.release([delivery.lease])
        await trio.testing.wait_all_tasks_blocked()
        assert start.ended["full"][1][0].session_id in ("a", "c")
        await full.release([delivery.lease])  # over already: nothing happens
        assert await full.renew([delivery.lease]) != [None]
        assert delivery.lease.lost is None  # given back, not lost


@pytest.mark.parametrize(
    ("fields", "due"),
    [
        pytest.param({}, 30.0, id="lock expiry"),
        pytest.param({"action": ABANDON, "delay": 7.0}, 7.0, id="delay"),
    ],
)
async def test_the_next_timer_wakes(
    fields: dict[str, Any], due: float, autojump_clock: MockClock
) -> None:
    async with memory(lock_duration=30.0) as provider, background() as start:
        first = await receiver(provider)
        await send(provider, "s")
        begin = trio.current_time()
        delivery = await one(first)
        if fields:
            await settled(first, delivery, **fields)
            await first.release([delivery.lease])
        for number in range(20):
            source = await receiver(provider)
            start(str(number), lambda source=source: source.receive(1, 100))
        with trio.move_on_after(due + 1):
            await trio.sleep_forever()
        ((at, (again,)),) = start.ended.values()
        assert at - begin == pytest.approx(due, abs=0.01)
        assert again.delivery_count == 2
        assert again.lease.token > delivery.lease.token
        assert (delivery.lease.lost is not None) == (not fields)


async def test_a_timer_that_comes_up_earlier_wakes_earlier(autojump_clock: MockClock) -> None:
    async with memory(lock_duration=30.0) as provider, background() as start:
        first, second = await receiver(provider), await receiver(provider)
        await send(provider, "s")
        await one(first)
        start("second", lambda: second.receive(1, 100))
        await trio.testing.wait_all_tasks_blocked()
        begin = trio.current_time()
        await send(provider, "t", scheduled_at=wall(provider, 3.0))
        await trio.sleep(4)
        assert start.ended["second"][0] - begin == pytest.approx(3.0, abs=0.01)
        assert start.ended["second"][1][0].session_id == "t"


def wall(provider: EngineProvider, later: float) -> Any:
    return moment(provider._connection.clock() + later)


async def test_the_watch_over_timers_passes_on(autojump_clock: MockClock) -> None:
    async with memory(lock_duration=30.0) as provider, background() as start:
        first, watching, other = [await receiver(provider) for _ in range(3)]
        await send(provider, "s")
        await one(first)
        begin = trio.current_time()
        start("watching", lambda: watching.receive(1, 10))
        await trio.testing.wait_all_tasks_blocked()
        start("other", lambda: other.receive(1, 100))
        await trio.sleep(31)
        assert start.ended["watching"][1] == []
        assert start.ended["other"][0] - begin == pytest.approx(30, abs=0.01)


async def test_who_was_woken_and_is_closed_or_cancelled_passes_it_on(
    autojump_clock: MockClock,
) -> None:
    async with memory() as provider, background() as start:
        first, second = await receiver(provider), await receiver(provider)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.receive, 1, 60)
                await trio.testing.wait_all_tasks_blocked()
                start("second", lambda: second.receive(1, 60))
                await trio.testing.wait_all_tasks_blocked()
                sender = await provider.open_sender(QUEUE)
                await sender.send([Message(b"", session_id="s")])
                scope.cancel()  # the first one is woken, but did not run yet
        await trio.testing.wait_all_tasks_blocked()
        assert scope.cancelled_caught
        assert [d.session_id for d in start.ended["second"][1]] == ["s"]


async def test_who_cannot_take_new_sessions_does_not_swallow_the_wake_up(
    autojump_clock: MockClock,
) -> None:
    async with memory() as provider, background() as start:
        closed, taker = await receiver(provider, auto_accept=False), await receiver(provider)
        start("closed", lambda: closed.receive(1, 60))
        start("accept", lambda: closed.accept(None, 60))
        await trio.testing.wait_all_tasks_blocked()
        start("taker", lambda: taker.receive(1, 60))
        await trio.testing.wait_all_tasks_blocked()
        await send(provider, None)
        await trio.testing.wait_all_tasks_blocked()
        assert list(start.ended) == ["taker"]
        await send(provider, "s")
        await trio.testing.wait_all_tasks_blocked()
        assert set(start.ended) == {"taker", "accept", "closed"}


async def test_two_who_wait_for_a_session_do_not_chase_each_other(
    autojump_clock: MockClock,
) -> None:
    async with memory() as provider, background() as start:
        first, second = [await receiver(provider, auto_accept=False) for _ in range(2)]
        start("first", lambda: first.accept(None, 5))
        start("second", lambda: second.accept(None, 5))
        await trio.testing.wait_all_tasks_blocked()
        await send(provider, None)
        await trio.testing.wait_all_tasks_blocked()  # never, if they woke each other
        assert start.ended == {}
        await trio.sleep(6)
        assert [answer for _, answer in start.ended.values()] == [None, None]


# --- leases --------------------------------------------------------------------------------------------


async def test_accept_by_name_and_next(autojump_clock: MockClock) -> None:
    async with memory() as provider:
        source, other = await receiver(provider, auto_accept=False), await receiver(provider)
        lease = await source.accept(SessionId("new"), 0)
        assert lease is not None
        assert lease.session_id == "new"
        for holder in (source, other):
            with pytest.raises(SessionLocked, match="'new'"):
                await holder.accept(SessionId("new"), 0)
        assert await source.accept(None, 1) is None
        await send(provider, "new", "b")
        following = await source.accept(None, 1)
        assert following is not None
        assert following.session_id == "b"
        assert [d.lease for d in await source.receive(9, 0)] == [lease, following]


async def test_renewing_moves_the_deadline(autojump_clock: MockClock) -> None:
    async with memory(lock_duration=10.0) as provider:
        source = await receiver(provider)
        await send(provider, "s", None)
        leases = [d.lease for d in await source.receive(2, 0)]
        for _ in range(5):
            await trio.sleep(8)
            now = trio.current_time()
            assert await source.renew(leases) == [None, None]
            assert [lease.deadline for lease in leases] == [now + 9, now + 9]
        assert (await provider.stats(QUEUE)).in_flight == 2
        before = leases[0].expires_at
        await trio.sleep(10)
        lost = await source.renew(leases)
        assert [type(error) for error in lost] == [LockLost, LockLost]
        assert leases[0].expires_at == before
        assert all(lease.lost is not None for lease in leases)


async def test_a_lost_lock_is_told_by_event(autojump_clock: MockClock) -> None:
    async with memory(lock_duration=10.0) as provider:
        source, other = await receiver(provider), await receiver(provider)
        await send(provider, "s", None)
        told: list[Lease] = []
        deliveries = await source.receive(2, 0)
        for delivery in deliveries:
            delivery.lease.on_lost(told.append)
        assert len(await other.receive(2, 11)) == 2
        assert told == [delivery.lease for delivery in deliveries]
        assert [type(e) for e in await settled(source, *deliveries)] == [LockLost] * 2
        with pytest.raises(LockLost, match=r"session 's'.*lock_duration"):
            await source.get_state(deliveries[0].lease)
        with pytest.raises(LockLost):
            await source.set_state(deliveries[0].lease, b"late")


async def test_session_state(autojump_clock: MockClock) -> None:
    async with memory() as provider:
        source, other = await receiver(provider), await receiver(provider)
        lease = await source.accept(SessionId("s"), 0)
        assert lease is not None
        assert await source.get_state(lease) is None
        await source.set_state(lease, b"one")
        await source.release([lease])
        again = await other.accept(SessionId("s"), 0)
        assert again is not None
        assert await other.get_state(again) == b"one"
        with pytest.raises(LockLost):
            await source.get_state(again)  # somebody else's
        assert again.lost is None


async def test_receipts_used_twice_or_by_others(autojump_clock: MockClock) -> None:
    async with memory() as provider:
        source, other = await receiver(provider), await receiver(provider)
        await send(provider, "s", None)
        deliveries = await source.receive(2, 0)
        foreign = await settled(other, *deliveries)
        assert [type(e) for e in foreign] == [InvalidReceipt] * 2
        assert deliveries[0].receipt in str(foreign[0])
        both = await settled(source, *deliveries, *deliveries)
        assert [type(e) for e in both] == [type(None)] * 2 + [InvalidReceipt] * 2
        assert [type(e) for e in await settled(source, *deliveries)] == [InvalidReceipt] * 2
        assert (await provider.stats(QUEUE)).in_flight == 0


async def test_receipts_of_another_queue_are_refused(autojump_clock: MockClock) -> None:
    async with memory() as provider:
        other_queue = QueueName("other")
        sender = await provider.open_sender(other_queue)
        await sender.send([Message(b"", session_id="s")])
        other = await provider.open_receiver(other_queue, ReceiverOptions())
        await send(provider, "s")
        here = await receiver(provider)
        mine, theirs = await one(here), await one(other)
        assert mine.lease.token == theirs.lease.token
        (refusal,) = await settled(here, theirs)
        assert isinstance(refusal, InvalidReceipt)
        assert await settled(other, theirs) == [None]


# --- the other ports -----------------------------------------------------------------------------------


async def test_sizes_and_counts_are_checked_before_anything_is_stored(
    autojump_clock: MockClock,
) -> None:
    async with memory(max_message_bytes=10) as provider:
        sender = await provider.open_sender(QUEUE)
        with pytest.raises(MessageTooLarge, match="11 bytes, the limit is 10"):
            await sender.send([Message(b"x" * 10), Message(b"x" * 11)])
        with pytest.raises(BatchTooLarge, match=f"limit for one call is {MAX_BATCH}"):
            await sender.send([Message(b"")] * (MAX_BATCH + 1))
        assert (await provider.stats(QUEUE)).depth == 0
        assert len(await sender.send([Message(b"x" * 10)])) == 1


async def test_scheduled_messages_can_be_taken_back(autojump_clock: MockClock) -> None:
    async with memory() as provider:
        numbers = await send(provider, "s", "s", scheduled_at=wall(provider, 5))
        sender = await provider.open_sender(QUEUE)
        assert await sender.cancel_scheduled([numbers[0] or 0, 99]) == [True, False]
        assert [p.state for p in await provider.peek(QUEUE, 9)] == [MessageState.SCHEDULED]
        source = await receiver(provider)
        start = trio.current_time()
        assert (await one(source, 10)).sequence_number == 3
        assert trio.current_time() - start == pytest.approx(5, abs=0.01)


async def test_dead_letters(autojump_clock: MockClock) -> None:
    async with memory(max_delivery_count=1) as provider:
        source, letters = await receiver(provider), await provider.open_dead_letters(QUEUE)
        assert source.max_delivery_count == 1
        await send(provider, "s", "s")
        deliveries = await source.receive(2, 0)
        await settled(source, *deliveries, action=ABANDON)
        peeked = await letters.peek(9)
        assert [p.sequence_number for p in peeked] == [1, 2]
        assert [p.sequence_number for p in await letters.peek(9, after=1)] == [2]
        assert peeked[0].dead_letter is not None
        assert peeked[0].dead_letter.reason == "MaxDeliveryCountExceeded"
        async with background() as start:
            start("again", lambda: source.receive(2, 60))
            await trio.testing.wait_all_tasks_blocked()
            assert await letters.redrive([1]) == 1
            await trio.testing.wait_all_tasks_blocked()
            assert start.ended["again"][1][0].dead_letter == peeked[0].dead_letter
        assert await letters.purge() == 1
        assert await provider.purge(QUEUE) == 0


async def test_capabilities_and_names(autojump_clock: MockClock) -> None:
    async with memory(deduplication_window=0, max_delivery_count=0) as provider:
        assert provider.name == "memory"
        assert not provider.capabilities.deduplication
        assert not provider.capabilities.durable
        assert not provider.capabilities.multi_process
        source = await receiver(provider)
        assert (source.provider_name, source.max_delivery_count) == ("memory", None)


async def test_brokers_live_as_long_as_the_run(autojump_clock: MockClock) -> None:
    async with memory() as provider:
        await send(provider, "s")
    async with memory() as first, memory() as second, memory(name="other") as third:
        assert (await first.stats(QUEUE)).depth == 1
        assert (await third.stats(QUEUE)).depth == 0
        async with background() as start:
            source = await receiver(second)
            await one(source)
            start("waits", lambda: source.receive(1, 60))
            await trio.testing.wait_all_tasks_blocked()
            await send(first, "t")  # another connection, the same broker
            await trio.testing.wait_all_tasks_blocked()
            assert [d.session_id for d in start.ended["waits"][1]] == ["t"]
        with pytest.raises(QueueNotFound, match="nowhere"):
            async with memory(declare=False) as strict:
                await strict.open_receiver(QueueName("nowhere"), ReceiverOptions())


async def depth_of_new_run() -> int:
    async with memory() as provider:
        await send(provider, "s")
        return (await provider.stats(QUEUE)).depth


def test_runs_are_isolated() -> None:
    assert [trio.run(depth_of_new_run) for _ in range(2)] == [1, 1]


# --- closing -------------------------------------------------------------------------------------------


async def test_closing_a_receiver_gives_everything_back_also_when_cancelled(
    autojump_clock: MockClock,
) -> None:
    async with memory() as provider, background() as start:
        source, other = await receiver(provider), await receiver(provider)
        await send(provider, "s", "s", None)
        await source.receive(9, 0)
        start("waits", lambda: source.receive(1, 60))
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await source.aclose()
        assert scope.cancelled_caught
        again = await other.receive(9, 0)
        assert [delivery.delivery_count for delivery in again] == [1, 1, 1]
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(start.ended["waits"][1], trio.ClosedResourceError)
        for call in (
            lambda: source.receive(1, 0),
            lambda: source.accept(None, 0),
            lambda: source.settle([]),
            lambda: source.renew([]),
            lambda: source.release([]),
            lambda: source.get_state(again[0].lease),
        ):
            with pytest.raises(trio.ClosedResourceError):
                await call()
        await source.aclose()


async def test_closing_a_provider_closes_what_was_opened_from_it(autojump_clock: MockClock) -> None:
    async with memory() as other:
        provider = await MEMORY_FACTORY.open(MemoryConfig())
        source, sender = await receiver(provider), await provider.open_sender(QUEUE)
        letters = await provider.open_dead_letters(QUEUE)
        await send(provider, "s")
        await one(source)
        with trio.CancelScope() as scope:
            scope.cancel()
            await provider.aclose()
        assert scope.cancelled_caught
        await provider.aclose()
        await source.aclose()
        assert (await other.stats(QUEUE)).in_flight == 0
        for call in (
            lambda: source.receive(1, 0),
            lambda: sender.send([]),
            letters.redrive,
            lambda: provider.open_sender(QUEUE),
            lambda: provider.stats(QUEUE),
        ):
            with pytest.raises(trio.ClosedResourceError):
                await call()
        await sender.aclose()
        with pytest.raises(trio.ClosedResourceError, match="sender of queue"):
            await sender.send([])


async def test_a_receiver_opened_while_the_provider_closes_is_closed(
    autojump_clock: MockClock,
) -> None:
    provider = await MEMORY_FACTORY.open(MemoryConfig())
    async with background() as start:
        start("open", lambda: receiver(provider))
        start("close", provider.aclose)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(start.ended["open"][1], trio.ClosedResourceError)


# --- an engine in a worker thread ------------------------------------------------------------------------


class Blocking:
    """The engine in memory, called as one on disk is: in a thread. Calls can be held up, fail and be polled."""

    is_blocking = True
    poll_interval = 0.02

    def __init__(self) -> None:
        self.options = QueueOptions()
        self.inner = HeapEngine(HeapStore(), self.options)
        self.hold: Callable[[str], object] = lambda name: None
        self.news: Signals | None = None
        self.closed = 0
        self._trio = trio.lowlevel.current_trio_token()
        self.calls: Counter[str] = Counter()
        self._called = trio.Event()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)

        def call(*args: Any) -> Any:
            self.hold(name)
            try:
                return method(*args)
            finally:
                self._trio.run_sync_soon(self._count, name)

        return call

    def _count(self, name: str) -> None:
        self.calls[name] += 1
        self._called.set()

    async def was_called(self, name: str, times: int) -> None:
        """Wait until there were that many more calls."""
        wanted = self.calls[name] + times
        with trio.fail_after(5):
            while self.calls[name] < wanted:
                await self._called.wait()
                self._called = trio.Event()

    def poll(self, queue: QueueName, now: float) -> Signals | None:
        self._trio.run_sync_soon(self._count, "poll")
        news, self.news = self.news, None
        return news

    def close(self) -> None:
        self.closed += 1


class Gate:
    """Holds one engine call in its thread until the test lets it go on."""

    def __init__(self, engine: Blocking, name: str, *, after: bool = False) -> None:
        self._reached, self._go_on = trio.Event(), threading.Event()
        token = trio.lowlevel.current_trio_token()
        used = False

        def hold(called: str) -> None:
            nonlocal used
            if called == name and not used:
                used = True
                token.run_sync_soon(self._reached.set)
                assert self._go_on.wait(10)

        engine.hold = hold

    async def reached(self) -> None:
        with trio.fail_after(10):
            await self._reached.wait()

    def open(self) -> None:
        self._go_on.set()


class TestBlocking:
    """Threads and a mock clock do not mix, so these run in real time, without waiting for it."""

    @asynccontextmanager
    async def provider(self) -> AsyncIterator[tuple[SqliteProvider, Blocking]]:
        engine = Blocking()
        provider = SqliteProvider(engine, time.time)
        try:
            yield provider, engine
        finally:
            await provider.aclose()
        assert engine.closed == 1

    async def test_a_claim_answered_to_a_cancelled_task_is_given_back(self) -> None:
        async with self.provider() as (provider, engine):
            source, other = await receiver(provider), await receiver(provider)
            await send(provider, "s", None)
            gate = Gate(engine, "claim")
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(source.receive, 9, 10)
                    await gate.reached()
                    scope.cancel()
                    gate.open()
            assert scope.cancelled_caught
            again = await other.receive(9, 0)
            assert [delivery.delivery_count for delivery in again] == [1, 1]

    async def test_a_lock_accepted_by_a_cancelled_task_is_given_back(self) -> None:
        async with self.provider() as (provider, engine):
            source, other = await receiver(provider), await receiver(provider)
            gate = Gate(engine, "accept")
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(source.accept, SessionId("s"), 10)
                    await gate.reached()
                    scope.cancel()
                    gate.open()
            assert await other.accept(SessionId("s"), 0) is not None

    async def test_what_is_signalled_during_a_look_is_not_missed(self) -> None:
        async with self.provider() as (provider, engine), background() as start:
            source = await receiver(provider)
            await send(provider)
            gate = Gate(engine, "take_signals")  # the claim found nothing, which nobody knows yet
            start("receive", lambda: source.receive(1, math.inf))
            await gate.reached()
            engine.inner.send(QUEUE, [Message(b"")], time.time())
            provider._connection.hub(QUEUE).apply(Signals(True, (), (), None))  # wakes nobody
            gate.open()
            await start.have_ended(1)
            assert len(start.ended["receive"][1]) == 1

    async def test_others_changes_are_polled_for_by_one_of_those_who_wait(self) -> None:
        async with self.provider() as (provider, engine), background() as start:
            source, other = await receiver(provider), await receiver(provider)
            start("other", lambda: other.receive(1, 5))
            start("source", lambda: source.receive(1, 5))
            begin = trio.current_time()
            await engine.was_called("poll", 3)
            assert trio.current_time() - begin > 2 * engine.poll_interval
            # As another process would: past the provider.
            engine.inner.send(QUEUE, [Message(b"")], time.time())
            engine.news = Signals(True, (), (), None)
            await start.have_ended(1)
            await engine.was_called("poll", 2)  # the other one goes on
            assert len(start.ended) == 1

    async def test_nobody_waits_and_nothing_is_polled(self) -> None:
        async with self.provider() as (provider, engine):
            source = await receiver(provider)
            assert await source.receive(1, 3 * engine.poll_interval) == []
            polled = engine.calls["poll"]
            assert polled > 0
            await send(provider, "s")
            await trio.sleep(3 * engine.poll_interval)
            assert engine.calls["poll"] == polled

    async def test_a_failing_look_passes_the_wake_up_on(self) -> None:
        async with self.provider() as (provider, engine), background() as start:
            first, second = await receiver(provider), await receiver(provider)
            start("first", lambda: first.receive(1, 5))
            start("second", lambda: second.receive(1, 5))
            await engine.was_called("claim", 2)
            await engine.was_called("poll", 1)  # so both are waiting
            gate = iter([Throttled("busy")])

            def hold(name: str) -> None:
                if name == "claim":
                    for error in gate:
                        raise error

            engine.hold = hold
            await send(provider, "s")
            await start.have_ended(2)
            answers = [answer for _, answer in start.ended.values()]
            assert sum(isinstance(answer, Throttled) for answer in answers) == 1
            assert sum(isinstance(answer, list) and len(answer) == 1 for answer in answers) == 1

    async def test_a_receiver_whose_opening_is_overtaken_by_closing_is_closed(self) -> None:
        async with self.provider() as (provider, engine), background() as start:
            await send(provider)
            gate = Gate(engine, "open_holder")
            start("open", lambda: receiver(provider))
            await gate.reached()
            start("close", provider.aclose)
            await trio.testing.wait_all_tasks_blocked(0.01)
            gate.open()
            await start.have_ended(2)
            assert isinstance(start.ended["open"][1], trio.ClosedResourceError)
            assert engine.closed == 1

    async def test_a_failing_release_does_not_keep_the_provider_open(self) -> None:
        engine = Blocking()
        provider = SqliteProvider(engine, time.time)
        await receiver(provider)
        await receiver(provider)

        def hold(name: str) -> None:
            if name == "close_holder":
                raise Throttled("busy")

        engine.hold = hold
        with pytest.raises(Throttled):
            await provider.aclose()
        assert engine.closed == 1
        await provider.aclose()
        assert engine.closed == 1
