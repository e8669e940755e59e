"""A delivery is settled once, by whoever holds it; anything else is refused and changes nothing."""

from __future__ import annotations

import trio

from ...errors import InvalidReceipt, LockLost
from ...messages import Settlement, SettlementAction
from .bench import Bench, bodies, evolved, expect_equal, expect_refused
from .core import case

ACTIONS = (SettlementAction.COMPLETE, SettlementAction.ABANDON, SettlementAction.RELEASE)
REFUSALS = (InvalidReceipt, LockLost)


@case()
async def settled_twice(bench: Bench) -> None:
    """A second settlement of one delivery is refused, whatever the second one is."""
    receiver = await bench.receiver()
    actions = [
        *ACTIONS,
        *([SettlementAction.DEAD_LETTER] if bench.capabilities.dead_letters else []),
    ]
    for number, second in enumerate(actions, start=1):
        await bench.send(*bench.messages(1, bench.session, first=number))
        [delivery] = await bench.receive(receiver, 1)
        await bench.complete(receiver, delivery)
        error = await bench.try_settle(receiver, delivery, second)
        expect_refused(error, bench.settled_before, f"complete, then {second.value}")
    await bench.expect_nothing(receiver, 0.1, "everything was completed")


@case()
async def settled_twice_in_one_call(bench: Bench) -> None:
    """Of two settlements of one delivery in one call the first is applied."""
    await bench.send(*bench.messages(1, bench.session))
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    twice = [Settlement(delivery, SettlementAction.COMPLETE)] * 2
    first, second = await receiver.settle(twice)
    expect_equal(first, None, "the first settlement")
    expect_refused(second, bench.settled_before, "the second settlement")


@case()
async def stale_after_a_redelivery(bench: Bench) -> None:
    """The receipt of an earlier delivery is refused, and the later delivery is untouched by it."""
    await bench.send(*bench.messages(1, bench.session))
    receiver = await bench.receiver()
    [stale] = await bench.receive(receiver, 1)
    await bench.abandon(receiver, stale)
    error = await bench.try_settle(receiver, stale)
    expect_refused(error, bench.settled_before, "completing what was abandoned")
    [fresh] = await bench.receive(receiver, 1)
    for action in ACTIONS:
        error = await bench.try_settle(receiver, stale, action)
        expect_refused(error, bench.settled_before, f"a stale {action.value}")
    await bench.complete(receiver, fresh)
    await bench.expect_nothing(receiver, 0.1, "the message was completed")


@case()
async def stale_after_a_release(bench: Bench) -> None:
    """After the lease was released its deliveries cannot be settled; the next holder's can."""
    await bench.send(*bench.messages(1, bench.session))
    receiver, other = await bench.two_receivers()
    [stale] = await bench.receive(receiver, 1)
    await receiver.release([stale.lease])
    for action in ACTIONS:
        error = await bench.try_settle(receiver, stale, action)
        expect_refused(error, REFUSALS, f"{action.value} after the release")
    [fresh] = await bench.receive(other, 1)
    error = await bench.try_settle(receiver, stale)
    expect_refused(error, REFUSALS, "completing what another holds")
    await bench.complete(other, fresh)


@case()
async def foreign(bench: Bench) -> None:
    """Somebody else's delivery cannot be settled, and its holder does not notice the attempt."""
    await bench.send(*bench.messages(1, bench.session))
    receiver, other = await bench.two_receivers()
    neighbour = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    for stranger in (other, neighbour):
        for action in ACTIONS:
            error = await bench.try_settle(stranger, delivery, action)
            refusal = InvalidReceipt if bench.environment.exact else REFUSALS
            expect_refused(error, refusal, f"a stranger's {action.value}")
    await bench.complete(receiver, delivery)


@case()
async def forged(bench: Bench) -> None:
    """Receipts that were never given out are refused, however they look."""
    await bench.send(*bench.messages(1, bench.session))
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    strange = [
        "",
        "x",
        "0",
        "-1",
        "1:1",
        delivery.receipt + "0",
        delivery.receipt[:-1],
        "\x00",
        "ß😀",
        "'; --",
    ]
    for receipt in strange:
        if receipt == delivery.receipt:
            continue
        error = await bench.try_settle(receiver, evolved(delivery, receipt=receipt))
        expect_refused(error, InvalidReceipt, f"a settlement with the receipt {receipt!a}")
    await bench.complete(receiver, delivery)


@case()
async def of_another_queue(bench: Bench) -> None:
    """A delivery of one queue settles nothing in another."""
    queue = bench.environment.queue_name()
    sender, other = await bench.sender(queue=queue), await bench.receiver(queue=queue)
    await sender.send(bench.messages(1, bench.session))
    await bench.send(*bench.messages(1, bench.session))
    receiver = await bench.receiver()
    [there] = await bench.receive(other, 1)
    [here] = await bench.receive(receiver, 1)
    error = await bench.try_settle(receiver, there)
    # Where receipts are numbers per queue they may be equal: then it is the same receipt.
    if there.receipt != here.receipt:
        expect_refused(error, REFUSALS, "a settlement of another queue's delivery")
        await bench.complete(receiver, here)
    await bench.complete(other, there)


@case()
async def one_bad_entry_spoils_nothing(bench: Bench) -> None:
    """In a batch of settlements each entry is judged alone."""
    sessions = ["a", "b", "c"] if bench.capabilities.sessions else [None] * 3
    for number, session in enumerate(sessions, start=1):
        await bench.send(*bench.messages(1, session, first=number))
    receiver = await bench.receiver()
    deliveries = await bench.receive(receiver, 3)
    forged_one = evolved(deliveries[1], receipt="forged")
    answers = await receiver.settle(
        [
            Settlement(deliveries[0], SettlementAction.COMPLETE),
            Settlement(forged_one, SettlementAction.COMPLETE),
            Settlement(deliveries[2], SettlementAction.COMPLETE),
            Settlement(deliveries[0], SettlementAction.COMPLETE),
        ]
    )
    expect_equal(len(answers), 4, "answers to four settlements")
    expect_equal(answers[0], None, "the first, good settlement")
    expect_refused(answers[1], InvalidReceipt, "the forged settlement")
    expect_equal(answers[2], None, "the third, good settlement")
    expect_refused(answers[3], bench.settled_before, "the repeated settlement")
    await bench.complete(receiver, deliveries[1])
    await bench.expect_nothing(receiver, 0.1, "everything was completed")


@case()
async def settlements_cancelled_halfway(bench: Bench) -> None:
    """A cancelled settle was applied or not, and can be repeated: the message is gone afterwards, once."""
    receiver = await bench.receiver()
    for number in range(1, 11):
        await bench.send(*bench.messages(1, bench.session, first=number))
        [delivery] = await bench.receive(receiver, 1)
        with trio.move_on_after(0.0004 * number):
            await receiver.settle([Settlement(delivery, SettlementAction.COMPLETE)])
        error = await bench.try_settle(receiver, delivery)
        if error is not None:
            expect_refused(error, bench.settled_before, "repeating a settlement that was applied")
    left = await receiver.receive(10, 0.1)
    expect_equal(bodies(left), [], "messages left after repeated completions")
