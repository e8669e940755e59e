"""Messages for later: not too early, not too late, not lost on the way."""

from __future__ import annotations

from datetime import datetime, timedelta

import attrs
import trio

from ...messages import Message, MessageState
from .bench import Bench, bodies, expect, expect_equal, expect_unsupported
from .core import case, unsupported_case

EARLY = 0.05
"""Seconds by which two clocks of one machine may differ."""

UNHURRIED = 5
"""Delays: long enough for a busy machine to do what has to be done before the message is due."""


def due(bench: Bench, seconds: float) -> datetime:
    """The broker's time of day in ``seconds``."""
    return bench.now() + timedelta(seconds=seconds)


def scheduled(bench: Bench, seconds: float, first: int = 1, count: int = 1) -> list[Message]:
    """Numbered messages due in ``seconds``, all at one time."""
    moment = due(bench, seconds)
    return [
        attrs.evolve(message, scheduled_at=moment)
        for message in bench.messages(count, bench.session, first)
    ]


@unsupported_case("scheduling")
async def without_scheduling(bench: Bench) -> None:
    """Where scheduling is not declared, sending a scheduled message raises ``Unsupported``."""
    sender = await bench.sender()
    await expect_unsupported("scheduling", sender.send(scheduled(bench, 60)))


@unsupported_case("cancel_scheduled")
async def without_cancel_scheduled(bench: Bench) -> None:
    """Where taking back is not declared, ``cancel_scheduled`` raises ``Unsupported``."""
    sender = await bench.sender()
    await expect_unsupported("cancel_scheduled", sender.cancel_scheduled([1]))


@case("scheduling", waits=True)
async def on_time(bench: Bench) -> None:
    """A scheduled message comes at its time: not before, and not much later, to a receiver that waits."""
    receiver, sender = await bench.receiver(), await bench.sender()
    delay = 2 * bench.environment.delay
    began = trio.current_time()
    await sender.send(scheduled(bench, delay))
    [delivery] = await bench.receive(receiver, 1)
    waited = trio.current_time() - began
    expect(waited >= delay - EARLY, f"due in {delay} s, delivered after {waited:.3f} s")
    late = waited - delay
    expect(late <= bench.tolerance_of_delays, f"delivered {late:.3f} s too late")
    bench.expect_count(delivery.delivery_count, 1, "the delivery count")
    await bench.complete(receiver, delivery)


@case("scheduling")
async def in_the_past(bench: Bench) -> None:
    """A message scheduled for a time that has passed is delivered at once."""
    receiver = await bench.receiver()
    await bench.send(*scheduled(bench, -3600))
    [delivery] = await bench.receive(receiver, 1, within=bench.environment.tolerance)
    await bench.complete(receiver, delivery)


@case("scheduling", waits=True)
async def does_not_hold_back_its_session(bench: Bench) -> None:
    """Messages sent after a scheduled one are delivered before it; it takes its place when it is due."""
    receiver, sender = await bench.receiver(), await bench.sender()
    await sender.send(scheduled(bench, UNHURRIED * bench.environment.delay))
    await sender.send(bench.messages(2, bench.session, first=2))
    now = await bench.receive(receiver, 2)
    expect_equal(sorted(bodies(now)), ["2", "3"], "what is delivered before the scheduled one")
    await bench.finish(receiver, now)
    [later] = await bench.receive(receiver, 1)
    expect_equal(later.body, b"1", "the scheduled one")
    await bench.complete(receiver, later)


@case("scheduling", "sessions", waits=True)
async def one_time_keeps_the_order(bench: Bench) -> None:
    """Messages of a session scheduled for one time come in the order of sending; earlier times come first."""
    receiver = await bench.receiver()
    delay = bench.environment.delay
    late = scheduled(bench, (UNHURRIED + 1) * delay, first=6, count=5)
    early = scheduled(bench, UNHURRIED * delay, first=1, count=5)
    await bench.send(*late)
    await bench.send(*early)
    deliveries = await bench.gather(receiver, 10)
    expect_equal(bodies(deliveries), [str(n) for n in range(1, 11)], "the order when due")


@case("scheduling", "durable", waits=True)
async def survives_reconnecting(bench: Bench) -> None:
    """A scheduled message is delivered in time although the connection that sent it is closed."""
    provider = await bench.connect()
    sender = await bench.sender(provider)
    delay = 2 * bench.environment.delay
    began = trio.current_time()
    await sender.send(scheduled(bench, delay))
    await provider.aclose()
    receiver = await bench.receiver(await bench.connect())
    [delivery] = await bench.receive(receiver, 1)
    waited = trio.current_time() - began
    expect(waited >= delay - EARLY, f"due in {delay} s, delivered after {waited:.3f} s")
    late = waited - delay
    expect(late <= bench.tolerance_of_delays, f"delivered {late:.3f} s too late")
    await bench.complete(receiver, delivery)


@case("scheduling", "cancel_scheduled", waits=True)
async def taken_back(bench: Bench) -> None:
    """A scheduled message can be taken back until it is due; it is never delivered then."""
    sender, receiver = await bench.sender(), await bench.receiver()
    other = await bench.sender(await bench.connect())  # connecting must not outlast the delay
    delay = UNHURRIED * bench.environment.delay
    results = await sender.send(scheduled(bench, delay, count=3))
    numbers = [result.sequence_number for result in results]
    given = [number for number in numbers if number is not None]
    expect_equal(len(given), 3, "sequence numbers of scheduled messages")
    expect_equal(await sender.cancel_scheduled([]), [], "taking back nothing")
    answers = await other.cancel_scheduled([given[1], max(given) + 10_000])
    expect_equal(answers, [True, False], "taking back a scheduled and an unknown message")
    expect_equal(await sender.cancel_scheduled([given[1]]), [False], "taking it back twice")
    deliveries = await bench.receive(receiver, 2)
    expect_equal(bodies(deliveries), ["1", "3"], "what was not taken back")
    expect_equal(await sender.cancel_scheduled(given[:1]), [False], "taking back what is delivered")
    await bench.complete(receiver, deliveries)
    await bench.expect_nothing(receiver, bench.environment.delay, "the message was taken back")


@case("scheduling", "peek")
async def seen_while_scheduled(bench: Bench) -> None:
    """A scheduled message can be looked at."""
    await bench.send(*scheduled(bench, 3600))
    [seen] = await bench.provider.peek(bench.queue, 10)
    expect_equal(seen.state, MessageState.SCHEDULED, "its state")
    expect_equal(bodies([seen]), ["1"], "its body")
    receiver = await bench.receiver()
    await bench.expect_nothing(receiver, 0.1, "the message is scheduled for later")


@case("scheduling", waits=True)
async def wakes_a_receiver_that_came_first(bench: Bench) -> None:
    """A receiver that waits already when a nearer time is scheduled gets both messages in time."""
    receiver = await bench.receiver()
    delay = bench.environment.delay
    began = trio.current_time()
    await bench.send(*scheduled(bench, 4 * delay, first=2))
    async with trio.open_nursery() as nursery:

        async def schedule_nearer() -> None:
            await trio.sleep(delay)
            await bench.send(*scheduled(bench, delay, first=1))

        nursery.start_soon(schedule_nearer)
        [first] = await bench.receive(receiver, 1)
    waited = trio.current_time() - began
    expect_equal(first.body, b"1", "the nearer message")
    late = waited - 2 * delay
    expect(late <= bench.tolerance_of_delays, f"delivered {late:.3f} s too late")
    await bench.finish(receiver, first)
    [second] = await bench.receive(receiver, 1)
    expect_equal(second.body, b"2", "the farther message")
    await bench.complete(receiver, second)
