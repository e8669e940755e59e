"""The values that travel: names, messages, deliveries, settlements, capabilities. All frozen.

Times of day are aware :class:`~datetime.datetime` objects in UTC; durations are seconds as floats.
"""

from __future__ import annotations

import enum
import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar
from urllib.parse import unquote

import attrs

from .errors import QueueError, ValidationError
from .serialization import dump_json, load_json

if TYPE_CHECKING:
    from .abc import Lease

__all__ = [
    "MAX_DURATION",
    "Capabilities",
    "DeadLetterInfo",
    "Delivery",
    "Message",
    "MessageId",
    "MessageState",
    "PeekedMessage",
    "QueueName",
    "QueueStats",
    "SendResult",
    "SessionId",
    "Settlement",
    "SettlementAction",
]

T = TypeVar("T")

MAX_DURATION: Final = 10 * 365 * 86_400.0
"""Longest duration accepted anywhere, in seconds (ten years): anything longer is a unit mistake."""

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
_QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


def _shown(value: str, limit: int = 80) -> str:
    """``value`` as a quoted, escaped and shortened literal, safe to print."""
    text = ascii(value)
    return text if len(text) <= limit else text[: limit - 2] + "…'"


def _check_text(kind: str, value: object, max_length: int) -> str:
    if not isinstance(value, str):
        raise ValidationError(f"{kind} must be a str, got {type(value).__name__}")
    if not value:
        raise ValidationError(f"{kind} is empty: give it at least one character")
    if len(value) > max_length:
        raise ValidationError(
            f"{kind} {_shown(value)} is {len(value)} characters long, the limit is {max_length}"
        )
    if not value.isprintable():
        for index, character in enumerate(value):
            # Cc: control characters; Cs: lone surrogates, which no wire encoding can carry.
            if unicodedata.category(character) in ("Cc", "Cs"):
                raise ValidationError(
                    f"{kind} {_shown(value)} has a control character ({character!a}) at "
                    f"position {index}: only characters that can be shown and encoded are accepted"
                )
    return value


class _CheckedText(str):
    """Text that was validated when it was made; made from one of its own class, it is that one.

    Raises:
        ValidationError: The text is not of the kind.
    """

    __slots__ = ()
    _KIND: ClassVar[str]
    MAX_LENGTH: ClassVar[int]

    def __new__(cls, value: str) -> Self:
        """Validate ``value``; one of this very class is returned as it is."""
        if type(value) is cls:
            return value
        return super().__new__(cls, _check_text(cls._KIND, value, cls.MAX_LENGTH))


class QueueName(_CheckedText):
    """The name of a queue: 1 to 260 characters of ``A-Z a-z 0-9 . _ / -``, starting with a letter or digit.

    260 is the longest entity path of Azure Service Bus; adapters with a narrower limit (SQS: 80) check theirs.

    Raises:
        ValidationError: The text is not such a name.
    """

    __slots__ = ()
    _KIND = "queue name"
    MAX_LENGTH = 260

    def __new__(cls, value: str) -> Self:
        """Validate ``value``; a ``QueueName`` is returned as it is."""
        name = super().__new__(cls, value)
        if name is not value and not _QUEUE_NAME.fullmatch(name):
            raise ValidationError(
                f"queue name {_shown(value)} may only hold A-Z a-z 0-9 . _ / - "
                "and must start with a letter or a digit"
            )
        return name

    def with_prefix(self, prefix: str) -> QueueName:
        """``prefix`` and this name joined by a hyphen, such as ``prod-orders``."""
        return QueueName(f"{prefix}-{self}")


class SessionId(_CheckedText):
    """The key that orders messages: 1 to 128 characters without control characters.

    128 is the limit of both Azure Service Bus (session id) and SQS (message group id).

    Raises:
        ValidationError: The text is not such an id.
    """

    __slots__ = ()
    _KIND = "session id"
    MAX_LENGTH = 128

    @classmethod
    def from_parts(cls, *parts: str | int) -> Self:
        """Join ``parts`` with ``/`` so that different parts always give different ids.

        ``/`` and ``%`` inside a part are percent-encoded: ``("a/b", "c")`` and ``("a", "b/c")`` differ.
        :meth:`parts` is the inverse.

        Raises:
            ValidationError: A part is empty or neither text nor a whole number, no part was given, or the
                result is too long.
        """
        texts: list[str] = []
        for part in parts:
            if isinstance(part, bool) or not isinstance(part, (str, int)):
                raise ValidationError(
                    f"part {len(texts) + 1} of a session id must be a str or an int, "
                    f"got {type(part).__name__}"
                )
            # Python refuses to print numbers of more than 4,300 digits; 128 digits are 426 bits.
            if isinstance(part, int) and part.bit_length() > 426:
                raise ValidationError(
                    f"part {len(texts) + 1} of a session id is a number of more than "
                    f"{cls.MAX_LENGTH} digits"
                )
            texts.append(str(part))
        if not texts or not all(texts):
            shown = ", ".join(_shown(text) for text in texts[:10])
            raise ValidationError(f"a session id needs non-empty parts, got ({shown})")
        return cls("/".join(text.replace("%", "%25").replace("/", "%2F") for text in texts))

    def parts(self) -> tuple[str, ...]:
        """The parts that :meth:`from_parts` joined, as text."""
        return tuple(unquote(part) for part in self.split("/"))


class MessageId(_CheckedText):
    """Identifies one message: 1 to 128 characters without control characters (Azure's limit).

    Raises:
        ValidationError: The text is not such an id.
    """

    __slots__ = ()
    _KIND = "message id"
    MAX_LENGTH = 128


def _to_body(value: object) -> bytes:
    if type(value) is bytes:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise ValidationError(
        f"a body must be bytes, got {type(value).__name__}: "
        "encode text with .encode(), or use Message.json(…) for objects"
    )


def _to_headers(value: Mapping[str, str]) -> Mapping[str, str]:
    if not value:
        return _NO_HEADERS
    if not isinstance(value, Mapping):
        raise ValidationError(
            f"headers must be a mapping of str to str, got {type(value).__name__}"
        )
    headers = dict(value)
    for name, text in headers.items():
        _check_text("header name", name, 256)
        if not isinstance(text, str):
            raise ValidationError(
                f"header {_shown(name)} must be a str, got {type(text).__name__}: convert it with str(…)"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValidationError(
                f"header {_shown(name)} cannot be encoded as UTF-8: {error}"
            ) from None
    return MappingProxyType(headers)


def _to_session_id(value: str | None) -> SessionId | None:
    return None if value is None else SessionId(value)


def _to_message_id(value: str | None) -> MessageId | None:
    return None if value is None else MessageId(value)


def _to_correlation_id(value: str | None) -> str | None:
    return None if value is None else _check_text("correlation id", value, 128)


def _to_content_type(value: str | None) -> str | None:
    return None if value is None else _check_text("content type", value, 128)


def _to_deduplication_id(value: str | None) -> str | None:
    return None if value is None else _check_text("deduplication id", value, 128)


def _to_duration(value: float | timedelta | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValidationError(
            f"time_to_live must be seconds as a number, got {type(value).__name__}"
        )
    if not 0 < value <= MAX_DURATION:  # also refuses NaN
        # Python refuses to print numbers of more than 4,300 digits.
        shown = (
            "huge"
            if isinstance(value, int) and value.bit_length() > 1_000
            else f"{value!r} seconds"
        )
        raise ValidationError(
            f"time_to_live is {shown}: it must be more than 0 and at most {MAX_DURATION:.0f} seconds"
        )
    return float(value)


def _to_moment(value: datetime | None) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise ValidationError(f"scheduled_at must be a datetime, got {type(value).__name__}")
    if value.utcoffset() is None:
        raise ValidationError(
            f"scheduled_at {value.isoformat()} has no time zone: use datetime.now(UTC) + timedelta(…)"
        )
    if (value - datetime.now(UTC)).total_seconds() > MAX_DURATION:
        raise ValidationError(f"scheduled_at {value.isoformat()} is more than ten years away")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValidationError(f"scheduled_at {value.isoformat()} is no time in UTC") from None


@attrs.frozen(hash=False)
class Message:
    """What a producer sends.

    Args:
        body: The payload. ``bytearray`` and ``memoryview`` are copied; text is refused.
        session_id: The ordering key; also the routing key. ``None``: no order, no session.
        headers: Text to text, readable by everything on the way. Never put secrets here.
        message_id: The producer's own id; the provider makes one when ``None``.
        correlation_id: Ties a message to what caused it; at most 128 characters.
        content_type: MIME type of the body, such as ``application/json``.
        time_to_live: Seconds after which an undelivered message expires; ``None``: never.
        scheduled_at: Aware time before which the message is not delivered; ``None``: at once.
        deduplication_id: A second message with the same id inside the queue's deduplication window is
            acknowledged and dropped. Only where the provider's ``Capabilities.deduplication`` holds.

    Raises:
        ValidationError: A field is outside what is accepted.
    """

    body: bytes = attrs.field(converter=_to_body, repr=lambda body: f"<{len(body)} bytes>")
    session_id: SessionId | None = attrs.field(default=None, converter=_to_session_id, kw_only=True)
    headers: Mapping[str, str] = attrs.field(
        default=_NO_HEADERS, converter=_to_headers, kw_only=True, repr=lambda h: repr(dict(h))
    )
    message_id: MessageId | None = attrs.field(default=None, converter=_to_message_id, kw_only=True)
    correlation_id: str | None = attrs.field(
        default=None, converter=_to_correlation_id, kw_only=True
    )
    content_type: str | None = attrs.field(default=None, converter=_to_content_type, kw_only=True)
    time_to_live: float | None = attrs.field(default=None, converter=_to_duration, kw_only=True)
    scheduled_at: datetime | None = attrs.field(default=None, converter=_to_moment, kw_only=True)
    deduplication_id: str | None = attrs.field(
        default=None, converter=_to_deduplication_id, kw_only=True
    )

    @classmethod
    def json(cls, payload: object, **fields: Any) -> Self:
        """A message whose body is ``payload`` as JSON, with content type ``application/json``.

        Args:
            payload: Anything cattrs can unstructure: dataclasses, attrs classes, containers, dates …
            **fields: The other fields of :class:`Message`.

        Raises:
            SerializationError: ``payload`` has no JSON form.
        """
        fields.setdefault("content_type", "application/json")
        return cls(dump_json(payload), **fields)

    @property
    def size(self) -> int:
        """Bytes the message counts for: the body plus header names and values in UTF-8.

        The embedded broker uses this number; adapters add what their wire format adds.
        """
        headers = self.headers
        if not headers:
            return len(self.body)
        return len(self.body) + sum(
            len(name.encode()) + len(value.encode()) for name, value in headers.items()
        )


@attrs.frozen
class DeadLetterInfo:
    """Why and when a message went to the dead-letter queue.

    Args:
        reason: Short and stable, for grouping: ``MaxDeliveryCountExceeded``, ``TimeToLiveExpired``, or the
            handler's own word.
        description: Text for people; at most 4,096 characters, never the body.
        dead_lettered_at: When it was moved.
        first_failed_at: When its first delivery failed, as far as the broker knows.
        delivery_count: How often it had been delivered.
    """

    reason: str
    description: str
    dead_lettered_at: datetime
    first_failed_at: datetime | None
    delivery_count: int


@attrs.frozen(eq=False)
class Delivery:
    """One message handed to one consumer, under a lease. Settle it exactly once.

    Args:
        message: What was sent.
        message_id: The message's identity, the same on every redelivery.
        receipt: Opaque proof of this delivery; good until it is settled or the lease ends.
        lease: The lock it was delivered under.
        delivery_count: 1 for the first delivery.
        enqueued_at: When the broker accepted it (for a scheduled message: when it became due).
        sequence_number: The broker's position, growing within a session; ``None`` if the broker has none.
        dead_letter: Set when the message was redriven or read from the dead-letter queue.
    """

    message: Message
    message_id: MessageId
    receipt: str = attrs.field(repr=False)
    lease: Lease = attrs.field(repr=False)
    delivery_count: int
    enqueued_at: datetime
    sequence_number: int | None = None
    dead_letter: DeadLetterInfo | None = None

    @property
    def body(self) -> bytes:
        """The payload."""
        return self.message.body

    @property
    def session_id(self) -> SessionId | None:
        """The ordering key, ``None`` for a message without a session."""
        return self.message.session_id

    @property
    def headers(self) -> Mapping[str, str]:
        """The sender's headers, read-only."""
        return self.message.headers

    @property
    def correlation_id(self) -> str | None:
        """The sender's correlation id."""
        return self.message.correlation_id

    @property
    def content_type(self) -> str | None:
        """MIME type of the body, as the sender set it."""
        return self.message.content_type

    @property
    def locked_until(self) -> datetime:
        """When the broker will give the message to somebody else unless the lease is renewed."""
        return self.lease.expires_at

    def json(self, payload_type: type[T] | Any = Any) -> Any:
        """The body read as JSON and structured as ``payload_type`` (plain JSON values by default).

        Raises:
            SerializationError: The body is not JSON or does not fit; ``problems`` has every path. Left
                unhandled in a handler it dead-letters the message: a poison body never fits later.
        """
        return load_json(self.message.body, payload_type)


class MessageState(enum.Enum):
    """Where a stored message stands."""

    READY = "ready"
    """Can be delivered as soon as its session's turn comes."""
    DELAYED = "delayed"
    """Failed and waiting for its retry delay; its session waits with it."""
    SCHEDULED = "scheduled"
    """Waiting for its scheduled time."""
    IN_FLIGHT = "in_flight"
    """Delivered and not settled."""
    DEAD_LETTERED = "dead_lettered"
    """In the dead-letter queue."""


@attrs.frozen(eq=False)
class PeekedMessage:
    """A stored message looked at without taking it: nothing is locked, counted or changed.

    Args:
        message: What was sent.
        message_id: Its identity.
        sequence_number: Its position; pass the last one as ``after`` to go on.
        enqueued_at: When the broker accepted it.
        delivery_count: How often it was delivered so far.
        state: Where it stands.
        dead_letter: Set in the dead-letter queue.
    """

    message: Message
    message_id: MessageId
    sequence_number: int
    enqueued_at: datetime
    delivery_count: int
    state: MessageState
    dead_letter: DeadLetterInfo | None = None


@attrs.frozen
class SendResult:
    """What became of one message of a batch.

    Args:
        message_id: The id the message has in the queue; ``None`` when it was not accepted.
        sequence_number: Its position or, for a scheduled message, what cancels it; ``None`` if unknown.
        duplicate: It was acknowledged but dropped: its deduplication id was seen inside the window.
        error: Why it was not accepted; ``None`` when it was.
    """

    message_id: MessageId | None
    sequence_number: int | None = None
    duplicate: bool = False
    error: QueueError | None = None


class SettlementAction(enum.Enum):
    """What is to become of a delivered message."""

    COMPLETE = "complete"
    """Done: remove it."""
    ABANDON = "abandon"
    """Failed: deliver it again after the delay; this delivery counts."""
    RELEASE = "release"
    """Not tried: deliver it again at once; this delivery does not count where the broker allows."""
    DEAD_LETTER = "dead_letter"
    """Move it to the dead-letter queue."""


@attrs.frozen(eq=False)
class Settlement:
    """The decision about one delivery, as the provider gets it.

    Args:
        delivery: The delivery it is about. Its ``delivery_count`` may have grown by tries that the broker did
            not see; a broker that can goes on counting from there.
        action: What to do.
        delay: Seconds before redelivery (``ABANDON`` only). The whole session waits with it.
        reason: Why it is dead-lettered; short and stable.
        description: Text for people; at most 4,096 characters.
        halt: Keep the session's later messages back until this one is redriven or purged
            (``DEAD_LETTER`` only, where ``Capabilities.session_halt`` holds).
    """

    delivery: Delivery
    action: SettlementAction
    delay: float = 0.0
    reason: str = ""
    description: str = ""
    halt: bool = False


@attrs.frozen
class QueueStats:
    """How a queue stands: what an autoscaler needs.

    Args:
        depth: Messages waiting to be delivered, delayed retries included, scheduled ones not.
        in_flight: Delivered and not settled; ``None`` when the broker cannot tell, and counts them in ``depth``.
        scheduled: Waiting for their scheduled time.
        dead_lettered: In the dead-letter queue.
        oldest_age: Seconds since the oldest waiting message was enqueued; ``None`` when unknown or empty.
        sessions: Sessions with waiting or in-flight messages; ``None`` when the broker cannot tell.
        locked_sessions: Sessions whose lock is held; ``None`` when the broker cannot tell.
    """

    depth: int
    in_flight: int | None
    scheduled: int
    dead_lettered: int
    oldest_age: float | None = None
    sessions: int | None = None
    locked_sessions: int | None = None


@attrs.frozen(kw_only=True)
class Capabilities:
    """What a provider can do. The contract suite proves every ``True`` and that every ``False`` raises ``Unsupported``.

    Args:
        sessions: Ordered, exclusive sessions.
        session_state: Bytes kept with a session, fenced by its lease.
        session_halt: A dead-lettered message can hold back the rest of its session.
        accept_by_name: A session can be locked by its id.
        lock_renewal: Leases can be renewed.
        abandon_delay: An abandoned message can be delayed.
        release_restores_count: ``RELEASE`` takes back the delivery count.
        keeps_empty_sessions: A session stays locked while none of its messages is unsettled. Without it a lease
            ends when its last delivery is settled, and the session's next messages come under a new lease.
        scheduling: ``Message.scheduled_at``.
        cancel_scheduled: A scheduled message can be taken back.
        time_to_live: ``Message.time_to_live``.
        deduplication: ``Message.deduplication_id``.
        peek: Looking at stored messages.
        purge: Emptying a queue.
        stats: ``QueueStats``.
        dead_letters: A dead-letter queue with list, redrive and purge.
        provisioning: Queues have to be created before they are used, and can be on request.
        durable: Acknowledged messages survive a restart of the broker.
        multi_process: Several processes may share the queue.
        max_message_bytes: Largest message, as ``Message.size`` counts it unless documented otherwise.
        max_batch_messages: Most messages in one send call.
        max_batch_bytes: Most bytes in one send call; ``None``: no limit of its own.
        max_settle_messages: Most settlements in one call.
        max_receive_messages: Most deliveries one receive call returns, however many are asked for; ``None``: as
            many as are asked for.
        max_sessions: Most session leases one receiver holds at once, whatever its options say; ``None``: as many as
            those say.
        max_concurrent_receives: How many receive calls on one queue are worth having in flight.
        max_concurrent_settles: How many settle calls on one queue are worth having in flight.
        settle_linger: Seconds worth waiting to fill a settlement batch (0: a call costs little).
    """

    sessions: bool = False
    session_state: bool = False
    session_halt: bool = False
    accept_by_name: bool = False
    lock_renewal: bool = False
    abandon_delay: bool = False
    release_restores_count: bool = False
    keeps_empty_sessions: bool = False
    scheduling: bool = False
    cancel_scheduled: bool = False
    time_to_live: bool = False
    deduplication: bool = False
    peek: bool = False
    purge: bool = False
    stats: bool = False
    dead_letters: bool = False
    provisioning: bool = False
    durable: bool = False
    multi_process: bool = False
    max_message_bytes: int
    max_batch_messages: int
    max_batch_bytes: int | None = None
    max_settle_messages: int = 1_000
    max_receive_messages: int | None = None
    max_sessions: int | None = None
    max_concurrent_receives: int = 1
    max_concurrent_settles: int = 1
    settle_linger: float = 0.0
