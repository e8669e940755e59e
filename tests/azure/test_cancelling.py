"""Cancelled at every moment, a call leaves nothing locked, nothing lost and nothing out of order.

The link is slow, so that each frame of a call takes its time: cancelling a little later each time meets each of
them. What was claimed by a cancelled call is there for another receiver at once: locks last much longer than a test.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable

import pytest
import trio

from queue_runtime import Delivery, InvalidReceipt, LockLost, Message, SessionId, SettlementAction
from queue_runtime.abc import Receiver, ReceiverOptions

from .emulator_process import EmulatorProcess
from .linked import (
    Ledger,
    Link,
    again,
    complete,
    eventually,
    in_order,
    leases,
    linked,
    receive_all,
    settle_until_told,
    settlements,
    work_off,
)

SESSION = SessionId("session-0")
LATENCY = 0.004
STEP = 0.003
"""Seconds by which each cancellation comes later than the one before; less than a frame takes."""

PROMPT = 0.25
"""Seconds in which a cancelled call has to return."""


@pytest.fixture(params=[True, False], ids=["sessions", "plain"])
def sessions(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def cancelled_at(step: int, call: Callable[[], Awaitable[object]]) -> bool:
    """Make a call and cancel it after so many steps; whether it was still under way."""
    with trio.move_on_after(step * STEP) as scope:
        await call()
    if scope.cancelled_caught:
        assert trio.current_time() - scope.deadline < PROMPT
    return scope.cancelled_caught


async def at_every_step(call: Callable[[int], Awaitable[bool]]) -> int:
    """Cancel later and later until the call gets to its end; how often it did not."""
    with trio.fail_after(30):
        for step in itertools.count():
            if not await call(step):
                return step
    raise AssertionError("not reached")


async def test_sending(emulator: EmulatorProcess, sessions: bool) -> None:
    """Sent again, each message is stored once, in order."""
    async with linked(emulator, sessions=sessions) as link:
        sender = await link.sender()
        link.proxy.slow_down(latency=LATENCY)
        sent = 0

        async def once(step: int) -> bool:
            nonlocal sent
            messages = link.work(10, first=sent)
            was_cancelled = await cancelled_at(step, lambda: sender.send(messages))
            if was_cancelled:
                assert [result.error for result in await sender.send(messages)] == [None] * 10
            sent += 10
            assert link.counts()["active"] == sent
            return was_cancelled

        assert await at_every_step(once) > 2
        link.proxy.heal()
        ledger = await work_off(link, await link.receiver())
        if sessions:
            assert ledger.firsts() == in_order(sent)


async def test_receiving(emulator: EmulatorProcess, sessions: bool) -> None:
    """What a cancelled receive held is there for another receiver at once: trap 1."""
    async with linked(emulator, sessions=sessions) as link:
        await link.send(link.work(10))
        receiver = await link.receiver()
        other = await link.direct.open_receiver(link.queue, ReceiverOptions())
        link.proxy.slow_down(latency=LATENCY)
        got: list[Delivery] = []

        async def once(step: int) -> bool:
            async def receive() -> None:
                got.extend(await receiver.receive(10, 20.0))

            was_cancelled = await cancelled_at(step, receive)
            if was_cancelled:
                await nothing_is_locked(link)
                deliveries = await receive_all(other, 10)
                if sessions:
                    ledger = Ledger()
                    ledger.received(deliveries)
                    assert ledger.firsts() == in_order(10)
                await other.release(leases(deliveries))
                await nothing_is_locked(link)
            return was_cancelled

        assert await at_every_step(once) > 2
        link.proxy.heal()
        await complete(receiver, got)
        await receiver.release(leases(got))
        await work_off(link, receiver)


async def nothing_is_locked(link: Link) -> None:
    """The broker knows of no lock: not on a message, not on a session."""

    def is_free() -> bool:
        counts = link.counts()
        return counts["locked"] == counts["locked_sessions"] == 0

    await eventually(is_free)


@pytest.mark.parametrize("named", [True, False], ids=["named", "next"])
async def test_accepting(emulator: EmulatorProcess, named: bool) -> None:
    """No session is locked by nobody: trap 3."""
    async with linked(emulator) as link:
        await link.send([Message(b"0", session_id=SESSION)])
        receiver = await link.receiver(auto_accept=False)
        other = await link.direct.open_receiver(link.queue, ReceiverOptions(auto_accept=False))
        link.proxy.slow_down(latency=LATENCY)

        async def once(step: int) -> bool:
            async def accept() -> None:
                lease = await receiver.accept(SESSION if named else None, 20.0)
                assert lease is not None
                with trio.CancelScope(shield=True):
                    await receiver.release([lease])

            was_cancelled = await cancelled_at(step, accept)
            with trio.fail_after(
                PROMPT
            ):  # what asked for it may still be on its way, and what takes it back
                lease = await again(other.accept, SESSION, 1.0)
            assert lease is not None
            await other.release([lease])
            await nothing_is_locked(link)
            return was_cancelled

        assert await at_every_step(once) > 2


@pytest.mark.parametrize("action", list(SettlementAction), ids=lambda action: action.value)
async def test_settling(
    emulator: EmulatorProcess, sessions: bool, action: SettlementAction
) -> None:
    """It happened or it did not; asked again there is an answer that lasts."""
    ends = action in (SettlementAction.COMPLETE, SettlementAction.DEAD_LETTER)
    async with linked(emulator, sessions=sessions, max_delivery_count=1_000) as link:
        receiver = await link.receiver()
        sent = 0

        async def once(step: int) -> bool:
            nonlocal sent
            if ends or not sent:
                await link.send(link.work(2, sessions=1, first=sent))
                sent += 2
            deliveries = await receive_all(receiver, 2)
            link.proxy.slow_down(latency=LATENCY)
            work = settlements(deliveries, action)
            was_cancelled = await cancelled_at(step, lambda: receiver.settle(work))
            for answer in await settle_until_told(receiver, deliveries, action):
                assert answer is None or isinstance(answer, (InvalidReceipt, LockLost))
            link.proxy.slow_down()
            return was_cancelled

        assert await at_every_step(once) > 1
        counts = link.counts()
        assert counts["active"] + counts["dead_letters"] == (
            0 if action is SettlementAction.COMPLETE else sent
        )
        await work_off(link, receiver)


async def test_renewing(emulator: EmulatorProcess, sessions: bool) -> None:
    """A lock whose renewal was cancelled is still held, and no deadline is later than the broker's."""
    async with linked(emulator, sessions=sessions) as link:
        await link.send(link.work(4))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 4)
        held = leases(deliveries)
        link.proxy.slow_down(latency=LATENCY)

        async def once(step: int) -> bool:
            before = [lease.deadline for lease in held]
            was_cancelled = await cancelled_at(step, lambda: receiver.renew(held))
            if was_cancelled:
                assert [lease.deadline for lease in held] == before
            assert await receiver.renew(held) == [None] * len(held)
            return was_cancelled

        assert await at_every_step(once) > 1
        await complete(receiver, deliveries)
        await receiver.release(held)
        await nothing_is_locked(link)


async def test_releasing(emulator: EmulatorProcess, sessions: bool) -> None:
    """Begun, it goes through."""
    async with linked(emulator, sessions=sessions) as link:
        await link.send(link.work(4))
        receiver = await link.receiver()

        async def once(step: int) -> bool:
            held = leases(await receive_all(receiver, 4))
            link.proxy.slow_down(latency=LATENCY)
            was_cancelled = await cancelled_at(step, lambda: receiver.release(held))
            if was_cancelled:
                await receiver.release(held)
            await nothing_is_locked(link)
            link.proxy.slow_down()
            return was_cancelled

        with trio.fail_after(10):
            for step in range(6):
                await once(step)
        await work_off(link, receiver)


async def test_receiving_beside_receiving(emulator: EmulatorProcess) -> None:
    """Cancelling one of two leaves what the other gets."""
    async with linked(emulator, sessions=False) as link:
        receiver = await link.receiver()
        got: list[Delivery] = []

        async def receive(receiver: Receiver, scope: trio.CancelScope | None) -> None:
            with scope or trio.CancelScope():
                got.extend(await receiver.receive(5, 20.0))

        for turn in range(10):
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(receive, receiver, scope)
                nursery.start_soon(receive, receiver, None)
                await trio.sleep(0.001 * turn)
                await link.send([Message(b"%d" % turn)])
                scope.cancel()
                with trio.fail_after(5):
                    while not got:
                        got.extend(await receiver.receive(5, 0.1))
                nursery.cancel_scope.cancel()
            await complete(receiver, got)
            got.clear()
        assert link.counts()["active"] == 0
