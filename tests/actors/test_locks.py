"""Locks are renewed, and a lost one ends the handler before another may start (A8, I3)."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio
import trio.testing

from queue_runtime.config import SettlementMode
from queue_runtime.errors import ConnectionFailed, InvalidReceipt, LockLost, ProviderError
from queue_runtime.handlers import CloseReason


@pytest.mark.parametrize("text", ["a:1", ":1"], ids=["session", "single"])
async def test_a_handler_may_run_for_hours(lab: Any, text: str) -> None:
    await lab.send(text)
    async with lab.supervise(
        lab.handler(lambda *_: trio.sleep(3 * 3600)), receive_timeout=600.0
    ) as actors:
        await trio.sleep(2.5 * 3600)
        assert actors.statistics().healthy
        assert actors.statistics().in_flight == 1
        await actors.wait_empty(poll_interval=10)
        assert actors.statistics().locks_lost == 0
    assert lab.log == [text]


async def test_many_locks_are_renewed_in_batches(lab: Any) -> None:
    await lab.send(*(f"s{n}:1" for n in range(200)))
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(600))) as actors:
        await actors.wait_empty()
        assert actors.statistics().locks_lost == 0
    assert len(lab.log) == 200
    assert lab.provider.calls["renew"] < 150


async def test_renewals_go_on_through_a_short_outage(lab: Any) -> None:
    await lab.send("a:1")
    outage = trio.current_time() + 9, trio.current_time() + 20

    async def fail(proceed: Any, leases: Any) -> Any:
        if outage[0] < trio.current_time() < outage[1]:
            raise ConnectionFailed("down")
        return await proceed(leases)

    lab.provider.on["renew"] = fail
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(100))) as actors:
        await actors.wait_empty()
        assert actors.statistics().locks_lost == 0
    assert lab.log == ["a:1"]


@pytest.mark.parametrize("mode", list(SettlementMode), ids=lambda mode: mode.value)
async def test_at_the_local_deadline_the_handler_is_cancelled(
    lab: Any, mode: SettlementMode
) -> None:
    """No renewal gets through: the holder stops at 0.9 of the lease, before anybody else may start."""
    lost = []

    class Handler:
        async def opened(self, session: Any) -> None:
            self.session = session

        async def handle(self, delivery: Any) -> None:
            assert self.session.lost is None
            start = trio.current_time()
            try:
                await trio.sleep(100)
            finally:
                lost.append((trio.current_time() - start, self.session.lost))

        async def closed(self, reason: CloseReason) -> None:
            lost.append(reason)

    async def fail(_proceed: Any, _leases: Any) -> Any:
        raise ConnectionFailed("down")

    await lab.send("a:1", "a:2")
    lab.provider.on["renew"] = fail
    async with lab.supervise(Handler, settlement=mode) as actors:
        await trio.sleep(29)
        assert lost[0][0] == pytest.approx(27, abs=0.1)
        assert isinstance(lost[0][1], LockLost)
        assert lost[1] is CloseReason.LOCK_LOST
        assert actors.statistics().locks_lost == 1
        assert len(lost) == 2
        del lab.provider.on["renew"]
        await trio.sleep(20)  # the lock expired at the broker, and the breaker tries again
        assert actors.statistics().active_sessions == 1
        assert (await lab.waiting()) == [("1", 2), ("2", 1)]


async def test_a_lock_lost_by_event_ends_the_handler_at_once(lab: Any) -> None:
    await lab.send("a:1")
    leases = []
    deliver = trio.Event()

    async def note(proceed: Any, *args: Any) -> Any:
        batch = await proceed(*args)
        leases.extend(delivery.lease for delivery in batch)
        deliver.set()
        return batch

    lab.provider.on["receive"] = note
    cancelled = trio.Event()

    async def work() -> None:
        try:
            await trio.sleep(1000)
        finally:
            cancelled.set()

    async with lab.supervise(lab.handler(lambda *_: work())) as actors:
        await deliver.wait()
        await trio.sleep(1)
        leases[0].lose(LockLost("the link was detached"))
        with trio.fail_after(0.1):
            await cancelled.wait()
        await trio.sleep(0.1)
        assert lab.closed == [("a", CloseReason.LOCK_LOST)]
        assert actors.statistics().in_flight == 0


async def test_what_a_stale_holder_settles_is_refused_before_it_is_sent(lab: Any) -> None:
    """A handler that shields itself from the loss of its lock finishes in vain."""

    async def work() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(28)

    async def fail(_proceed: Any, _leases: Any) -> Any:
        raise ConnectionFailed("down")

    await lab.send("a:1")
    lab.provider.on["renew"] = fail
    async with lab.supervise(lab.handler(lambda *_: work())) as actors:
        await trio.sleep(29)
        assert lab.provider.calls["settle"] == 0
        assert actors.statistics().completed == 0
        assert (await lab.stats()).in_flight == 1


async def test_the_next_handler_of_a_session_waits_for_the_old_one_to_unwind(lab: Any) -> None:
    """Within one process a new lock alone is not enough: the old handler may still be cleaning up."""
    events: list[str] = []

    class Handler:
        async def handle(self, delivery: Any) -> None:
            events.append(f"start {delivery.delivery_count}")
            try:
                await trio.sleep(40 if delivery.delivery_count == 1 else 0)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(60 if delivery.delivery_count == 1 else 0)
                events.append(f"end {delivery.delivery_count}")

    failing = True

    async def fail(proceed: Any, leases: Any) -> Any:
        if failing:
            raise ConnectionFailed("down")
        return await proceed(leases)

    await lab.send("a:1")
    lab.provider.on["renew"] = fail
    async with lab.supervise(Handler) as actors:
        await trio.sleep(29)
        failing = False
        await trio.sleep(20)
        # The broker gave the session to us again, under a new lock, which is kept meanwhile.
        assert events == ["start 1"]
        assert (await lab.stats()).locked_sessions == 1
        await actors.wait_empty()
    assert events == ["start 1", "end 1", "start 2", "end 2"]


async def test_a_stop_while_the_old_handler_unwinds_starts_nothing(lab: Any) -> None:
    async def work() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(50)

    async def fail(_proceed: Any, _leases: Any) -> Any:
        raise ConnectionFailed("down")

    await lab.send("a:1")
    lab.provider.on["renew"] = fail
    async with lab.supervise(lab.handler(lambda *_: work())) as actors:
        await trio.sleep(35)
        assert actors.statistics().active_sessions == 1
    assert lab.log == ["a:1"]
    assert trio.current_time() > 0
    await lab.assert_all_free()


@pytest.mark.parametrize("mode", list(SettlementMode), ids=lambda mode: mode.value)
async def test_a_handler_that_blocks_the_loop_loses_its_lock_and_nothing_else(
    open_lab: Any, mode: SettlementMode
) -> None:
    """On the real clock: 3 x the lease of 50 ms."""
    lab = await open_lab(lock_duration=0.05)
    clock = trio.lowlevel.current_clock()
    clock.rate = 1.0  # type: ignore[attr-defined]  # the mock clock follows the real one
    clock.autojump_threshold = float("inf")  # type: ignore[attr-defined]

    def block(delivery: Any, attempt: int) -> None:
        if attempt == 1 and delivery.body == b"1":
            time.sleep(0.15)

    await lab.send("a:1", "a:2", "b:1")
    async with lab.supervise(lab.handler(block), settlement=mode, idle_timeout=0.01) as actors:
        await actors.wait_empty(poll_interval=0.01)
        assert actors.statistics().locks_lost >= 1
    mine = [text for text in lab.log if text.startswith("a")]
    assert mine[:2] == ["a:1", "a:1 2"]
    assert mine[-1].startswith("a:2")
    await lab.assert_all_free()
    assert await lab.waiting() == []


@pytest.mark.parametrize("error", [LockLost("gone"), InvalidReceipt("gone")])
async def test_a_refused_settlement_ends_the_session(lab: Any, error: Exception) -> None:
    await lab.send("a:1", "a:2")
    refused = False

    async def refuse(proceed: Any, batch: Any) -> Any:
        nonlocal refused
        if refused:
            return await proceed(batch)
        refused = True
        return [error for _ in batch]

    lab.provider.on["settle"] = refuse
    async with lab.supervise(lab.handler()) as actors:
        await trio.sleep(1)
        assert lab.log == ["a:1"]
        assert lab.closed == [("a", CloseReason.LOCK_LOST)]
        await actors.wait_empty()
        assert actors.statistics().locks_lost == 1
    assert lab.log == ["a:1", "a:1 2", "a:2"]


async def test_a_renewal_refused_for_good_is_not_repeated(lab: Any) -> None:
    await lab.send("a:1")

    async def refuse(_proceed: Any, leases: Any) -> Any:
        return [ProviderError("no", code="42") for _ in leases]

    lab.provider.on["renew"] = refuse
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(20))) as actors:
        await actors.wait_empty()
        assert actors.statistics().locks_lost == 0
    assert lab.provider.calls["renew"] == 1
    assert lab.log == ["a:1"]


async def test_locks_that_do_not_expire_are_not_renewed(lab: Any) -> None:
    opened = []

    async def endless(proceed: Any, *args: Any) -> Any:
        receiver = await proceed(*args)
        receiver.lock_duration = float("inf")
        opened.append(receiver)
        return receiver

    lab.provider.on["open_receiver"] = endless
    await lab.send("a:1")
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(20))) as actors:
        await actors.wait_empty()
    assert lab.provider.calls["renew"] == 0
    assert lab.log == ["a:1"]
    assert len(opened) == 1
