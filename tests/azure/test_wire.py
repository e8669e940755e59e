"""The emulator's AMQP edge, in memory and by a client on proton: what the SDK would not send, or not show."""

from __future__ import annotations

import gc
import hashlib
import hmac
import uuid
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proton import (
    UNDESCRIBED,
    Array,
    Data,
    Delivery,
    Described,
    Message,
    int32,
    symbol,
    timestamp,
    ubyte,
    ulong,
)

from queue_runtime.testing.servicebus.authority import Right
from queue_runtime.testing.servicebus.codec import (
    BATCH_FORMAT,
    decode_transfer,
    encode_stored,
    encode_value,
)
from queue_runtime.testing.servicebus.entities import Lane, QueueSettings, Stored
from queue_runtime.testing.servicebus.fault_book import Operation
from queue_runtime.testing.servicebus.frames import MessageFormats
from queue_runtime.testing.servicebus.namespace import Namespace
from queue_runtime.testing.servicebus.refusals import Refused, server_busy

from .raw_client import Edge, RawClient
from .semantics import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def edge(clock: Clock) -> Edge:
    namespace = Namespace(clock)
    namespace.create("q", QueueSettings(lock_duration=30, max_message_bytes=100_000))
    namespace.create("q2", QueueSettings())
    namespace.create("s", QueueSettings(requires_session=True, lock_duration=30))
    return Edge(namespace)


@pytest.fixture
def client(edge: Edge) -> Iterator[RawClient]:
    client = edge.connect()
    client.authorize()
    yield client
    client.close()


def section(code: int, value: Any) -> bytes:
    return encode_value(Described(ulong(code), value))


def through(raw: bytes, **changes: Any) -> Stored:
    (content,) = decode_transfer(raw, 0)
    message = Stored(content, Lane(None), 1_000.0)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def decoded(raw: bytes) -> Any:
    message = Message()
    message.decode(raw)
    return message


# --- messages --------------------------------------------------------------------------------------

SIMPLE = (
    st.none()
    | st.booleans()
    | st.text()
    | st.binary()
    | st.uuids()
    | st.floats(allow_nan=False)
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(-(2**31), 2**31 - 1).map(int32)
    | st.integers(0, 255).map(ubyte)
    | st.integers(0, 2**63 - 1).map(ulong)
    | st.integers(0, 2**40).map(timestamp)
    | st.text(st.characters(max_codepoint=127), max_size=300).map(symbol)
)
VALUES = st.recursive(
    SIMPLE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(
    body=st.one_of(
        st.lists(st.binary(max_size=400), min_size=1, max_size=3).map(
            lambda parts: b"".join(section(0x75, part) for part in parts)
        ),
        st.lists(VALUES, max_size=3).map(lambda value: section(0x76, value)),
        VALUES.map(lambda value: section(0x77, value)),
    ),
    application=st.none() | st.dictionaries(st.text(), SIMPLE, max_size=5),
    annotations=st.none()
    | st.dictionaries(st.text(st.characters(max_codepoint=127)).map(symbol), VALUES, max_size=3),
    durable=st.booleans(),
    priority=st.none() | st.integers(0, 9).map(ubyte),
)
def test_what_the_broker_does_not_know_is_passed_on_byte_by_byte(
    body: bytes, application: Any, annotations: Any, durable: bool, priority: Any
) -> None:
    parts = [section(0x70, [durable, priority])]
    if annotations is not None:
        parts.append(section(0x72, annotations))
    properties = section(0x73, ["id", None, None, "subject"])
    tail = properties + (b"" if application is None else section(0x74, application)) + body
    message = through(b"".join(parts) + tail)
    encoded = encode_stored(message)
    assert encoded.endswith(tail)
    result = decoded(encoded)
    assert (result.durable, result.priority) == (durable, 4 if priority is None else priority)
    for name, value in (annotations or {}).items():
        assert result.annotations[name] == value
    assert result.annotations[symbol("x-opt-sequence-number")] == 0
    (again,) = decode_transfer(encoded, 0)
    assert (again.message_id, again.session_id) == ("id", None)


def test_what_the_broker_reads(clock: Clock) -> None:
    raw = b"".join(
        (
            section(0x70, [None, None, 2_500]),
            section(0x72, {symbol("x-opt-scheduled-enqueue-time"): timestamp(1_700_000_000_123)}),
            section(0x73, [uuid.UUID(int=7), *[None] * 9, "session", 3]),
            section(0x75, b"body"),
        )
    )
    (content,) = decode_transfer(raw, 0)
    assert content.message_id == uuid.UUID(int=7)
    assert content.session_id == "session"
    assert content.time_to_live == 2.5
    assert content.due == 1_700_000_000.123
    assert content.size == len(raw)
    result = decoded(encode_stored(through(raw, count=3, source="q")))
    assert (result.delivery_count, result.ttl, result.body) == (3, 2.5, b"body")
    assert result.annotations[symbol("x-opt-deadletter-source")] == "q"


def test_properties_set_by_a_settlement_replace_the_senders() -> None:
    raw = section(0x74, {"a": 1, "b": [2]}) + section(0x77, None)
    result = decoded(encode_stored(through(raw, overrides={"b": "new", "c": int32(3)})))
    assert result.properties == {"a": 1, "b": "new", "c": 3}
    bare = decoded(encode_stored(through(section(0x77, None), overrides={"x" * 300: "y"})))
    assert bare.properties == {"x" * 300: "y"}


def test_a_batch_is_several_messages() -> None:
    one, two = section(0x75, b"one"), section(0x77, "two" * 100)
    batch = section(0x75, one) + section(0x75, two)
    assert [content.size for content in decode_transfer(batch, BATCH_FORMAT)] == [
        len(one),
        len(two),
    ]
    (content,) = decode_transfer(batch, 0)
    assert content.size == len(batch)


HEADS = [bytes((0, 0x53, code)) for code in range(0x6F, 0x7A)]


@settings(max_examples=500, deadline=None)
@given(
    raw=st.builds(lambda *parts: b"".join(parts), st.sampled_from(HEADS), st.binary(max_size=60))
    | st.tuples(st.sampled_from(HEADS), VALUES).map(lambda both: both[0] + encode_value(both[1]))
    | st.just(b"\x00" * 5_000)
)
def test_no_bytes_do_more_than_be_refused(raw: bytes) -> None:
    conditions = set()
    for message_format in (0, BATCH_FORMAT):
        try:
            contents = decode_transfer(raw, message_format)
        except Refused as refusal:
            conditions.add(refusal.condition)
        else:
            assert all(encode_stored(Stored(content, Lane(None), 0.0)) for content in contents)
    assert conditions <= {"amqp:decode-error"}


@given(cut=st.lists(st.integers(1, 200), max_size=20))
def test_formats_are_found_however_the_frames_are_cut(cut: list[int]) -> None:
    def frame(*parts: bytes) -> bytes:
        body = b"".join(parts)
        return (len(body) + 8).to_bytes(4, "big") + b"\x02\x00\x00\x01" + body

    attach = b"\x00\x53\x12\xc0\x08\x04\xa1\x01L\x52\x05\x42\x40"
    end = b"\x00\x53\x16\xc0\x04\x02\x52\x05\x41"
    stream = b"AMQP\x00\x01\x00\x00" + frame(attach)
    for number, given_format in enumerate((0, BATCH_FORMAT)):
        fields = (
            bytes((0x52, 5, 0x52, number, 0xA0, 1, number, 0x70))
            + given_format.to_bytes(4, "big")
            + b"\x42\x41"
        )
        transfer = bytes((0, 0x53, 0x14, 0xC0, len(fields) + 1, 6)) + fields
        stream += frame(transfer, b"x" * 100) * 2  # in two frames
    formats = MessageFormats()
    position = 0
    for size in [*cut, len(stream)]:
        formats.feed(stream[position : position + size])
        position += size
    assert [formats.take("L"), formats.take("L"), formats.take("L")] == [0, BATCH_FORMAT, 0]
    formats.feed(frame(end))
    assert formats.take("L") == 0


# --- links -----------------------------------------------------------------------------------------


def test_a_message_makes_its_way(client: RawClient, edge: Edge) -> None:
    sender = client.link("out", "amqps://test/q")
    assert sender.remote_max_message_size == 100_000
    sent = client.send(sender, Message("body", id="id", group_id="any"))
    assert (sent.remote_state, sent.settled) == (Delivery.ACCEPTED, True)
    receiver = client.link("in", "q", receives=True, credit=1)
    received = client.received(receiver)
    assert received is not None
    delivery, raw = received
    message = decoded(raw)
    assert (message.body, message.id, message.group_id) == ("body", "id", "any")
    assert message.annotations[symbol("x-opt-locked-until")] == 1_030_000
    delivery.update(Delivery.ACCEPTED)
    client.pump()
    assert (delivery.remote_state, delivery.settled) == (Delivery.ACCEPTED, True)
    assert edge.namespace.find("q").counts().active == 0


def test_each_outcome_is_echoed(client: RawClient, edge: Edge) -> None:
    client.send(client.link("out", "q"), Message("x"))
    receiver = client.link("in", "q", receives=True, credit=10)

    def settle(state: Any, **local: Any) -> tuple[int, Any]:
        received = client.received(receiver)
        assert received is not None
        delivery, raw = received
        for name, value in local.items():
            setattr(delivery.local, name, value)
        delivery.update(state)
        client.pump()
        assert (delivery.remote_state, delivery.settled) == (state, True)
        for name in {"failed", "undeliverable"} & local.keys():
            assert getattr(delivery.remote, name) == local[name]
        delivery.settle()
        message = decoded(raw)
        return message.delivery_count, message.properties

    notes = {symbol("note"): "n"}
    first = settle(Delivery.MODIFIED, failed=True, undeliverable=False, annotations=notes)
    assert first == (0, None)
    assert settle(Delivery.RELEASED) == (1, {"note": "n"})
    assert settle(Delivery.MODIFIED, failed=True, undeliverable=True) == (1, {"note": "n"})
    counts = edge.namespace.find("q").counts()
    assert (counts.deferred, counts.active) == (1, 0)


def test_a_settlement_too_late_is_refused(client: RawClient, clock: Clock) -> None:
    sender = client.link("out", "q")
    receiver = client.link("in", "q", receives=True, credit=1)
    client.send(sender, Message("x"))
    received = client.received(receiver)
    assert received is not None
    clock.pass_by(31)
    received[0].update(Delivery.ACCEPTED)
    client.pump()
    assert received[0].remote_state == Delivery.REJECTED
    error = received[0].remote.condition
    assert error.name == "com.microsoft:message-lock-lost"
    assert error.info  # the SDK hangs without


def test_draining_takes_back_credit(client: RawClient, edge: Edge) -> None:
    receiver = client.link("in", "q", receives=True)
    receiver.drain(5)
    client.pump()
    assert receiver.credit == 0
    client.send(client.link("out", "q"), Message("x"))
    assert client.received(receiver) is None
    assert edge.namespace.find("q").counts().locked == 0


def test_credit_taken_back_does_not_hold_what_was_sent_for_it(
    client: RawClient, edge: Edge
) -> None:
    """Also when both come before the connection is written to: kept back, it would be locked by nobody."""
    client.send(client.link("out", "q"), Message("1"))
    receiver = client.link("in", "q", receives=True)
    receiver.flow(5)
    client.tell()
    assert edge.namespace.find("q").counts().locked == 1
    receiver.flow(-5)
    client.tell()
    client.pump()
    assert client.received(receiver) is not None


def test_receive_and_delete(client: RawClient, edge: Edge) -> None:
    client.send(client.link("out", "q"), Message("x"))
    receiver = client.link("in", "q", receives=True, settled=True, credit=1)
    received = client.received(receiver)
    assert received is not None
    assert received[0].settled
    assert edge.namespace.find("q").counts().active == 0


@pytest.mark.parametrize(
    ("options", "condition"),
    [
        ({"address": "nobody"}, "amqp:not-found"),
        ({"address": "nobody", "receives": True}, "amqp:not-found"),
        ({"address": "s", "receives": True}, "amqp:not-allowed"),
        ({"address": "q", "receives": True, "session": "a"}, "amqp:not-allowed"),
    ],
)
def test_refused_links(client: RawClient, options: Any, condition: str) -> None:
    link = client.link("l", **options)
    assert client.is_refused(link) == condition
    assert not client.is_open(link)
    assert client.edge.counters.refused_links == 1


@pytest.mark.parametrize(
    ("message", "condition"),
    [
        (b"\x00\x53\x75\xa0\x05x", "amqp:decode-error"),
        (Message("x" * 100_000), "amqp:link:message-size-exceeded"),
    ],
)
def test_refused_messages(client: RawClient, message: Any, condition: str) -> None:
    sender = client.link("out", "q")
    sent = client.send(sender, message)
    assert (sent.remote_state, sent.settled) == (Delivery.REJECTED, True)
    assert sent.remote.condition.name == condition
    assert client.send(sender, Message("fine"), "t2").remote_state == Delivery.ACCEPTED


def test_sessions(client: RawClient, edge: Edge, clock: Clock) -> None:
    sender = client.link("out", "s")
    assert client.send(sender, Message("x")).remote_state == Delivery.REJECTED
    waiting = client.link("next", "s", receives=True, session=None)
    assert not client.is_open(waiting)
    client.send(sender, Message("x", group_id="a"), "t2")
    assert client.is_open(waiting)
    filters = waiting.remote_source.filter
    filters.rewind()
    filters.next()
    assert filters.get_object() == {symbol("com.microsoft:session-filter"): "a"}
    ticks = waiting.remote_properties[symbol("com.microsoft:locked-until-utc")]
    assert ticks == 621_355_968_000_000_000 + 1_030 * 10_000_000
    other = client.link("named", "s", receives=True, session="a")
    assert client.is_refused(other) == "com.microsoft:session-cannot-be-locked"
    clock.pass_by(30)
    edge.namespace.timers.run()
    client.pump()
    assert client.is_refused(waiting) == "com.microsoft:session-lock-lost"
    again = client.link("again", "s", receives=True, session="a", credit=1)
    assert client.received(again) is not None
    client.server.lose()
    assert edge.namespace.find("s").counts().locked_sessions == 0


# --- tokens ----------------------------------------------------------------------------------------


def test_nothing_without_a_token(edge: Edge) -> None:
    client = edge.connect()
    link = client.link("out", "q")
    assert client.is_refused(link) == "amqp:unauthorized-access"
    answer = client.authorize("q", token="forged.token.x")
    assert (answer["status-code"], answer["error-condition"]) == (401, "com.microsoft:auth-failed")
    expired = edge.authority.issue(edge.namespace.timers.now() - 1)
    assert "ExpiredToken" in client.authorize("q", token=expired)["status-description"]
    assert client.authorize("q", token="SharedAccessSignature sr=x")["status-code"] == 401
    assert client.is_refused(client.link("out2", "q")) == "amqp:unauthorized-access"
    client.close()


def test_a_token_is_for_its_path(edge: Edge) -> None:
    client = edge.connect()
    assert client.authorize("q")["status-code"] == 202
    assert client.is_open(client.link("out", "Q"))
    assert client.is_open(client.link("dead", "q/$DeadLetterQueue", receives=True))
    assert client.is_refused(client.link("other", "q2")) == "amqp:unauthorized-access"
    client.close()


def test_a_token_gives_the_rights_it_names(edge: Edge, clock: Clock) -> None:
    client = edge.connect()
    sends = edge.authority.issue(clock.now + 60, rights={Right.SEND})
    listens = edge.authority.issue(clock.now + 60, rights={Right.LISTEN})
    assert client.authorize("q", token=sends)["status-code"] == 202
    assert client.is_refused(client.link("in", "q")) is None
    refused = client.link("out", "q", receives=True)
    assert client.is_refused(refused) == "amqp:unauthorized-access"
    assert "'Listen' claim(s) are required" in refused.remote_condition.description
    client.authorize("q2", token=listens)
    assert client.is_refused(client.link("out2", "q2", receives=True)) is None
    assert client.is_refused(client.link("in2", "q2")) == "amqp:unauthorized-access"


def test_a_token_for_something_else(edge: Edge, clock: Clock) -> None:
    elsewhere = edge.authority.issue(clock.now + 60, audience="https://storage.azure.com")
    answer = edge.connect().authorize("q", token=elsewhere)
    assert answer["status-code"] == 401
    assert "InvalidAudience" in answer["status-description"]


def test_links_end_with_their_token(edge: Edge, clock: Clock) -> None:
    client = edge.connect()
    client.authorize("q", token=edge.authority.issue(clock.now + 60))
    client.authorize("q2", token=edge.authority.issue(clock.now + 60))
    client.authorize("q2")  # renewed, for an hour
    ended, lasting = client.link("a", "q"), client.link("b", "q2")
    clock.pass_by(61)
    edge.namespace.timers.run()
    client.pump()
    assert client.is_refused(ended) == "amqp:link:detach-forced"
    assert "Code: RenewToken" in ended.remote_condition.description
    assert client.is_open(lasting)
    client.close()


def test_a_link_may_end_by_the_time_while_another_ends_with_its_token(
    edge: Edge, clock: Clock
) -> None:
    """Both are late, as on a busy machine: the first end is that of a token, and finds the session's lock over."""
    client = edge.connect()
    client.authorize(token=edge.authority.issue(clock.now + 20))
    ended = [client.link(f"in{number}", "q", receives=True) for number in range(2)]
    holding = client.link("holding", "s", receives=True, session="a")
    clock.pass_by(60)
    edge.namespace.timers.run()
    client.pump()
    assert {client.is_refused(link) for link in ended} == {"amqp:link:detach-forced"}
    assert client.is_refused(holding) == "com.microsoft:session-lock-lost"
    assert edge.counters.open_links == 0
    assert not client.is_aborted
    client.close()


def test_ending_links_by_force_meets_one_that_ended_by_the_time(
    client: RawClient, edge: Edge, clock: Clock
) -> None:
    plain = client.link("in", "q", receives=True)
    holding = client.link("holding", "s", receives=True, session="a")
    clock.pass_by(31)
    for node in client.server.queue_links():
        client.server.end_link(node, server_busy())
    client.pump()
    assert client.is_refused(plain) == "com.microsoft:server-busy"
    assert client.is_refused(holding) == "com.microsoft:session-lock-lost"


@pytest.mark.parametrize("expiry", ["nan", "inf", "-inf", "1e999"])
def test_a_signature_ends_at_some_time(client: RawClient, edge: Edge, expiry: str) -> None:
    """One that is not a number would have no place among what is to come, and hold up all of it."""
    key = edge.authority.policy
    digest = hmac.new(key.key.encode(), f"q\n{expiry}".encode(), hashlib.sha256).digest()
    fields = {"sr": "q", "se": expiry, "skn": key.name, "sig": b64encode(digest).decode()}
    token = f"SharedAccessSignature {urlencode(fields)}"
    answer = client.authorize("q", token=token)
    assert answer["status-code"] == 401
    assert "MalformedToken" in answer["status-description"]


# --- requests --------------------------------------------------------------------------------------


@pytest.fixture
def ask(client: RawClient) -> Any:
    requests = client.link("req", "q/$management")
    replies = client.link("rep", "q/$management", receives=True, credit=50)
    tags = iter(range(1_000))

    def ask(operation: str, body: Any, **properties: Any) -> Any:
        request = Message(body=body, id=uuid.uuid4())
        request.properties = {"operation": f"com.microsoft:{operation}", **properties}
        client.send(requests, request, f"t{next(tags)}")
        reply = client.reply(replies)
        assert reply.correlation_id == request.id
        return reply

    return ask


def test_several_are_settled_by_their_tokens(client: RawClient, ask: Any, edge: Edge) -> None:
    sender = client.link("out", "q")
    receiver = client.link("in", "q", receives=True, credit=3)
    for number in range(3):
        client.send(sender, Message(str(number)), f"t{number}")
        assert client.received(receiver) is not None
    held = [each.lock.token for each in edge.namespace.find("q").peek(1, 3) if each.lock]
    body = {
        "disposition-status": "completed",
        "lock-tokens": Array(UNDESCRIBED, Data.UUID, *held),
    }
    assert ask("update-disposition", body).properties["statusCode"] == 200
    assert edge.namespace.find("q").counts().active == 0
    answer = ask("update-disposition", body).properties
    assert (answer["statusCode"], answer["errorCondition"]) == (
        410,
        "com.microsoft:message-lock-lost",
    )


@pytest.mark.parametrize(
    ("operation", "body", "condition"),
    [
        ("add-rule", {}, "amqp:not-implemented"),
        ("renew-lock", {}, "com.microsoft:argument-error"),
        (
            "update-disposition",
            {"disposition-status": "eaten", "lock-tokens": []},
            "com.microsoft:argument-error",
        ),
    ],
)
def test_requests_that_make_no_sense(ask: Any, operation: str, body: Any, condition: str) -> None:
    assert ask(operation, body).properties["errorCondition"] == condition


@pytest.mark.parametrize("properties", ["text", 7, ["a", "list"], {7: "x"}])
@pytest.mark.parametrize("status", ["abandoned", "suspended"])
def test_a_settlement_that_makes_no_sense_leaves_the_message_locked(
    client: RawClient, ask: Any, edge: Edge, status: str, properties: Any
) -> None:
    client.send(client.link("out", "q"), Message("x"))
    client.link("in", "q", receives=True, credit=1)
    queue = edge.namespace.find("q")
    [token] = [each.lock.token for each in queue.peek(1, 3) if each.lock]
    body = {
        "disposition-status": status,
        "lock-tokens": Array(UNDESCRIBED, Data.UUID, token),
        "properties-to-modify": properties,
    }
    answer = ask("update-disposition", body).properties
    assert answer["errorCondition"] == "com.microsoft:argument-error"
    assert queue.counts().locked == 1
    body["properties-to-modify"] = {"why": b"bytes"}
    assert ask("update-disposition", body).properties["statusCode"] == 200
    assert queue.counts().locked == 0


def test_bytes_in_a_settlement_are_kept_and_not_only_looked_at(
    client: RawClient, ask: Any, edge: Edge
) -> None:
    """The engine shows what it frees with the delivery, or the request."""
    sender = client.link("out", "q")
    receiver = client.link("in", "q", receives=True)
    blob = bytes(range(48))
    value = {"deep": [blob, {"er": blob}]}

    def come_again() -> Any:
        receiver.flow(1)
        client.pump()
        received = client.received(receiver)
        assert received is not None
        return received

    client.send(sender, Message("x"))
    first, _ = come_again()
    first.local.annotations = {symbol("blob"): blob, symbol("value"): value}
    first.local.failed = True
    first.update(Delivery.MODIFIED)
    client.pump()
    first.settle()
    come_again()
    [message] = edge.namespace.find("q").peek(1, 1)
    assert message.lock is not None
    body = {
        "disposition-status": "suspended",
        "lock-tokens": Array(UNDESCRIBED, Data.UUID, message.lock.token),
        "properties-to-modify": {"more": blob},
        "deadletter-reason": "why",
    }
    assert ask("update-disposition", body).properties["statusCode"] == 200
    [dead] = edge.namespace.find("q/$DeadLetterQueue").peek(1, 1)
    assert dead.overrides is not None
    assert type(dead.overrides["blob"]) is type(dead.overrides["more"]) is bytes
    assert dead.overrides == {
        "blob": blob,
        "value": value,
        "more": blob,
        "DeadLetterReason": "why",
    }
    assert type(dead.overrides["value"]["deep"][1]["er"]) is bytes


def test_a_token_may_be_bytes(edge: Edge) -> None:
    client = edge.connect()
    token: Any = edge.authority.issue(edge.namespace.timers.now() + 60).encode()
    assert client.authorize("q", token=token)["status-code"] == 202
    unreadable: Any = b"\xff.\xff"
    assert client.authorize("q", token=unreadable)["status-code"] == 401
    assert not client.is_aborted
    client.close()


def test_peeking_at_nothing_is_no_content(ask: Any) -> None:
    body = {"from-sequence-number": 0, "message-count": int32(5)}
    assert ask("peek-message", body).properties["statusCode"] == 204


# --- faults ----------------------------------------------------------------------------------------


def test_refused_so_many_times(client: RawClient, edge: Edge) -> None:
    sender = client.link("out", "q")
    fault = edge.faults.refuse(frozenset({Operation.SEND}), 2, "q", server_busy())
    results = [client.send(sender, Message("x"), f"t{i}") for i in range(3)]
    assert [sent.remote_state for sent in results] == [
        Delivery.REJECTED,
        Delivery.REJECTED,
        Delivery.ACCEPTED,
    ]
    assert results[0].remote.condition.name == "com.microsoft:server-busy"
    assert fault.happened == 2
    other = client.link("out2", "q2")
    with edge.faults.refuse(frozenset(Operation), 1, "q", server_busy()):
        assert client.send(other, Message("x")).remote_state == Delivery.ACCEPTED
    assert client.send(sender, Message("x"), "t9").remote_state == Delivery.ACCEPTED


def test_done_but_not_answered(client: RawClient, edge: Edge) -> None:
    sender = client.link("out", "q")
    edge.faults.lose(frozenset({Operation.SEND}), 1, None)
    sent = client.send(sender, Message("x"))
    assert (sent.remote_state, sent.settled) == (0, False)
    receiver = client.link("in", "q", receives=True, credit=1)
    received = client.received(receiver)
    assert received is not None
    edge.faults.lose(frozenset({Operation.SETTLE}), 1, "q")
    received[0].update(Delivery.ACCEPTED)
    client.pump()
    assert not received[0].settled
    assert edge.namespace.find("q").counts().active == 0


def test_a_stalled_queue_catches_up(client: RawClient, edge: Edge) -> None:
    sender = client.link("out", "q")
    receiver = client.link("in", "q", receives=True, credit=2)
    other = client.link("out2", "q2")
    with edge.faults.stall("q") as stall:
        late = client.link("late", "q", receives=True)
        sent = client.send(sender, Message("x"))
        assert not sent.settled
        assert not client.is_open(late)
        assert client.send(other, Message("y")).settled
        assert stall.happened >= 2
    client.pump()
    assert sent.settled
    assert client.is_open(late)
    assert client.received(receiver) is not None


def test_a_stalled_emulator_says_nothing_even_to_who_comes_new(edge: Edge) -> None:
    client = edge.connect()
    client.authorize()
    sender = client.link("out", "q")
    stall = edge.faults.stall(None)
    sent = client.send(sender, Message("x"))
    new = edge.connect()
    assert new.server.output() == b""
    assert not sent.settled
    assert not new.connection.state & new.connection.REMOTE_ACTIVE
    stall.lift()
    stall.lift()
    client.pump()
    new.pump()
    assert sent.settled
    assert new.connection.state & new.connection.REMOTE_ACTIVE
    client.close()
    new.close()


def test_a_stall_outlives_the_connection(edge: Edge) -> None:
    client = edge.connect()
    client.authorize()
    sender = client.link("out", "q")
    stall = edge.faults.stall("q")
    client.send(sender, Message("x"))
    client.close()
    stall.lift()
    assert edge.namespace.find("q").counts().active == 0


# --- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares_a_connection", [True, False])
def test_nothing_is_left_of_links_and_connections(edge: Edge, shares_a_connection: bool) -> None:
    shared = edge.connect()
    shared.authorize()

    def use(number: int) -> None:
        client = shared if shares_a_connection else edge.connect()
        if not shares_a_connection:
            client.authorize()
        sender = client.link(f"out{number}", "s")
        client.send(sender, Message("x", group_id=str(number)))
        receiver = client.link(f"in{number}", "s", receives=True, session=None, credit=1)
        received = client.received(receiver)
        assert received is not None
        received[0].update(Delivery.ACCEPTED)
        client.pump()
        received[0].settle()
        client.close_link(sender)
        client.close_link(receiver)
        if not shares_a_connection:
            client.close()

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    for number in range(50):
        use(number)
    before = objects()
    for number in range(50, 1_050):
        use(number)
    # Cancelled timers wait to be swept, a thousand at most; nothing else may stay, least of all per link.
    assert objects() - before < 2_000
    assert edge.counters.open_links == 0
    assert edge.counters.open_connections == 1
    assert edge.namespace.find("s").counts().sessions == 0
    shared.close()


def test_nothing_of_protons_is_left_to_the_garbage_collector(edge: Edge) -> None:
    """It would free it in any thread, while the engine is at work in another."""

    def use() -> None:
        client = edge.connect()
        client.authorize()
        sender = client.link("out", "q")
        client.send(sender, Message("x"))
        client.send(sender, b"junk", "t2")
        receiver = client.link("in", "q", receives=True, credit=1)
        received = client.received(receiver)
        assert received is not None
        edge.faults.refuse(frozenset({Operation.SETTLE}), 1, None, server_busy())
        received[0].update(Delivery.ACCEPTED)
        client.pump()
        client.link("refused", "nobody")
        client.link("waiting", "s", receives=True, session=None)
        client.link("holding", "s", receives=True, session="a")
        stall = edge.faults.stall("q")
        client.send(sender, Message("late"), "t3")
        client.close()
        stall.lift()

    use()
    gc.collect()
    gc.disable()
    try:
        use()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        garbage = [type(left) for left in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert [kind for kind in garbage if kind.__module__.startswith("proton")] == []
