"""Order within a session, whatever its handler does (A5, A6, A7, S3, S5)."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from queue_runtime.config import SettlementMode
from queue_runtime.handlers import Abandon, CloseReason, Complete, DeadLetter, Retry
from queue_runtime.policies.backoff import RetryPolicy

MODES = pytest.mark.parametrize("mode", list(SettlementMode), ids=lambda mode: mode.value)


@MODES
async def test_messages_of_a_session_are_handled_in_order_one_at_a_time(
    lab: Any, mode: SettlementMode
) -> None:
    await lab.send(*(f"a:{n}" for n in range(100)))
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(0.01)), settlement=mode) as actors:
        await actors.wait_empty()
    assert lab.log == [f"a:{n}" for n in range(100)]
    assert lab.most_running == 1


@MODES
async def test_a_retry_in_place_keeps_the_lock_and_what_is_behind_it(
    lab: Any, mode: SettlementMode
) -> None:
    moments = []

    def fail_twice(delivery: Any, attempt: int) -> Any:
        if delivery.body == b"2":
            moments.append((trio.current_time(), delivery.delivery_count))
            if attempt < 3:
                return Retry(2.0, "not yet")
        return None

    await lab.send("a:1", "a:2", "a:3")
    async with lab.supervise(lab.handler(fail_twice), settlement=mode) as actors:
        await actors.wait_empty()
        assert actors.statistics().retried == 2
        assert actors.statistics().sessions_opened == 1
        assert actors.statistics().completed == 3
    assert lab.log == ["a:1", "a:2", "a:2 2", "a:2 3", "a:3"]
    start = moments[0][0]
    assert moments == [(start, 1), (start + 2, 2), (start + 4, 3)]


@MODES
async def test_a_long_retry_parks_the_session_and_gives_the_lock_back(
    lab: Any, mode: SettlementMode
) -> None:
    await lab.send("a:1", "a:2", "a:3")

    def fail(delivery: Any, attempt: int) -> Any:
        return Retry(60.0) if delivery.body == b"2" and attempt == 1 else None

    async with lab.supervise(lab.handler(fail), settlement=mode, park_threshold=5.0) as actors:
        await trio.sleep(30)
        await lab.assert_all_free()
        assert lab.log == ["a:1", "a:2"]
        assert await lab.waiting() == [("2", 1), ("3", 0)]
        assert lab.closed == [("a", CloseReason.PARKED)]
        await actors.wait_empty()
    assert lab.log == ["a:1", "a:2", "a:2 2", "a:3"]
    assert trio.current_time() >= 60


@MODES
async def test_abandon_gives_message_and_session_back_at_once(
    lab: Any, mode: SettlementMode
) -> None:
    await lab.send("a:1", "a:2")

    def abandon(_delivery: Any, attempt: int) -> Any:
        return Abandon() if attempt == 1 else Complete()

    async with lab.supervise(lab.handler(abandon), settlement=mode) as actors:
        await actors.wait_empty()
        assert actors.statistics().abandoned == 2
    assert lab.log == ["a:1", "a:1 2", "a:2", "a:2 2"]


@MODES
async def test_a_dead_lettered_message_does_not_keep_the_others(
    lab: Any, mode: SettlementMode
) -> None:
    await lab.send("a:1", "a:2", "a:3")

    def refuse(delivery: Any, _attempt: int) -> Any:
        return DeadLetter("no", "of no use") if delivery.body == b"2" else None

    async with lab.supervise(lab.handler(refuse), settlement=mode) as actors:
        await actors.wait_empty()
        assert actors.statistics().dead_lettered == 1
    assert lab.log == ["a:1", "a:2", "a:3"]
    (letter,) = await lab.dead()
    assert letter.dead_letter is not None
    assert (letter.dead_letter.reason, letter.dead_letter.description) == ("no", "of no use")
    assert letter.dead_letter.delivery_count == 1


async def test_halt_keeps_the_rest_of_the_session_until_it_is_redriven(lab: Any) -> None:
    await lab.send("a:1", "a:2", "b:1")

    def refuse(delivery: Any, attempt: int) -> Any:
        poison = delivery.session_id == "a" and delivery.body == b"1" and attempt == 1
        return DeadLetter("no") if poison else None

    async with lab.supervise(lab.handler(refuse), halt_on_dead_letter=True) as actors:
        await trio.sleep(100)
        assert sorted(lab.log) == ["a:1", "b:1"]
        letters = await lab.provider.open_dead_letters(lab.queue)
        assert await letters.redrive() == 1
        await actors.wait_empty()
    assert [text for text in lab.log if text.startswith("a")] == ["a:1", "a:1 2", "a:2"]


async def test_a_halt_that_the_broker_cannot_do_is_refused(lab: Any) -> None:
    from queue_runtime.errors import Unsupported

    lab.provider.capabilities = _without(lab, session_halt=False)
    with pytest.raises(Unsupported, match="session_halt"):
        async with lab.supervise(lab.handler(), halt_on_dead_letter=True):
            raise AssertionError("not opened")
    assert lab.provider.calls["open_receiver"] == 0


@MODES
async def test_exceptions_go_through_the_retry_policy_to_the_dead_letters(
    lab: Any, mode: SettlementMode
) -> None:
    await lab.send("a:1", "a:2")

    def fail(delivery: Any, attempt: int) -> None:
        if delivery.body == b"1":
            raise ValueError(f"bad luck {attempt}")

    async with lab.supervise(
        lab.handler(fail), settlement=mode, retry=RetryPolicy.fixed(1.0, max_attempts=3)
    ) as actors:
        await actors.wait_empty()
    assert lab.log == ["a:1", "a:1 2", "a:1 3", "a:2"]
    (letter,) = await lab.dead()
    assert letter.dead_letter.reason == "HandlerFailed"
    assert letter.dead_letter.description == "ValueError: bad luck 3"


async def test_a_message_is_not_tried_more_often_than_the_broker_delivers(open_lab: Any) -> None:
    lab = await open_lab(max_delivery_count=2)
    await lab.send("a:1")
    policy = RetryPolicy.fixed(1.0, max_attempts=None)
    async with lab.supervise(lab.handler(lambda *_: Retry(reason="busy")), retry=policy) as actors:
        await actors.wait_empty()
    assert lab.log == ["a:1", "a:1 2"]
    (letter,) = await lab.dead()
    assert letter.dead_letter.reason == "MaxDeliveryCountExceeded"
    assert letter.dead_letter.description == "busy"


async def test_the_time_of_the_first_attempt_counts_towards_max_elapsed(lab: Any) -> None:
    async def fail_slowly() -> None:
        await trio.sleep(100)
        raise ValueError("too late")

    await lab.send("a:1")
    policy = RetryPolicy.fixed(1.0, max_attempts=None, max_elapsed=50)
    async with lab.supervise(lab.handler(lambda *_: fail_slowly()), retry=policy) as actors:
        await actors.wait_empty()
    assert lab.log == ["a:1"]
    assert len(await lab.dead()) == 1


async def test_pipelined_runs_ahead_by_no_more_than_it_may(lab: Any) -> None:
    """While the broker does not answer, strict handles one message and pipelined a bounded number."""
    for mode, started in ((SettlementMode.STRICT, 1), (SettlementMode.PIPELINED, 6)):
        lab.log.clear()
        released = trio.Event()

        async def wait(proceed: Any, batch: Any, released: trio.Event = released) -> Any:
            await released.wait()
            return await proceed(batch)

        lab.provider.on["settle"] = wait
        await lab.send(*(f"a:{n}" for n in range(20)))
        async with lab.supervise(lab.handler(), settlement=mode, max_unsettled_ahead=5) as actors:
            await trio.sleep(1)
            assert len(lab.log) == started
            assert actors.statistics().completed == 0
            assert actors.statistics().session_backlog == {"a": 20 - started}
            released.set()
            await actors.wait_empty()
            assert actors.statistics().completed == 20
        assert [text.split()[0] for text in lab.log] == [f"a:{n}" for n in range(20)]


async def test_messages_without_a_session_follow_their_outcomes_too(lab: Any) -> None:
    await lab.send(":1", ":2", ":3", ":4")

    def decide(delivery: Any, attempt: int) -> Any:
        outcomes = {b"1": None, b"2": Retry(1.0), b"3": DeadLetter("no"), b"4": Retry(100.0)}
        return outcomes[delivery.body] if attempt == 1 else None

    for mode in SettlementMode:
        async with lab.supervise(lab.handler(decide), settlement=mode) as actors:
            await actors.wait_empty()
            assert actors.statistics().sessions_opened == 0
        assert sorted(lab.log) == [":1", ":2", ":2 2", ":3", ":4", ":4 2"]
        assert len(await lab.dead()) == 1
        await lab.assert_all_free()
        lab.log.clear()
        await (await lab.provider.open_dead_letters(lab.queue)).purge()
        await lab.send(":1", ":2", ":3", ":4")


async def test_another_supervisor_goes_on_where_the_first_one_stopped(lab: Any) -> None:
    await lab.send(*(f"a:{n}" for n in range(10)))
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(1))):
        await trio.sleep(3.5)
    assert lab.log == ["a:0", "a:1", "a:2", "a:3"]
    async with lab.supervise(lab.handler()) as actors:
        await actors.wait_empty()
    assert lab.log == [f"a:{n}" for n in range(10)]


def _without(lab: Any, **fields: bool) -> Any:
    import attrs

    return attrs.evolve(lab.provider.capabilities, **fields)
