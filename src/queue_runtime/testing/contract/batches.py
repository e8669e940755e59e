"""Batches and their limits: checked before the wire, judged entry by entry."""

from __future__ import annotations

import attrs
import trio

from ...errors import BatchTooLarge, MessageTooLarge, QueueFull
from ...messages import Message
from .bench import Bench, bodies, expect, expect_equal, raised_by, skip
from .core import case

AFFORDABLE_BYTES = 64 * 2**20
AFFORDABLE_MESSAGES = 20_000


ALLOWANCE = 4_096
"""Bytes of a message that a wire format may need for itself, where a broker's limit is one of the wire."""


def sized(bench: Bench, size: int, name: str = "n") -> Message:
    """A message of exactly ``size`` bytes, a part of them in a header."""
    message = Message(b"", session_id=bench.session, headers={name: "größe"})
    # NUL is what a broker of text has to encode, and what is encoded grows.
    fill = b"\x00" if bench.environment.exact else b"x"
    return attrs.evolve(message, body=fill * (size - message.size))


@case()
async def a_full_batch(bench: Bench) -> None:
    """A batch of the most messages allowed is stored in order, with a result for each."""
    count = min(bench.capabilities.max_batch_messages, 1_000)
    sender = await bench.sender()
    results = await sender.send(bench.messages(count, bench.session))
    expect_equal(len(results), count, "results")
    errors = [result for result in results if result.error is not None]
    expect_equal(errors, [], "results with an error")
    ids = [result.message_id for result in results]
    expected = [message.message_id for message in bench.messages(count, bench.session)]
    expect_equal(ids, expected, "the ids of the results")
    receiver = await bench.receiver()
    got: list[str] = []
    while len(got) < count:
        got += bodies(await bench.gather(receiver, min(50, count - len(got))))
    expected_bodies = [str(number) for number in range(1, count + 1)]
    if bench.session is None:
        got.sort(key=int)
    expect_equal(got, expected_bodies, "the messages received")
    await bench.expect_nothing(receiver, 0.1, "every message of the batch was received")


@case()
async def one_message_too_many(bench: Bench) -> None:
    """A batch of more messages than allowed raises ``BatchTooLarge``; nothing is sent."""
    limit = bench.capabilities.max_batch_messages
    if limit > AFFORDABLE_MESSAGES:
        skip(f"a batch may hold {limit} messages: too many to try")
    sender = await bench.sender()
    [message] = bench.messages(1, bench.session)
    batch = [attrs.evolve(message, message_id=None)] * (limit + 1)
    error = await raised_by(sender.send(batch))
    expect(isinstance(error, BatchTooLarge), f"expected BatchTooLarge, got {error!r}")
    if isinstance(error, BatchTooLarge):
        expect_equal((error.count, error.limit), (limit + 1, limit), "count and limit of the error")
    receiver = await bench.receiver()
    await bench.expect_nothing(receiver, 0.2, "the batch was refused")


@case()
async def too_many_bytes_in_a_batch(bench: Bench) -> None:
    """Where a batch's bytes are limited, one over the limit raises ``BatchTooLarge``; nothing is sent."""
    limit = bench.capabilities.max_batch_bytes
    if limit is None:
        skip("batches have no limit of bytes")
    if limit > AFFORDABLE_BYTES:
        skip(f"a batch may hold {limit} bytes: too many to try")
    most = bench.capabilities.max_message_bytes
    count = limit // most + 1
    if count > bench.capabilities.max_batch_messages:
        skip("so many messages are not allowed in a batch")
    sender = await bench.sender()
    error = await raised_by(sender.send([sized(bench, most)] * count))
    expect(isinstance(error, BatchTooLarge), f"expected BatchTooLarge, got {error!r}")
    receiver = await bench.receiver()
    await bench.expect_nothing(receiver, 0.2, "the batch was refused")


@case()
async def the_largest_message(bench: Bench) -> None:
    """A message of the largest size is stored and comes back whole."""
    limit = bench.capabilities.max_message_bytes
    if limit > AFFORDABLE_BYTES:
        skip(f"a message may have {limit} bytes: too many to try")
    size = limit if bench.environment.exact else limit - ALLOWANCE
    message = sized(bench, size)
    expect_equal(message.size, size, "the size of the case's message")
    await bench.send(message)
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    expect(delivery.body == message.body, "the largest body came back changed")
    await bench.complete(receiver, delivery)


@case()
async def one_byte_too_large(bench: Bench) -> None:
    """A message one byte too large raises ``MessageTooLarge`` with size and limit; nothing of its batch is sent."""
    limit = bench.capabilities.max_message_bytes
    if limit > AFFORDABLE_BYTES:
        skip(f"a message may have {limit} bytes: too many to try")
    sender = await bench.sender()
    first, last = bench.messages(2, bench.session)
    batch = [first, sized(bench, limit + 1), last]
    for messages in (
        batch[1:2],
        batch if bench.capabilities.max_batch_messages >= 3 else batch[:2],
    ):
        error = await raised_by(sender.send(messages))
        expect(isinstance(error, MessageTooLarge), f"expected MessageTooLarge, got {error!r}")
        if isinstance(error, MessageTooLarge) and bench.environment.exact:
            expect_equal((error.size, error.limit), (limit + 1, limit), "size and limit")
        elif isinstance(error, MessageTooLarge):
            expect(error.size > error.limit, f"a size of {error.size} is within {error.limit}")
    receiver = await bench.receiver()
    await bench.expect_nothing(receiver, 0.2, "the batch was refused")


@case()
async def headers_count(bench: Bench) -> None:
    """Headers are part of a message's size."""
    limit = bench.capabilities.max_message_bytes
    if limit > 2**20:
        skip(f"a message may have {limit} bytes: too many to try with headers")
    sender = await bench.sender()
    large = Message(b"", session_id=bench.session, headers={"x": "y" * limit})
    error = await raised_by(sender.send([large]))
    expect(isinstance(error, MessageTooLarge), f"expected MessageTooLarge, got {error!r}")


@case()
async def partly_accepted(bench: Bench) -> None:
    """When a queue fills up within a batch, what fitted is stored and each other entry says why it was not."""
    if bench.environment.open_bounded is None:
        skip("the environment has no open_bounded")
    provider = await bench.keep(bench.environment.open_bounded(5))
    sender, receiver = await bench.sender(provider), await bench.receiver(provider)
    results = await sender.send(bench.messages(3, bench.session))
    results += await sender.send(bench.messages(4, bench.session, first=4))
    accepted = [result.error is None for result in results]
    expect_equal(accepted, [True] * 5 + [False] * 2, "which were accepted")
    for result in results[5:]:
        expect(isinstance(result.error, QueueFull), f"expected QueueFull, got {result.error!r}")
        expect(result.message_id is None, "a refused message has an id")
    deliveries = await bench.receive(receiver, 5)
    [still_full] = await sender.send(bench.messages(1, bench.session, first=8))
    expect(isinstance(still_full.error, QueueFull), "messages in flight do not count")
    await bench.complete(receiver, deliveries)
    [room] = await sender.send(bench.messages(1, bench.session, first=9))
    expect_equal(room.error, None, "the error when there is room again")
    deliveries += await bench.drain(receiver, 0.2)
    got = bodies(deliveries)
    expect_equal(got if bench.session else sorted(got), ["1", "2", "3", "4", "5", "9"], "stored")


@case()
async def senders_side_by_side(bench: Bench) -> None:
    """One sender used by many tasks at once: every message is stored once, each task's in its order."""
    sender = await bench.sender()
    names = [f"task{number}" if bench.session else None for number in range(10)]

    async def produce(name: str | None, first: int) -> None:
        for number in range(10):
            [result] = await sender.send(bench.messages(1, name, first=first + number))
            expect_equal(result.error, None, "the error of a send beside others")

    async with trio.open_nursery() as nursery:
        for position, name in enumerate(names):
            nursery.start_soon(produce, name, 100 * position)
    receiver = await bench.receiver()
    deliveries = await bench.gather(receiver, 100)
    expected = [str(100 * task + number) for task in range(10) for number in range(10)]
    expect_equal(sorted(map(int, bodies(deliveries))), sorted(map(int, expected)), "what is stored")
    for name in names:
        got = [int(d.body) for d in deliveries if name is not None and d.session_id == name]
        expect_equal(got, sorted(got), f"the order of {name}")
