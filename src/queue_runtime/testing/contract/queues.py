"""Looking at a queue, emptying it, and queues that are not there."""

from __future__ import annotations

from datetime import timedelta

import attrs
import trio

from ...abc import ReceiverOptions
from ...errors import QueueNotFound
from ...messages import MessageState, QueueName
from .bench import Bench, bodies, expect, expect_equal, expect_unsupported, raised_by, skip
from .core import case, unsupported_case


@unsupported_case("peek")
async def without_peek(bench: Bench) -> None:
    """Where looking is not declared, ``peek`` raises ``Unsupported``."""
    await expect_unsupported("peek", bench.provider.peek(bench.queue, 1))


@unsupported_case("purge")
async def without_purge(bench: Bench) -> None:
    """Where emptying is not declared, ``purge`` raises ``Unsupported``."""
    await expect_unsupported("purge", bench.provider.purge(bench.queue))


@unsupported_case("stats")
async def without_stats(bench: Bench) -> None:
    """Where statistics are not declared, ``stats`` raises ``Unsupported``."""
    await expect_unsupported("stats", bench.provider.stats(bench.queue))


@unsupported_case("provisioning")
async def without_provisioning(bench: Bench) -> None:
    """Where creating queues is not declared, ``provision`` raises ``Unsupported``."""
    await expect_unsupported("provisioning", bench.provider.provision(bench.queue))


@case("provisioning")
async def provisioned(bench: Bench) -> None:
    """Provisioning creates a queue that can be used at once; a second time it creates nothing and says so."""
    first = await bench.provider.provision(bench.queue)
    expect(bool(first) and all(first), f"lines for people, got {first!a}")
    [message] = bench.messages(1, bench.session)
    await bench.send(message)
    again = await bench.provider.provision(bench.queue)
    expect(not any("created" in line for line in again), f"nothing created, got {again!a}")
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    expect_equal(delivery.body, message.body, "the body of a message sent before")
    await bench.complete(receiver, [delivery])


@case("peek")
async def peeked(bench: Bench) -> None:
    """Peeking shows stored messages in order and by pages, and neither locks nor counts them."""
    await bench.send(*bench.messages(5, bench.session))
    for _ in range(2):
        pages, after = [], 0
        while page := await bench.provider.peek(bench.queue, 2, after):
            expect(len(page) <= 2, f"asked for 2, got {len(page)}")
            pages.append(bodies(page))
            for seen in page:
                expect_equal(seen.state, MessageState.READY, "the state of a waiting message")
                expect_equal(seen.delivery_count, 0, "the count of a waiting message")
            after = page[-1].sequence_number
        expect_equal(pages, [["1", "2"], ["3", "4"], ["5"]], "the pages")
    receiver = await bench.receiver()
    deliveries = await bench.receive(receiver, 5)
    expect_equal([d.delivery_count for d in deliveries], [1] * 5, "delivery counts")
    await bench.complete(receiver, deliveries)
    expect_equal(await bench.provider.peek(bench.queue, 10), [], "a peek into an empty queue")


@case("peek")
async def peeked_whole(bench: Bench) -> None:
    """A peeked message is the message that was sent."""
    [message] = bench.messages(1, bench.session)
    message = attrs.evolve(message, headers={"a": "b"}, content_type="text/plain")
    [result] = await bench.send(message)
    [seen] = await bench.provider.peek(bench.queue, 1)
    expect_equal(seen.message, message, "the peeked message")
    expect_equal(seen.message_id, result.message_id, "its id")
    if result.sequence_number is not None:
        expect_equal(seen.sequence_number, result.sequence_number, "its sequence number")


@case("peek")
async def peeked_in_every_state(bench: Bench) -> None:
    """Peeking tells messages in flight, failed and waiting apart; not every broker does, some say that they wait."""
    can = bench.capabilities
    names = ["a", "b", "c"] if can.sessions else [None] * 3
    receiver = await bench.receiver()
    await bench.send(*bench.messages(1, names[0], first=1), *bench.messages(1, names[1], first=2))
    deliveries = await bench.receive(receiver, 2)
    by_body = {delivery.body: delivery for delivery in deliveries}
    expected = {"1": MessageState.IN_FLIGHT, "3": MessageState.READY}
    if can.abandon_delay:
        await bench.abandon(receiver, by_body[b"2"], delay=60.0)
        expected["2"] = MessageState.DELAYED
    else:
        await bench.complete(receiver, by_body[b"2"])
    await bench.send(*bench.messages(1, names[2], first=3))
    seen = await bench.provider.peek(bench.queue, 10)
    states = {str(peeked.message.body, "ascii"): peeked.state for peeked in seen}
    if not bench.environment.exact:
        waiting = MessageState.READY
        expected = {
            body: waiting if states.get(body) is waiting else state
            for body, state in expected.items()
        }
    expect_equal(states, expected, "the states")
    await bench.complete(receiver, by_body[b"1"])


@case("purge")
async def emptied(bench: Bench) -> None:
    """Purging deletes what waits and what is scheduled, and leaves alone what is in flight."""
    can = bench.capabilities
    names = ["a", "b"] if can.sessions else [None, None]
    receiver = await bench.receiver()
    await bench.send(*bench.messages(1, names[0]))
    [held] = await bench.receive(receiver, 1)
    await bench.send(*bench.messages(3, names[1], first=2))
    waiting = 3
    if can.scheduling:
        [later] = bench.messages(1, names[1], first=5)
        await bench.send(attrs.evolve(later, scheduled_at=bench.now() + timedelta(hours=1)))
        waiting += 1
    expect_equal(await bench.provider.purge(bench.queue), waiting, "messages purged")
    expect_equal(await bench.provider.purge(bench.queue), 0, "messages purged again")
    await bench.complete(receiver, held)
    await bench.expect_nothing(receiver, 0.1, "the queue was purged")
    await bench.send(*bench.messages(1, names[1], first=6))
    [next_one] = await bench.receive(receiver, 1)
    expect_equal(next_one.body, b"6", "what was sent after the purge")
    await bench.complete(receiver, next_one)


@case("purge", "dead_letters")
async def emptied_but_for_dead_letters(bench: Bench) -> None:
    """Purging the queue leaves its dead letters alone."""
    await bench.send(*bench.messages(2, bench.session))
    receiver = await bench.receiver(max_per_session=1)
    [delivery] = await bench.receive(receiver, 1)
    await bench.dead_letter(receiver, delivery)
    # Where an empty session stays locked, nobody else can take what waits in it.
    await receiver.release([delivery.lease])
    expect_equal(await bench.provider.purge(bench.queue), 1, "messages purged")
    await bench.dead(1)


@case("stats")
async def counted(bench: Bench) -> None:
    """Statistics follow a message from waiting to gone; where the broker counts by and by, in time."""
    can = bench.capabilities

    async def expect_stats(when: str, **expected: int) -> None:
        whole = {"depth": 0, "in_flight": 0, "scheduled": 0, "dead_lettered": 0} | expected
        # Some brokers count by and by.
        patience = 0.0 if bench.environment.exact else bench.environment.patience
        until = trio.current_time() + patience
        while True:
            stats = await bench.provider.stats(bench.queue)
            if stats.in_flight is None:
                stats = attrs.evolve(
                    stats, depth=stats.depth - whole["in_flight"], in_flight=whole["in_flight"]
                )
            found = {name: getattr(stats, name) for name in whole}
            if found == whole or trio.current_time() >= until:
                break
            await trio.sleep(0.1)
        expect_equal(found, whole, f"statistics {when}")
        if stats.oldest_age is not None:
            expect(-1 <= stats.oldest_age <= 600, f"oldest_age {when} is {stats.oldest_age}")
        if stats.sessions is not None and bench.session is not None:
            busy = bool(whole["depth"] or whole["in_flight"])
            expect_equal(stats.sessions, int(busy), f"sessions {when}")

    receiver = await bench.receiver(max_per_session=3)
    await expect_stats("of a new queue")
    await bench.send(*bench.messages(4, bench.session))
    await expect_stats("after sending", depth=4)
    deliveries = await bench.receive(receiver, 3)
    await expect_stats("after receiving", depth=1, in_flight=3)
    stats = await bench.provider.stats(bench.queue)  # as just seen
    if stats.locked_sessions is not None and bench.session is not None:
        expect_equal(stats.locked_sessions, 1, "locked sessions")
    await bench.complete(receiver, deliveries[0])
    await expect_stats("after completing", depth=1, in_flight=2)
    await bench.abandon(receiver, deliveries[1])
    # Where the lock is the messages in flight, it may stay in flight until what lies behind it is settled.
    if can.keeps_empty_sessions or bench.session is None:
        await expect_stats("after abandoning", depth=2, in_flight=1)
    await bench.give_back(receiver, deliveries[2])
    await expect_stats("after giving back", depth=3)
    dead = 0
    if can.dead_letters:
        [delivery] = await bench.receive(receiver, 1)
        await bench.dead_letter(receiver, delivery)
        dead = 1
        await expect_stats("after dead-lettering", depth=2, dead_lettered=1)
    if can.scheduling:
        [later] = bench.messages(1, bench.session, first=5)
        await bench.send(attrs.evolve(later, scheduled_at=bench.now() + timedelta(hours=1)))
        await expect_stats("after scheduling", depth=3 - dead, scheduled=1, dead_lettered=dead)


@case()
async def not_there(bench: Bench) -> None:
    """A connection that does not create queues fails with ``QueueNotFound`` at once, and works once there is one."""
    if bench.environment.open_undeclared is None:
        skip("the environment has no open_undeclared")
    provider = await bench.keep(bench.environment.open_undeclared())
    options = ReceiverOptions()
    can = bench.capabilities
    # Where queues have to be provisioned that of the case is there already.
    queue = QueueName(f"{bench.queue}-absent") if can.provisioning else bench.queue
    for call in (provider.open_sender(queue), provider.open_receiver(queue, options)):
        error = await raised_by(call)
        expect(isinstance(error, QueueNotFound), f"expected QueueNotFound, got {error!r}")
        expect(str(queue) in str(error), f"the error does not name the queue: {error}")
    if can.dead_letters:
        error = await raised_by(provider.open_dead_letters(queue))
        expect(isinstance(error, QueueNotFound), f"expected QueueNotFound, got {error!r}")
    if can.provisioning:
        await bench.provider.provision(queue)
    sender = await bench.sender(queue=queue)
    [result] = await sender.send(bench.messages(1, bench.session))
    expect_equal(result.error, None, "the error of sending to the queue once it is there")
    receiver = await bench.receiver(provider, queue)
    [delivery] = await bench.receive(receiver, 1)
    await bench.complete(receiver, delivery)
