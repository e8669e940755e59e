"""A message as SQS carries it, and back. Pure: plain dictionaries in and out, no SDK.

The body
    Travels as it is when it is UTF-8 of characters that SQS takes and not empty; otherwise as base64.

Headers
    Travel as message attributes of type ``String``, so that other programs read and write them, as far as SQS
    takes their names and values, the first nine. SQS takes ten attributes.

The rest
    Other headers and the other fields of a message travel as JSON in one attribute, ``queue-runtime``. A
    message that needs none of it has no such attribute, and what a foreign program sends needs none.

Sessions
    A FIFO queue's message group is the session, see :func:`encode_id`. Standard queues have no sessions; a
    group id there (their "fair queues") is not looked at.

What cannot be read
    :func:`decode` never raises for what a sender did. Attributes of foreign types are read as text or left
    out. An attribute ``queue-runtime`` that does not hold together makes :attr:`Received.malformed`: what can
    be read is there, the broken attribute among the headers, and the receiver dead-letters it with the reason.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, final
from urllib.parse import quote, unquote

import attrs

from queue_runtime.config.structuring import shown
from queue_runtime.errors import ValidationError
from queue_runtime.messages import Message, MessageId
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

__all__ = [
    "Entry",
    "QueueKind",
    "Received",
    "carry_over",
    "decode",
    "decode_id",
    "encode",
    "encode_id",
    "holding_group",
    "wire_size",
]

Entry: TypeAlias = dict[str, Any]
"""Arguments of ``SendMessage``, or an entry of ``SendMessageBatch`` that still lacks its ``Id``."""

QueueKind: TypeAlias = Literal["fifo", "standard", "holding"]
"""What kind of queue a message is in; ``holding`` is the FIFO queue where scheduled messages wait."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NATIVE_HEADERS: Final = 9  # of ten attributes; one is the envelope
_ESCAPED: Final = "~t:"
_MAX_ID: Final = 128
_UNSENT: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that SQS refuses: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html"""
_PLAIN_BYTES: Final = b"\t\n\r" + bytes(range(0x20, 0x80))
"""Those of ASCII that it takes."""
_ATTRIBUTE_NAME: Final = re.compile(
    r"(?!aws|amazon)(?!\.)(?:[A-Za-z0-9_-]|\.(?!\.|$)){1,256}", re.ASCII | re.IGNORECASE
)
_PLAIN_ID: Final = re.compile(r"(?!~[thn]:)[!-~]{1,128}")


# --- ids -----------------------------------------------------------------------------------------------


def encode_id(text: str) -> str:
    """A session or deduplication id as SQS takes it: 1 to 128 printable ASCII characters, no spaces.

    Different ids stay different. What SQS takes goes as it is, so that other programs see and send the same
    ids; other text is percent-encoded behind ``~t:``; what is too long then is ``~h:`` and its SHA-256, and
    the envelope carries the id itself. Ids that begin like one of these are encoded too.
    """
    if _PLAIN_ID.fullmatch(text):
        return text
    escaped = _ESCAPED + _quoted(text)
    return escaped if len(escaped) <= _MAX_ID else HASHED + digest(text)


def decode_id(wire: str) -> str | None:
    """The id that :func:`encode_id` made ``wire`` of; ``None`` if it made it of none that can be told."""
    if _PLAIN_ID.fullmatch(wire):
        return wire
    if wire.startswith(_ESCAPED):
        text = unquote(wire.removeprefix(_ESCAPED), errors="replace")
        if encode_id(text) == wire:
            return text
    return None


def _quoted(text: str) -> str:
    # All that SQS takes but the percent sign itself and the tilde, which begins the marks.
    # A foreign envelope may hold what UTF-8 does not have.
    return quote(text, safe="!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~", errors="replace")


def holding_group(message: Message, token: str) -> str:
    """The group in which a scheduled message waits.

    Messages of one session that are due at the same time share one and so keep their order; others do not
    wait for each other.
    """
    if message.session_id is None:
        return GENERATED + token
    due = "" if message.scheduled_at is None else message.scheduled_at.isoformat()
    return GENERATED + digest(message.session_id, due)


# --- sending -------------------------------------------------------------------------------------------


def encode(
    message: Message,
    token: str,
    kind: QueueKind,
    extras: Extras = NOTHING_MORE,
    *,
    max_bytes: int | None = None,
) -> Entry:
    """``message`` as SQS carries it, without an ``Id``.

    Args:
        message: What to send. ``scheduled_at`` is carried; delaying is the caller's business.
        token: 32 to 64 hexadecimal digits that no other message has: the group of a message without a session,
            and the deduplication id of one that has none. The same token makes a repeated send harmless.
        kind: Where it goes.
        extras: What else to carry.
        max_bytes: Size that what ``extras`` say about a dead letter must not make it exceed: its description
            is shortened, and in the end left out with all the extras. The message itself is never cut.

    Returns:
        ``MessageBody``, ``MessageAttributes`` if there are any and, but for standard queues,
        ``MessageGroupId`` and ``MessageDeduplicationId``.
    """
    entry = _encode(message, token, kind, extras)
    if max_bytes is None or extras.dead_letter is None:
        return entry
    excess = wire_size(entry) - max_bytes
    if excess <= 0:
        return entry
    entry = _encode(message, token, kind, with_less(extras, excess))
    return entry if wire_size(entry) <= max_bytes else _encode(message, token, kind, NOTHING_MORE)


def _encode(message: Message, token: str, kind: QueueKind, extras: Extras) -> Entry:
    body, body_form = _encode_body(message.body)
    attributes: dict[str, dict[str, str]] = {}
    packed: dict[str, str] = {}
    for name, value in message.headers.items():
        if len(attributes) < _NATIVE_HEADERS and _is_native(name, value):
            attributes[name] = {"DataType": "String", "StringValue": value}
        else:
            packed[name] = value
    entry: Entry = {"MessageBody": body}
    fields = _fields(message, extras)
    if body_form:
        fields["body"] = body_form
    if packed:
        fields["headers"] = packed
    session = message.session_id
    if kind != "standard":
        group = GENERATED + token if session is None else encode_id(session)
        if session is not None and (kind == "holding" or group.startswith(HASHED)):
            fields["session"] = session
        if kind == "holding":
            group = holding_group(message, token)
        wanted = message.deduplication_id
        entry["MessageGroupId"] = group
        entry["MessageDeduplicationId"] = GENERATED + token if wanted is None else encode_id(wanted)
    if fields:
        attributes[ENVELOPE] = {"DataType": "String", "StringValue": sealed(fields)}
    if attributes:
        entry["MessageAttributes"] = attributes
    return entry


def _fields(message: Message, extras: Extras) -> dict[str, Any]:
    due = message.scheduled_at
    values: list[tuple[str, Any]] = [
        ("id", message.message_id),
        ("correlation", message.correlation_id),
        ("type", message.content_type),
        ("ttl", message.time_to_live),
        ("dedup", message.deduplication_id),
        ("due", due and due.isoformat()),
    ]
    if message.message_id is None:
        values.append(("was", extras.message_id))
    fields = {name: value for name, value in values if value is not None}
    return fields if extras is NOTHING_MORE else {**fields, **fields_of(extras)}


def _encode_body(body: bytes) -> tuple[str, str | None]:
    """The text to send, and what form it has; ``None``: the body itself."""
    if not body:
        return "-", "empty"  # SQS refuses an empty body
    if not body.translate(None, _PLAIN_BYTES):  # ten times as fast as what follows
        return body.decode("ascii"), None
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return b64encode(body).decode(), "base64"
    return (b64encode(body).decode(), "base64") if _UNSENT.search(text) else (text, None)


def _is_native(name: str, value: str) -> bool:
    return (
        name != ENVELOPE
        and bool(value)
        and _ATTRIBUTE_NAME.fullmatch(name) is not None
        and _UNSENT.search(value) is None
    )


def wire_size(entry: Mapping[str, Any]) -> int:
    """Bytes an entry counts for, as SQS counts: the body, and names, types and values of all attributes.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html
    """
    size = len(entry["MessageBody"].encode())
    for name, attribute in entry.get("MessageAttributes", {}).items():
        size += len(name.encode()) + len(attribute["DataType"].encode())
        size += len(attribute.get("StringValue", "").encode())
        size += len(attribute.get("BinaryValue", b""))
    return size


# --- receiving -----------------------------------------------------------------------------------------


@final
@attrs.frozen(kw_only=True)
class Received(ReceivedMessage):
    """What a message received from SQS says.

    SQS counts deliveries approximately, and numbers messages on FIFO queues only.

    Args:
        receipt: The receipt handle.
        group: The message group as SQS has it; ``None`` on standard queues that set none.
    """

    receipt: str = attrs.field(repr=False)
    group: str | None


def decode(raw: Mapping[str, Any], kind: QueueKind) -> Received:
    """Read an element of ``Messages`` in the answer to ``ReceiveMessage``.

    Args:
        raw: With all system attributes and message attributes asked for.
        kind: Where it comes from.
    """
    problems: list[str] = []
    headers = _foreign_headers(raw.get("MessageAttributes") or {})
    envelope = headers.pop(ENVELOPE, None)
    fields = open_envelope(envelope, problems)
    system = raw.get("Attributes") or {}
    group = system.get("MessageGroupId")
    values: dict[str, Any] = {
        "session_id": _session(group, kind, fields, problems),
        "headers": headers,
    }
    earlier = NOTHING_MORE
    if fields:  # most messages have none
        values["headers"] = {**headers, **_packed_headers(fields, problems)}
        values["message_id"] = fields.get("id")
        values["correlation_id"] = fields.get("correlation")
        values["content_type"] = fields.get("type")
        values["time_to_live"] = fields.get("ttl")
        values["scheduled_at"] = read_field(fields, "due", moment_of, problems)
        values["deduplication_id"] = fields.get("dedup")
        earlier = extras_of(fields, problems)
    message = _message(_decode_body(raw.get("Body") or "", fields, problems), values, problems)
    if problems and envelope is not None:
        message = attrs.evolve(message, headers={**message.headers, ENVELOPE: envelope})
    sent = _sent(system)
    return Received(
        message=message,
        message_id=message.message_id or earlier.message_id or _own_id(raw.get("MessageId")),
        receipt=str(raw.get("ReceiptHandle") or ""),
        group=group,
        delivery_count=_number(system.get("ApproximateReceiveCount")) or 1,
        enqueued_at=sent if message.scheduled_at is None else max(sent, message.scheduled_at),
        sequence_number=_number(system.get("SequenceNumber")),
        dead_letter=earlier.dead_letter,
        earlier=earlier,
        malformed=_reason(problems),
    )


def _reason(problems: list[str]) -> str | None:
    if not problems:
        return None
    return escape(f"attribute {ENVELOPE}, or the message group: {'; '.join(problems)}", 1_024)


def carry_over(raw: Mapping[str, Any], token: str, kind: QueueKind) -> Entry:
    """A received message as an entry that sends the same once more: same body, attributes and group.

    The last resort where :func:`encode` would make too much of it: it adds nothing, so it is as large as it was.
    """
    entry: Entry = {"MessageBody": raw.get("Body") or "-"}
    if raw.get("MessageAttributes"):
        entry["MessageAttributes"] = dict(raw["MessageAttributes"])
    if kind != "standard":
        group = (raw.get("Attributes") or {}).get("MessageGroupId")
        entry["MessageGroupId"] = group or GENERATED + token
        entry["MessageDeduplicationId"] = GENERATED + token
    return entry


def _foreign_headers(attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """All attributes as text: numbers as they are written, binary ones as base64; others are left out."""
    headers = {}
    for name, attribute in attributes.items():
        text, data = attribute.get("StringValue"), attribute.get("BinaryValue")
        if isinstance(text, str):
            headers[name] = text
        elif isinstance(data, bytes):
            headers[name] = b64encode(data).decode()
    return headers


def _packed_headers(fields: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    packed = fields.get("headers", {})
    if isinstance(packed, dict):
        return packed
    problems.append("headers is not an object")
    return {}


def _session(
    group: str | None, kind: QueueKind, fields: Mapping[str, Any], problems: list[str]
) -> str | None:
    """The session, as far as it can be told; a group that begins like ours and is not is its own session."""
    if kind == "standard":
        return None
    carried = fields.get("session")
    if kind == "holding":
        return carried
    if group is None:
        problems.append("there is no message group")
        return None
    session = decode_id(group)
    if session is not None or GENERATED_ID.fullmatch(group):
        return session
    if isinstance(carried, str) and encode_id(carried) == group:
        return carried
    problems.append(f"group {shown(group)} is none that we made")
    return group


def _decode_body(text: str, fields: Mapping[str, Any], problems: list[str]) -> bytes:
    form = fields.get("body")
    try:
        match form:
            case None:
                pass
            case "empty":
                return b""
            case "base64":
                return b64decode(text, validate=True)
            case _:
                problems.append(f"body is {shown(form)}: expected empty or base64")
    except ValueError:
        problems.append("the body is not base64, which it is said to be")
    return text.encode(errors="replace")


def _message(body: bytes, values: dict[str, Any], problems: list[str]) -> Message:
    """A message of all values that are acceptable."""
    try:
        return Message(body, **values)
    except ValidationError:
        pass
    message = Message(body)
    headers: dict[str, str] = {}
    for name, text in values.pop("headers").items():
        try:
            headers |= Message(b"", headers={name: text}).headers
        except ValidationError as error:
            problems.append(str(error))
    for name, value in {"headers": headers, **values}.items():
        try:
            message = attrs.evolve(message, **{name: value})
        except ValidationError as error:
            problems.append(str(error))
    return message


def _number(value: object) -> int | None:
    """A system attribute, which SQS writes as digits."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 40 else None


def _sent(system: Mapping[str, Any]) -> datetime:
    milliseconds = _number(system.get("SentTimestamp"))
    if milliseconds is not None:
        try:
            return _EPOCH + timedelta(milliseconds=milliseconds)
        except OverflowError:
            pass
    return datetime.now(UTC)


def _own_id(value: object) -> MessageId:
    try:
        return MessageId(value)  # type: ignore[arg-type]  # it refuses what is not text
    except ValidationError:
        return MessageId(digest(repr(value)))
