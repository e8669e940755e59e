"""What ends by time: locks and messages."""

from __future__ import annotations

import attrs
import trio

from ...abc import LOCAL_DEADLINE_FRACTION
from ...errors import InvalidReceipt, LockLost
from ...messages import Message
from .bench import Bench, bodies, expect, expect_equal, expect_refused, expect_unsupported
from .core import case, unsupported_case

EARLY = 0.05
"""Seconds by which two clocks of one machine may differ."""


def mortal(bench: Bench, seconds: float, count: int = 1, first: int = 1) -> list[Message]:
    """Numbered messages that live for ``seconds``."""
    return [
        attrs.evolve(message, time_to_live=seconds)
        for message in bench.messages(count, bench.session, first)
    ]


@unsupported_case("time_to_live")
async def without_time_to_live(bench: Bench) -> None:
    """Where a time to live is not declared, sending a message with one raises ``Unsupported``."""
    sender = await bench.sender()
    await expect_unsupported("time_to_live", sender.send(mortal(bench, 60)))


@unsupported_case("lock_renewal")
async def without_lock_renewal(bench: Bench) -> None:
    """Where renewal is not declared, ``renew`` raises ``Unsupported``."""
    await bench.send(*bench.messages(1, bench.session))
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    await expect_unsupported("lock_renewal", receiver.renew([delivery.lease]))
    await bench.complete(receiver, delivery)


@case(waits=True)
async def a_lock_expires_and_is_taken_over(bench: Bench) -> None:
    """An unrenewed lock holds for its duration and not much longer; whoever waits gets the message, counted."""
    receiver, other = await bench.two_receivers()
    lock = bench.lock_duration(receiver)
    await bench.send(*bench.messages(1, bench.session))
    asked = trio.current_time()
    [held] = await bench.receive(receiver, 1)
    got = trio.current_time()
    [taken] = await bench.receive(other, 1, within=lock + bench.environment.tolerance + 1)
    now = trio.current_time()
    expect(
        now >= asked + lock - EARLY,
        f"the lock of {lock} s was taken over after {now - asked:.3f} s",
    )
    expect(held.lease.deadline <= now, "the next holder got it before the first one's deadline")
    late = now - got - lock
    expect(late <= bench.environment.tolerance, f"taken over {late:.3f} s after the expiry")
    expect_equal(taken.message_id, held.message_id, "the message taken over")
    bench.expect_count(taken.delivery_count, 2, "its delivery count")
    if bench.session is not None:
        expect(taken.lease.token > held.lease.token, "the next holder's token is not higher")
    refusal = LockLost if bench.environment.exact else (LockLost, InvalidReceipt)
    expect_refused(await bench.try_settle(receiver, held), refusal, "a stale completion")
    if bench.capabilities.lock_renewal:
        error = await bench.renew(receiver, held.lease)
        expect_refused(error, LockLost, "renewing a lock that another holds")
        expect(held.lease.lost is not None, "the lease was not told that it is lost")
    await bench.complete(other, taken)
    await bench.expect_nothing(receiver, 0.1, "the message was completed")


@case(waits=True)
async def an_expired_lock_is_over_although_nobody_wants_it(bench: Bench) -> None:
    """After the lock's time a settlement is refused, also when the message went to nobody else."""
    receiver = await bench.receiver()
    lock = bench.lock_duration(receiver)
    await bench.send(*bench.messages(1, bench.session))
    [held] = await bench.receive(receiver, 1)
    await trio.sleep(lock + EARLY)
    refusal = LockLost if bench.environment.exact else (LockLost, InvalidReceipt)
    expect_refused(await bench.try_settle(receiver, held), refusal, "a late completion")
    if bench.capabilities.lock_renewal:
        expect_refused(await bench.renew(receiver, held.lease), LockLost, "a late renewal")
        expect(held.lease.lost is not None, "the lease was not told that it is lost")
        told: list[object] = []
        held.lease.on_lost(told.append)
        expect_equal(told, [held.lease], "the holder, told of the loss")
    [again] = await bench.receive(receiver, 1)
    expect(again.lease is not held.lease, "a lease that is over came back")
    await bench.complete(receiver, again)


@case("lock_renewal", waits=True)
async def a_renewed_lock_holds(bench: Bench) -> None:
    """Renewed in time, a lock outlasts several durations; then its message is completed as ever."""
    receiver, other = await bench.two_receivers()
    lock = bench.lock_duration(receiver, times=3)
    await bench.send(*bench.messages(2, bench.session))
    [held] = await bench.receive(receiver, 1)
    if bench.session is None:
        await bench.complete(other, await bench.receive(other, 1))
    until = trio.current_time() + 2.5 * lock
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.expect_nothing, other, 2.5 * lock, "the lock is renewed in time")
        while trio.current_time() < until:
            await trio.sleep(lock / 3)
            deadline, expires_at = held.lease.deadline, held.lease.expires_at
            asked = trio.current_time()
            expect_equal(await bench.renew(receiver, held.lease), None, "a renewal in time")
            expect(held.lease.deadline > deadline, "the renewal did not move the deadline")
            expect(held.lease.expires_at > expires_at, "the renewal did not move expires_at")
            latest = trio.current_time() + LOCAL_DEADLINE_FRACTION * lock
            expect(
                asked < held.lease.deadline <= latest + 0.001,
                "the renewed deadline is not at most 0.9 of the lock's duration away",
            )
    await bench.complete(receiver, held)


@case("lock_renewal")
async def a_released_lease_cannot_be_renewed(bench: Bench) -> None:
    """Renewing a lease after its release gives ``LockLost``; in a batch only that entry is refused."""
    receiver = await bench.receiver()
    names = ["a", "b"] if bench.capabilities.sessions else [None, None]
    for number, name in enumerate(names, start=1):
        await bench.send(*bench.messages(1, name, first=number))
    over, good = await bench.receive(receiver, 2)
    await receiver.release([over.lease])
    answers = await receiver.renew([over.lease, good.lease])
    expect_equal(len(answers), 2, "answers to two renewals")
    expect_refused(answers[0], LockLost, "renewing a released lease")
    expect_equal(answers[1], None, "renewing a lease that is held")
    await bench.complete(receiver, good)
    await bench.drain(receiver, 0.1)


@case("lock_renewal")
async def a_settled_message_has_no_lease(bench: Bench) -> None:
    """Settling a message without a session ends its lease; a session's outlives its messages where that is declared."""
    receiver = await bench.receiver()
    await bench.send(*bench.messages(1))
    [alone] = await bench.receive(receiver, 1)
    await bench.complete(receiver, alone)
    expect_refused(await bench.renew(receiver, alone.lease), LockLost, "renewing a settled message")
    if bench.capabilities.sessions:
        await bench.send(*bench.messages(1, "session"))
        [delivery] = await bench.receive(receiver, 1)
        await bench.complete(receiver, delivery)
        answer = await bench.renew(receiver, delivery.lease)
        if bench.capabilities.keeps_empty_sessions:
            expect_equal(answer, None, "renewing the lease of an empty session")
        else:
            expect_refused(answer, LockLost, "renewing the lease of an empty session")


@case(waits=True)
async def losing_one_lock_does_not_touch_another(bench: Bench) -> None:
    """Each lock has its own time: what was received later can still be settled when an earlier lock is over."""
    receiver = await bench.receiver()
    lock = bench.lock_duration(receiver)
    names = ["a", "b"] if bench.capabilities.sessions else [None, None]
    await bench.send(*bench.messages(1, names[0]))
    [early] = await bench.receive(receiver, 1)
    await trio.sleep(lock * 0.6)
    await bench.send(*bench.messages(1, names[1], first=2))
    [late] = await bench.receive(receiver, 1)
    await trio.sleep(lock * 0.4 + EARLY)
    error = await bench.try_settle(receiver, early)
    expect_refused(error, (LockLost, InvalidReceipt), "completing under the expired lock")
    await bench.complete(receiver, late)


@case("time_to_live", waits=True)
async def expired_unseen(bench: Bench) -> None:
    """A message that nobody took in time is not delivered; it is a dead letter, and those behind it go on."""
    life = bench.environment.delay
    await bench.send(*mortal(bench, life))
    await bench.send(*bench.messages(1, bench.session, first=2))
    await trio.sleep(life + EARLY)
    receiver = await bench.receiver()
    deliveries = await bench.drain(receiver, 0.2)
    expect_equal(bodies(deliveries), ["2"], "what is delivered after the expiry")
    if bench.capabilities.dead_letters:
        [dead] = await bench.dead(1)
        expect_equal(bodies([dead]), ["1"], "the dead letter")
        reason = dead.dead_letter and dead.dead_letter.reason
        expect_equal(reason, "TimeToLiveExpired", "its reason")


@case("time_to_live", waits=True)
async def taken_in_time(bench: Bench) -> None:
    """A message taken in time can be completed after its life would have ended."""
    receiver = await bench.receiver()
    lock = bench.lock_duration(receiver)
    life = max(min(bench.environment.delay, lock / 3), bench.environment.resolution)
    await bench.send(*mortal(bench, life))
    [delivery] = await bench.receive(receiver, 1)
    await trio.sleep(life + EARLY)
    await bench.complete(receiver, delivery)
    if bench.capabilities.dead_letters:
        await bench.dead(0)


@case("time_to_live", "dead_letters", waits=True)
async def given_back_too_late(bench: Bench) -> None:
    """A message given back after its life has ended is not delivered again."""
    if not bench.environment.exact:
        bench.affordable(float("inf"), "knowing whether this broker expires returned messages")
    receiver = await bench.receiver()
    lock = bench.lock_duration(receiver)
    life = min(bench.environment.delay, lock / 3)
    await bench.send(*mortal(bench, life))
    [delivery] = await bench.receive(receiver, 1)
    await trio.sleep(life + EARLY)
    await bench.give_back(receiver, delivery)
    await bench.expect_nothing(receiver, 0.1, "the message has expired")
    [dead] = await bench.dead(1)
    reason = dead.dead_letter and dead.dead_letter.reason
    expect_equal(reason, "TimeToLiveExpired", "the dead letter's reason")


@case("time_to_live")
async def a_long_life(bench: Bench) -> None:
    """A time to live that has not passed does not matter."""
    await bench.send(*mortal(bench, 86_400.0))
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    expect_equal(delivery.message.time_to_live, 86_400.0, "the time to live")
    await bench.complete(receiver, delivery)
