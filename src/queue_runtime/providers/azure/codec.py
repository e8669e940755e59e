"""A message as Service Bus carries it, and back. Pure: plain values in and out, no SDK.

The body
    Travels as one data section.

Headers
    Travel as application properties, so that other programs read and write them, as many as there are. Those of
    :data:`.entries.NATIVE_HEADERS` are fields of AMQP itself, such as the subject, and travel as these.

The rest
    Session, content type, correlation id, time to live and scheduled time have fields of their own. What has none,
    and headers whose names Service Bus uses itself, travel as JSON in one application property,
    ``queue-runtime``. Many messages need none, and what a foreign program sends needs none.

The broker's message id
    Is the message's own or, on queues that detect duplicates, the deduplication id: two messages that merely have
    one ``message_id`` are two messages. Without either it is generated and begins with ``~n:``.

Foreign bodies
    Of several data sections: joined. A value or sequences: text and bytes as they are, all else as JSON, where
    bytes are text if they are UTF-8, otherwise base64; a header :data:`BODY_HEADER` tells which it was.

What cannot be read
    :func:`decode` never raises for what a sender did. What is no field for us becomes a header named after it. A
    property ``queue-runtime`` that does not hold together makes :attr:`Received.malformed`: what can be read is
    there, the broken property among the headers, and the receiver dead-letters it with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, final

import attrs

from queue_runtime.config.structuring import shown
from queue_runtime.errors import ValidationError
from queue_runtime.messages import Message, MessageId, SessionId
from queue_runtime.text import escape

from ..envelope import (
    ENVELOPE,
    NOTHING_MORE,
    Extras,
    extras_of,
    fields_of,
    moment_of,
    open_envelope,
    read_field,
    sealed,
    with_less,
)
from ..received import ReceivedMessage
from ..wire_ids import GENERATED, GENERATED_ID, HASHED, digest
from .broker_letters import broker_dead_letter
from .entries import NATIVE_HEADERS, SCHEDULED, Entry, header_size, wire_size
from .foreign import (
    BODY_HEADER,
    body_of,
    headers_of,
    optional_text,
    packed_headers,
    text_of,
    utf16_length,
)
from .ids import MARKED, MAX_ID, decode_id, encode_id, fitting, is_lone

__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_PROPERTY_BYTES",
    "MAX_TIME_TO_LIVE",
    "TRIES",
    "Received",
    "State",
    "decode",
    "deliveries",
    "encode",
    "identity",
]

MAX_HEADER_BYTES: Final = 65_536
"""Bytes of all that is not the body.

https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas
"""

MAX_PROPERTY_BYTES: Final = 32_768
"""Bytes of one header, by the same source."""

MAX_TIME_TO_LIVE: Final = 4_294_967
"""Longest time to live, in whole seconds: AMQP counts milliseconds in 32 bits."""

TRIES: Final = "queue-runtime-tries"
"""Property that says how many tries there were that the broker does not count: those in place, between deliveries."""

State: TypeAlias = Literal["active", "deferred", "scheduled"]
"""Where a peeked message stands."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_REASON: Final = "DeadLetterReason"
_DESCRIPTION: Final = "DeadLetterErrorDescription"
_RESERVED: Final = frozenset({ENVELOPE, TRIES, _REASON, _DESCRIPTION})
"""Names of properties that mean something here or to the broker; headers of these names are packed."""
_STATES: Final[Mapping[int | None, State]] = {1: "deferred", 2: "scheduled"}
_FOREIGN_FIELDS: Final = {
    "subject": "amqp-subject",
    "to": "amqp-to",
    "reply_to": "amqp-reply-to",
    "reply_to_group_id": "amqp-reply-to-session-id",
    "content_encoding": "amqp-content-encoding",
    "user_id": "amqp-user-id",
}
"""Field of the AMQP properties to the header that a foreign sender's value becomes."""


# --- sending -------------------------------------------------------------------------------------------


def identity(message: Message, token: str, extras: Extras = NOTHING_MORE) -> MessageId:
    """The ``message_id`` that deliveries of ``message`` will have, encoded with the same arguments."""
    return message.message_id or extras.message_id or MessageId(GENERATED + token)


def encode(
    message: Message,
    token: str,
    *,
    deduplicates: bool = False,
    extras: Extras = NOTHING_MORE,
    max_bytes: int | None = None,
) -> Entry:
    """``message`` as Service Bus carries it.

    Args:
        message: What to send.
        token: 32 to 64 hexadecimal digits that no other message has. On a queue that detects duplicates the same
            token makes a repeated send harmless.
        deduplicates: Whether the queue detects duplicates.
        extras: What else to carry, of a message that was in a queue before. Its deduplication id is carried, not
            used: the broker would drop the message for the sake of its own first life.
        max_bytes: Size that what ``extras`` say about a dead letter must not make it exceed: its description
            is shortened, and in the end left out with all the extras. The message itself is never cut.

    Raises:
        ValidationError: A time to live that is no number of whole seconds up to :data:`MAX_TIME_TO_LIVE` (rounded
            up for a message that was in a queue before), headers of more than :data:`MAX_HEADER_BYTES`, or one
            of more than :data:`MAX_PROPERTY_BYTES`.
    """
    entry = _encode(message, token, deduplicates, extras)
    if extras.dead_letter is not None and (excess := _excess(entry, max_bytes)) > 0:
        entry = _encode(message, token, deduplicates, with_less(extras, excess))
        if _excess(entry, max_bytes) > 0:
            least = Extras(message_id=identity(message, token, extras))
            entry = _encode(message, token, deduplicates, least)
    size = header_size(entry)
    if size > MAX_HEADER_BYTES:
        raise ValidationError(
            f"the headers and ids take {size} bytes, Service Bus takes {MAX_HEADER_BYTES}: "
            "put large values into the body"
        )
    if size > MAX_PROPERTY_BYTES:
        _check_each(entry)
    return entry


def _check_each(entry: Entry) -> None:
    given = {name: entry[field] for name, field in NATIVE_HEADERS.items() if field in entry}
    for name, value in {**given, **entry.get("application_properties", {})}.items():
        size = len(value.encode())
        if size > MAX_PROPERTY_BYTES:
            raise ValidationError(
                f"the header {shown(name)} takes {size} bytes, Service Bus takes {MAX_PROPERTY_BYTES} of each: "
                "put large values into the body"
            )


def _encode(message: Message, token: str, deduplicates: bool, extras: Extras) -> Entry:
    first = extras is NOTHING_MORE
    wanted: str | None = message.message_id
    if deduplicates:
        wanted = message.deduplication_id if first else None
    entry: Entry = {
        "body": message.body,
        "message_id": GENERATED + token if wanted is None else fitting(wanted),
    }
    properties: dict[str, str] = {}
    packed: dict[str, str] = {}
    for name, value in message.headers.items():
        if name in _RESERVED or (
            name == "amqp-reply-to-session-id" and utf16_length(value) > MAX_ID
        ):
            packed[name] = value
        elif name in NATIVE_HEADERS:
            entry[NATIVE_HEADERS[name]] = value
        else:
            properties[name] = value
    fields = _fields(message, token, entry["message_id"], extras)
    if message.session_id is not None:
        entry["session_id"] = encode_id(message.session_id)
        # A foreign session's own id is told by decode_id; a hash tells nothing.
        if entry["session_id"].startswith(HASHED):
            fields["session"] = message.session_id
    if message.content_type is not None:
        entry["content_type"] = message.content_type
    if message.correlation_id is not None:
        entry["correlation_id"] = message.correlation_id
    if message.time_to_live is not None:
        entry["time_to_live"] = _whole_seconds(message.time_to_live, round_up=not first)
    if message.scheduled_at is not None:
        due = _whole_milliseconds(message.scheduled_at)
        entry["scheduled_enqueue_time_utc"] = due
        if due != message.scheduled_at:
            fields["due"] = message.scheduled_at.isoformat()
    if packed:
        fields["headers"] = packed
    if fields:
        properties[ENVELOPE] = sealed(fields)
    if properties:
        entry["application_properties"] = properties
    return entry


def _fields(message: Message, token: str, broker_id: str, extras: Extras) -> dict[str, Any]:
    own, wanted = message.message_id, message.deduplication_id
    was = None if own is not None else identity(message, token, extras)
    fields = {
        "id": None if own == broker_id and not MARKED.match(broker_id) else own,
        "was": None if was == broker_id and extras.message_id is None else was,
        "dedup": True if wanted is not None and wanted == broker_id else wanted,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return {**given, **fields_of(extras)}


def _whole_seconds(seconds: float, *, round_up: bool) -> timedelta:
    whole = math.ceil(seconds) if round_up else int(seconds)
    if round_up:
        whole = min(whole, MAX_TIME_TO_LIVE)
    if whole < 1 or (whole != seconds and not round_up):
        raise ValidationError(
            f"time_to_live is {seconds!r} seconds: Service Bus counts whole ones, at least 1"
        )
    if whole > MAX_TIME_TO_LIVE:
        raise ValidationError(
            f"time_to_live is {seconds!r} seconds, Service Bus takes {MAX_TIME_TO_LIVE} (49 days) at most: "
            "leave it out, or let the queue set it"
        )
    return timedelta(seconds=whole)


def _whole_milliseconds(moment: datetime) -> datetime:
    """Not earlier than ``moment``, in the unit of AMQP."""
    rest = moment.microsecond % 1_000
    return moment + timedelta(microseconds=1_000 - rest) if rest else moment


def _excess(entry: Mapping[str, Any], max_bytes: int | None) -> int:
    envelope = entry.get("application_properties", {}).get(ENVELOPE, "")
    over = max(header_size(entry) - MAX_HEADER_BYTES, len(envelope) - MAX_PROPERTY_BYTES)
    return over if max_bytes is None else max(over, wire_size(entry) - max_bytes)


# --- receiving -----------------------------------------------------------------------------------------


@final
@attrs.frozen(kw_only=True)
class Received(ReceivedMessage):
    """What a message received from Service Bus says.

    Of a peeked message, the delivery count is how often it was delivered so far.

    Args:
        session: The session id as it is on the wire; ``None`` if there is none.
        sequence_number: The broker's; 0 if it did not say.
        enqueued_sequence_number: The one it had in the queue where it was first, if it was forwarded or
            dead-lettered since; otherwise ``sequence_number``.
        locked_until: When the lock on it ends; ``None`` without one, and under a session's lock.
        state: Where a peeked message stands.
    """

    session: str | None
    sequence_number: int
    enqueued_sequence_number: int
    locked_until: datetime | None
    state: State


def decode(
    raw: Any, *, sessions: bool = True, peeked: bool = False, dead: bool = False
) -> Received:
    """Read a received message.

    Args:
        raw: The SDK's received message, its ``raw_amqp_message``, or the message of the SDK's AMQP engine.
        sessions: Whether the queue has sessions; without, a session id is a header ``amqp-session-id``.
        peeked: It was looked at, not delivered.
        dead: It is in the dead-letter sub-queue.
    """
    raw = getattr(raw, "raw_amqp_message", raw)
    given = getattr(raw, "properties", None)
    annotations = _by_name(_first(raw, "message_annotations", "annotations"))
    properties = _by_name(raw.application_properties)
    words = (properties.pop(_REASON, None), properties.pop(_DESCRIPTION, None))
    envelope = optional_text(properties.pop(ENVELOPE, None))
    problems: list[str] = []
    fields = open_envelope(envelope, problems)
    tries = _number(properties.get(TRIES))
    if tries is not None:
        del properties[TRIES]
    headers = headers_of(properties)
    if words[0] is None and words[1] is not None and not dead:
        headers[_DESCRIPTION] = text_of(words[1])  # alone it is about no dead letter
    for field, name in _FOREIGN_FIELDS.items():
        value = getattr(given, field, None)
        if value is not None:
            headers[name] = text_of(value)
    body, kind = body_of(raw)
    if kind is not None:
        headers[BODY_HEADER] = kind
    headers |= packed_headers(fields, problems)
    session = optional_text(getattr(given, "group_id", None))
    if session is not None and not sessions:
        headers["amqp-session-id"] = session
    due = read_field(fields, "due", moment_of, problems) or _milliseconds(
        annotations.get(SCHEDULED)
    )
    count = deliveries(raw) + (tries or 0)
    broker_id = optional_text(getattr(given, "message_id", None))
    own_id, deduplication_id = _ids(broker_id, fields, problems)
    message = _message(
        body,
        headers,
        {
            "session_id": _session(session, fields) if sessions else None,
            "message_id": own_id,
            "correlation_id": optional_text(getattr(given, "correlation_id", None)),
            "content_type": optional_text(getattr(given, "content_type", None)),
            "time_to_live": _time_to_live(getattr(raw, "header", None)),
            "scheduled_at": due,
            "deduplication_id": deduplication_id,
        },
    )
    earlier = extras_of(fields, problems)
    if problems:
        message = attrs.evolve(message, headers={**message.headers, ENVELOPE: envelope or ""})
    enqueued_at = _milliseconds(annotations.get("x-opt-enqueued-time")) or datetime.now(UTC)
    if message.scheduled_at is not None:
        enqueued_at = max(enqueued_at, message.scheduled_at)
    sequence = _number(annotations.get("x-opt-sequence-number")) or 0
    dead_letter = earlier.dead_letter
    if dead or words[0] is not None:
        dead_letter = broker_dead_letter(words, count - 1, enqueued_at, message.time_to_live)
    return Received(
        message=message,
        message_id=message.message_id
        or earlier.message_id
        or _broker_identity(broker_id, sequence),
        session=session,
        delivery_count=count - peeked,
        enqueued_at=enqueued_at,
        sequence_number=sequence,
        enqueued_sequence_number=_number(annotations.get("x-opt-enqueue-sequence-number"))
        or sequence,
        locked_until=_milliseconds(annotations.get("x-opt-locked-until")),
        state=_STATES.get(_number(annotations.get("x-opt-message-state")), "active"),
        dead_letter=dead_letter,
        earlier=earlier,
        malformed=escape(f"property {ENVELOPE}: {'; '.join(problems)}", 1_024)
        if problems
        else None,
    )


def deliveries(raw: Any) -> int:
    """Deliveries of a received message as the broker counts them, this one included."""
    return 1 + (_number(getattr(getattr(raw, "header", None), "delivery_count", None)) or 0)


def _first(raw: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(raw, name, None)) is not None), None)


def _by_name(section: Mapping[Any, Any] | None) -> dict[str, Any]:
    """A section whose keys the SDK leaves as bytes."""
    return {text_of(name): value for name, value in (section or {}).items()}


def _session(wire: str | None, fields: Mapping[str, Any]) -> SessionId | None:
    if wire is None or is_lone(wire):
        return None
    carried = fields.get("session")
    try:
        if isinstance(carried, str) and encode_id(carried) == wire:
            return SessionId(carried)
    except ValidationError:
        pass
    return decode_id(wire)


def _ids(
    broker_id: str | None, fields: Mapping[str, Any], problems: list[str]
) -> tuple[str | None, str | None]:
    """The message's own id, and its deduplication id."""
    dedup: Any = fields.get("dedup")
    if dedup is True:
        dedup = broker_id
    elif dedup is not None and not isinstance(dedup, str):
        problems.append("dedup is neither text nor true")
        dedup = None
    own = read_field(fields, "id", MessageId, problems)
    if own is not None:
        return own, dedup
    generated = broker_id is None or GENERATED_ID.fullmatch(broker_id) is not None
    if generated or "was" in fields:
        return None, dedup
    return broker_id, dedup


def _broker_identity(broker_id: str | None, sequence: int) -> MessageId:
    if broker_id is None:
        return MessageId(f"{sequence}")
    try:
        return MessageId(broker_id)
    except ValidationError:
        return MessageId(digest(broker_id))


def _message(body: bytes, headers: dict[str, str], values: Mapping[str, Any]) -> Message:
    """A message of all values that are acceptable; the others are headers."""
    try:
        return Message(body, headers=headers, **values)
    except ValidationError:
        pass
    good: dict[str, Any] = {}
    for name, value in values.items():
        try:
            Message(b"", **{name: value})
        except ValidationError:
            headers.setdefault(f"amqp-{name.replace('_', '-')}", text_of(value))
        else:
            good[name] = value
    return Message(body, headers=headers, **good)


def _milliseconds(value: object) -> datetime | None:
    """A timestamp of AMQP; ``None`` if it is none, or no time that there is."""
    number = _number(value)
    if number is None:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=number)
    except OverflowError:
        return None


def _number(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _time_to_live(header: Any) -> float | None:
    """Seconds; ``None`` for the values that stand for ever, and for none at all."""
    value = _number(_first(header, "ttl", "time_to_live"))
    return None if not value or value >= 0xFFFF_FFFF else value / 1_000
