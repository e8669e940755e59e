"""Brokers whose leases end with their last unsettled message, and whose calls return ten messages at most."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from queue_runtime.config import SettlementMode
from queue_runtime.errors import LockLost
from queue_runtime.handlers import CloseReason, Retry
from queue_runtime.testing.simulation.ending_leases import EndingLeases


@pytest.fixture
async def lab(open_lab: Any) -> AsyncIterator[Any]:
    lab = await open_lab(lock_duration=30.0)
    inner = EndingLeases(lab.provider.inner, max_receive_messages=10)
    lab.provider = type(lab.provider)(inner)
    with trio.fail_after(200_000):
        yield lab


@pytest.mark.parametrize("mode", list(SettlementMode), ids=lambda mode: mode.value)
async def test_a_session_is_closed_with_its_last_message(lab: Any, mode: SettlementMode) -> None:
    await lab.send("a:1", "a:2", "a:3", ":x")
    async with lab.supervise(lab.handler(), idle_timeout=3600.0, settlement=mode) as actors:
        await actors.wait_empty()
        await trio.sleep(200)  # several times a lock's duration
        assert lab.closed.count(("a", CloseReason.IDLE)) == 1
        statistics = actors.statistics()
        assert (statistics.active_sessions, statistics.in_flight, statistics.completed) == (0, 0, 4)
        assert (statistics.given_back, statistics.locks_lost) == (0, 0)
        # What is over is neither renewed nor given back.
        assert (lab.provider.calls["renew"], lab.provider.calls["release"]) == (0, 0)
        await lab.send("a:4")
        await actors.wait_empty()
        assert lab.closed.count(("a", CloseReason.IDLE)) == 2
        assert actors.statistics().sessions_opened == 2
    assert [text for text in lab.log if text != ":x"] == ["a:1", "a:2", "a:3", "a:4"]
    assert lab.provider.calls["release"] == 0
    await lab.assert_all_free()


async def test_what_runs_ahead_is_confirmed_before_the_session_is_closed(lab: Any) -> None:
    moments: dict[str, float] = {}

    async def settle(proceed: Any, settlements: Any) -> Any:
        await trio.sleep(2.0)
        answers = await proceed(settlements)
        moments["confirmed"] = trio.current_time()
        return answers

    class Handler:
        async def handle(self, _delivery: Any) -> None:
            moments["handled"] = trio.current_time()

        async def closed(self, _reason: CloseReason) -> None:
            moments["closed"] = trio.current_time()

    lab.provider.on["settle"] = settle
    await lab.send("a:1", "a:2")
    async with lab.supervise(Handler, settlement=SettlementMode.PIPELINED) as actors:
        await actors.wait_empty()
        await trio.testing.wait_all_tasks_blocked()
        assert actors.statistics().completed == 2
    assert moments["handled"] < moments["confirmed"] <= moments["closed"]


@pytest.mark.parametrize("mode", list(SettlementMode), ids=lambda mode: mode.value)
async def test_the_next_lease_waits_for_the_handler_of_the_last_one(
    lab: Any, mode: SettlementMode
) -> None:
    log: list[str] = []

    class Handler:
        async def opened(self, session: Any) -> None:
            log.append(f"open {session.id}")

        async def handle(self, delivery: Any) -> None:
            log.append(delivery.body.decode())

        async def closed(self, _reason: CloseReason) -> None:
            await trio.sleep(1.0)
            log.append("closed")

    await lab.send(*(f"a:{number}" for number in range(25)))
    async with lab.supervise(Handler, settlement=mode) as actors:
        await actors.wait_empty()
    numbers = [str(number) for number in range(25)]
    assert [entry for entry in log if entry.isdigit()] == numbers
    # A call brought ten: three leases, three handlers, none beside another.
    around = [entry for entry in log if not entry.isdigit()]
    assert around == ["open a", "closed"] * 3
    assert log.index("closed") == 11


async def test_a_parked_message_alone_leaves_nothing_to_give_back(lab: Any) -> None:
    await lab.send("a:1")
    decide = lambda _, attempt: Retry(60.0) if attempt == 1 else None  # noqa: E731
    async with lab.supervise(lab.handler(decide), park_threshold=1.0) as actors:
        await trio.sleep(30)
        assert lab.closed == [("a", CloseReason.PARKED)]
        assert actors.statistics().in_flight == 0
        assert lab.provider.calls["release"] == 0
        await actors.wait_empty()
    assert lab.log == ["a:1", "a:1 2"]


async def test_what_lies_behind_a_parked_message_is_given_back(lab: Any) -> None:
    await lab.send("a:1", "a:2", "a:3")
    decide = lambda _, attempt: Retry(60.0) if attempt == 1 else None  # noqa: E731
    async with lab.supervise(lab.handler(decide), park_threshold=1.0) as actors:
        await trio.sleep(30)
        assert lab.provider.calls["release"] == 1
        assert actors.statistics().given_back == 2
        assert await lab.waiting() == [("1", 1), ("2", 0), ("3", 0)]
        await actors.wait_empty()
    assert lab.log[:2] == ["a:1", "a:1 2"]
    assert actors.statistics().in_flight == 0


async def test_a_long_turn_is_renewed_and_a_lost_one_is_counted(lab: Any) -> None:
    lost = False

    async def renew(proceed: Any, leases: Any) -> Any:
        if not lost:
            return await proceed(leases)
        error = LockLost("revoked")
        for lease in leases:
            lease.lose(error)
        return [error] * len(leases)

    lab.provider.on["renew"] = renew
    await lab.send("a:1", "a:2")
    slow = lambda _, attempt: trio.sleep(100 if attempt == 1 else 0)  # noqa: E731
    async with lab.supervise(lab.handler(slow)) as actors:
        await trio.sleep(99)
        assert lab.log == ["a:1"]
        assert lab.provider.calls["renew"] >= 3
        await trio.sleep(50)
        lost = True
        await trio.sleep(20)
        assert actors.statistics().locks_lost == 1
        assert actors.statistics().in_flight == 0
        lost = False
        await actors.wait_empty()
        assert actors.statistics().completed == 2
    assert lab.log == ["a:1", "a:2", "a:2 2"]
    await lab.assert_all_free()


@pytest.mark.parametrize("mode", list(SettlementMode), ids=lambda mode: mode.value)
async def test_nothing_stalls_and_nothing_leaks(lab: Any, mode: SettlementMode) -> None:
    count = 300
    await lab.send(*(f"s{number % 7}:{number}" for number in range(count)))
    turns = lambda *_: trio.sleep(0.01)  # noqa: E731
    async with lab.supervise(
        lab.handler(turns), settlement=mode, max_in_flight=20, max_sessions=3, max_per_session=4
    ) as actors:
        await actors.wait_empty()
        await trio.testing.wait_all_tasks_blocked()
        statistics = actors.statistics()
        assert (statistics.completed, statistics.in_flight) == (count, 0)
        assert statistics.active_sessions == 0
        assert statistics.session_backlog == {}
    for session in range(7):
        mine = [text for text in lab.log if text.startswith(f"s{session}:")]
        assert mine == [f"s{session}:{number}" for number in range(session, count, 7)]
    await lab.assert_all_free()


async def test_polls_grow_with_full_answers_and_shrink_to_one_when_the_queue_is_idle(
    lab: Any,
) -> None:
    lab.provider.capabilities = attrs.evolve(lab.provider.capabilities, max_concurrent_receives=8)
    asked: list[int] = []
    under_way = 0
    most = 0

    async def receive(proceed: Any, count: int, timeout: float) -> Any:
        nonlocal under_way, most
        asked.append(count)
        under_way += 1
        most = max(most, under_way)
        try:
            await trio.sleep(0.02)
            return await proceed(count, timeout)
        finally:
            under_way -= 1

    lab.provider.on["receive"] = receive
    await lab.send(*(f":{number}" for number in range(600)))
    async with lab.supervise(lab.handler(), max_in_flight=1000, receive_timeout=20.0) as actors:
        await actors.wait_empty()
        assert max(asked) == 10
        assert most == 8
        await trio.sleep(200)  # the polls that were under way come back empty
        assert under_way == 1
        before = len(asked)
        await trio.sleep(1000)
        assert 49 <= len(asked) - before <= 51  # one call per long poll of 20 s
    assert len(lab.log) == 600
