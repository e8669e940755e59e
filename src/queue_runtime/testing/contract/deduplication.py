"""Messages sent twice on purpose or by a retry are stored once."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import trio

from ...messages import Message, SendResult
from .bench import Bench, bodies, expect, expect_equal, expect_unsupported, skip
from .core import case, unsupported_case


def twin(bench: Bench, number: int, key: str | None, session: str | None = None) -> Message:
    """The numbered message with a deduplication id."""
    [message] = bench.messages(1, session or bench.session, first=number)
    return attrs.evolve(message, deduplication_id=key)


@unsupported_case("deduplication")
async def without_deduplication(bench: Bench) -> None:
    """Where deduplication is not declared, sending a deduplication id raises ``Unsupported``."""
    sender = await bench.sender()
    await expect_unsupported("deduplication", sender.send([twin(bench, 1, "key")]))


def expect_duplicates(bench: Bench, results: Sequence[SendResult], expected: list[bool]) -> None:
    """Go on only if nothing but duplicates is called one, and every duplicate where the broker tells."""
    flags = [result.duplicate for result in results]
    if bench.environment.reports_duplicates:
        expect_equal(flags, expected, "which are duplicates")
    else:
        wrong = [flag and not wanted for flag, wanted in zip(flags, expected, strict=True)]
        expect(not any(wrong), f"a first message was called a duplicate: {flags}")


@case("deduplication")
async def stored_once(bench: Bench) -> None:
    """Of messages with one deduplication id the first is stored; the others are acknowledged as duplicates of it."""
    first, second, third = await bench.send(
        twin(bench, 1, "key"), twin(bench, 2, "key"), twin(bench, 3, "other")
    )
    [fourth] = await bench.send(twin(bench, 4, "key"))
    other = await bench.sender(await bench.connect())
    [fifth] = await other.send([twin(bench, 5, "key")])
    expect_equal(fifth.error, None, "the error of a duplicate")
    expect_duplicates(
        bench, (first, second, third, fourth, fifth), [False, True, False, True, True]
    )
    if bench.environment.reports_duplicates:
        ids = {result.message_id for result in (first, second, fourth, fifth)}
        expect_equal(ids, {first.message_id}, "the ids of the duplicates")
    receiver = await bench.receiver()
    deliveries = await bench.drain(receiver, 0.2)
    expect_equal(bodies(deliveries), ["1", "3"], "what was stored")


@case("deduplication")
async def remembered_after_completion(bench: Bench) -> None:
    """A duplicate is one also when the first message was completed already."""
    await bench.send(twin(bench, 1, "key"))
    receiver = await bench.receiver()
    await bench.complete(receiver, await bench.receive(receiver, 1))
    [result] = await bench.send(twin(bench, 2, "key"))
    expect_duplicates(bench, [result], [True])
    await bench.expect_nothing(receiver, 0.1, "the second message is a duplicate")


@case("deduplication")
async def without_an_id_nothing_is_a_duplicate(bench: Bench) -> None:
    """Messages alike in everything, but without a deduplication id, are all stored."""
    message = Message(b"same", session_id=bench.session)
    results = await bench.send(message, message, message)
    expect_duplicates(bench, results, [False] * 3)
    receiver = await bench.receiver()
    expect_equal(bodies(await bench.drain(receiver, 0.2)), ["same"] * 3, "what was stored")


@case("deduplication")
async def ids_are_per_queue(bench: Bench) -> None:
    """A deduplication id used in one queue is free in another."""
    queue = bench.environment.queue_name()
    other = await bench.sender(queue=queue)
    [first] = await bench.send(twin(bench, 1, "key"))
    [second] = await other.send([twin(bench, 2, "key")])
    receiver = await bench.receiver(queue=queue)
    [delivery] = await bench.receive(receiver, 1)
    expect_equal(delivery.body, b"2", "what is in the other queue")
    await bench.complete(receiver, delivery)
    expect_duplicates(bench, [first, second], [False, False])


@case("deduplication", waits=True)
async def forgotten_after_the_window(bench: Bench) -> None:
    """After the deduplication window an id may be used again."""
    window = bench.environment.deduplication_window
    if window is None:
        skip("the environment has no deduplication_window short enough to wait for")
    bench.affordable(window, "waiting for the deduplication window")
    await bench.send(twin(bench, 1, "key"))
    await trio.sleep(window / 2)
    [inside] = await bench.send(twin(bench, 2, "key"))
    expect_duplicates(bench, [inside], [True])
    await trio.sleep(window / 2 + bench.environment.tolerance)
    [outside] = await bench.send(twin(bench, 3, "key"))
    expect_duplicates(bench, [outside], [False])
    receiver = await bench.receiver()
    expect_equal(bodies(await bench.drain(receiver, 0.2)), ["1", "3"], "what was stored")
