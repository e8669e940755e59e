"""Messages through the SDK's own encoding and back: ours come back equal, foreign ones lose nothing."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("azure.servicebus", reason="pip install 'queue-runtime[azure]'")

from azure.servicebus import ServiceBusMessage, ServiceBusMessageBatch, ServiceBusReceivedMessage
from azure.servicebus._pyamqp._decode import decode_payload
from azure.servicebus._pyamqp._encode import encode_payload
from azure.servicebus._pyamqp.message import Header, Properties
from azure.servicebus._pyamqp.message import Message as EngineMessage
from azure.servicebus._transport._pyamqp_transport import PyamqpTransport

from queue_runtime.errors import ValidationError
from queue_runtime.messages import DeadLetterInfo, Message, MessageId, SessionId
from queue_runtime.providers.azure.broker_letters import MAX_WORDS, dead_letter_words
from queue_runtime.providers.azure.codec import (
    MAX_HEADER_BYTES,
    MAX_PROPERTY_BYTES,
    MAX_TIME_TO_LIVE,
    Received,
    decode,
    encode,
    identity,
)
from queue_runtime.providers.azure.entries import NATIVE_HEADERS, Entry, in_batch, wire_size
from queue_runtime.providers.azure.foreign import BODY_HEADER
from queue_runtime.providers.azure.ids import decode_id, encode_id
from queue_runtime.providers.envelope import ENVELOPE, MAX_DESCRIPTION, NOTHING_MORE, Extras
from queue_runtime.providers.wire_ids import GENERATED, digest

from ..strategies import dead_letters, moments, printable

TOKEN = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2
NOW = datetime(2026, 5, 4, 3, 2, 1, 987_654, tzinfo=UTC)
INFO = DeadLetterInfo(
    reason="PaymentRefused",
    description="no\nmoney",
    dead_lettered_at=NOW,
    first_failed_at=NOW - timedelta(hours=1),
    delivery_count=7,
)
EXTRAS = Extras(
    message_id=MessageId("was"), dead_letter=INFO, enqueued_at=NOW, sequence_number=2**60
)


def payload_of(entry: Entry) -> bytes:
    """The bytes that the SDK puts on the wire."""
    outgoing = PyamqpTransport.to_outgoing_amqp_message(ServiceBusMessage(**entry).raw_amqp_message)
    payload = bytearray()
    encode_payload(payload, outgoing)
    return bytes(payload)


def through(entry: Entry, **how: bool) -> Received:
    """What comes out at the other end; the same for every form in which a message may be handed in."""
    payload = payload_of(entry)
    received = ServiceBusReceivedMessage.from_bytes(payload)
    decoded = decode(received, **how)
    forms = (received.raw_amqp_message, decode_payload(memoryview(payload)))
    for form in forms:
        # Without an enqueued time from a broker it is the time of decoding.
        again = attrs.evolve(decode(form, **how), enqueued_at=decoded.enqueued_at)
        assert again == decoded
    return decoded


def foreign(**sections: Any) -> Received:
    """What is made of a message as the engine decodes it from another sender."""
    how = {name: sections.pop(name) for name in ("sessions", "peeked", "dead") if name in sections}
    return decode(EngineMessage(**sections), **how)


# --- round trips ---------------------------------------------------------------------------------------

marks = st.sampled_from(
    ["~h:", "~n:", "~f:", "~", "%", "%0A", "~h:" + "0" * 64, GENERATED + TOKEN, "~f:%0A", "😀"]
)
ids = st.one_of(
    st.text(printable, min_size=1, max_size=128),
    st.text(printable, min_size=128, max_size=128),
    st.lists(st.one_of(marks, printable), min_size=1, max_size=20).map(
        lambda pieces: "".join(pieces)[:128]
    ),
)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)
names = st.one_of(
    st.text(printable, min_size=1, max_size=30),
    st.sampled_from(
        [ENVELOPE, BODY_HEADER, "DeadLetterReason", "DeadLetterErrorDescription", *NATIVE_HEADERS]
    ),
)
messages = st.builds(
    Message,
    st.binary(max_size=600),
    session_id=st.none() | ids,
    headers=st.dictionaries(names, texts, max_size=8),
    message_id=st.none() | ids,
    correlation_id=st.none() | ids,
    content_type=st.none() | ids,
    time_to_live=st.none() | st.integers(1, MAX_TIME_TO_LIVE).map(float),
    scheduled_at=st.none() | moments,
    deduplication_id=st.none() | ids,
)
extras_ = st.builds(
    Extras,
    message_id=st.none() | ids.map(MessageId),
    dead_letter=st.none() | dead_letters,
    enqueued_at=st.none() | moments,
    sequence_number=st.none() | st.integers(0, 2**63 - 1),
)


@settings(deadline=None)
@given(messages, st.booleans(), st.just(NOTHING_MORE) | extras_)
@example(Message(b""), False, NOTHING_MORE)
@example(Message(b"x", message_id=GENERATED + OTHER), False, NOTHING_MORE)
@example(Message(b"x", message_id=GENERATED + TOKEN), True, EXTRAS)
@example(Message(b"x", message_id="~f:", session_id="~f:"), False, NOTHING_MORE)
@example(Message(b"x", session_id="~h:" + "0" * 64), False, NOTHING_MORE)
@example(Message(b"x", message_id="a", deduplication_id="a"), True, NOTHING_MORE)
@example(Message(b"x"), False, Extras(message_id=MessageId(GENERATED + TOKEN)))
@example(Message(b"x", session_id="😀" * 128, deduplication_id="😀" * 128), True, EXTRAS)
def test_round_trip(message: Message, deduplicates: bool, extras: Extras) -> None:
    entry = encode(message, TOKEN, deduplicates=deduplicates, extras=extras)
    received = through(entry)
    assert received.message == message
    assert received.malformed is None
    assert received.message_id == identity(message, TOKEN, extras)
    assert received.delivery_count == 1
    assert received.session == (message.session_id and encode_id(message.session_id))
    expected = attrs.evolve(extras, message_id=None) if message.message_id else extras
    got = received.earlier
    if expected.message_id is None:
        got = attrs.evolve(got, message_id=None)  # the one given to it here
    assert got == expected
    assert received.dead_letter == extras.dead_letter
    assert wire_size(entry) == len(payload_of(entry))
    assert 0 < len(entry["message_id"].encode("utf-16-le")) <= 256
    # What is sent once more, of what came, is the same message with the same identity.
    again = through(encode(received.message, OTHER, extras=Extras(message_id=received.message_id)))
    assert (again.message, again.message_id) == (received.message, received.message_id)


def test_a_plain_message_needs_no_envelope() -> None:
    message = Message(b"hello", session_id="s 1", headers={"a": "1"}, message_id="m-1")
    assert encode(message, TOKEN) == {
        "body": b"hello",
        "message_id": "m-1",
        "session_id": "s 1",
        "application_properties": {"a": "1"},
    }
    assert encode(Message(b""), TOKEN) == {"body": b"", "message_id": GENERATED + TOKEN}


def test_headers_that_amqp_has_fields_for() -> None:
    headers = {"amqp-subject": "s", "amqp-to": "t", "amqp-reply-to": "r"}
    entry = encode(Message(b"", headers={**headers, "amqp-reply-to-session-id": "x"}), TOKEN)
    assert "application_properties" not in entry
    assert (entry["subject"], entry["to"], entry["reply_to"]) == ("s", "t", "r")
    assert entry["reply_to_session_id"] == "x"
    too_long = Message(b"", headers={"amqp-reply-to-session-id": "x" * 129})
    assert through(encode(too_long, TOKEN)).message == too_long


# --- the broker's message id ---------------------------------------------------------------------------


def test_which_id_the_broker_sees() -> None:
    both = Message(b"", message_id="own", deduplication_id="once")
    assert encode(both, TOKEN)["message_id"] == "own"
    assert encode(both, TOKEN, deduplicates=True)["message_id"] == "once"
    # Two messages that merely have one id are two messages, also where the broker drops duplicates.
    own = Message(b"", message_id="own")
    assert encode(own, TOKEN, deduplicates=True)["message_id"] == GENERATED + TOKEN
    # In its second life a message is no duplicate of its first.
    again = encode(both, TOKEN, deduplicates=True, extras=EXTRAS)
    assert again["message_id"] == GENERATED + TOKEN
    assert through(again).message == both


def test_two_messages_under_one_deduplication_id_are_two() -> None:
    message = Message(b"", deduplication_id="once")
    first = through(encode(message, TOKEN, deduplicates=True))
    second = through(encode(message, OTHER, deduplicates=True))
    assert first.message == second.message == message
    assert first.message_id != second.message_id


# --- session ids ---------------------------------------------------------------------------------------


@given(ids, ids)
def test_different_sessions_stay_different(one: str, other: str) -> None:
    assert (encode_id(one) == encode_id(other)) is (one == other)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=128))
@example("")
@example("\n")
@example("a b\x00")
def test_foreign_sessions_can_be_accepted_by_name(wire: str) -> None:
    session = decode_id(wire)
    assert isinstance(session, SessionId)
    reserved = wire.startswith(("~h:", "~n:", "~f:"))
    if len(wire.encode("utf-16-le")) <= 256 and len(session) < 67 and not reserved:
        assert encode_id(session) == wire


def test_a_foreign_session_that_is_too_long_when_escaped() -> None:
    assert decode_id("\n" * 128) == "~f:" + digest("\n" * 128)
    assert decode_id("x" * 129) == "~f:" + digest("x" * 129) or decode_id("x" * 129).startswith(
        "~f"
    )
    assert decode_id("\n" * 41) == "~f:" + "%0A" * 41


def test_a_carried_session_must_be_the_one_on_the_wire() -> None:
    wire = encode_id("😀" * 128)
    properties = {b"queue-runtime": json.dumps({"v": 1, "session": "liar"}).encode()}
    received = foreign(
        data=[b""], properties=Properties(group_id=wire.encode()), application_properties=properties
    )
    assert (received.message.session_id, received.session) == (wire, wire)
    hostile = "\n" + "x" * 200
    properties = {b"queue-runtime": json.dumps({"v": 1, "session": hostile}).encode()}
    received = foreign(
        data=[b""],
        properties=Properties(group_id=encode_id(hostile).encode()),
        application_properties=properties,
    )
    assert received.message.session_id == encode_id(hostile)


def test_without_sessions_a_session_id_is_a_header() -> None:
    received = foreign(data=[b""], properties=Properties(group_id=b"s"), sessions=False)
    assert received.message == Message(b"", headers={"amqp-session-id": "s"})


# --- what cannot be sent -------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.001, 0.5, 0.999, 1.5, 59.999, 4_294_968.0, 300_000_000.0])
def test_times_to_live_that_service_bus_cannot_keep(seconds: float) -> None:
    message = Message(b"", time_to_live=seconds)
    with pytest.raises(ValidationError, match=f"time_to_live is {seconds!r} seconds"):
        encode(message, TOKEN)
    # What is in a queue already is moved all the same.
    moved = through(encode(message, TOKEN, extras=EXTRAS)).message.time_to_live
    assert moved == min(MAX_TIME_TO_LIVE, -(-seconds // 1))


@pytest.mark.parametrize("seconds", [1.0, 60.0, 4_294_967.0])
def test_whole_times_to_live(seconds: float) -> None:
    entry = encode(Message(b"", time_to_live=seconds), TOKEN)
    assert entry["time_to_live"] == timedelta(seconds=seconds)
    assert through(entry).message.time_to_live == seconds


def test_a_scheduled_message_is_never_early() -> None:
    due = datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
    entry = encode(Message(b"", scheduled_at=due), TOKEN)
    assert entry["scheduled_enqueue_time_utc"] == due + timedelta(microseconds=999)
    assert through(entry).message.scheduled_at == due
    whole = encode(Message(b"", scheduled_at=due.replace(microsecond=5_000)), TOKEN)
    assert ENVELOPE not in whole.get("application_properties", {})


def test_too_much_in_headers() -> None:
    half = MAX_HEADER_BYTES // 2
    assert encode(Message(b"", headers={"a": "x" * half, "b": "x" * (half - 200)}), TOKEN)
    with pytest.raises(ValidationError, match=r"the headers and ids take 6\d{4} bytes"):
        encode(Message(b"", headers={"a": "x" * half, "b": "x" * half}), TOKEN)


@pytest.mark.parametrize("name", ["größe", "amqp-subject", "DeadLetterReason"])
def test_too_much_in_one_header(name: str) -> None:
    with pytest.raises(ValidationError, match=r"the header .* takes 32\d{3} bytes"):
        encode(Message(b"", headers={name: "x" * (MAX_PROPERTY_BYTES + 1)}), TOKEN)
    around = 100 if name == "DeadLetterReason" else 0  # it travels with others
    message = Message(b"", headers={name: "x" * (MAX_PROPERTY_BYTES - around)})
    assert through(encode(message, TOKEN)).message == message
    if not around:
        with pytest.raises(ValidationError, match=r"the header .* takes 32769 bytes"):
            encode(Message(b"", headers={name: "x" + "ü" * (MAX_PROPERTY_BYTES // 2)}), TOKEN)


def test_what_is_carried_is_no_larger_than_one_header_may_be() -> None:
    """In JSON some characters take twelve bytes."""
    info = attrs.evolve(INFO, reason="😀" * 1_000, description="😀" * MAX_DESCRIPTION)
    entry = encode(Message(b""), TOKEN, extras=attrs.evolve(EXTRAS, dead_letter=info))
    assert len(entry["application_properties"][ENVELOPE]) <= MAX_PROPERTY_BYTES
    kept = through(entry).dead_letter
    assert kept is not None
    assert kept.reason == info.reason
    assert info.description.startswith(kept.description)


# --- sizes ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(messages, min_size=1, max_size=5))
def test_sizes_in_batches(batch: list[Message]) -> None:
    whole = ServiceBusMessageBatch()
    total = whole.size_in_bytes
    for message in batch:
        entry = encode(message, TOKEN)
        whole.add_message(ServiceBusMessage(**entry))
        total += in_batch(wire_size(entry))
        assert whole.size_in_bytes == total


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_535, 300_000])
def test_sizes_of_bodies(size: int) -> None:
    entry = (
        encode(Message(b"x" * size, headers={"n": "v" * size}), TOKEN) if size < 60_000 else None
    )
    entry = entry or encode(Message(b"x" * size), TOKEN)
    assert wire_size(entry) == len(payload_of(entry))


def test_many_headers_are_counted_as_they_travel() -> None:
    entry = encode(Message(b"", headers={str(number): "" for number in range(300)}), TOKEN)
    assert wire_size(entry) == len(payload_of(entry))


@pytest.mark.parametrize("room", [0, 10, 100, 5_000, 100_000])
def test_what_is_carried_beside_a_message_makes_it_no_larger_than_allowed(room: int) -> None:
    message = Message(b"x" * 1_000, headers={"a": "b"}, deduplication_id="once")
    info = attrs.evolve(INFO, description="größer " * 500)
    extras = attrs.evolve(EXTRAS, dead_letter=info)
    least = wire_size(encode(message, TOKEN, extras=Extras(message_id=MessageId("was"))))
    entry = encode(message, TOKEN, extras=extras, max_bytes=least + room)
    assert wire_size(entry) <= least + room
    received = through(entry)
    assert (received.message, received.message_id) == (message, "was")
    kept = received.dead_letter
    assert (kept is None) is (room < 200)
    if kept is not None:
        assert info.description.startswith(kept.description)
        assert (kept.description == info.description) is (room == 100_000)
        assert attrs.evolve(kept, description="") == attrs.evolve(info, description="")


@pytest.mark.parametrize("length", [MAX_DESCRIPTION, 3 * MAX_DESCRIPTION])
def test_what_is_carried_leaves_room_for_large_headers(length: int) -> None:
    message = Message(b"", headers=dict.fromkeys("ab", "x" * (MAX_HEADER_BYTES // 2 - 500)))
    info = attrs.evolve(INFO, description="y" * length)
    received = through(encode(message, TOKEN, extras=attrs.evolve(EXTRAS, dead_letter=info)))
    assert received.message == message
    assert received.dead_letter is not None
    assert 0 < len(received.dead_letter.description) < 1_000


# --- foreign messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "body", "kind"),
    [
        ({"data": [b"one"]}, b"one", None),
        ({"data": [b"one", b"", b"two"]}, b"onetwo", None),
        ({"data": ["text", 7]}, b"text7", None),
        ({"value": b"text or bytes"}, b"text or bytes", "value"),
        ({"value": b"\xff\x00"}, b"\xff\x00", "value"),
        ({"value": "größer"}, "größer".encode(), "value"),
        ({"value": 42}, b"42", "value-json"),
        ({"value": True}, b"true", "value-json"),
        ({"value": 1.5}, b"1.5", "value-json"),
        ({"value": float("nan")}, b'"nan"', "value-json"),
        ({"value": uuid.UUID(int=1)}, b'"00000000-0000-0000-0000-000000000001"', "value-json"),
        (
            {"value": {b"a": [b"\xff", None, {b"x": "größer"}]}},
            '{"a":["/w==",null,{"x":"größer"}]}'.encode(),
            "value-json",
        ),
        ({"value": None}, b"", "none"),
        ({}, b"", "none"),
        ({"sequence": [[1, b"a"], [], [[2]]]}, b'[1,"a",[2]]', "sequence-json"),
        ({"sequence": [7]}, b"[7]", "sequence-json"),
    ],
)
def test_foreign_bodies(sections: dict[str, Any], body: bytes, kind: str | None) -> None:
    received = foreign(**sections)
    headers = {} if kind is None else {BODY_HEADER: kind}
    assert received.message == Message(body, headers=headers)
    assert received.malformed is None
    # Redriven, it stays what it is.
    again = through(encode(received.message, TOKEN, extras=EXTRAS)).message
    assert again == received.message


@pytest.mark.parametrize(("value", "kind"), [({"k": [1, "v"]}, "value-json"), ("text", "value")])
def test_foreign_bodies_over_the_wire(value: Any, kind: str) -> None:
    payload = bytearray()
    encode_payload(payload, EngineMessage(value=value))
    for form in (
        ServiceBusReceivedMessage.from_bytes(bytes(payload)),
        decode_payload(memoryview(bytes(payload))),
    ):
        assert decode(form).message.headers == {BODY_HEADER: kind}


def test_foreign_properties() -> None:
    received = foreign(
        data=[b""],
        application_properties={
            b"text": b"gr\xc3\xb6\xc3\x9fer",
            b"bytes": b"\xff",
            b"int": 7,
            b"float": 0.5,
            b"true": True,
            b"null": None,
            b"uuid": uuid.UUID(int=2),
            b"list": [1, b"a"],
            b"": b"no name",
            b"two\nlines": "\ud800",
            b"n" * 300: b"long name",
        },
    )
    assert received.message.headers == {
        "text": "größer",
        "bytes": "/w==",
        "int": "7",
        "float": "0.5",
        "true": "true",
        "null": "null",
        "uuid": "00000000-0000-0000-0000-000000000002",
        "list": '[1,"a"]',
        "_": "no name",
        "two\\nlines": "?",
        "n" * 255 + "…": "long name",
    }
    assert received.malformed is None


def test_foreign_properties_do_not_take_the_place_of_each_other() -> None:
    """Shown, their names may be the same."""
    given = {"a\nb": "1", "a\\nb": "2", "a\\nb#2": "3", "": "4", "_": "5"}
    long = {"x" * 300: "6", "x" * 301: "7"}
    headers = dict(foreign(data=[b""], application_properties=given | long).message.headers)
    assert headers.pop("a\\nb") == "2"
    assert headers.pop("a\\nb#2") == "3"
    assert headers.pop("_") == "5"
    assert sorted(headers.values()) == ["1", "4", "6", "7"]


def test_a_description_alone_is_a_header() -> None:
    """With a reason it tells of a dead letter, wherever it is; see below."""
    properties = {"DeadLetterErrorDescription": "why"}
    received = foreign(data=[b""], application_properties=properties)
    assert dict(received.message.headers) == properties
    assert received.dead_letter is None
    again = through(encode(received.message, TOKEN))
    assert dict(again.message.headers) == properties
    in_grave = foreign(data=[b""], application_properties=properties, dead=True)
    assert not in_grave.message.headers
    assert in_grave.dead_letter is not None
    assert in_grave.dead_letter.description == "why"


def test_foreign_fields() -> None:
    received = foreign(
        data=[b""],
        properties=Properties(
            message_id=uuid.UUID(int=3),
            user_id=b"\xff",
            to=b"t",
            subject=b"created",
            reply_to=b"r",
            correlation_id=12,
            content_type=b"text/plain",
            content_encoding=b"gzip",
            group_id=b"s",
            reply_to_group_id=b"x",
        ),
    )
    assert received.message == Message(
        b"",
        session_id="s",
        message_id="00000000-0000-0000-0000-000000000003",
        correlation_id="12",
        content_type="text/plain",
        headers={
            "amqp-user-id": "/w==",
            "amqp-to": "t",
            "amqp-subject": "created",
            "amqp-reply-to": "r",
            "amqp-content-encoding": "gzip",
            "amqp-reply-to-session-id": "x",
        },
    )


def test_foreign_fields_that_are_no_fields_here() -> None:
    long = b"x" * 200
    received = foreign(
        data=[b"body"],
        application_properties={b"a": b"b"},
        properties=Properties(message_id=long, correlation_id=b"a\nb", content_type=long),
        message_annotations={b"x-opt-scheduled-enqueue-time": 253_402_300_799_999},
    )
    assert received.malformed is None
    assert received.message.body == b"body"
    assert received.message.headers == {
        "a": "b",
        "amqp-message-id": long.decode(),
        "amqp-correlation-id": "a\nb",
        "amqp-content-type": long.decode(),
        "amqp-scheduled-at": "9999-12-31 23:59:59.999000+00:00",
    }
    assert received.message_id == digest(long.decode())


def test_what_the_broker_says() -> None:
    sections: dict[str, Any] = {
        "data": [b""],
        "header": Header(delivery_count=2, ttl=1_500),
        "message_annotations": {
            b"x-opt-enqueued-time": 1_000_000_000_123,
            b"x-opt-sequence-number": 2**48 + 5,
            b"x-opt-enqueue-sequence-number": 4,
            b"x-opt-locked-until": 1_000_000_060_000,
            b"x-opt-message-state": 1,
        },
    }
    received = foreign(**sections)
    assert received.enqueued_at == datetime(2001, 9, 9, 1, 46, 40, 123_000, tzinfo=UTC)
    assert received.locked_until == datetime(2001, 9, 9, 1, 47, 40, tzinfo=UTC)
    assert (received.sequence_number, received.enqueued_sequence_number) == (2**48 + 5, 4)
    assert (received.delivery_count, received.state) == (3, "deferred")
    assert received.message.time_to_live == 1.5
    assert received.message_id == str(2**48 + 5)
    assert foreign(**sections, peeked=True).delivery_count == 2
    due = {**sections["message_annotations"], b"x-opt-scheduled-enqueue-time": 1_100_000_000_000}
    received = foreign(**{**sections, "message_annotations": due})
    assert received.enqueued_at == received.message.scheduled_at


@pytest.mark.parametrize("ttl", [None, 0, 0xFFFF_FFFF, 2**62, -1, b"x"])
def test_times_to_live_that_mean_for_ever(ttl: Any) -> None:
    assert foreign(data=[b""], header=Header(ttl=ttl)).message.time_to_live is None


@pytest.mark.parametrize("value", [-1, 2**62, b"x", None, [1]])
def test_annotations_of_other_kinds(value: Any) -> None:
    names = ("enqueued-time", "sequence-number", "locked-until", "message-state")
    before = datetime.now(UTC)
    received = foreign(data=[b""], message_annotations={f"x-opt-{name}": value for name in names})
    assert before <= received.enqueued_at <= datetime.now(UTC)
    assert (received.locked_until, received.state) == (None, "active")
    assert received.sequence_number in (0, 2**62)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
amqp_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=40)
    | st.uuids()
    | st.decimals(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["v", "id", "was", "dedup", "session", "due", "dead", "headers", "enqueued", "sequence"]
        ),
        json_values,
    ),
    st.booleans(),
)
@example({"id": "\n", "headers": {"a": 1}, "dedup": 7, "due": "2026-01-01", "sequence": -1}, True)
@example({"dead": {"reason": 1, "description": "", "at": NOW.isoformat(), "first": None}}, True)
@example({"was": "x", "dedup": "\n", "headers": {"a": "b"}}, True)
def test_a_broken_envelope_breaks_nothing(fields: dict[str, Any], ours: bool) -> None:
    if ours:
        fields["v"] = 1
    text = json.dumps(fields)
    received = foreign(
        data=[b"body"],
        properties=Properties(message_id=b"m", group_id=b"s"),
        application_properties={ENVELOPE.encode(): text.encode(), b"a": b"b"},
    )
    assert received.message.body == b"body"
    assert received.message.session_id == "s"
    if received.malformed is not None:
        assert received.malformed.isprintable()
        assert received.message.headers[ENVELOPE] == json.dumps(fields)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "it is not a JSON object"),
        (b"[" * 30_000, "it is not a JSON object"),
        (b"[]", "it is not a JSON object"),
        (7, "it is not a JSON object"),
        (b"{}", "its version is None, this program reads 1"),
        (b'{"v":2}', "its version is 2"),
        (b'{"v":true}', "its version is True"),
        (b'{"v":1,"id":"\\n","sequence":-1}', "id cannot be read; sequence cannot be read"),
        (b'{"v":1,"headers":{"a":1}}', "headers is not an object of texts"),
        (b'{"v":1,"dedup":1}', "dedup is neither text nor true"),
        (b'{"v":1,"due":"2026-01-01"}', "due cannot be read"),
        (b'{"v":1,"dead":{"first":null}}', "dead cannot be read"),
        (b'{"v":1,"dead":{"first":null,"reason":1}}', "dead cannot be read"),
    ],
)
def test_malformed(text: Any, reason: str) -> None:
    received = foreign(data=[b"x"], application_properties={ENVELOPE.encode(): text, b"a": b"b"})
    assert received.malformed is not None
    assert received.malformed.startswith(f"property queue-runtime: {reason}")
    assert received.message.headers["a"] == "b"
    assert ENVELOPE in received.message.headers
    redriven = through(encode(received.message, TOKEN, extras=EXTRAS))
    assert (redriven.message.headers, redriven.malformed) == (received.message.headers, None)


@settings(deadline=None)
@given(
    value=amqp_values,
    properties=st.dictionaries(st.binary(max_size=20) | texts, amqp_values, max_size=5),
    fields=st.lists(amqp_values, min_size=13, max_size=13),
    header=st.lists(amqp_values, min_size=5, max_size=5),
    annotations=st.dictionaries(
        st.sampled_from(
            [
                b"x-opt-enqueued-time",
                b"x-opt-sequence-number",
                b"x-opt-locked-until",
                b"x-opt-message-state",
                b"x-opt-scheduled-enqueue-time",
                b"x-opt-enqueue-sequence-number",
            ]
        ),
        amqp_values,
    ),
    how=st.fixed_dictionaries({name: st.booleans() for name in ("sessions", "peeked", "dead")}),
    reason=st.sampled_from(["DeadLetterReason", b"DeadLetterErrorDescription", b"x"]),
)
def test_nothing_that_comes_breaks_it(
    value: Any,
    properties: dict[Any, Any],
    fields: list[Any],
    header: list[Any],
    annotations: dict[bytes, Any],
    how: dict[str, bool],
    reason: Any,
) -> None:
    received = foreign(
        value=value,
        header=Header(*header),
        properties=Properties(*fields),
        message_annotations=annotations,
        application_properties={**properties, reason: value},
        **how,
    )
    assert received.message_id
    assert received.delivery_count >= 0
    if how["sessions"]:
        assert (received.message.session_id is None) is (fields[10] is None)


# --- dead letters --------------------------------------------------------------------------------------


def as_dead(reason: str | None, description: str | None, **sections: Any) -> Received:
    words = {"DeadLetterReason": reason, "DeadLetterErrorDescription": description}
    return foreign(
        data=[b"x"],
        header=Header(delivery_count=3, ttl=60_000),
        message_annotations={b"x-opt-enqueued-time": 1_000_000_000_000},
        application_properties={
            name.encode(): word.encode() for name, word in words.items() if word is not None
        },
        **sections,
    )


@given(dead_letters)
@example(attrs.evolve(INFO, reason="", description=""))
@example(attrs.evolve(INFO, description="\nqueue-runtime {}"))
def test_our_own_dead_letters_keep_their_history(info: DeadLetterInfo) -> None:
    reason, description = dead_letter_words(
        info.reason,
        info.description,
        at=info.dead_lettered_at,
        first_failed_at=info.first_failed_at,
        delivery_count=info.delivery_count,
    )
    assert description.startswith(info.description)
    received = as_dead(reason, description, dead=True)
    assert received.dead_letter == info
    assert received.message == Message(b"x", time_to_live=60.0)


@pytest.mark.parametrize("text", ["x" * 5_000, "😀" * 3_000, "a" + "😀" * 3_000])
def test_long_words_are_cut(text: str) -> None:
    reason, description = dead_letter_words(
        text, text, at=NOW, first_failed_at=None, delivery_count=1
    )
    for word in (reason, description):
        assert len(word.encode("utf-16-le")) <= 2 * MAX_WORDS
    assert text.startswith(reason)
    info = as_dead(reason, description, dead=True).dead_letter
    assert info is not None
    assert text.startswith(info.description)
    assert len(info.description.encode("utf-16-le")) > 2 * (MAX_WORDS - 120)
    assert (info.dead_lettered_at, info.delivery_count) == (NOW, 1)


@pytest.mark.parametrize(
    ("reason", "description", "expected", "after"),
    [
        ("MaxDeliveryCountExceeded", "too often", "MaxDeliveryCountExceeded", 0),
        ("TTLExpiredException", "too late", "TimeToLiveExpired", 60),
        ("theirs", "text\nqueue-runtime {not json", "theirs", 0),
        ("theirs", "text\nqueue-runtime []", "theirs", 0),
        ("theirs", None, "theirs", 0),
        (None, None, "", 0),
    ],
)
def test_the_broker_s_own_dead_letters(
    reason: str | None, description: str | None, expected: str, after: int
) -> None:
    enqueued = datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)
    assert as_dead(reason, description, dead=True, peeked=True).dead_letter == DeadLetterInfo(
        reason=expected,
        description=description or "",
        dead_lettered_at=enqueued + timedelta(seconds=after),
        first_failed_at=None,
        delivery_count=3,
    )


def test_what_expires_later_than_there_are_dates() -> None:
    received = foreign(
        data=[b""],
        header=Header(ttl=4_000_000_000),
        message_annotations={b"x-opt-enqueued-time": 253_402_300_799_000},
        application_properties={b"DeadLetterReason": b"TTLExpiredException"},
        dead=True,
    )
    assert received.dead_letter is not None
    assert received.dead_letter.dead_lettered_at == received.enqueued_at


def test_a_message_that_another_program_sent_back() -> None:
    received = as_dead("theirs", "why")
    assert received.dead_letter is not None
    assert (received.dead_letter.reason, received.dead_letter.description) == ("theirs", "why")
    assert as_dead(None, None).dead_letter is None


def test_dead_again_the_broker_s_words_count() -> None:
    entry = encode(Message(b"x"), TOKEN, extras=EXTRAS)
    assert through(entry).dead_letter == INFO
    entry["application_properties"]["DeadLetterReason"] = "anew"
    again = decode(ServiceBusReceivedMessage.from_bytes(payload_of(entry)), dead=True)
    assert again.dead_letter is not None
    assert again.dead_letter.reason == "anew"
    assert again.earlier.dead_letter == INFO
