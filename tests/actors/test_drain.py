"""Shutting down: in order, in time, and with nothing lost (A10, I5)."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from queue_runtime.config import SettlementMode
from queue_runtime.errors import ConnectionFailed
from queue_runtime.handlers import CloseReason, Retry
from queue_runtime.policies.breaker import BreakerConfig

MODES = pytest.mark.parametrize("mode", list(SettlementMode), ids=lambda mode: mode.value)
NEVER_OPEN = BreakerConfig(failure_threshold=1_000_000, failure_rate=None)


@MODES
async def test_leaving_the_block_finishes_what_runs_and_gives_back_the_rest(
    lab: Any, mode: SettlementMode
) -> None:
    await lab.send("a:1", "a:2", "b:1", "b:2", ":1")
    async with lab.supervise(
        lab.handler(lambda *_: trio.sleep(10)), settlement=mode, max_concurrent_sessionless=1
    ):
        await trio.sleep(1)
    assert sorted(lab.log) == [":1", "a:1", "b:1"]
    assert await lab.waiting() == [("2", 0), ("2", 0)]
    assert len(lab.closed) == 3
    assert {reason for _, reason in lab.closed} == {CloseReason.DRAINED}
    await lab.assert_all_free()


@MODES
async def test_at_the_deadline_handlers_are_cancelled_and_their_messages_abandoned(
    lab: Any, mode: SettlementMode
) -> None:
    await lab.send("a:1", "a:2", "b:1")
    async with lab.supervise(
        lab.handler(lambda d, _: trio.sleep(1 if d.session_id == "b" else 1000)), settlement=mode
    ) as actors:
        await trio.sleep(0.5)
        start = trio.current_time()
        await actors.drain(5.0)
        assert 5 <= trio.current_time() - start < 5.1
        assert actors.statistics().completed == 1
        assert actors.statistics().draining
        assert actors.statistics().active_sessions == 0
    assert await lab.waiting() == [("1", 1), ("2", 0)]
    await lab.assert_all_free()


async def test_the_configured_time_is_the_default(lab: Any) -> None:
    await lab.send("a:1")
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(1000)), drain_timeout=7.0):
        await trio.sleep(1)
        start = trio.current_time()
    assert 7 <= trio.current_time() - start < 7.1


async def test_a_second_drain_may_shorten_the_first_but_not_lengthen_it(lab: Any) -> None:
    await lab.send("a:1")
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(1000))) as actors:
        await trio.sleep(1)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(actors.drain, 100.0)
            await trio.sleep(1)
            nursery.start_soon(actors.drain, 200.0)
            await trio.sleep(1)
            await actors.drain(3.0)
        assert 5 <= trio.current_time() - start < 5.1
        await actors.drain()  # it is done
        assert 5 <= trio.current_time() - start < 5.1


async def test_a_drain_without_end_waits_for_the_handlers(lab: Any) -> None:
    await lab.send("a:1")
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(7200))) as actors:
        await trio.sleep(1)
        await actors.drain(float("inf"))
        assert actors.statistics().completed == 1
    assert lab.log == ["a:1"]


async def test_an_impatient_caller_does_not_stop_the_drain(lab: Any) -> None:
    await lab.send("a:1")
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(10))) as actors:
        await trio.sleep(1)
        with trio.move_on_after(1):
            await actors.drain()
        assert actors.statistics().draining
    assert lab.log == ["a:1"]
    assert await lab.waiting() == []


async def test_a_message_that_waits_for_its_retry_goes_back_with_the_rest_of_its_delay(
    lab: Any,
) -> None:
    await lab.send("a:1", "a:2")
    handler = lab.handler(lambda *_: Retry(4.0))
    async with lab.supervise(handler) as actors:
        await trio.sleep(1)
        start = trio.current_time()
        await actors.drain()
        assert trio.current_time() - start < 0.1
    assert await lab.waiting() == [("1", 1), ("2", 0)]
    start = trio.current_time()
    async with lab.supervise(lab.handler()) as actors:
        await actors.wait_empty()
    assert trio.current_time() - start >= 3
    assert lab.log[-1] == "a:2"


@MODES
async def test_settlements_under_way_are_waited_for(lab: Any, mode: SettlementMode) -> None:
    async def slow(proceed: Any, batch: Any) -> Any:
        await trio.sleep(2)
        return await proceed(batch)

    lab.provider.on["settle"] = slow
    await lab.send("a:1")
    async with lab.supervise(lab.handler(), settlement=mode) as actors:
        await trio.sleep(1)
        assert lab.log == ["a:1"]
        await actors.drain()
        assert actors.statistics().completed == 1
    assert await lab.waiting() == []


@MODES
async def test_a_cancelled_drain_still_reports_what_was_handled(
    lab: Any, mode: SettlementMode
) -> None:
    async def slow(proceed: Any, batch: Any) -> Any:
        await trio.sleep(2)
        return await proceed(batch)

    await lab.send("a:1", "b:1", "b:2")
    lab.provider.on["settle"] = slow
    with trio.move_on_after(1) as scope:
        async with lab.supervise(
            lab.handler(lambda d, _: trio.sleep(0 if d.session_id == "a" else 100)),
            settlement=mode,
        ) as actors:
            await trio.sleep(0.5)
            await actors.drain()
    assert scope.cancelled_caught
    assert sorted(lab.log) == ["a:1", "b:1"]
    assert await lab.waiting() == [("1", 1), ("2", 0)]
    assert sorted(lab.closed) == [("a", CloseReason.DRAINED), ("b", CloseReason.DRAINED)]
    await lab.assert_all_free()


async def test_a_settlement_between_two_tries_is_made_before_a_cancelled_block_ends(
    lab: Any,
) -> None:
    down = True

    async def refuse(proceed: Any, batch: Any) -> Any:
        return [ConnectionFailed("busy") for _ in batch] if down else await proceed(batch)

    await lab.send("a:1")
    lab.provider.on["settle"] = refuse
    with trio.CancelScope() as scope:
        async with lab.supervise(lab.handler(), breaker=NEVER_OPEN):
            await trio.sleep(1)
            down = False
            scope.cancel()
            await trio.sleep_forever()
    assert lab.log == ["a:1"]
    assert await lab.waiting() == []
    await lab.assert_all_free()


async def test_messages_that_wait_for_their_turn_are_not_started_by_a_drain(lab: Any) -> None:
    for cancel in (False, True):
        lab.log.clear()
        await lab.provider.purge(lab.queue)
        await lab.send(*(f":{n}" for n in range(10)))
        with trio.CancelScope() as scope:
            async with lab.supervise(
                lab.handler(lambda *_: trio.sleep(100)), max_concurrent_sessionless=2
            ) as actors:
                await trio.sleep(1)
                if cancel:
                    scope.cancel()
                else:
                    await actors.drain(1)
        assert len(lab.log) == 2
        assert sorted(count for _, count in await lab.waiting()) == [0] * 8 + [1] * 2
        await lab.assert_all_free()


async def test_what_arrives_while_draining_goes_back_untried(lab: Any) -> None:
    """A provider that finishes its receive although it was cancelled."""
    deliver = trio.Event()

    async def stubborn(proceed: Any, *args: Any) -> Any:
        with trio.CancelScope(shield=True):
            await deliver.wait()
            return await proceed(*args)

    await lab.send("a:1", "a:2", ":3")
    lab.provider.on["receive"] = stubborn
    async with lab.supervise(lab.handler()) as actors:
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(actors.drain)
            await trio.sleep(1)
            deliver.set()
    assert lab.log == []
    assert [count for _, count in await lab.waiting()] == [0, 0, 0]
    await lab.assert_all_free()


@pytest.mark.parametrize("operation", ["settle", "release", "close"])
async def test_a_broker_that_does_not_answer_holds_up_the_end_for_a_bounded_time(
    lab: Any, operation: str
) -> None:
    async def wedge(_proceed: Any, *_args: Any) -> Any:
        await trio.sleep_forever()

    await lab.send("a:1")
    lab.provider.on[operation] = wedge
    start = trio.current_time()
    async with lab.supervise(lab.handler(), close_timeout=3.0) as actors:
        await trio.sleep(1)
        await actors.drain(2.0)
    assert trio.current_time() - start < 1 + 2 + 4 * 3 + 1


@pytest.mark.parametrize("operation", ["settle", "release"])
async def test_a_call_repeated_beyond_the_end_does_not_find_the_receiver_closed(
    lab: Any, operation: str
) -> None:
    closed = False

    async def fail(proceed: Any, *args: Any) -> Any:
        if closed:
            return await proceed(*args)
        raise ConnectionFailed("down")

    async def slow(proceed: Any) -> None:
        nonlocal closed
        await proceed()
        closed = True
        await trio.sleep(2.9)

    await lab.send("a:1")
    lab.provider.on[operation] = fail
    lab.provider.on["close"] = slow
    async with lab.supervise(lab.handler(), close_timeout=3.0, breaker=NEVER_OPEN) as actors:
        await trio.sleep(1)
        await actors.drain(1.0)
    await lab.assert_all_free()
    assert len(lab.log) == 1


async def test_an_error_in_closing_does_not_spoil_the_end(lab: Any) -> None:
    async def fail(proceed: Any) -> None:
        await proceed()
        raise ConnectionFailed("down")

    lab.provider.on["close"] = fail
    async with lab.supervise(lab.handler()) as actors:
        await trio.sleep(1)
        await actors.drain()
    assert lab.provider.calls["close"] == 2  # by the drain, and for certain


async def test_a_handler_may_ask_for_the_drain(lab: Any) -> None:
    await lab.send("a:1", "a:2")

    async def stop(*_: Any) -> None:
        with trio.move_on_after(0.5):
            await actors.drain()

    async with lab.supervise(lab.handler(stop)) as actors:
        await trio.sleep(1)
        assert actors.statistics().active_sessions == 0
    assert lab.log == ["a:1"]
    assert await lab.waiting() == [("2", 0)]
