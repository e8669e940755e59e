"""Messages through SQS's shape and back; ids that stay different; what cannot be read does not crash."""

from __future__ import annotations

import base64
import json
import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from queue_runtime.messages import DeadLetterInfo, Message, MessageId, SessionId
from queue_runtime.providers.envelope import ENVELOPE, MAX_DESCRIPTION, NOTHING_MORE, Extras
from queue_runtime.providers.sqs.codec import (
    Entry,
    QueueKind,
    Received,
    carry_over,
    decode,
    decode_id,
    encode,
    encode_id,
    holding_group,
    wire_size,
)
from queue_runtime.providers.wire_ids import GENERATED, digest

from ..strategies import dead_letters
from .strategies import (
    TOKEN,
    acceptable,
    extras_,
    ids,
    json_values,
    messages,
    plain,
)

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)

# As the documents of SendMessage write them.
ALLOWED = re.compile("[\u0009\u000a\u000d\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")
GROUP = re.compile(r"[A-Za-z0-9!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]{1,128}")
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")


def received(entry: Entry, **system: str) -> dict[str, Any]:
    """What ReceiveMessage answers about an entry that was sent."""
    attributes = {"ApproximateReceiveCount": "1", "SentTimestamp": "1777636800000", **system}
    for name in ("MessageGroupId", "MessageDeduplicationId"):
        if name in entry:
            attributes[name] = entry[name]
    raw = {
        "MessageId": "6e1a7a5c-0000-4000-8000-000000000001",
        "ReceiptHandle": "handle",
        "Body": entry["MessageBody"],
        "Attributes": attributes,
    }
    if "MessageAttributes" in entry:
        raw["MessageAttributes"] = entry["MessageAttributes"]
    return raw


def trip(message: Message, kind: QueueKind = "fifo", extras: Extras = NOTHING_MORE) -> Received:
    return decode(received(encode(message, TOKEN, kind, extras)), kind)


def with_envelope(fields: object, body: str = "x", group: str = "g") -> dict[str, Any]:
    text = fields if isinstance(fields, str) else json.dumps(fields)
    attributes = {ENVELOPE: {"DataType": "String", "StringValue": text}}
    return received({"MessageBody": body, "MessageGroupId": group, "MessageAttributes": attributes})


def assert_sendable(entry: Entry) -> None:
    """SQS's own rules, https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html."""
    assert ALLOWED.fullmatch(entry["MessageBody"])
    for name in ("MessageGroupId", "MessageDeduplicationId"):
        assert name not in entry or GROUP.fullmatch(entry[name])
    attributes = entry.get("MessageAttributes", {})
    assert len(attributes) <= 10
    for name, attribute in attributes.items():
        assert NAME.fullmatch(name)
        assert not name.lower().startswith(("aws.", "amazon."))
        assert all(name.split("."))
        assert attribute["DataType"] == "String"
        assert ALLOWED.fullmatch(attribute["StringValue"])


# --- ids -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(ids)
@example("kunde 7")
@example("a%20b")
@example("é" * 128)
@example("~t:~t:x")
@example(GENERATED + TOKEN)
def test_ids_come_back_and_are_what_sqs_takes(text: str) -> None:
    wire = encode_id(text)
    assert GROUP.fullmatch(wire)
    assert not re.fullmatch(GENERATED + ".*", wire)
    if wire.startswith("~h:"):
        assert decode_id(wire) is None
    else:
        assert decode_id(wire) == text


@settings(deadline=None)
@given(ids, ids)
def test_different_ids_stay_different(first: str, second: str) -> None:
    assume(first != second)
    assert encode_id(first) != encode_id(second)


@settings(deadline=None)
@given(ids)
def test_an_encoded_id_is_an_id_of_its_own(text: str) -> None:
    wire = encode_id(text)
    assume(wire != text)
    assert encode_id(wire) != wire


@settings(deadline=None)
@given(st.text(plain, min_size=1, max_size=128))
def test_no_two_groups_are_one_session(group: str) -> None:
    session = decode_id(group)
    assert session is None or encode_id(session) == group


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("order-7", "order-7"),
        ("a/b%2Fc", "a/b%2Fc"),  # as SessionId.from_parts makes them
        ("100%", "100%"),
        ("~tilde", "~tilde"),
        ("kunde 7", "~t:kunde%207"),
        ("100 %", "~t:100%20%25"),
        ("~t:x", "~t:~t:x"),
        ("grün", "~t:gr%C3%BCn"),
        ("x" * 128, "x" * 128),
        ("x" * 122 + " ", "~t:" + "x" * 122 + "%20"),
        ("x" * 123 + " ", "~h:" + digest("x" * 123 + " ")),
    ],
)
def test_how_ids_look(text: str, wire: str) -> None:
    assert encode_id(text) == wire


# --- round trips ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(messages, st.sampled_from(["fifo", "holding"]), extras_)
def test_every_field_comes_back(message: Message, kind: QueueKind, extras: Extras) -> None:
    entry = encode(message, TOKEN, kind, extras)
    assert_sendable(entry)
    result = decode(received(entry, SequenceNumber="18849496460467696128"), kind)
    assert result.malformed is None
    assert result.message == message
    assert result.sequence_number == 18849496460467696128
    assert result.dead_letter == extras.dead_letter
    assert result.group == entry["MessageGroupId"]
    if message.message_id is not None:
        assert result.message_id == message.message_id
        extras = attrs.evolve(extras, message_id=None)
    elif extras.message_id is not None:
        assert result.message_id == extras.message_id
    else:
        assert result.message_id == "6e1a7a5c-0000-4000-8000-000000000001"
    assert result.earlier == extras


@settings(deadline=None)
@given(messages, extras_)
def test_standard_queues_have_no_sessions(message: Message, extras: Extras) -> None:
    message = attrs.evolve(message, session_id=None)
    entry = encode(message, TOKEN, "standard", extras)
    assert_sendable(entry)
    assert {"MessageGroupId", "MessageDeduplicationId"}.isdisjoint(entry)
    assert decode(received(entry), "standard").message == message
    # A foreign sender's fair queue.
    result = decode(received({**entry, "MessageGroupId": "tenant"}), "standard")
    assert (result.message.session_id, result.group) == (None, "tenant")


@settings(deadline=None)
@given(st.text(acceptable, min_size=1))
def test_text_travels_as_it_is(text: str) -> None:
    entry = encode(Message(text.encode()), TOKEN, "standard")
    assert entry == {"MessageBody": text}
    assert wire_size(entry) == len(text.encode())


@pytest.mark.parametrize(
    ("body", "sent", "form"),
    [
        (b"", "-", "empty"),
        (b"-", "-", None),
        (b"\t\r\n", "\t\r\n", None),
        (b"a\0b", "YQBi", "base64"),
        (b"\xff", "/w==", "base64"),
        ("\uffff".encode(), "77+/", "base64"),
        ("\U0001ffff".encode(), "\U0001ffff", None),
    ],
)
def test_how_bodies_travel(body: bytes, sent: str, form: str | None) -> None:
    entry = encode(Message(body), TOKEN, "standard")
    assert entry["MessageBody"] == sent
    if form is None:
        assert "MessageAttributes" not in entry
    else:
        envelope = entry["MessageAttributes"][ENVELOPE]["StringValue"]
        assert json.loads(envelope) == {"v": 1, "body": form}
    assert decode(received(entry), "standard").message.body == body


def test_headers_travel_natively_as_far_as_sqs_takes_them() -> None:
    native = {f"h{number}": "v" for number in range(9)}
    packed = {"tenth": "v"}
    for name in (
        "\u0131",
        "\u017f",
        "has space",
        "a..b",
        ".a",
        "a.",
        "AWS.x",
        "amazonian",
        ENVELOPE,
        "x" * 256,
    ):
        message = Message(b"x", headers={name: "v"})
        attributes = encode(message, TOKEN, "fifo")["MessageAttributes"]
        assert set(attributes) == ({name} if name == "x" * 256 else {ENVELOPE})
    for value in ("", "\0", "\ufffe"):
        attributes = encode(Message(b"x", headers={"a": value}), TOKEN, "fifo")["MessageAttributes"]
        assert set(attributes) == {ENVELOPE}
    attributes = encode(Message(b"x", headers=native | packed), TOKEN, "fifo")["MessageAttributes"]
    assert set(attributes) == {*native, ENVELOPE}
    assert json.loads(attributes.pop(ENVELOPE)["StringValue"])["headers"] == packed
    assert attributes["h0"] == {"DataType": "String", "StringValue": "v"}


def test_messages_without_a_session_are_independent() -> None:
    first, second = (encode(Message(b"x"), token, "fifo") for token in (TOKEN, TOKEN[::-1]))
    assert first["MessageGroupId"] == first["MessageDeduplicationId"] == GENERATED + TOKEN
    assert second["MessageGroupId"] != first["MessageGroupId"]
    result = decode(received(first), "fifo")
    assert (result.message.session_id, result.malformed) == (None, None)
    # A session that looks like one is encoded.
    assert encode(Message(b"x", session_id=GENERATED + TOKEN), TOKEN, "fifo")["MessageGroupId"] == (
        "~t:" + GENERATED + TOKEN
    )


def test_deduplication_ids_of_the_user_go_before_the_token() -> None:
    entry = encode(Message(b"x", deduplication_id="once only"), TOKEN, "fifo")
    assert entry["MessageDeduplicationId"] == "~t:once%20only"
    assert decode(received(entry), "fifo").message.deduplication_id == "once only"
    # One that another sender chose, or SQS made of the content, is not the message's own.
    foreign = received({"MessageBody": "x", "MessageGroupId": "g", "MessageDeduplicationId": "d"})
    assert decode(foreign, "fifo").message.deduplication_id is None


# --- scheduled messages --------------------------------------------------------------------------------


def test_a_held_message_knows_its_session_and_when_it_is_due() -> None:
    due = NOW + timedelta(hours=3)
    message = Message(b"x", session_id="a", scheduled_at=due)
    entry = encode(message, TOKEN, "holding")
    result = decode(received(entry), "holding")
    assert result.message == message
    assert result.enqueued_at == due  # not before it was due
    # On it goes, with the identity it had.
    onward = encode(result.message, TOKEN, "fifo", Extras(message_id=result.message_id))
    assert onward["MessageGroupId"] == "a"
    assert decode(received(onward), "fifo").message_id == result.message_id


def test_what_waits_together() -> None:
    due = NOW + timedelta(hours=3)

    def group(session: str | None, at: datetime, token: str = TOKEN) -> str:
        wire = holding_group(Message(b"x", session_id=session, scheduled_at=at), token)
        assert GROUP.fullmatch(wire)
        return wire

    other = TOKEN[::-1]
    assert group("a", due) == group("a", due, other)
    assert group("a", due) != group("a", due + timedelta(microseconds=1))
    assert group("a", due) != group("b", due)
    assert group(None, due) != group(None, due, other)
    unscheduled = holding_group(Message(b"x", session_id="a"), TOKEN)
    assert unscheduled not in {group("a", due), group("b", due)}


# --- sizes ---------------------------------------------------------------------------------------------


def test_sizes_count_bodies_names_types_and_values() -> None:
    entry = {
        "MessageBody": "é",
        "MessageGroupId": "not counted",
        "MessageAttributes": {
            "ab": {"DataType": "String", "StringValue": "ü"},
            "c": {"DataType": "Binary", "BinaryValue": b"123"},
        },
    }
    assert wire_size(entry) == 2 + (2 + 6 + 2) + (1 + 6 + 3)


@settings(deadline=None)
@given(messages, dead_letters, st.integers(0, 3_000))
def test_why_a_letter_is_dead_never_makes_it_too_large(
    message: Message, info: DeadLetterInfo, room: int
) -> None:
    extras = Extras(dead_letter=attrs.evolve(info, description="d" * 5_000), sequence_number=7)
    bare = wire_size(encode(message, TOKEN, "fifo"))
    entry = encode(message, TOKEN, "fifo", extras, max_bytes=bare + room)
    assert wire_size(entry) <= bare + room
    assert decode(received(entry), "fifo").message == message


@pytest.mark.parametrize(
    ("room", "kept"), [(None, MAX_DESCRIPTION), (5_000, MAX_DESCRIPTION), (1_000, None)]
)
def test_descriptions_are_shortened(room: int | None, kept: int | None) -> None:
    info = DeadLetterInfo("Reason", "d" * 5_000, NOW, None, 3)
    entry = encode(Message(b"x"), TOKEN, "fifo", Extras(dead_letter=info), max_bytes=room)
    dead = decode(received(entry), "fifo").dead_letter
    assert dead is not None
    if kept is None:
        assert wire_size(entry) == room
        assert 500 < len(dead.description) < 1_000
    else:
        assert dead == attrs.evolve(info, description="d" * kept)


def test_without_room_the_reason_is_left_out() -> None:
    info = DeadLetterInfo("Reason", "d", NOW, NOW, 3)
    entry = encode(Message(b"x"), TOKEN, "fifo", Extras(dead_letter=info), max_bytes=10)
    assert decode(received(entry), "fifo").dead_letter is None


# --- foreign senders -----------------------------------------------------------------------------------


def test_attributes_of_foreign_senders_are_headers() -> None:
    raw = received({"MessageBody": "plain", "MessageGroupId": "g/1"}, SequenceNumber="12")
    raw["MessageAttributes"] = {
        "text": {"DataType": "String.name", "StringValue": "t"},
        "number": {"DataType": "Number.int", "StringValue": "1e5"},
        "data": {"DataType": "Binary.png", "BinaryValue": b"\0\1"},
        "empty": {"DataType": "Binary", "BinaryValue": b""},
        "nothing": {"DataType": "String"},
    }
    result = decode(raw, "fifo")
    assert result.malformed is None
    assert result.message == Message(
        b"plain",
        session_id="g/1",
        headers={
            "text": "t",
            "number": "1e5",
            "data": base64.b64encode(b"\0\1").decode(),
            "empty": "",
        },
    )
    assert result.sequence_number == 12
    assert result.receipt == "handle"
    assert "handle" not in repr(result)


def test_a_body_that_looks_like_ours_is_a_body() -> None:
    raw = received({"MessageBody": "YQ==", "MessageGroupId": "g"})
    assert decode(raw, "fifo").message.body == b"YQ=="


def test_carried_over_unchanged() -> None:
    raw = received({"MessageBody": "b", "MessageGroupId": "g 1"})
    raw["MessageAttributes"] = {"a": {"DataType": "Number", "StringValue": "1"}}
    assert carry_over(raw, TOKEN, "fifo") == {
        "MessageBody": "b",
        "MessageAttributes": raw["MessageAttributes"],
        "MessageGroupId": "g 1",
        "MessageDeduplicationId": GENERATED + TOKEN,
    }
    assert carry_over({}, TOKEN, "standard") == {"MessageBody": "-"}
    assert carry_over({"Body": "b"}, TOKEN, "fifo")["MessageGroupId"] == GENERATED + TOKEN


# --- what SQS says -------------------------------------------------------------------------------------


def test_system_attributes() -> None:
    entry = encode(Message(b"x", session_id="a"), TOKEN, "fifo")
    result = decode(received(entry, ApproximateReceiveCount="4"), "fifo")
    assert result.delivery_count == 4
    assert result.enqueued_at == datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert result.sequence_number is None


@pytest.mark.parametrize("number", ["", "-1", "x", "٣", "9" * 41, "1.5"])
def test_system_attributes_that_are_no_numbers(number: str) -> None:
    raw = received(
        {"MessageBody": "x", "MessageGroupId": "a"},
        ApproximateReceiveCount=number,
        SentTimestamp=number,
        SequenceNumber=number,
    )
    before = datetime.now(UTC)
    result = decode(raw, "fifo")
    assert (result.delivery_count, result.sequence_number) == (1, None)
    assert before <= result.enqueued_at <= datetime.now(UTC)


def test_a_time_beyond_the_calendar() -> None:
    raw = received({"MessageBody": "x", "MessageGroupId": "a"}, SentTimestamp="9" * 30)
    assert decode(raw, "fifo").enqueued_at.year < 9_000


def test_an_empty_answer_is_readable() -> None:
    result = decode({}, "fifo")
    assert result.malformed is not None
    assert "there is no message group" in result.malformed
    assert result.message == Message(b"")
    assert len(result.message_id) == 64
    assert result.receipt == ""


# --- malformed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("nonsense", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ("9" * 5_000, "not a JSON object"),
        ({}, "its version is None, this program reads 1"),
        ({"v": True}, "its version is True"),
        ({"v": 2}, "its version is 2"),
        ({"v": 1, "headers": ["a"]}, "headers is not an object"),
        ({"v": 1, "headers": {"a": 1}}, "header 'a' must be a str, got int"),
        ({"v": 1, "headers": {"": "a"}}, "header name is empty"),
        ({"v": 1, "id": "x" * 129}, "message id 'xxx"),
        ({"v": 1, "was": 7}, "was cannot be read"),
        ({"v": 1, "correlation": ["a"]}, "correlation id must be a str"),
        ({"v": 1, "type": "a\0"}, "control character"),
        ({"v": 1, "ttl": -1}, "time_to_live is -1"),
        ({"v": 1, "ttl": math.nan}, "time_to_live is nan"),
        ({"v": 1, "due": "2026-05-01T12:00:00"}, "due cannot be read"),
        ({"v": 1, "due": "soon"}, "due cannot be read"),
        ({"v": 1, "due": "0001-01-01T00:00:00+10:00"}, "due cannot be read"),
        ({"v": 1, "due": "9000-01-01T00:00:00Z"}, "more than ten years away"),
        ({"v": 1, "dedup": 5}, "deduplication id must be a str"),
        ({"v": 1, "sequence": -1}, "sequence cannot be read"),
        ({"v": 1, "enqueued": 12}, "enqueued cannot be read"),
        ({"v": 1, "dead": "x"}, "dead cannot be read"),
        ({"v": 1, "dead": {"reason": "x"}}, "dead cannot be read"),
        ({"v": 1, "body": "zip"}, "body is 'zip': expected empty or base64"),
        ({"v": 1, "body": ["x"]}, "body is ['x']"),
        ({"v": 1, "body": "base64"}, "not base64"),
    ],
)
def test_a_malformed_envelope_gives_what_can_be_read(fields: object, problem: str) -> None:
    raw = with_envelope(fields, body="not/base64!")
    raw["MessageAttributes"]["mine"] = {"DataType": "String", "StringValue": "v"}
    result = decode(raw, "fifo")
    assert result.malformed is not None
    assert problem in result.malformed
    assert len(result.malformed) <= 1_024
    assert (result.message.body, result.message.session_id) == (b"not/base64!", "g")
    assert result.message.headers["mine"] == "v"
    assert result.message.headers[ENVELOPE] == raw["MessageAttributes"][ENVELOPE]["StringValue"]
    # As a dead letter, and after a redrive, it is an ordinary message.
    again = trip(result.message)
    assert (again.message, again.malformed) == (result.message, None)


def test_what_is_right_in_a_malformed_envelope_is_kept() -> None:
    fields = {"v": 1, "id": "mine", "correlation": 5, "headers": {"a b": "c", "d e": 1}, "new": 1}
    result = decode(with_envelope(fields), "fifo")
    assert result.message_id == result.message.message_id == "mine"
    assert result.message.headers["a b"] == "c"
    assert set(result.message.headers) == {"a b", ENVELOPE}
    assert result.message.correlation_id is None
    assert str(result.malformed).count(";") == 1


def test_fields_of_later_versions_are_not_minded() -> None:
    assert decode(with_envelope({"v": 1, "later": [1]}), "fifo").malformed is None


@pytest.mark.parametrize("group", ["~n:x", "~t:plain", "~t:%2", "~h:" + "0" * 64])
def test_groups_that_only_look_like_ours(group: str) -> None:
    result = decode(with_envelope({"v": 1, "session": "another"}, group=group), "fifo")
    assert result.malformed is not None
    assert "is none that we made" in result.malformed
    assert result.message.session_id == group


@pytest.mark.parametrize("group", ["~t:%3F", "~h:" + "0" * 64])
def test_a_carried_session_that_no_id_can_be(group: str) -> None:
    result = decode(with_envelope({"v": 1, "session": "\ud800" * 50}, group=group), "fifo")
    assert "is none that we made" in str(result.malformed)
    assert result.message.session_id == group


@pytest.mark.parametrize("group", ["~t:%00", "a\0", ""])
def test_groups_that_are_no_session(group: str) -> None:
    result = decode(received({"MessageBody": "x", "MessageGroupId": group}), "fifo")
    assert result.malformed is not None
    assert result.message.session_id in {None, group}


@settings(deadline=None)
@given(json_values, st.sampled_from(["fifo", "standard", "holding"]))
def test_no_envelope_crashes(value: object, kind: QueueKind) -> None:
    assert decode(with_envelope(value), kind).malformed is not None


TEXTS = ["id", "was", "correlation", "type", "dedup", "due", "enqueued", "body", "session"]
FIELDS = [*TEXTS, "ttl", "sequence", "headers", "dead"]
DEAD = ["reason", "description", "at", "first", "count"]
json_fields = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, json_values))
json_dead = st.fixed_dictionaries({}, optional=dict.fromkeys(DEAD, json_values))


@settings(deadline=None)
@given(
    st.builds(
        lambda fields, dead: {**fields, **dead, "v": 1},
        json_fields,
        st.just({}) | json_dead.map(lambda dead: {"dead": dead}),
    ),
    st.sampled_from(["fifo", "standard", "holding"]),
)
def test_no_fields_crash(fields: dict[str, Any], kind: QueueKind) -> None:
    result = decode(with_envelope(fields), kind)
    assert isinstance(result.message, Message)
    assert isinstance(result.message_id, MessageId)
    assert result.message.session_id is None or isinstance(result.message.session_id, SessionId)


def test_an_attribute_that_no_header_can_be_is_left_out() -> None:
    raw = received({"MessageBody": "x", "MessageGroupId": "g"})
    raw["MessageAttributes"] = {"a": {"StringValue": "\ud800"}, "b": {"StringValue": "v"}}
    result = decode(raw, "fifo")
    assert dict(result.message.headers) == {"b": "v"}
    assert "cannot be encoded" in str(result.malformed)
