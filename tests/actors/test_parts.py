"""The small parts: signals, the coalescer, the breaker actor (A3)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from queue_runtime.actors.breaker import Breaker
from queue_runtime.actors.coalescer import Coalescer
from queue_runtime.actors.signal import Signal
from queue_runtime.errors import (
    CircuitOpen,
    ConnectionFailed,
    QueueFull,
    QueueNotFound,
    SessionLocked,
)
from queue_runtime.policies.breaker import BreakerConfig, BreakerState

Clock = trio.testing.MockClock

# --- signals ------------------------------------------------------------------------------------------


async def test_a_signal_is_kept_for_the_next_wait_once() -> None:
    signal = Signal()
    signal.wake()
    signal.wake()
    with trio.fail_after(1):
        await signal.wait()
    with trio.move_on_after(0.01) as scope:
        await signal.wait()
    assert scope.cancelled_caught


async def test_a_signal_wakes_the_one_that_waits() -> None:
    signal = Signal()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(signal.wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await signal.wait()
        signal.wake()
    signal.wake()  # nobody waits any more: it is kept
    with trio.fail_after(1):
        await signal.wait()


async def test_every_wait_for_a_signal_is_a_checkpoint() -> None:
    signal = Signal()
    signal.wake()
    with trio.testing.assert_checkpoints():
        await signal.wait()


# --- the coalescer ------------------------------------------------------------------------------------


class Calls:
    """Flushes that take a second each."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.under_way = self.most = 0
        self.error: ConnectionFailed | None = None

    async def __call__(self, batch: Sequence[int]) -> list[int]:
        self.batches.append(tuple(batch))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await trio.sleep(1)
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
        return [-item for item in batch]


async def test_what_comes_while_a_call_is_under_way_goes_with_the_next(
    autojump_clock: Clock,
) -> None:
    calls = Calls()
    coalescer = Coalescer(calls, max_batch=3)
    answers: dict[int, int] = {}

    async def ask(item: int) -> None:
        answers[item] = await coalescer.ask(item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(coalescer.run)
        async with trio.open_nursery() as askers:
            askers.start_soon(ask, 1)
            await trio.sleep(0.5)
            for item in range(2, 7):
                askers.start_soon(ask, item)
        nursery.cancel_scope.cancel()
    assert [len(batch) for batch in calls.batches] == [1, 3, 2]
    assert answers == {item: -item for item in range(1, 7)}


async def test_answers_come_in_runs_of_the_same_asker(autojump_clock: Clock) -> None:
    calls = Calls()
    coalescer = Coalescer(calls, max_batch=10)
    runs: list[tuple[str, list[int], object]] = []

    def asker(name: str) -> object:
        return lambda items, answers: runs.append((name, list(items), answers))

    a, b = asker("a"), asker("b")
    for item, answered in ((1, a), (2, a), (3, b), (4, a)):
        coalescer.submit(item, answered)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(coalescer.run)
        await coalescer.wait_idle()
        calls.error = ConnectionFailed("down")
        coalescer.submit(5, a)  # type: ignore[arg-type]
        coalescer.submit(6, a)  # type: ignore[arg-type]
        await coalescer.wait_idle()
        nursery.cancel_scope.cancel()
    assert runs == [
        ("a", [1, 2], [-1, -2]),
        ("b", [3], [-3]),
        ("a", [4], [-4]),
        ("a", [5, 6], calls.error),
    ]


async def test_an_error_answers_everybody(autojump_clock: Clock) -> None:
    calls = Calls()
    calls.error = ConnectionFailed("down")
    coalescer = Coalescer(calls, max_batch=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(coalescer.run)
        for _ in range(2):
            with pytest.raises(ConnectionFailed, match="down"):
                await coalescer.ask(1)
        nursery.cancel_scope.cancel()


async def test_lingering_is_an_age_of_the_oldest(autojump_clock: Clock) -> None:
    calls = Calls()
    coalescer = Coalescer(calls, max_batch=4, linger=10.0)
    ignore = lambda _items, _answers: None  # noqa: E731
    async with trio.open_nursery() as nursery:
        nursery.start_soon(coalescer.run)
        start = trio.current_time()
        for item in range(3):
            coalescer.submit(item, ignore)
            await trio.sleep(4)
        assert calls.batches == [(0, 1, 2)]
        assert trio.current_time() - start < 13
        # A full batch waits for nothing.
        for item in range(4):
            coalescer.submit(item, ignore)
        await trio.sleep(0.1)
        assert len(calls.batches) == 2
        # Neither does one in a hurry.
        await trio.sleep(20)
        coalescer.submit(9, ignore)
        await trio.sleep(1)
        with trio.fail_after(2):
            await coalescer.wait_idle()
        assert calls.batches[-1] == (9,)
        nursery.cancel_scope.cancel()


async def test_several_workers_call_at_once(autojump_clock: Clock) -> None:
    calls = Calls()
    coalescer = Coalescer(calls, max_batch=2, workers=3)
    answered: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(coalescer.run)
        for item in range(14):
            coalescer.submit(item, lambda items, _: answered.extend(items))
        start = trio.current_time()
        await coalescer.wait_idle()
        assert trio.current_time() - start == pytest.approx(3)
        nursery.cancel_scope.cancel()
    assert calls.most == 3
    assert sorted(answered) == list(range(14))


@pytest.mark.parametrize("withdraw", [True, False])
async def test_a_cancelled_asker_may_take_its_item_back(
    autojump_clock: Clock, withdraw: bool
) -> None:
    calls = Calls()
    coalescer = Coalescer(calls, max_batch=10, withdraw=withdraw)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(coalescer.run)
        nursery.start_soon(coalescer.ask, 1)
        await trio.sleep(0.1)
        with trio.move_on_after(0.1):
            await coalescer.ask(2)
        with trio.move_on_after(0.1):
            await coalescer.ask(3)
        await coalescer.wait_idle()
        with trio.move_on_after(0.5):  # its call has begun
            await coalescer.ask(4)
        await coalescer.wait_idle()
        nursery.cancel_scope.cancel()
    assert calls.batches == ([(1,), (4,)] if withdraw else [(1,), (2, 3), (4,)])


async def test_a_lone_asker_calls_by_itself_and_what_comes_meanwhile_goes_next(
    autojump_clock: Clock,
) -> None:
    calls = Calls()
    callers: list[str] = []

    async def flush(batch: Sequence[int]) -> list[int]:
        callers.append(trio.lowlevel.current_task().name)
        return await calls(batch)

    coalescer = Coalescer(flush, max_batch=10, lets_call=True)
    me = trio.lowlevel.current_task().name
    async with trio.open_nursery() as nursery:
        nursery.start_soon(coalescer.run)
        assert await coalescer.ask(1) == -1
        assert await coalescer.ask(2) == -2
        assert me not in callers[:1]
        assert callers[1:] == [me]
        async with trio.open_nursery() as askers:
            for item in (3, 4, 5):
                askers.start_soon(coalescer.ask, item)
        with trio.fail_after(3):
            await coalescer.wait_idle()
        # Whoever had company leaves the next call to the one who calls for all.
        assert sorted(map(len, calls.batches)) == [1, 1, 1, 2]
        assert callers[-1] == callers[0]
        assert await coalescer.ask(6) == -6
        assert callers[-1] == callers[0]
        nursery.cancel_scope.cancel()
    assert calls.most == 1


async def test_a_lone_call_is_cancelled_with_its_asker_and_nobody_waits_for_it(
    autojump_clock: Clock,
) -> None:
    async def close_soon(coalescer: Coalescer[int, int]) -> None:
        await trio.sleep(0.5)
        coalescer.close()

    calls = Calls()
    coalescer = Coalescer(calls, max_batch=10, lets_call=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(coalescer.run)
        assert await coalescer.ask(1) == -1
        with trio.move_on_after(0.5) as scope:
            await coalescer.ask(2)
        assert scope.cancelled_caught
        assert calls.under_way == 0
        await coalescer.wait_idle()
        calls.error = ConnectionFailed("down")
        with pytest.raises(ConnectionFailed):
            await coalescer.ask(3)
        calls.error = None
        async with trio.open_nursery() as askers:
            for item in (4, 5):
                askers.start_soon(coalescer.ask, item)
        calls.error = ConnectionFailed("down")  # makes the next one lonely again
        with pytest.raises(ConnectionFailed):
            await coalescer.ask(6)
        nursery.start_soon(close_soon, coalescer)
        with pytest.raises(trio.ClosedResourceError, match="unknown"):
            await coalescer.ask(7)
        nursery.cancel_scope.cancel()
    assert calls.batches[:3] == [(1,), (2,), (3,)]
    assert sorted(calls.batches[3:]) == [(4,), (5,), (6,), (7,)]


async def test_closed_behind_a_lone_call_it_becomes_idle(autojump_clock: Clock) -> None:
    async def flush(items: Sequence[int]) -> Sequence[int]:
        try:
            await trio.sleep(1)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.1)
        return items

    coalescer = Coalescer(flush, max_batch=10, lets_call=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(coalescer.run)
        assert await coalescer.ask(1) == 1

        async def ask(item: int) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await coalescer.ask(item)

        for item in (2, 3):
            nursery.start_soon(ask, item)
        await trio.testing.wait_all_tasks_blocked()
        coalescer.close()
        with trio.fail_after(5):
            await coalescer.wait_idle()
        nursery.cancel_scope.cancel()


async def test_closed_nobody_waits_for_an_answer(autojump_clock: Clock) -> None:
    calls = Calls()
    coalescer = Coalescer(calls, max_batch=1)
    refused = []

    async def ask(item: int) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await coalescer.ask(item)
        refused.append(item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(coalescer.run)
        async with trio.open_nursery() as askers:
            for item in range(3):
                askers.start_soon(ask, item)
            await trio.sleep(0.5)
            coalescer.close()
        assert sorted(refused) == [0, 1, 2]
        await ask(4)
        await coalescer.wait_idle()  # what was queued still goes
        nursery.cancel_scope.cancel()
    assert len(calls.batches) == 3


async def test_after_the_end_nobody_waits_for_idleness(autojump_clock: Clock) -> None:
    coalescer = Coalescer(Calls(), max_batch=1)
    ignore = lambda _items, _answers: None  # noqa: E731
    coalescer.submit(1, ignore)
    with trio.move_on_after(0.5):
        await coalescer.run()
    coalescer.submit(2, ignore)
    with trio.fail_after(1):
        await coalescer.wait_idle()


# --- the breaker actor --------------------------------------------------------------------------------


async def fails(error: Exception) -> None:
    await trio.lowlevel.checkpoint()
    raise error


async def test_the_breaker_opens_probes_and_closes(autojump_clock: Clock) -> None:
    changes: list[tuple[str, BreakerState, BreakerState]] = []
    breaker = Breaker(
        "the broker",
        BreakerConfig(failure_threshold=2, open_duration=30.0),
        lambda *change: changes.append(change),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(breaker.run)
        for _ in range(2):
            with pytest.raises(ConnectionFailed):
                await breaker.call(fails, ConnectionFailed("down"))
        with pytest.raises(CircuitOpen, match=r"the broker is open .* in 30\.0 s") as caught:
            await breaker.call(trio.sleep, 0)
        assert caught.value.retry_after == 30.0
        start = trio.current_time()
        await breaker.wait_admitting()
        assert trio.current_time() - start == 30
        assert breaker.state.value is BreakerState.HALF_OPEN
        # A cancelled probe leaves its place to another.
        with trio.move_on_after(1):
            await breaker.call(trio.sleep, 5)
        async with trio.open_nursery() as probes:
            probes.start_soon(breaker.call, trio.sleep, 1)
            await trio.testing.wait_all_tasks_blocked(0.001)
            with pytest.raises(CircuitOpen):
                await breaker.call(trio.sleep, 0)
        assert breaker.state.value is BreakerState.CLOSED
        assert breaker.statistics().rejected == 2
        nursery.cancel_scope.cancel()
    assert [(previous, current) for _, previous, current in changes] == [
        (BreakerState.CLOSED, BreakerState.OPEN),
        (BreakerState.OPEN, BreakerState.HALF_OPEN),
        (BreakerState.HALF_OPEN, BreakerState.CLOSED),
    ]


@pytest.mark.parametrize(
    "error", [QueueNotFound("no"), SessionLocked("taken"), QueueFull("full")], ids=repr
)
async def test_answers_of_a_working_broker_do_not_open_the_breaker(
    autojump_clock: Clock, error: Exception
) -> None:
    breaker = Breaker("b", BreakerConfig(failure_threshold=1))
    for _ in range(5):
        with pytest.raises(type(error)):
            await breaker.call(fails, error)
    assert breaker.state.value is BreakerState.CLOSED
    assert breaker.statistics().successes == 5


async def test_what_is_no_error_of_a_queue_tells_the_breaker_nothing(
    autojump_clock: Clock,
) -> None:
    breaker = Breaker("b", BreakerConfig(failure_threshold=1))
    with pytest.raises(ValueError, match="bug"):
        await breaker.call(fails, ValueError("bug"))
    stats = breaker.statistics()
    assert (stats.successes, stats.failures, stats.state) == (0, 0, BreakerState.CLOSED)
