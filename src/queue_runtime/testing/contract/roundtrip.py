"""What is sent arrives as it was sent."""

from __future__ import annotations

from datetime import timedelta

import attrs
import trio

from ...abc import LOCAL_DEADLINE_FRACTION
from ...messages import Message
from .bench import Bench, expect, expect_equal
from .core import case


@case()
async def every_field(bench: Bench) -> None:
    """Every field of a message comes back unchanged, and the delivery's own fields are sound."""
    can = bench.capabilities
    message = Message(
        b"\x00body\xff",
        session_id=bench.session,
        headers={"traceparent": "00-1-2-03", "empty": "", "Größe": "ü€😀"},
        message_id="the-message",
        correlation_id="the-cause",
        content_type="application/json; charset=utf-8",
        time_to_live=3600.0 if can.time_to_live else None,
        deduplication_id="the-duplicate" if can.deduplication else None,
    )
    before = bench.now()
    [result] = await bench.send(message)
    receiver = await bench.receiver()
    asked = trio.current_time()
    [delivery] = await bench.receive(receiver, 1)
    expect_equal(delivery.message, message, "the message")
    expect_equal(dict(delivery.headers), dict(message.headers), "the headers")
    expect_equal(result.message_id, "the-message", "the message id of the send's result")
    expect_equal(delivery.message_id, "the-message", "the message id")
    expect(result.duplicate is False, "the first message is a duplicate of nothing")
    expect_equal(delivery.delivery_count, 1, "the count of the first delivery")
    expect(delivery.dead_letter is None, "a new message has no history as a dead letter")
    expect(bool(delivery.receipt), "the receipt is empty")
    if result.sequence_number is not None and delivery.sequence_number is not None:
        expect_equal(delivery.sequence_number, result.sequence_number, "the sequence number")
    offset = delivery.enqueued_at.utcoffset()
    expect_equal(offset, timedelta(0), "the UTC offset of enqueued_at")
    skew = abs((delivery.enqueued_at - before).total_seconds())
    expect(skew < 60, f"enqueued_at is {skew:.0f} s away from the time of sending")
    lease = delivery.lease
    expect_equal(lease.session_id, message.session_id, "the lease's session id")
    expect(lease.lost is None, f"a fresh lease is lost: {lease.lost!r}")
    now = trio.current_time()
    expect(lease.deadline > now, "a fresh lease is past its deadline")
    if lease.deadline != float("inf"):
        latest = now + LOCAL_DEADLINE_FRACTION * receiver.lock_duration
        expect(
            lease.deadline <= latest + 0.001,
            f"the lease's deadline lies {lease.deadline - asked:.3f} s after the call, more than "
            f"{LOCAL_DEADLINE_FRACTION} of the lock duration of {receiver.lock_duration} s",
        )
    expect(lease.expires_at > before, "the lease's expires_at has passed already")
    expect_equal(delivery.locked_until, lease.expires_at, "locked_until")
    await bench.complete(receiver, delivery)


@case()
async def absent_fields_stay_absent(bench: Bench) -> None:
    """A message that has only a body comes back with only a body, and an id made for it."""
    [result] = await bench.send(Message(b"bare", session_id=bench.session))
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    message = attrs.evolve(delivery.message, message_id=None)
    expect_equal(message, Message(b"bare", session_id=bench.session), "the bare message")
    expect(bool(result.message_id), "the send's result has no message id")
    expect_equal(delivery.message_id, result.message_id, "the generated message id")
    await bench.complete(receiver, delivery)


@case()
async def generated_ids_differ(bench: Bench) -> None:
    """Messages without an id of their own get different ones."""
    results = await bench.send(*[Message(b"same", session_id=bench.session)] * 20)
    expect_equal(len({result.message_id for result in results}), 20, "different generated ids")
    receiver = await bench.receiver()
    deliveries = await bench.gather(receiver, 20)
    expect_equal(
        {delivery.message_id for delivery in deliveries},
        {result.message_id for result in results},
        "the ids delivered",
    )


@case()
async def the_id_stays_on_redelivery(bench: Bench) -> None:
    """A redelivered message keeps its id, body, enqueue time and position; its receipt is a new one."""
    await bench.send(Message(b"again", session_id=bench.session))
    receiver = await bench.receiver()
    [first] = await bench.receive(receiver, 1)
    await bench.abandon(receiver, first)
    [second] = await bench.receive(receiver, 1)
    expect_equal(second.message_id, first.message_id, "the message id of the redelivery")
    expect_equal(second.body, b"again", "the body of the redelivery")
    expect_equal(second.enqueued_at, first.enqueued_at, "enqueued_at of the redelivery")
    expect_equal(second.sequence_number, first.sequence_number, "its sequence number")
    expect(second.receipt != first.receipt, "two deliveries have one receipt")
    await bench.complete(receiver, second)


@case()
async def binary_bodies(bench: Bench) -> None:
    """Bodies are bytes: empty, all values, long, invalid as text."""
    every = bytes(range(256))
    long = every * (min(bench.capabilities.max_message_bytes, 65_536) // 256 - 2)
    payloads = [b"", b"\x00", every, b"\xff\xfe\xfd", "naïve 😀".encode(), b"\r\n.\r\n", long]
    await bench.send(*[Message(payload, session_id=bench.session) for payload in payloads])
    receiver = await bench.receiver()
    deliveries = await bench.receive(receiver, len(payloads))
    received = sorted(delivery.body for delivery in deliveries)
    expect_equal(received, sorted(payloads), "the bodies")
    await bench.complete(receiver, deliveries)


@case()
async def empty_batches(bench: Bench) -> None:
    """Sending, settling, renewing and releasing nothing does nothing."""
    sender, receiver = await bench.sender(), await bench.receiver()
    expect_equal(await sender.send([]), [], "results of sending nothing")
    expect_equal(await receiver.settle([]), [], "answers to settling nothing")
    if bench.capabilities.lock_renewal:
        expect_equal(await receiver.renew([]), [], "answers to renewing nothing")
    await receiver.release([])
    await bench.expect_nothing(receiver, 0.0, "nothing was sent")


@case()
async def queues_are_separate(bench: Bench) -> None:
    """A message is found in the queue it was sent to, and only there."""
    other = bench.environment.queue_name()
    other_sender = await bench.sender(queue=other)
    await bench.send(*bench.messages(1, bench.session))
    await other_sender.send(bench.messages(1, bench.session, first=2))
    receiver, other_receiver = await bench.receiver(), await bench.receiver(queue=other)
    [here] = await bench.receive(receiver, 1)
    [there] = await bench.receive(other_receiver, 1)
    expect_equal((here.body, there.body), (b"1", b"2"), "the bodies of the two queues")
    await bench.complete(receiver, here)
    await bench.complete(other_receiver, there)
    await bench.expect_nothing(receiver, 0.0, "the queue is empty")


@case()
async def two_connections_share_a_queue(bench: Bench) -> None:
    """What one connection sends, another receives, and the first does not see it again."""
    sender = await bench.sender(await bench.connect())
    await sender.send(bench.messages(1, bench.session))
    receiver, other = await bench.two_receivers()
    [delivery] = await bench.receive(other, 1)
    await bench.complete(other, delivery)
    await bench.expect_nothing(receiver, 0.2, "the other connection completed the message")
