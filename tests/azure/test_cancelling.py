"""Cancelled at every moment, a call leaves nothing locked, nothing lost and nothing out of order.

The link is slow, so that each frame of a call takes its time: cancelling a little later each time meets each of
them. What was claimed by a cancelled call is there for another receiver at once: locks last much longer than a test.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from typing import final

import pytest
import trio
import trio.testing

from queue_runtime import (
    Abandon,
    Delivery,
    InvalidReceipt,
    LockLost,
    Message,
    Outcome,
    Retry,
    RetryPolicy,
    SessionId,
    SettlementAction,
    SupervisorConfig,
    open_supervisor,
)
from queue_runtime.abc import Receiver, ReceiverOptions

from .emulator_process import EmulatorProcess
from .linked import (
    SOON,
    Ledger,
    Link,
    again,
    by_session,
    complete,
    eventually,
    in_order,
    leases,
    linked,
    promptly,
    receive_all,
    settle_until_told,
    settlements,
    work,
    work_off,
)

SESSION = SessionId("session-0")
LATENCY = 0.004
STEP = 0.003
"""Seconds by which each cancellation comes later than the one before; less than a frame takes."""


@final
class Moment:
    """When to cancel, counted in steps, and whether that was before the call's end."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._took = 0.0
        self.met = False

    async def cancels(self, call: Callable[[], Awaitable[object]]) -> bool:
        """Make a call and cancel it; whether it was still under way."""
        with trio.move_on_after(self._step * STEP) as scope:
            await call()
        self.met = scope.cancelled_caught
        self._took = trio.current_time() - scope.deadline if self.met else 0.0
        return self.met

    async def happens(self, call: Callable[[Moment], Awaitable[None]]) -> float:
        """How long the call took to return when it was cancelled then."""
        await call(self)
        return self._took


async def at_every_step(call: Callable[[Moment], Awaitable[None]], steps: int = 1_000) -> int:
    """Cancel later and later until the call gets to its end; how often it did not.

    To its end by two moments, one after the other: a machine that stands still may have it get there by any.
    """
    cancelled = ended = 0
    with trio.fail_after(90):
        for step in range(steps):
            moment = Moment(step)
            await promptly(partial(moment.happens, call))
            cancelled += moment.met
            ended = 0 if moment.met else ended + 1
            if ended == 2:
                break
    return cancelled


async def test_sending(emulator: EmulatorProcess, sessions: bool) -> None:
    """Sent again, each message is stored once, in order."""
    async with linked(emulator, sessions=sessions) as link:
        sender = await link.sender()
        link.proxy.slow_down(latency=LATENCY)
        sent = 0

        async def once(moment: Moment) -> None:
            nonlocal sent
            messages = link.work(10, first=sent)
            if await moment.cancels(lambda: sender.send(messages)):
                assert [result.error for result in await sender.send(messages)] == [None] * 10
            sent += 10
            assert link.counts()["active"] == sent

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

        async def once(moment: Moment) -> None:
            got: list[Delivery] = []

            async def receive() -> None:
                got.extend(await receiver.receive(10, SOON))

            if not await moment.cancels(receive):
                await receiver.release(leases(got))
            await nothing_is_locked(link)
            deliveries = await receive_all(other, 10)
            if sessions:
                ledger = Ledger()
                ledger.received(deliveries)
                assert ledger.firsts() == in_order(10)
            await other.release(leases(deliveries))
            await nothing_is_locked(link)

        assert await at_every_step(once) > 2
        link.proxy.heal()
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

        async def once(moment: Moment) -> None:
            async def accept() -> None:
                lease = await receiver.accept(SESSION if named else None, SOON)
                assert lease is not None
                with trio.CancelScope(shield=True):
                    await receiver.release([lease])

            await moment.cancels(accept)
            with trio.fail_after(SOON):  # what asked may be on its way, and what takes it back
                lease = await again(other.accept, SESSION, SOON)
            assert lease is not None
            await other.release([lease])
            await nothing_is_locked(link)

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

        async def once(moment: Moment) -> None:
            nonlocal sent
            if ends or not sent:
                await link.send(link.work(2, sessions=1, first=sent))
                sent += 2
            deliveries = await receive_all(receiver, 2)
            link.proxy.slow_down(latency=LATENCY)
            work = settlements(deliveries, action)
            await moment.cancels(lambda: receiver.settle(work))
            for answer in await settle_until_told(receiver, deliveries, action):
                assert answer is None or isinstance(answer, (InvalidReceipt, LockLost))
            link.proxy.slow_down()

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

        async def once(moment: Moment) -> None:
            before = [lease.deadline for lease in held]
            if await moment.cancels(lambda: receiver.renew(held)):
                assert [lease.deadline for lease in held] == before
            assert await receiver.renew(held) == [None] * len(held)

        assert await at_every_step(once) > 1
        await complete(receiver, deliveries)
        await receiver.release(held)
        await nothing_is_locked(link)


async def test_releasing(emulator: EmulatorProcess, sessions: bool) -> None:
    """Begun, it goes through."""
    async with linked(emulator, sessions=sessions) as link:
        await link.send(link.work(4))
        receiver = await link.receiver()

        async def once(moment: Moment) -> None:
            held = leases(await receive_all(receiver, 4))
            link.proxy.slow_down(latency=LATENCY)
            if await moment.cancels(lambda: receiver.release(held)):
                await receiver.release(held)
            await nothing_is_locked(link)
            link.proxy.slow_down()

        await at_every_step(once, steps=6)
        await work_off(link, receiver)


async def test_closing_after_receiving(emulator: EmulatorProcess) -> None:
    """What is on its way when a receive is cancelled does not stay locked because the receiver is closed at once."""
    async with linked(emulator, sessions=False) as link:
        receiver = await link.receiver()
        await link.send(link.work(1))
        first = await receive_all(receiver, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.receive, 1, SOON)
            await trio.testing.wait_all_tasks_blocked()
            # Its answer comes when the broker knows that more is asked for.
            await complete(receiver, first)
            link.proxy.pause()
            await link.send(link.work(3, first=1))
            await eventually(lambda: link.counts()["locked"] == 3)
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.aclose)
            await trio.testing.wait_all_tasks_blocked()
            link.proxy.resume()
        await nothing_is_locked(link)
        await work_off(link, await link.receiver())


async def test_purging(emulator: EmulatorProcess, sessions: bool) -> None:
    """What it had taken and did not delete is there at once."""
    async with linked(emulator, sessions=sessions) as link:
        sent = 0

        async def once(moment: Moment) -> None:
            nonlocal sent
            missing = 4 - link.counts()["active"]
            await link.send(link.work(missing, first=sent))
            sent += missing
            link.proxy.slow_down(latency=LATENCY)
            await moment.cancels(lambda: link.provider.purge(link.queue))
            link.proxy.slow_down()
            await nothing_is_locked(link)

        assert await at_every_step(once, steps=25) > 2
        await work_off(link, await link.receiver())


@pytest.mark.parametrize("redrives", [True, False], ids=["redriving", "purging"])
async def test_moving_dead_letters(emulator: EmulatorProcess, redrives: bool) -> None:
    """What was in hand is among the dead letters at once, and done again, each is there once."""
    async with linked(emulator, sessions=False) as link:
        receiver = await link.receiver()
        letters = await link.provider.open_dead_letters(link.queue)
        call = letters.redrive if redrives else letters.purge
        sent = 0

        async def once(moment: Moment) -> None:
            nonlocal sent
            await link.send(link.work(4, first=sent))
            sent += 4
            work = settlements(await receive_all(receiver, 4), SettlementAction.DEAD_LETTER)
            assert await receiver.settle(work) == [None] * 4
            link.proxy.slow_down(latency=LATENCY)
            was_cancelled = await moment.cancels(call)
            link.proxy.slow_down()
            if was_cancelled:
                with trio.fail_after(SOON):
                    await call()
            assert link.counts()["dead_letters"] == 0
            await complete(receiver, await receive_all(receiver, 4 if redrives else 0))
            assert link.counts()["active"] == 0

        assert await at_every_step(once, steps=40) > 2


async def test_receiving_beside_receiving(emulator: EmulatorProcess) -> None:
    """Cancelling one of two leaves what the other gets."""
    async with linked(emulator, sessions=False) as link:
        receiver = await link.receiver()
        got: list[Delivery] = []

        async def receive(receiver: Receiver, scope: trio.CancelScope | None) -> None:
            with scope or trio.CancelScope():
                got.extend(await receiver.receive(5, SOON))

        for turn in range(10):
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(receive, receiver, scope)
                nursery.start_soon(receive, receiver, None)
                await trio.sleep(0.001 * turn)
                await link.send([Message(b"%d" % turn)])
                scope.cancel()
                with trio.fail_after(SOON):
                    while not got:
                        got.extend(await receiver.receive(5, 0.1))
                nursery.cancel_scope.cancel()
            await complete(receiver, got)
            got.clear()
        assert link.counts()["active"] == 0


async def test_draining(emulator: EmulatorProcess, sessions: bool) -> None:
    """A supervisor that may hold one message at a time leaves nothing locked, whatever it is just doing."""
    async with linked(emulator, sessions=sessions, lock=300.0, max_delivery_count=1_000) as link:
        count = 20
        await link.send(link.work(count))
        await link.send(work(count // 2, sessions=0, first=count))
        outcomes = itertools.cycle(
            [None, ValueError(), Retry(0.02), None, Abandon(), None, SystemExit(), Retry(0.2), None]
        )
        handled: list[Delivery] = []

        async def handle(delivery: Delivery) -> Outcome | None:
            handled.append(delivery)
            await trio.sleep(STEP)
            outcome = next(outcomes)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        config = SupervisorConfig(
            max_in_flight=1,
            max_sessions=1,
            max_per_session=1,
            max_concurrent_sessionless=1,
            park_threshold=0.1,
            restart_budget=1,
            retry=RetryPolicy(initial=0.01, max_delay=0.1, max_attempts=10),
        )
        with trio.fail_after(90):
            for turn in itertools.count():
                if not link.counts()["active"]:
                    break
                async with open_supervisor(
                    link.provider, link.queue, handle, config=config
                ) as supervisor:
                    await trio.sleep(turn % 20 * STEP)
                    await supervisor.drain(SOON if turn % 2 else 0.0)
                await nothing_is_locked(link)
        assert turn > 1
        firsts = by_session(handled)
        assert {number for numbers in firsts.values() for number in numbers} == set(
            range(count * 3 // 2)
        )
        if sessions:
            for session, numbers in in_order(count).items():
                assert list(dict.fromkeys(firsts[session])) == numbers
        link.assert_empty()
