"""When handlers fail across sessions the intake pauses, and no delivery counts are burned (A4)."""

from __future__ import annotations

from typing import Any

import trio

from queue_runtime.config import SettlementMode
from queue_runtime.handlers import CloseReason, DeadLetter, Retry
from queue_runtime.policies.backoff import RetryPolicy
from queue_runtime.policies.breaker import BreakerConfig, BreakerState

CONFIG = BreakerConfig(failure_threshold=3, open_duration=60.0)
PATIENT = RetryPolicy.fixed(1.0, max_attempts=None)


class Downstream:
    """What the handlers need; it is down until further notice."""

    def __init__(self) -> None:
        self.is_down = True
        self.calls = 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.is_down:
            raise ConnectionRefusedError("downstream")


async def test_it_opens_pauses_the_intake_and_gives_the_locks_back(lab: Any) -> None:
    downstream = Downstream()
    await lab.send(*(f"s{n}:{m}" for n in range(5) for m in range(4)))
    async with lab.supervise(
        lab.handler(downstream), handler_breaker=CONFIG, retry=PATIENT
    ) as actors:
        await actors.handler_breaker.state.wait_value(BreakerState.OPEN)
        await trio.sleep(30)
        stats = actors.statistics()
        assert stats.handler_breaker.state is BreakerState.OPEN
        assert stats.in_flight == stats.active_sessions == 0
        await lab.assert_all_free()
        assert {reason for _, reason in lab.closed} == {CloseReason.PAUSED}
        # Only those that were tried count as delivered.
        assert downstream.calls <= 5
        assert sum(count for _, count in await lab.waiting()) == downstream.calls

        before = downstream.calls
        await actors.handler_breaker.state.wait_value(BreakerState.HALF_OPEN)
        await trio.sleep(30)
        assert downstream.calls == before + 1  # one probe
        assert actors.statistics().handler_breaker.opened_count == 2

        downstream.is_down = False
        await actors.handler_breaker.state.wait_value(BreakerState.CLOSED)
        await actors.wait_empty()
    assert downstream.calls == before + 1 + 20
    assert await lab.dead() == []
    assert sum(1 for text in lab.log if " " in text) == before + 1
    for session in range(5):
        mine = [text.split()[0] for text in lab.log if text.startswith(f"s{session}:")]
        assert mine == sorted(mine)


async def test_what_arrives_while_it_is_open_goes_back_uncounted(lab: Any) -> None:
    """A receive call that was under way when the breaker opened still brings a message."""
    downstream = Downstream()
    async with lab.supervise(
        lab.handler(downstream), handler_breaker=CONFIG, retry=PATIENT, receive_timeout=600.0
    ) as actors:
        await lab.send("a:1")
        await actors.handler_breaker.state.wait_value(BreakerState.OPEN)
        await trio.sleep(1)
        calls = downstream.calls
        await lab.send("b:1", "b:2", ":3")
        await trio.sleep(20)
        assert downstream.calls == calls
        await lab.assert_all_free()
        assert [count for body, count in await lab.waiting() if body in "23"] == [0, 0]
        downstream.is_down = False
        await actors.wait_empty()
    assert sorted(text.split()[0] for text in set(lab.log) if " " not in text) == [
        ":3",
        "a:1",
        "b:1",
        "b:2",
    ]


async def test_a_probe_that_waits_for_its_messages_keeps_the_others_out(lab: Any) -> None:
    downstream = Downstream()
    await lab.send(*(f"s{n}:1" for n in range(5)))

    async def slow(*_: Any) -> None:
        await trio.sleep(5)
        downstream()

    async with lab.supervise(lab.handler(slow), handler_breaker=CONFIG, retry=PATIENT) as actors:
        await actors.handler_breaker.state.wait_value(BreakerState.OPEN)
        await actors.handler_breaker.state.wait_value(BreakerState.HALF_OPEN)
        downstream.is_down = False
        await trio.sleep(4)
        assert lab.running == 1
        assert actors.statistics().in_flight == 1
        await actors.wait_empty()
    assert len(lab.log) == 5 + 5


async def test_outcomes_that_ask_for_another_try_count_as_failures(lab: Any) -> None:
    await lab.send(*(f"s{n}:1" for n in range(10)))
    async with lab.supervise(
        lab.handler(lambda *_: Retry(1.0)), handler_breaker=CONFIG, retry=PATIENT
    ) as actors:
        await actors.handler_breaker.state.wait_value(BreakerState.OPEN)
        assert actors.statistics().handler_breaker.failures >= 3


async def test_outcomes_that_decide_count_as_successes(lab: Any) -> None:
    await lab.send(*(f"s{n}:1" for n in range(10)))
    async with lab.supervise(
        lab.handler(lambda *_: DeadLetter("no")), handler_breaker=CONFIG, retry=PATIENT
    ) as actors:
        await actors.wait_empty()
        stats = actors.statistics().handler_breaker
        assert (stats.successes, stats.failures) == (10, 0)


async def test_crashes_and_cancelled_handlers_tell_nothing(lab: Any) -> None:
    def crash(*_: Any) -> None:
        raise SystemExit

    await lab.send(*(f"s{n}:1" for n in range(10)), "z:2")

    async with lab.supervise(
        lab.handler(lambda d, n: trio.sleep_forever() if d.body == b"2" else crash()),
        handler_breaker=CONFIG,
        restart_budget=0,
    ) as actors:
        await trio.sleep(10)
        await actors.drain(0)
        stats = actors.statistics().handler_breaker
        assert (stats.state, stats.failures, stats.successes) == (BreakerState.CLOSED, 0, 0)
    assert len(await lab.dead()) == 10


async def test_pipelined_sessions_pause_too(lab: Any) -> None:
    downstream = Downstream()
    await lab.send(*(f"s{n}:{m}" for n in range(5) for m in range(4)))
    async with lab.supervise(
        lab.handler(downstream),
        handler_breaker=CONFIG,
        retry=PATIENT,
        settlement=SettlementMode.PIPELINED,
    ) as actors:
        await actors.handler_breaker.state.wait_value(BreakerState.OPEN)
        await trio.sleep(10)
        await lab.assert_all_free()
        downstream.is_down = False
        await actors.wait_empty()
    assert sum(1 for text in lab.log if " " not in text) == 20


async def test_while_a_single_message_waits_for_its_turn_it_goes_back(lab: Any) -> None:
    downstream = Downstream()

    async def slow(*_: Any) -> None:
        await trio.sleep(5)
        downstream()

    await lab.send(*(f":{n}" for n in range(10)))
    async with lab.supervise(
        lab.handler(slow),
        handler_breaker=CONFIG,
        retry=PATIENT,
        max_concurrent_sessionless=3,
    ) as actors:
        await actors.handler_breaker.state.wait_value(BreakerState.OPEN)
        await trio.sleep(1)
        await lab.assert_all_free()
        assert downstream.calls == 3
        downstream.is_down = False
        await actors.wait_empty()
    assert downstream.calls == 13
