"""Ids, headers, names and bodies that look like something else: they are carried, not interpreted."""

from __future__ import annotations

import attrs

from ...errors import Unsupported, ValidationError
from ...messages import Message, QueueName
from .bench import Bench, expect, expect_equal
from .core import case

IDS = (
    " ",
    "  two  spaces  ",
    ".",
    "..",
    "../../etc/passwd",
    "a/b",
    "a%2Fb",
    "%",
    "a-b",
    "a_b",
    "a.b",
    "*",
    ">",
    "a.*.>",
    "#",
    "$DeadLetterQueue",
    "null",
    "None",
    "0",
    "-1",
    "A",
    "a",
    "é",  # one code point
    "e\u0301",  # the same letter as two
    "'; DROP TABLE messages; --",
    '"quoted"',
    "back\\slash",
    "{json: 1}",
    "${jndi:ldap://x}",
    "%s%n{0}",
    "<b>bold</b>",
    "日本語",
    "שלום \u202egnp.exe",  # right-to-left override
    "\u200bzero\ufeffwidth",
    "👩‍👩‍👧‍👦",
    "x" * 128,
    "😀" * 128,
)
"""Ids that are allowed: each has printable or at least encodable characters, at most 128."""


@case("sessions")
async def session_ids(bench: Bench) -> None:
    """Any allowed session id is carried unchanged, and different ids are different sessions."""
    expect_equal(len(set(IDS)), len(IDS), "different ids of the case")
    await bench.send(
        *[
            Message(str(number).encode(), session_id=name)
            for _ in range(2)
            for number, name in enumerate(IDS)
        ]
    )
    receiver = await bench.receiver()
    can = bench.capabilities
    at_once = can.keeps_empty_sessions and can.max_receive_messages is None
    deliveries = await (bench.receive if at_once else bench.gather)(receiver, 2 * len(IDS))
    leases: dict[str, set[int]] = {}
    for delivery in deliveries:
        name = IDS[int(delivery.body)]
        expect_equal(delivery.session_id, name, "the session id")
        expect_equal(delivery.lease.session_id, name, "the lease's session id")
        leases.setdefault(name, set()).add(id(delivery.lease))
    different = set().union(*leases.values())
    total = sum(len(held) for held in leases.values())
    expect_equal(len(different), total, "different leases of different sessions")
    if at_once:
        expect_equal(total, len(IDS), "leases of all sessions")
        await bench.complete(receiver, deliveries)


@case("sessions", "accept_by_name")
async def session_ids_by_name(bench: Bench) -> None:
    """Any allowed session id can be accepted by name, and only that session is."""
    await bench.send(*[Message(name.encode(), session_id=name) for name in IDS])
    receiver = await bench.receiver(auto_accept=False)
    for name in IDS:
        [message] = [Message(b"", session_id=name)]
        assert message.session_id is not None, "the message has a session"
        lease = await receiver.accept(message.session_id, bench.environment.patience)
        if lease is None:
            raise AssertionError(f"accepting {name!a} by name returned None")
        [delivery] = await bench.receive(receiver, 1)
        expect_equal(delivery.body, name.encode(), f"the message of session {name!a}")
        await bench.complete(receiver, delivery)
        await receiver.release([lease])


@case()
async def message_ids(bench: Bench) -> None:
    """Any allowed message, correlation and deduplication id, and content type, is carried unchanged."""
    messages = [
        Message(
            str(number).encode(),
            session_id=bench.session,
            message_id=name,
            correlation_id=name,
            content_type=name,
            deduplication_id=name if bench.capabilities.deduplication else None,
        )
        for number, name in enumerate(IDS)
    ]
    results = await bench.send(*messages)
    expect_equal([result.duplicate for result in results], [False] * len(IDS), "duplicates")
    receiver = await bench.receiver()
    for delivery in await bench.gather(receiver, len(IDS)):
        name = IDS[int(delivery.body)]
        expect_equal(delivery.message_id, name, "the message id")
        expect_equal(delivery.message, messages[int(delivery.body)], "the message")


@case()
async def headers(bench: Bench) -> None:
    """Header values are any text - lines, NUL, empty, long - and names do not collide with the broker's own."""
    values = ["", " ", "a\r\nInjected: yes", "\x00", "\x1b[31m", "\t", "ü€😀", "v" * 4_096, *IDS]
    names = [
        "MessageId",
        "message_id",
        "session_id",
        "SessionId",
        "body",
        "headers",
        "delivery_count",
        "x-delay",
        "x-death",
        "Nats-Msg-Id",
        "traceparent",
        "Content-Type",
        "content_type",
        "Name With Spaces",
        "größe",
        "_",
        "é",
        "$x",
        "a.b",
        "A",
        "a",
    ]
    by_value = {f"h{number}": value for number, value in enumerate(values)}
    by_name = {name: f"value of {name}" for name in names}
    messages = [
        Message(b"1", session_id=bench.session, headers=by_value),
        Message(b"2", session_id=bench.session, headers=by_name),
        Message(b"3", session_id=bench.session, headers={}),
    ]
    await bench.send(*messages)
    receiver = await bench.receiver()
    deliveries = await bench.receive(receiver, 3)
    for delivery in deliveries:
        sent = messages[int(delivery.body) - 1]
        expect_equal(dict(delivery.headers), dict(sent.headers), f"headers of {delivery.body!a}")
    await bench.complete(receiver, deliveries)


@case()
async def bodies_that_look_like_something(bench: Bench) -> None:
    """Bodies are not decoded, unpacked or executed."""
    payloads = [
        b"QRE1\x01\x01",
        b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.",
        b"\x1f\x8b\x08\x00",
        b'{"body": "aGVsbG8="}',
        b"aGVsbG8=",
        b"null",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"'); DROP TABLE messages; --",
        b"\x00" * 1_000,
    ]
    await bench.send(*[Message(payload, session_id=bench.session) for payload in payloads])
    receiver = await bench.receiver()
    deliveries = await bench.receive(receiver, len(payloads))
    received = sorted(delivery.body for delivery in deliveries)
    expect_equal(received, sorted(payloads), "the bodies")
    await bench.complete(receiver, deliveries)


@case()
async def queue_names(bench: Bench) -> None:
    """Queue names that look alike are different queues; a name the broker cannot have is refused by a typed error."""
    base = bench.queue
    endings = ["a/b", "a-b", "a.b", "a_b", "A-b", "a-B", "a--b", "a", "b"]
    usable: list[QueueName] = []
    for number, ending in enumerate(endings):
        queue = QueueName(f"{base}-{ending}")
        try:
            # Provisioning keeps what is there, also where names that differ in capitals are the same.
            if bench.environment.create_queue is not None:
                bench.environment.create_queue(queue)
            elif bench.capabilities.provisioning:
                await bench.provider.provision(queue)
            sender = await bench.sender(queue=queue)
        except (ValidationError, Unsupported):
            continue
        await sender.send([Message(str(number).encode(), session_id=bench.session)])
        usable.append(queue)
    expect(len(usable) >= 2, f"hardly any of the queue names could be used: {usable}")
    for queue in usable:
        receiver = await bench.receiver(queue=queue)
        deliveries = await bench.receive(receiver, 1)
        number = endings.index(queue.removeprefix(f"{base}-"))
        expect_equal([d.body for d in deliveries], [str(number).encode()], f"what is in {queue}")
        await bench.complete(receiver, deliveries)
        await bench.expect_nothing(receiver, 0.0, f"everything in {queue} was completed")


@case("dead_letters")
async def hostile_dead_letters(bench: Bench) -> None:
    """Messages with hostile ids and headers survive the way to the dead-letter queue and back."""
    names = IDS if bench.capabilities.sessions else [None] * len(IDS)
    messages = [
        Message(
            str(number).encode(),
            session_id=name,
            message_id=IDS[number],
            headers={"h": IDS[number]},
        )
        for number, name in enumerate(names)
    ]
    await bench.send(*messages)
    receiver = await bench.receiver()
    await bench.dead_letter(receiver, await bench.receive(receiver, len(messages)), "Hostile")
    found = await bench.dead(len(messages))
    for dead in found:
        expect_equal(dead.message, messages[int(dead.message.body)], "the dead letter")
    redriven = await (await bench.dead_letters()).redrive()
    expect_equal(redriven, len(messages), "messages redriven")
    deliveries = await bench.receive(receiver, len(messages))
    for delivery in deliveries:
        expect_equal(delivery.message, messages[int(delivery.body)], "the redriven message")
    await bench.complete(receiver, deliveries)


@case()
async def forged_fields(bench: Bench) -> None:
    """A delivery changed by its consumer settles nothing but itself."""
    await bench.send(*bench.messages(1, bench.session))
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    changed = attrs.evolve(delivery, delivery_count=99, message=Message(b"changed"))
    error = await bench.try_settle(receiver, changed)
    if error is not None:
        await bench.complete(receiver, delivery)
    await bench.expect_nothing(receiver, 0.1, "the message was completed")
