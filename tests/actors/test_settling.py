"""Settlements that fail: in part, as a whole, for a while or for good (S3, A3)."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from queue_runtime.config import SettlementMode
from queue_runtime.errors import (
    ConnectionFailed,
    LockLost,
    PermissionDenied,
    ProviderError,
    Throttled,
)
from queue_runtime.handlers import CloseReason, DeadLetter, Retry
from queue_runtime.messages import SettlementAction
from queue_runtime.policies.backoff import RetryPolicy
from queue_runtime.policies.breaker import BreakerConfig, BreakerState

MODES = pytest.mark.parametrize("mode", list(SettlementMode), ids=lambda mode: mode.value)
NEVER_OPEN = BreakerConfig(failure_threshold=1_000_000, failure_rate=None)


def fails(times: int, error: Exception) -> Any:
    """A hook that raises ``error`` the first ``times`` times."""
    left = times

    async def hook(proceed: Any, *args: Any) -> Any:
        nonlocal left
        if left > 0:
            left -= 1
            raise error
        return await proceed(*args)

    return hook


@MODES
async def test_calls_that_fail_for_a_while_are_repeated(lab: Any, mode: SettlementMode) -> None:
    await lab.send("a:1", "a:2", "b:1", ":1")
    lab.provider.on["settle"] = fails(4, ConnectionFailed("down"))
    async with lab.supervise(lab.handler(), settlement=mode) as actors:
        await actors.wait_empty()
        assert actors.statistics().completed == 4
    assert sorted(lab.log) == [":1", "a:1", "a:2", "b:1"]


@MODES
async def test_what_the_broker_asks_to_wait_is_waited(lab: Any, mode: SettlementMode) -> None:
    await lab.send("a:1")
    lab.provider.on["settle"] = fails(1, Throttled("slow down", retry_after=7.0))
    start = trio.current_time()
    async with lab.supervise(lab.handler(), settlement=mode) as actors:
        await actors.wait_empty()
    assert trio.current_time() - start >= 7
    assert lab.provider.calls["settle"] == 2
    assert lab.log == ["a:1"]


@MODES
async def test_an_outage_is_outlasted_while_the_lock_is_renewed(
    lab: Any, mode: SettlementMode
) -> None:
    """The breaker opens meanwhile; what was handled is settled once, and nothing is handled twice."""
    await lab.send("a:1", "a:2")
    end = trio.current_time() + 20

    async def down(proceed: Any, *args: Any) -> Any:
        if trio.current_time() < end:
            raise ConnectionFailed("down")
        return await proceed(*args)

    lab.provider.on["settle"] = down
    async with lab.supervise(
        lab.handler(), settlement=mode, breaker=BreakerConfig(open_duration=5.0)
    ) as actors:
        await trio.sleep(15)
        assert actors.statistics().breaker.opened_count >= 1
        await actors.wait_empty()
        assert actors.statistics().locks_lost == 0
        assert actors.statistics().breaker.state is BreakerState.CLOSED
    assert lab.log == ["a:1", "a:2"]


@MODES
async def test_entries_refused_for_a_while_are_settled_again(
    lab: Any, mode: SettlementMode
) -> None:
    refused: list[str] = []

    async def refuse(proceed: Any, batch: Any) -> Any:
        answers = []
        for settlement in batch:
            body = settlement.delivery.body.decode()
            if body in ("1", "3") and refused.count(body) < 2:
                refused.append(body)
                answers.append(ConnectionFailed("busy"))
            else:
                answers += await proceed([settlement])
        return answers

    await lab.send("a:1", "a:2", "a:3")
    lab.provider.on["settle"] = refuse
    async with lab.supervise(lab.handler(), settlement=mode) as actors:
        with trio.fail_after(3):  # a session that is idle does not wait for its end to settle
            await actors.wait_empty()
        assert actors.statistics().completed == 3
        assert lab.closed == []
    assert lab.log == ["a:1", "a:2", "a:3"]
    assert len(refused) == 4


async def test_pipelined_a_settlement_refused_for_good_ends_the_session(lab: Any) -> None:
    async def refuse(proceed: Any, batch: Any) -> Any:
        return [
            PermissionDenied("no") if s.delivery.body == b"2" and not lab.closed else answer
            for s, answer in zip(batch, await proceed(batch), strict=True)
        ]

    await lab.send("a:1", "a:2", "a:3")
    lab.provider.on["settle"] = refuse
    async with lab.supervise(lab.handler(), settlement=SettlementMode.PIPELINED) as actors:
        await actors.wait_empty()
    assert lab.closed[0] == ("a", CloseReason.LOCK_LOST)


async def test_pipelined_a_settlement_never_answered_ends_the_session(lab: Any) -> None:
    """Its retries used up, the session gives up its lock rather than its order."""

    async def refuse(proceed: Any, batch: Any) -> Any:
        return [ConnectionFailed("busy") for _ in batch]

    await lab.send("a:1", "a:2")
    lab.provider.on["settle"] = refuse
    async with lab.supervise(
        lab.handler(), settlement=SettlementMode.PIPELINED, breaker=NEVER_OPEN
    ) as actors:
        await trio.sleep(50)
        assert lab.closed[0] == ("a", CloseReason.LOCK_LOST)
        del lab.provider.on["settle"]
        await actors.wait_empty()
    assert lab.log[:2] == ["a:1", "a:2"]
    assert lab.log[-1].startswith("a:2")


async def test_strict_a_settlement_refused_for_good_parks_the_session(lab: Any) -> None:
    refused = False

    async def refuse(proceed: Any, batch: Any) -> Any:
        nonlocal refused
        if refused:
            return await proceed(batch)
        refused = True
        return [PermissionDenied("no") for _ in batch]

    await lab.send("a:1", "a:2")
    lab.provider.on["settle"] = refuse
    async with lab.supervise(lab.handler()) as actors:
        await actors.wait_empty()
    assert lab.closed[0] == ("a", CloseReason.PARKED)
    assert lab.log == ["a:1", "a:1 2", "a:2"]


@MODES
@pytest.mark.parametrize(
    "error",
    [ProviderError("no room", code="507"), ConnectionFailed("unavailable")],
    ids=["permanent", "transient"],
)
async def test_without_a_dead_letter_queue_the_message_stays_where_it_was(
    open_lab: Any, mode: SettlementMode, error: Exception
) -> None:
    lab = await open_lab(max_delivery_count=0)
    down = True

    async def refuse(proceed: Any, batch: Any) -> Any:
        answers = []
        for settlement in batch:
            if down and settlement.action is SettlementAction.DEAD_LETTER:
                answers.append(error)
            else:
                answers += await proceed([settlement])
        return answers

    await lab.send("a:1", "a:2", "b:1")
    lab.provider.on["settle"] = refuse
    handler = lab.handler(lambda d, _: DeadLetter("no") if d.body == b"1" else None)
    async with lab.supervise(handler, settlement=mode, breaker=NEVER_OPEN) as actors:
        await trio.sleep(30)
        assert await lab.dead() == []
        assert [body for body, _ in await lab.waiting()] == ["1", "2", "1"]
        assert "a:2" not in lab.log
        assert ("a", CloseReason.PARKED) in lab.closed
        down = False
        await actors.wait_empty()
    assert len(await lab.dead()) == 2
    # The other session may come after it.
    assert [entry for entry in lab.log if entry.startswith("a:")][-1] == "a:2"


async def test_a_park_that_cannot_be_settled_gives_the_message_back_with_the_lock(
    lab: Any,
) -> None:
    async def refuse(proceed: Any, batch: Any) -> Any:
        return [
            ConnectionFailed("busy")
            if settlement.action is SettlementAction.ABANDON
            else (await proceed([settlement]))[0]
            for settlement in batch
        ]

    await lab.send("a:1", ":2")
    lab.provider.on["settle"] = refuse
    handler = lab.handler(lambda _, attempt: Retry(60.0) if attempt == 1 else None)
    async with lab.supervise(handler, breaker=NEVER_OPEN) as actors:
        await actors.wait_empty()
    assert sorted(lab.log) == [":2", ":2 2", "a:1", "a:1 2"]
    assert await lab.waiting() == []


async def test_a_park_refused_for_good_ends_the_session(lab: Any) -> None:
    async def refuse(proceed: Any, batch: Any) -> Any:
        return [PermissionDenied("no") for _ in batch]

    await lab.send("a:1")
    lab.provider.on["settle"] = refuse
    async with lab.supervise(lab.handler(lambda *_: Retry(60.0))):
        await trio.sleep(1)
        assert lab.closed == [("a", CloseReason.LOCK_LOST)]


async def test_a_retry_that_succeeds_is_settled_like_any_other(lab: Any) -> None:
    """Pipelined: after a failure the session confirms what it ran ahead of, then goes on."""
    await lab.send(*(f"a:{n}" for n in range(10)))
    handler = lab.handler(lambda d, n: Retry(0.5) if d.body == b"4" and n == 1 else None)
    async with lab.supervise(
        handler, settlement=SettlementMode.PIPELINED, max_unsettled_ahead=2
    ) as actors:
        await actors.wait_empty()
        assert actors.statistics().completed == 10
    assert lab.log == [f"a:{n}" for n in range(5)] + ["a:4 2"] + [f"a:{n}" for n in range(5, 10)]


async def test_locks_that_cannot_be_given_back_expire(lab: Any) -> None:
    await lab.send("a:1")

    async def refuse(_proceed: Any, _leases: Any) -> Any:
        raise PermissionDenied("no")

    lab.provider.on["release"] = refuse
    async with lab.supervise(lab.handler(), idle_timeout=1.0) as actors:
        await trio.sleep(10)
        assert (await lab.stats()).locked_sessions == 1
        await trio.sleep(30)
        assert (await lab.stats()).locked_sessions == 0
        await lab.send("a:2")
        await actors.wait_empty()
    assert lab.log == ["a:1", "a:2"]
    assert lab.provider.calls["release"] == 2


async def test_locks_are_given_back_again_after_transient_errors(lab: Any) -> None:
    await lab.send("a:1")
    lab.provider.on["release"] = fails(3, ConnectionFailed("down"))
    async with lab.supervise(lab.handler(), idle_timeout=1.0):
        await trio.sleep(15)
        await lab.assert_all_free()
    assert lab.provider.calls["release"] == 4


async def test_giving_back_ends_when_the_policy_says_so(lab: Any) -> None:
    await lab.send("a:1")
    lab.provider.on["release"] = fails(1000, ConnectionFailed("down"))
    async with lab.supervise(lab.handler(), idle_timeout=1.0, breaker=NEVER_OPEN):
        await trio.sleep(100)
    assert lab.provider.calls["release"] == 8


async def test_settlements_of_many_sessions_travel_together(lab: Any) -> None:
    await lab.send(*(f"s{n}:1" for n in range(300)))
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(0.1))) as actors:
        await actors.wait_empty()
    assert lab.provider.calls["settle"] < 30


async def test_a_message_parked_for_long_counts_its_policy_from_its_deliveries(lab: Any) -> None:
    await lab.send("a:1")
    policy = RetryPolicy.fixed(30.0, max_attempts=3)

    def fail(*_: Any) -> None:
        raise ValueError("no")

    async with lab.supervise(lab.handler(fail), retry=policy, park_threshold=1.0) as actors:
        await actors.wait_empty()
    assert lab.log == ["a:1", "a:1 2", "a:1 3"]
    assert len(await lab.dead()) == 1


@MODES
async def test_in_one_batch_only_what_is_still_held_is_sent(lab: Any, mode: SettlementMode) -> None:
    """A settlement under a lock that was lost while it waited for its call is refused here."""
    leases: dict[Any, Any] = {}
    sent: list[Any] = []
    release = trio.Event()

    async def note(proceed: Any, *args: Any) -> Any:
        batch = await proceed(*args)
        leases.update((delivery.session_id, delivery.lease) for delivery in batch)
        return batch

    async def wait(proceed: Any, batch: Any) -> Any:
        sent.append([settlement.delivery.session_id for settlement in batch])
        await release.wait()
        return await proceed(batch)

    lab.provider.on = {"receive": note, "settle": wait}
    await lab.send("first:1")
    async with lab.supervise(lab.handler(), settlement=mode, idle_timeout=100.0) as actors:
        await trio.sleep(1)
        await lab.send("lost:1", "held:1")
        await trio.sleep(1)
        leases["lost"].lose(LockLost("taken away"))
        release.set()
        await trio.sleep(1)
        assert sent[:2] == [["first"], ["held"]]
        stats = actors.statistics()
        assert (stats.completed, stats.locks_lost) == (2, 1)
