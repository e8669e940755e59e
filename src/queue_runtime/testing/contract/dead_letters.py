"""Dead letters: how messages get there, what is kept of them, and how they come back."""

from __future__ import annotations

import trio

from ...messages import Delivery, MessageState, PeekedMessage, Settlement, SettlementAction
from .bench import Bench, bodies, expect, expect_equal, expect_unsupported, raised_by, skip
from .core import case, unsupported_case


@unsupported_case("dead_letters")
async def without_dead_letters(bench: Bench) -> None:
    """Where a dead-letter queue is not declared, opening it and dead-lettering raise ``Unsupported``."""
    await expect_unsupported("dead_letters", bench.provider.open_dead_letters(bench.queue))
    await bench.send(*bench.messages(1, bench.session))
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    settlement = Settlement(delivery, SettlementAction.DEAD_LETTER, reason="ByWord")
    await expect_unsupported("dead_letters", receiver.settle([settlement]))
    await bench.complete(receiver, delivery)


@unsupported_case("session_halt", "sessions", "dead_letters")
async def without_session_halt(bench: Bench) -> None:
    """Where halting is not declared, dead-lettering with ``halt`` raises ``Unsupported``."""
    await bench.send(*bench.messages(1, "session"))
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    settlement = Settlement(delivery, SettlementAction.DEAD_LETTER, reason="ByWord", halt=True)
    await expect_unsupported("session_halt", receiver.settle([settlement]))
    await bench.complete(receiver, delivery)


def numbers_of(dead: list[PeekedMessage]) -> dict[str, int]:
    """The sequence number of each dead letter, by its body."""
    return {body: each.sequence_number for body, each in zip(bodies(dead), dead, strict=True)}


async def kill(bench: Bench, numbers: list[int], total: int, session: str | None) -> None:
    """Send ``total`` messages; dead-letter those of ``numbers`` and complete what lies before the last of them."""
    await bench.send(*bench.messages(total, session))
    receiver = await bench.receiver(max_per_session=1)
    last = max(numbers)
    left = set(range(1, last + 1))
    held: list[Delivery] = []  # without a session what comes later may be delivered before
    while left:
        [delivery] = await bench.receive(receiver, 1)
        number = int(delivery.body)
        if session is not None:
            expect_equal(number, min(left), "the next message of the session")
        left.discard(number)
        if number in numbers:
            await bench.dead_letter(receiver, delivery)
        elif number <= last:
            await bench.complete(receiver, delivery)
        else:
            held.append(delivery)
    await bench.give_back(receiver, held)
    await receiver.aclose()


@case("dead_letters")
async def by_word(bench: Bench) -> None:
    """A message dead-lettered by the consumer's word is kept whole, with reason and counts, and not delivered again."""
    [result] = await bench.send(*bench.messages(1, bench.session))
    receiver = await bench.receiver()
    [first] = await bench.receive(receiver, 1)
    await bench.abandon(receiver, first)
    [delivery] = await bench.receive(receiver, 1)
    before = bench.now()
    description = "größer than\n\x1b[31mexpected\x1b[0m 😀 " + "x" * 2_000
    await bench.dead_letter(receiver, delivery, "PaymentRefused", description=description)
    await bench.expect_nothing(receiver, 0.1, "the message is dead-lettered")
    [dead] = await bench.dead(1)
    expect_equal(dead.message, delivery.message, "the dead-lettered message")
    expect_equal(dead.message_id, result.message_id, "its id")
    expect_equal(dead.state, MessageState.DEAD_LETTERED, "its state")
    info = dead.dead_letter
    if info is None:
        raise AssertionError("a dead letter has no DeadLetterInfo")
    expect_equal(info.reason, "PaymentRefused", "the reason")
    expect_equal(info.description, description, "the description")
    expect_equal(info.delivery_count, 2, "the delivery count kept")
    age = (info.dead_lettered_at - before).total_seconds()
    expect(abs(age) < 60, f"dead_lettered_at is {age:.0f} s away from now")
    if info.first_failed_at is not None:
        expect(info.first_failed_at <= info.dead_lettered_at, "it failed first after it was dead")


@case("dead_letters")
async def the_session_goes_on(bench: Bench) -> None:
    """After a dead letter the next messages of the session are delivered."""
    await bench.send(*bench.messages(3, bench.session))
    receiver = await bench.receiver()
    deliveries = await bench.receive(receiver, 3)
    await bench.dead_letter(receiver, deliveries[0])
    await bench.complete(receiver, deliveries[1:])
    await bench.send(*bench.messages(1, bench.session, first=4))
    [fourth] = await bench.receive(receiver, 1)
    expect_equal(fourth.body, b"4", "what follows a dead letter")
    await bench.complete(receiver, fourth)
    await bench.dead(1)


@case("dead_letters")
async def after_too_many_failures(bench: Bench) -> None:
    """The delivery that reaches ``max_delivery_count`` and fails is the last; the rest of the session goes on."""
    receiver = await bench.receiver(max_per_session=1)
    limit = bench.delivery_limit(receiver)
    await bench.send(*bench.messages(2, bench.session))
    counts: list[int] = []
    held: list[Delivery] = []
    while len(counts) < limit:
        [delivery] = await bench.receive(receiver, 1)
        if delivery.body == b"1":
            counts.append(delivery.delivery_count)
            await bench.abandon(receiver, delivery)
        else:
            expect(bench.session is None, "the second message came before the first was settled")
            held.append(delivery)
    expect_equal(counts, list(range(1, limit + 1)), "the delivery counts")
    dead_letters = await bench.dead_letters()
    if bench.environment.exact:
        await bench.dead(1)
    # Some brokers move a message when they would deliver it once more.
    with trio.fail_after(bench.environment.patience):
        while not held or not (found := await dead_letters.peek(10)):
            held += await receiver.receive(1, 0.05)
    expect_equal(bodies(held), ["2"], "what follows the dead letter")
    expect_equal(bodies(found), ["1"], "the dead letter")
    info = found[0].dead_letter
    if info is None:
        raise AssertionError("a dead letter has no DeadLetterInfo")
    expect_equal(info.reason, "MaxDeliveryCountExceeded", "the reason")
    if bench.environment.exact:
        expect_equal(info.delivery_count, limit, "the delivery count kept")
    else:
        expect(info.delivery_count >= limit, f"the delivery count kept is {info.delivery_count}")
    await bench.complete(receiver, held)


@case("dead_letters", waits=True)
async def after_too_many_silent_consumers(bench: Bench) -> None:
    """A message whose consumers fall silent, ``max_delivery_count`` times, is dead-lettered too."""
    receiver = await bench.receiver()
    limit = bench.delivery_limit(receiver)
    lock = bench.lock_duration(receiver, times=limit)
    await bench.send(*bench.messages(2, bench.session))
    patience = lock + bench.environment.tolerance
    counts: list[int] = []
    while len(counts) < limit:
        deliveries = await receiver.receive(1, patience)
        expect(bool(deliveries), f"no delivery within {patience} s after the lock expired")
        for delivery in deliveries:
            if delivery.body == b"1":
                counts.append(delivery.delivery_count)
            else:
                await bench.complete(receiver, delivery)
    expect_equal(counts, list(range(1, limit + 1)), "the delivery counts")
    dead_letters = await bench.dead_letters()
    with trio.fail_after(patience if bench.environment.exact else bench.environment.patience):
        while not (found := await dead_letters.peek(10)):
            await receiver.receive(10, 0.05)
    expect_equal(bodies(found), ["1"], "the dead letter")


@case("dead_letters")
async def a_poison_body_is_kept(bench: Bench) -> None:
    """A body that nobody can read is kept byte for byte."""
    poison = b"\x80\x04\x95{not json\x00\xff" * 10
    [message] = bench.messages(1, bench.session)
    message = type(message)(poison, session_id=message.session_id, content_type="application/json")
    await bench.send(message)
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    await bench.dead_letter(receiver, delivery, "PoisonBody", description="not JSON @ $")
    [dead] = await bench.dead(1)
    expect_equal(dead.message.body, poison, "the poison body")
    expect_equal(dead.message.content_type, "application/json", "its content type")


@case("dead_letters")
async def listed_by_pages(bench: Bench) -> None:
    """Dead letters are listed in order, in pages; looking changes nothing."""
    await kill(bench, [1, 2, 3, 4, 5], 5, bench.session)
    await bench.dead(5)
    dead_letters = await bench.dead_letters()
    for _ in range(2):
        pages, numbers = [], [0]
        while page := await dead_letters.peek(2, numbers[-1]):
            pages.append(bodies(page))
            numbers += [dead.sequence_number for dead in page]
        expect_equal([len(page) for page in pages], [2, 2, 1], "the lengths of the pages")
        expect_equal(numbers, sorted(set(numbers)), "the sequence numbers, growing")
        listed = [body for page in pages for body in page]
        got = listed if bench.session else sorted(listed)
        expect_equal(got, ["1", "2", "3", "4", "5"], "the dead letters")


@case("dead_letters", "sessions")
async def redriven_in_order(bench: Bench) -> None:
    """Redriven messages come back in their session's original order, counted anew, with their history."""
    await kill(bench, [1, 2, 4], 6, "session")
    await bench.dead(3)
    dead_letters = await bench.dead_letters()
    expect_equal(await dead_letters.redrive(), 3, "messages redriven")
    expect_equal(bodies(await dead_letters.peek(10)), [], "dead letters after the redrive")
    receiver = await bench.receiver()
    deliveries = await bench.receive(receiver, 5)
    order = bodies(deliveries)
    expect_equal([body for body in order if body in "124"], ["1", "2", "4"], "the redriven ones")
    expect_equal([body for body in order if body in "56"], ["5", "6"], "the others")
    if bench.environment.exact:
        expect_equal(order, ["1", "2", "4", "5", "6"], "the order with the waiting ones")
    for delivery in deliveries:
        was_dead = delivery.body in (b"1", b"2", b"4")
        if was_dead:
            expect_equal(delivery.delivery_count, 1, f"the count of {delivery.body!a}")
        else:
            bench.expect_count(delivery.delivery_count, 1, f"the count of {delivery.body!a}")
        expect_equal(delivery.dead_letter is not None, was_dead, f"history of {delivery.body!a}")
        if delivery.dead_letter is not None:
            expect_equal(delivery.dead_letter.reason, "ByWord", "the reason in the history")
    await bench.complete(receiver, deliveries)


@case("dead_letters")
async def redriven_by_number(bench: Bench) -> None:
    """Named dead letters are redriven, the others stay; unknown numbers are ignored."""
    await kill(bench, [1, 2, 3], 3, bench.session)
    number = numbers_of(await bench.dead(3))
    dead_letters = await bench.dead_letters()
    expect_equal(await dead_letters.redrive([]), 0, "messages redriven when none is named")
    unknown = max(number.values()) + 1_000
    numbers = [number["3"], unknown, number["1"]]
    expect_equal(await dead_letters.redrive(numbers), 2, "messages redriven")
    expect_equal(bodies(await dead_letters.peek(10)), ["2"], "what stays")
    expect_equal(await dead_letters.redrive(numbers), 0, "messages redriven the second time")
    receiver = await bench.receiver()
    deliveries = await bench.receive(receiver, 2)
    got = bodies(deliveries)
    expect_equal(got if bench.session else sorted(got), ["1", "3"], "what came back")
    await bench.complete(receiver, deliveries)


@case("dead_letters")
async def dead_again(bench: Bench) -> None:
    """A redriven message that fails again is a dead letter again, once, with its latest reason."""
    await kill(bench, [1], 1, bench.session)
    await bench.dead(1)
    dead_letters = await bench.dead_letters()
    expect_equal(await dead_letters.redrive(), 1, "messages redriven")
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    await bench.dead_letter(receiver, delivery, "Again")
    [dead] = await bench.dead(1)
    expect_equal(dead.dead_letter and dead.dead_letter.reason, "Again", "the latest reason")


@case("dead_letters")
async def purged(bench: Bench) -> None:
    """Dead letters are deleted by number or all, and the queue itself is left alone."""
    await kill(bench, [1, 2, 3], 4, bench.session)
    number = numbers_of(await bench.dead(3))
    dead_letters = await bench.dead_letters()
    expect_equal(await dead_letters.purge([number["2"]]), 1, "purged by number")
    left = bodies(await dead_letters.peek(10))
    expect_equal(left if bench.session else sorted(left), ["1", "3"], "what stays")
    expect_equal(await dead_letters.purge(), 2, "purged altogether")
    expect_equal(bodies(await dead_letters.peek(10)), [], "what stays in the end")
    expect_equal(await dead_letters.redrive(), 0, "redriven after the purge")
    receiver = await bench.receiver()
    [rest] = await bench.receive(receiver, 1)
    expect_equal(rest.body, b"4", "what was never dead")
    await bench.complete(receiver, rest)


@case("dead_letters", "durable")
async def dead_letters_survive_reconnecting(bench: Bench) -> None:
    """Dead letters are there for a new connection after the one that made them was closed."""
    provider = await bench.connect()
    await bench.send(*bench.messages(1, bench.session))
    receiver = await bench.receiver(provider)
    [delivery] = await bench.receive(receiver, 1)
    await bench.dead_letter(receiver, delivery)
    await provider.aclose()
    fresh = await bench.connect()
    found = await bench.dead_in(await fresh.open_dead_letters(bench.queue), 1)
    expect_equal(bodies(found), ["1"], "the dead letters after reconnecting")


@case("dead_letters")
async def no_dead_letter_queue_no_loss(bench: Bench) -> None:
    """While the dead-letter queue is out of order, a message that should go there stays where it was."""
    broken = bench.environment.without_dead_letters
    if broken is None:
        skip("the environment has no without_dead_letters")
    await bench.send(*bench.messages(2, bench.session))
    receiver = await bench.receiver(max_per_session=1)
    [delivery] = await bench.receive(receiver, 1)
    settlement = Settlement(delivery, SettlementAction.DEAD_LETTER, reason="ByWord")
    async with broken(bench.queue):
        try:
            [error] = await receiver.settle([settlement])
        except Exception as raised:
            failure: object = raised
        else:
            failure = error
        expect(failure is not None, "dead-lettering was confirmed without a dead-letter queue")
    await receiver.aclose()
    other = await bench.receiver()
    again = await bench.receive(other, 2)
    got = bodies(again)
    expect_equal(
        got if bench.session else sorted(got), ["1", "2"], "the messages after the failure"
    )
    await bench.dead_letter(other, again[0])
    await bench.complete(other, again[1])
    await bench.dead(1)


@case("dead_letters", "sessions", "session_halt")
async def halted_until_redriven(bench: Bench) -> None:
    """A halting dead letter holds back the rest of its session until it is redriven; then it comes first."""
    receiver, other = await bench.two_receivers()
    await bench.send(*bench.messages(3, "session"))
    head, *tail = await bench.receive(receiver, 2)
    await bench.dead_letter(receiver, head, halt=True)
    await bench.give_back(receiver, tail)
    await bench.send(*bench.messages(1, "session", first=4), *bench.messages(1, "free"))
    [free] = await bench.receive(receiver, 1)
    expect_equal(free.session_id, "free", "what is delivered beside a halted session")
    await bench.complete(receiver, free)
    await receiver.release([head.lease])
    for who in (receiver, other):
        await bench.expect_nothing(who, 0.15, "the session is halted")
    dead_letters = await bench.dead_letters()
    expect_equal(await dead_letters.redrive(), 1, "messages redriven")
    deliveries = await bench.receive(other, 4)
    expect_equal(bodies(deliveries), ["1", "2", "3", "4"], "the order after the halt")
    await bench.complete(other, deliveries)


@case("dead_letters", "sessions", "session_halt")
async def halted_until_purged(bench: Bench) -> None:
    """Purging the halting dead letter lets the session go on without it; a waiting receiver notices."""
    receiver = await bench.receiver()
    await bench.send(*bench.messages(3, "session"))
    [head] = await bench.receive(receiver, 1)
    await bench.dead_letter(receiver, head, halt=True)
    await bench.expect_nothing(receiver, 0.15, "the session is halted")
    dead_letters = await bench.dead_letters()
    expect_equal(await dead_letters.purge(), 1, "messages purged")
    deliveries = await bench.receive(receiver, 2, within=bench.environment.tolerance)
    expect_equal(bodies(deliveries), ["2", "3"], "the rest of the session")
    await bench.complete(receiver, deliveries)


@case("dead_letters", "sessions", "session_halt", "durable")
async def halted_after_reconnecting(bench: Bench) -> None:
    """A halt is not forgotten with the connection that made it."""
    provider = await bench.connect()
    receiver = await bench.receiver(provider)
    await bench.send(*bench.messages(2, "session"))
    [head] = await bench.receive(receiver, 1)
    await bench.dead_letter(receiver, head, halt=True)
    await provider.aclose()
    fresh = await bench.receiver(await bench.connect())
    await bench.expect_nothing(fresh, 0.15, "the session is halted")
    await (await bench.dead_letters()).redrive()
    deliveries = await bench.receive(fresh, 2)
    expect_equal(bodies(deliveries), ["1", "2"], "the order after the halt")
    await bench.complete(fresh, deliveries)


@case("dead_letters")
async def hostile_reasons(bench: Bench) -> None:
    """Whatever the reason and description say, they do no harm, and the dead letter is there."""
    texts = ["", "a\nb", "\x1b[2J", "<script>", "'; DROP TABLE x; --", "é" * 500, "%s %(x)s {}"]
    receiver = await bench.receiver()
    for number, text in enumerate(texts, start=1):
        await bench.send(*bench.messages(1, bench.session, first=number))
        [delivery] = await bench.receive(receiver, 1)
        error = await raised_by(
            bench.dead_letter(receiver, delivery, f"Reason {number}", description=text)
        )
        expect(error is None, f"the description {text!a} was refused: {error!r}")
    found = await bench.dead(len(texts))
    reasons = [dead.dead_letter and dead.dead_letter.reason for dead in found]
    expected = [f"Reason {number}" for number in range(1, len(texts) + 1)]
    expect_equal(reasons if bench.session else sorted(map(str, reasons)), expected, "the reasons")
