from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_runtime import errors
from queue_runtime.abc import Lease
from queue_runtime.errors import QueueError, SerializationError, ValidationError
from queue_runtime.messages import (
    MAX_DURATION,
    Delivery,
    Message,
    MessageId,
    QueueName,
    SessionId,
    Settlement,
    SettlementAction,
)

NOW = datetime.now(UTC)

HOSTILE = ["\x00", "a\nb", "a\r\nb", "\x1b[31mred", "\x7f", "\x9b", "\ud800", "tab\there"]
HARMLESS = [
    "a",
    " ",
    "a b",
    "ü",
    "💡",
    "日本語",
    "../../etc/passwd",
    "'; DROP TABLE",
    "a/b",
    "%2F",
    "*.>",
]

# --- names and ids ---------------------------------------------------------------------------------

IDS: list[type[SessionId] | type[MessageId]] = [SessionId, MessageId]


@pytest.mark.parametrize("make", IDS)
@pytest.mark.parametrize("text", [*HARMLESS, "x" * 128, "ü" * 128])
def test_ids_take_any_text_that_can_be_shown(make: type[str], text: str) -> None:
    value = make(text)
    assert value == text
    assert type(value) is make
    assert make(value) is value
    assert len({value, text}) == 1


@pytest.mark.parametrize("make", [*IDS, QueueName])
@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_are_refused_and_not_repeated(make: type[str], text: str) -> None:
    with pytest.raises(ValidationError, match="has a control character") as caught:
        make(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("make", [*IDS, QueueName])
@pytest.mark.parametrize(
    ("value", "expected"),
    [("", "is empty"), (None, "must be a str, got NoneType"), (b"a", "got bytes"), (7, "got int")],
)
def test_what_is_no_text_is_refused(make: type[str], value: Any, expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        make(value)


@pytest.mark.parametrize(("make", "limit"), [(SessionId, 128), (MessageId, 128), (QueueName, 260)])
def test_the_limit_and_one_more(make: type[str], limit: int) -> None:
    assert len(make("x" * limit)) == limit
    with pytest.raises(
        ValidationError, match=f"is {limit + 1} characters long, the limit is {limit}"
    ):
        make("x" * (limit + 1))


def test_errors_about_long_ids_are_short() -> None:
    with pytest.raises(ValidationError) as caught:
        SessionId("x" * 10_000_000)
    assert len(str(caught.value)) < 200


def test_ids_survive_copies_and_pickles() -> None:
    for value in (SessionId("s"), MessageId("m"), QueueName("q")):
        assert type(copy.deepcopy(value)) is type(value)
        assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize("text", ["q", "Q1", "prod/orders", "a.b_c-d", "0", "q" * 260])
def test_queue_names(text: str) -> None:
    name = QueueName(text)
    assert name == text
    assert QueueName(name) is name


@pytest.mark.parametrize(
    "text", [" q", "q ", "-q", ".q", "/q", "_q", "q q", "q$", "ü", "q\u2028", "q💡", "q:1", "q\\r"]
)
def test_other_characters_are_refused_in_queue_names(text: str) -> None:
    with pytest.raises(ValidationError, match="may only hold"):
        QueueName(text)


def test_queue_name_with_prefix() -> None:
    name = QueueName("orders").with_prefix("prod")
    assert name == "prod-orders"
    assert type(name) is QueueName
    for prefix in ("", "bad prefix", "x" * 260):
        with pytest.raises(ValidationError, match="queue name"):
            QueueName("orders").with_prefix(prefix)


PART = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)
PARTS = st.lists(PART, min_size=1, max_size=3)


def test_parts_are_joined_readably() -> None:
    assert SessionId.from_parts("octo", "hello", "pull_request", 7) == "octo/hello/pull_request/7"
    assert SessionId.from_parts("a/b", "50%") == "a%2Fb/50%25"
    assert SessionId.from_parts(0) == "0"


@given(PARTS)
def test_parts_come_back(parts: list[str]) -> None:
    assert list(SessionId.from_parts(*parts).parts()) == parts


@given(PARTS, PARTS)
def test_different_parts_give_different_ids(first: list[str], second: list[str]) -> None:
    same = SessionId.from_parts(*first) == SessionId.from_parts(*second)
    assert same == (first == second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("a/b", "c"), ("a", "b/c")),
        (("a%2Fb",), ("a/b",)),
        (("a", "b"), ("a/b",)),
        (("%",), ("%25",)),
        (("a-b", "c"), ("a", "b-c")),
    ],
)
def test_parts_that_look_alike_differ(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    assert SessionId.from_parts(*first) != SessionId.from_parts(*second)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((), r"needs non-empty parts, got \(\)"),
        (("a", ""), r"needs non-empty parts, got \('a', ''\)"),
        (("a", None), "part 2 of a session id must be a str or an int, got NoneType"),
        ((True,), "part 1 of a session id must be a str or an int, got bool"),
        ((1.5,), "got float"),
        pytest.param((10**5_000,), "part 1 of a session id is a number of more", id="huge"),
        (("x" * 129,), "the limit is 128"),
        (("/" * 43,), "129 characters long"),
        (("a\n",), "control character"),
    ],
)
def test_bad_parts_are_refused(parts: tuple[Any, ...], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        SessionId.from_parts(*parts)


def test_errors_about_parts_are_short() -> None:
    with pytest.raises(ValidationError) as caught:
        SessionId.from_parts("", *["x" * 100_000] * 100)
    assert len(str(caught.value)) < 1_000


def test_numbers_up_to_the_limit_are_parts() -> None:
    assert len(SessionId.from_parts(10**127)) == 128
    with pytest.raises(ValidationError):
        SessionId.from_parts(10**128)


# --- bodies ----------------------------------------------------------------------------------------


class Chunk(bytes):
    pass


@pytest.mark.parametrize("body", [b"abc", bytearray(b"abc"), memoryview(b"abc"), Chunk(b"abc")])
def test_bodies_are_bytes(body: Any) -> None:
    message = Message(body)
    assert message.body == b"abc"
    assert type(message.body) is bytes


def test_a_mutable_body_is_copied() -> None:
    buffer = bytearray(b"abc")
    message = Message(buffer)
    buffer[0] = 0
    assert message.body == b"abc"


@pytest.mark.parametrize("body", ["text", None, 5, [1, 2], {"a": 1}])
def test_other_bodies_are_refused(body: Any) -> None:
    with pytest.raises(ValidationError, match=f"a body must be bytes, got {type(body).__name__}"):
        Message(body)


def test_an_empty_body_is_a_body() -> None:
    assert Message(b"").size == 0


def test_the_body_is_not_in_the_repr() -> None:
    text = repr(Message(b"hunter2", session_id="s"))
    assert "hunter2" not in text
    assert "<7 bytes>" in text


# --- headers ---------------------------------------------------------------------------------------


def test_headers_are_copied_and_read_only() -> None:
    given_headers = {"a": "1"}
    message = Message(b"", headers=given_headers)
    given_headers["a"] = "2"
    assert message.headers == {"a": "1"}
    with pytest.raises(TypeError):
        message.headers["a"] = "3"  # type: ignore[index]


def test_a_read_only_view_of_a_mutable_dict_is_copied_and_checked() -> None:
    inner: dict[str, Any] = {"a": "1"}
    message = Message(b"", headers=MappingProxyType(inner))
    inner["a"] = "2"
    assert message.headers == {"a": "1"}
    with pytest.raises(ValidationError, match="header 'a' must be a str, got int"):
        Message(b"", headers=MappingProxyType({"a": 1}))  # type: ignore[dict-item]


def test_header_values_may_be_anything_that_can_be_encoded() -> None:
    headers = {"ü": "💡", "empty": "", "long": "x" * 10_000, "lines": "a\nb", "n" * 256: "v"}
    assert Message(b"", headers=headers).headers == headers


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"": "v"}, "header name is empty"),
        ({"a\n": "v"}, "header name .* has a control character"),
        ({"n" * 257: "v"}, "header name .* is 257 characters long, the limit is 256"),
        ({1: "v"}, "header name must be a str, got int"),
        ({"a": 1}, "header 'a' must be a str, got int: convert it"),
        ({"a": None}, "header 'a' must be a str, got NoneType"),
        ({"a": b"v"}, "header 'a' must be a str, got bytes"),
        ({"a": "\ud800"}, "header 'a' cannot be encoded as UTF-8"),
        ([("a", "b")], "headers must be a mapping of str to str, got list"),
        ("abc", "headers must be a mapping of str to str, got str"),
        (5, "headers must be a mapping of str to str, got int"),
    ],
)
def test_bad_headers_are_refused(headers: Any, expected: str) -> None:
    with pytest.raises(ValidationError, match=expected) as caught:
        Message(b"", headers=headers)
    assert str(caught.value).isprintable()


def test_size_counts_body_and_headers_in_bytes() -> None:
    assert Message(b"12345").size == 5
    assert Message(b"12345", headers={"ü": "💡", "ab": ""}).size == 5 + 2 + 4 + 2
    assert Message(b"12345", session_id="s" * 100, correlation_id="c").size == 5


# --- the other fields ------------------------------------------------------------------------------


def test_ids_are_converted() -> None:
    message = Message(b"", session_id="s", message_id="m")
    assert type(message.session_id) is SessionId
    assert type(message.message_id) is MessageId
    assert Message(b"").session_id is None


@pytest.mark.parametrize("name", ["correlation_id", "content_type", "deduplication_id"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", "is empty"),
        ("x" * 129, "the limit is 128"),
        ("a\x00", "control character"),
        (5, "must be a str, got int"),
    ],
)
def test_bad_texts_are_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValidationError, match=f"{name.replace('_', ' ')} .*{expected}"):
        Message(b"", **{name: value})
    assert getattr(Message(b"", **{name: "x" * 128}), name) == "x" * 128


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (0.001, 0.001), (timedelta(minutes=1), 60.0), (MAX_DURATION, MAX_DURATION)],
)
def test_times_to_live(value: Any, expected: float) -> None:
    message = Message(b"", time_to_live=value)
    assert message.time_to_live == expected
    assert type(message.time_to_live) is float


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "time_to_live is 0 seconds: it must be more than 0 and at most 315360000"),
        (-1.5, "is -1.5 seconds"),
        (math.nan, "is nan seconds"),
        (math.inf, "is inf seconds"),
        (MAX_DURATION + 1, "is 315360001.0 seconds"),
        pytest.param(10**5_000, "time_to_live is huge", id="huge"),
        (timedelta(0), "is 0.0 seconds"),
        (timedelta.max, "seconds: it must be"),
        ("60", "must be seconds as a number, got str"),
        (True, "got bool"),
        (Decimal(1), "got Decimal"),
    ],
)
def test_bad_times_to_live_are_refused(value: Any, expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Message(b"", time_to_live=value)


class Timeless(tzinfo):
    def utcoffset(self, _when: datetime | None) -> None:
        return None

    def dst(self, _when: datetime | None) -> None:
        return None

    def tzname(self, _when: datetime | None) -> None:
        return None


def test_scheduled_times_become_utc() -> None:
    zone = timezone(timedelta(hours=2))
    message = Message(b"", scheduled_at=datetime(2026, 1, 1, 12, tzinfo=zone))
    assert message.scheduled_at == datetime(2026, 1, 1, 10, tzinfo=UTC)
    assert message.scheduled_at.tzinfo is UTC


@pytest.mark.parametrize("moment", [NOW - timedelta(days=9_999), NOW + timedelta(days=3_649)])
def test_scheduled_times_in_the_past_and_the_far_future(moment: datetime) -> None:
    assert Message(b"", scheduled_at=moment).scheduled_at == moment


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime(2026, 1, 1), "has no time zone: use datetime.now"),  # noqa: DTZ001
        (datetime(2026, 1, 1, tzinfo=Timeless()), "has no time zone"),
        (NOW + timedelta(days=3_651), "is more than ten years away"),
        (datetime.max.replace(tzinfo=UTC), "is more than ten years away"),
        (datetime.max.replace(tzinfo=timezone(-timedelta(hours=14))), "more than ten years"),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=14))), "is no time in UTC"),
        (date(2026, 1, 1), "must be a datetime, got date"),
        ("2026-01-01", "must be a datetime, got str"),
        (1_700_000_000, "must be a datetime, got int"),
    ],
)
def test_bad_scheduled_times_are_refused(value: Any, expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Message(b"", scheduled_at=value)


def test_messages_are_frozen_values() -> None:
    message = Message(b"a", session_id="s", headers={"a": "b"})
    assert message == Message(b"a", session_id="s", headers={"a": "b"})
    assert message != Message(b"a", session_id="t", headers={"a": "b"})
    assert attrs.evolve(message, body=b"b").headers == {"a": "b"}
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        message.body = b"b"  # type: ignore[misc]


def test_equal_messages_have_no_different_hashes() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Message(b"a"))


# --- JSON ------------------------------------------------------------------------------------------


@attrs.frozen
class Order:
    number: int
    items: tuple[str, ...] = ()


def delivery(message: Message) -> Delivery:
    lease = Lease(message.session_id, 1, math.inf, NOW)
    return Delivery(message, MessageId("m"), "hidden-receipt", lease, 1, NOW)


def test_objects_travel_as_json() -> None:
    message = Message.json(Order(7, ("a",)), session_id="s")
    assert message.body == b'{"number":7,"items":["a"]}'
    assert message.content_type == "application/json"
    assert message.session_id == "s"
    assert delivery(message).json(Order) == Order(7, ("a",))
    assert delivery(message).json() == {"number": 7, "items": ["a"]}
    assert Message.json({}, content_type="text/x").content_type == "text/x"


def test_what_has_no_json_form_is_no_message() -> None:
    with pytest.raises(SerializationError, match="object has no JSON form"):
        Message.json(object())


def test_a_poison_body_names_every_problem() -> None:
    with pytest.raises(SerializationError) as caught:
        delivery(Message(b'{"items": [1, "a", 2]}')).json(Order)
    assert caught.value.problems == (
        "required field missing @ $.number",
        "expected str, got a whole number @ $.items[0]",
        "expected str, got a whole number @ $.items[2]",
    )


def test_a_delivery_shows_its_message_but_not_its_receipt() -> None:
    message = Message(
        b"abc", session_id="s", headers={"h": "v"}, correlation_id="c", content_type="text/plain"
    )
    received = delivery(message)
    assert received.body == b"abc"
    assert received.session_id == "s"
    assert received.headers == {"h": "v"}
    assert received.correlation_id == "c"
    assert received.content_type == "text/plain"
    assert received.locked_until is NOW
    assert "hidden-receipt" not in repr(received)
    assert Settlement(received, SettlementAction.COMPLETE) != Settlement(
        received, SettlementAction.COMPLETE
    )


# --- errors ----------------------------------------------------------------------------------------

MADE: Mapping[str, Callable[[], QueueError]] = {
    "MessageTooLarge": lambda: errors.MessageTooLarge(11, 10),
    "BatchTooLarge": lambda: errors.BatchTooLarge(11, 10),
    "SerializationError": lambda: SerializationError("bad", ("a @ $", "b @ $.c")),
    "ConfigurationError": lambda: errors.ConfigurationError("bad", ("a @ $", "b @ $.c")),
    "Unsupported": lambda: errors.Unsupported("peek", "kafka", "read the topic"),
    "ProviderError": lambda: errors.ProviderError("odd", code="E42"),
}
TRANSIENT = {
    "CircuitOpen",
    "ConnectionFailed",
    "OperationTimeout",
    "QueueFull",
    "SessionLocked",
    "Throttled",
}


def made(name: str) -> QueueError:
    make = MADE.get(name)
    error = getattr(errors, name)("text", retry_after=2.0) if make is None else make()
    assert isinstance(error, QueueError)
    return error


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_in_the_family(name: str) -> None:
    error = made(name)
    assert error.is_transient == (name in TRANSIENT)
    assert error.retry_after == (None if name in MADE else 2.0)
    assert str(error)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_survives_a_pickle(name: str) -> None:
    error = made(name)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__


def test_errors_say_what_was_wrong() -> None:
    assert str(made("MessageTooLarge")).startswith("the message is 11 bytes, the limit is 10")
    assert str(made("BatchTooLarge")) == "the batch holds 11 messages, the limit for one call is 10"
    assert str(made("ConfigurationError")) == "bad\n  a @ $\n  b @ $.c"
    assert str(made("Unsupported")) == "kafka does not support peek: read the topic"
    assert str(errors.Unsupported("peek", "kafka")) == "kafka does not support peek"
    assert str(made("ProviderError")) == "odd (code E42)"


def test_a_provider_error_may_be_transient() -> None:
    error = errors.ProviderError("busy", code="7", transient=True, retry_after=3.0)
    assert error.is_transient
    assert error.retry_after == 3.0
    assert not errors.ProviderError.is_transient


def test_a_validation_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="is empty"):
        SessionId("")
