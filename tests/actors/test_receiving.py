"""Receiving from a broker that fails, and the breaker in front of it (A3, A13, S1, S7)."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from queue_runtime.errors import (
    AuthenticationFailed,
    CircuitOpen,
    ConnectionFailed,
    PermissionDenied,
    QueueNotFound,
    Throttled,
)
from queue_runtime.policies.breaker import BreakerConfig, BreakerState


async def test_transient_errors_are_retried_with_backoff(lab: Any) -> None:
    moments: list[float] = []

    async def fail(proceed: Any, *args: Any) -> Any:
        moments.append(trio.current_time())
        if len(moments) < 12:
            raise ConnectionFailed("down")
        return await proceed(*args)

    await lab.send("a:1")
    lab.provider.on["receive"] = fail
    breaker = BreakerConfig(failure_threshold=1_000_000, failure_rate=None)
    async with lab.supervise(lab.handler(), breaker=breaker) as actors:
        await actors.wait_empty()
    assert lab.log == ["a:1"]
    # Beyond its last attempt the policy's longest delay repeats for ever.
    assert moments[11] - moments[10] == pytest.approx(5.0)
    assert moments[11] - moments[0] < 45


@pytest.mark.parametrize("attempts", [1, 12])
async def test_a_broker_that_names_its_delay_is_given_it(lab: Any, attempts: int) -> None:
    moments: list[float] = []

    async def throttle(proceed: Any, *args: Any) -> Any:
        moments.append(trio.current_time())
        if len(moments) <= attempts:
            raise Throttled("slow down", retry_after=60.0)
        return await proceed(*args)

    await lab.send("a:1")
    lab.provider.on["receive"] = throttle
    breaker = BreakerConfig(failure_threshold=1_000_000, failure_rate=None)
    async with lab.supervise(lab.handler(), breaker=breaker) as actors:
        await trio.sleep(30)
        assert actors.statistics().healthy
        await actors.wait_empty()
    assert all(b - a >= 60 for a, b in itertools.pairwise(moments[: attempts + 1]))


@pytest.mark.parametrize("receives", [1, 4])
async def test_a_permanent_error_drains_and_is_raised_as_itself(lab: Any, receives: int) -> None:
    lab.provider.capabilities = attrs.evolve(
        lab.provider.capabilities, max_concurrent_receives=receives
    )
    fail = False

    async def refuse(proceed: Any, *args: Any) -> Any:
        if fail:
            raise PermissionDenied("revoked")
        return await proceed(*args)

    await lab.send("a:1", "a:2")
    lab.provider.on["receive"] = refuse
    with pytest.raises(PermissionDenied, match="revoked") as caught:
        async with lab.supervise(lab.handler(lambda *_: trio.sleep(10)), receive_timeout=2.0):
            await trio.sleep(1)
            fail = True
            await trio.sleep_forever()
    assert caught.value.__cause__ is None
    # What was being handled was finished, the rest given back.
    assert lab.log == ["a:1"]
    assert await lab.waiting() == [("2", 0)]
    await lab.assert_all_free()


@pytest.mark.parametrize("error", [QueueNotFound, AuthenticationFailed, ConnectionFailed])
async def test_a_queue_that_cannot_be_opened_is_told_at_once(
    lab: Any, error: type[Exception]
) -> None:
    async def refuse(_proceed: Any, *_args: Any) -> Any:
        raise error("no")

    lab.provider.on["open_receiver"] = refuse
    with pytest.raises(error):
        async with lab.supervise(lab.handler()):
            raise AssertionError("not opened")
    assert lab.provider.calls == {"open_receiver": 1}


async def test_while_the_breaker_is_open_nothing_is_received(lab: Any) -> None:
    down = True

    async def fail(proceed: Any, *args: Any) -> Any:
        if down:
            raise ConnectionFailed("down")
        return await proceed(*args)

    lab.provider.on["receive"] = fail
    async with lab.supervise(
        lab.handler(), breaker=BreakerConfig(failure_threshold=3, open_duration=60.0)
    ) as actors:
        with trio.fail_after(10):
            await actors.breaker.state.wait_value(BreakerState.OPEN)
        await trio.sleep(50)
        assert lab.provider.calls["receive"] == 3
        stats = actors.statistics().breaker
        assert (stats.state, stats.opened_count, stats.failures) == (BreakerState.OPEN, 1, 3)
        assert 0 < stats.retry_after <= 10
        # The probe fails, and the breaker opens again.
        await trio.sleep(20)
        assert lab.provider.calls["receive"] == 4
        assert actors.statistics().breaker.opened_count == 2
        down = False
        await lab.send("a:1")
        with trio.fail_after(62):
            await actors.breaker.state.wait_value(BreakerState.CLOSED)
        await actors.wait_empty()
    assert lab.log == ["a:1"]


async def test_the_probe_looks_once_so_that_locks_can_be_renewed(lab: Any) -> None:
    """Half-open, a receive that waited for messages would keep renewals and settlements out."""
    timeouts: list[float] = []
    down = False

    async def note(proceed: Any, count: int, timeout: float) -> Any:
        timeouts.append(timeout)
        if down:
            raise ConnectionFailed("down")
        return await proceed(count, timeout)

    await lab.send("a:1")
    lab.provider.on["receive"] = note
    async with lab.supervise(
        lab.handler(lambda *_: trio.sleep(200)),
        receive_timeout=10.0,
        breaker=BreakerConfig(failure_threshold=2, open_duration=12.0),
    ) as actors:
        await trio.sleep(1)
        down = True
        await actors.breaker.state.wait_value(BreakerState.OPEN)
        down = False
        timeouts.clear()
        await actors.breaker.state.wait_value(BreakerState.CLOSED)
        await trio.sleep(1)
        assert timeouts == [0.0, 10.0]
        await actors.wait_empty(poll_interval=1)
        assert actors.statistics().locks_lost == 0
    assert lab.log == ["a:1"]


async def test_while_somebody_else_probes_the_receiver_waits_without_spinning(lab: Any) -> None:
    steps = 0

    class Count(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal steps
            steps += 1

    async def fail(_proceed: Any, *_args: Any) -> Any:
        raise ConnectionFailed("down")

    lab.provider.on["receive"] = fail
    async with lab.supervise(
        lab.handler(), breaker=BreakerConfig(failure_threshold=2, open_duration=10.0)
    ) as actors:
        await actors.breaker.state.wait_value(BreakerState.OPEN)
        await actors.breaker.state.wait_value(BreakerState.HALF_OPEN)
        permit = actors.breaker.admit()
        assert permit is not None
        trio.lowlevel.add_instrument(count := Count())
        await trio.sleep(5)
        trio.lowlevel.remove_instrument(count)
        assert steps < 2500
        with pytest.raises(CircuitOpen):
            await actors.breaker.call(trio.sleep, 0)
        del lab.provider.on["receive"]
        actors.breaker.succeed(permit)
        await lab.send("a:1")
        with trio.fail_after(1):
            await actors.wait_empty()
    assert lab.log == ["a:1"]


async def test_a_receive_that_never_comes_back_is_unhealthy(lab: Any) -> None:
    stuck = False

    async def wedge(proceed: Any, *args: Any) -> Any:
        if stuck:
            await trio.sleep_forever()
        return await proceed(*args)

    lab.provider.on["receive"] = wedge
    async with lab.supervise(lab.handler(), receive_timeout=5.0) as actors:
        await trio.sleep(100)
        assert actors.statistics().healthy
        stuck = True
        await trio.sleep(14)
        assert actors.statistics().healthy
        await trio.sleep(10)
        assert not actors.statistics().healthy


async def test_no_demand_for_hours_is_healthy(lab: Any) -> None:
    """The first receive after a long handler is not overdue before it began."""
    await lab.send("a:1")
    async with lab.supervise(
        lab.handler(lambda *_: trio.sleep(3600)), max_in_flight=1, receive_timeout=5.0
    ) as actors:
        for _ in range(40):
            await trio.sleep(100)
            assert actors.statistics().healthy
        for _ in range(10):
            await trio.sleep(0.7)
            assert actors.statistics().healthy
    assert lab.log == ["a:1"]


async def test_several_receives_at_once_keep_order_and_caps(lab: Any) -> None:
    lab.provider.capabilities = attrs.evolve(
        lab.provider.capabilities, max_concurrent_receives=5, max_concurrent_settles=3
    )
    under_way = most = 0

    async def slow(proceed: Any, *args: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await proceed(*args)
        finally:
            under_way -= 1

    await lab.send(*(f"s{n % 7}:{n:03}" for n in range(700)))
    lab.provider.on["receive"] = slow
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(0.01)), max_in_flight=100) as actors:
        await actors.wait_empty()
    for session in range(7):
        mine = [text for text in lab.log if text.startswith(f"s{session}:")]
        assert len(mine) == 100
        assert mine == sorted(mine)
    assert 1 < most <= 5


async def test_a_provider_that_fails_in_an_unknown_way_ends_the_supervisor(lab: Any) -> None:
    """Let it crash: an adapter's bug is shown, not retried. The lock is given back all the same."""

    async def bug(_proceed: Any, *_args: Any) -> Any:
        raise KeyError("bug")

    await lab.send("a:1")
    lab.provider.on["settle"] = bug
    start = trio.current_time()
    with pytest.raises(KeyError, match="bug"):
        async with lab.supervise(lab.handler()):
            await trio.sleep_forever()
    assert trio.current_time() - start < 1
    await lab.assert_all_free()
    assert [body for body, _ in await lab.waiting()] == ["1"]
