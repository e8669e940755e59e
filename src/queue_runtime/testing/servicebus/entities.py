"""What a queue is made of: settings, messages, locks, lanes, and those who receive."""

from __future__ import annotations

import enum
import math
from bisect import bisect_left
from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Any, Final, Protocol, final
from uuid import UUID

import attrs

from ...errors import ValidationError
from .refusals import Refused
from .timers import Timer

__all__ = [
    "ACTIVE",
    "DEFERRED",
    "MAX_BATCH_BYTES",
    "NEVER",
    "SCHEDULED",
    "Consumer",
    "Content",
    "Index",
    "Lane",
    "Lock",
    "Outcome",
    "QueueCounts",
    "QueueSettings",
    "Receiver",
    "Stored",
]

NEVER: Final = math.inf
"""A time that does not come."""

# A message's state as its annotation `x-opt-message-state` tells it.
ACTIVE: Final = 0
DEFERRED: Final = 1
SCHEDULED: Final = 2

MAX_BATCH_BYTES: Final = 1_048_576
"""Largest batch, whatever a single message may have:
https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas
"""

_SLACK: Final = 64
"""Numbers of messages gone that are not worth sweeping out of a list."""


@final
class Outcome(enum.Enum):
    """What becomes of a locked message. Values are the names in an ``update-disposition`` request."""

    COMPLETED = "completed"
    ABANDONED = "abandoned"
    DEFERRED = "defered"
    DEAD_LETTERED = "suspended"
    RELEASED = "released"
    """Given back as if never delivered; only links can say so."""


@final
@attrs.frozen(kw_only=True)
class QueueSettings:
    """The rules of one queue, in the terms of Service Bus. Durations are seconds.

    Args:
        requires_session: Messages need a session id, receivers lock sessions.
        lock_duration: How long a lock on a message or session lasts; Azure allows 300 at most, tests like less
            than its 5.
        max_delivery_count: Failed deliveries after which a message is dead-lettered.
        default_time_to_live: For messages that name none, and a bound for those that do; ``None``: for ever.
        dead_letter_expired: Keep expired messages as dead letters; otherwise they are deleted.
        duplicate_window: How long a message id is remembered; 0: duplicates are not detected.
        max_message_bytes: Largest message as encoded; 256 KiB is the limit of the Standard tier.
        max_queue_bytes: Sends are refused while the queue's messages together have more; 1 GiB is Azure's smallest.
        locks_outlast_links: A session whose receiver went without closing (killed, cut off, detached by force)
            stays locked until its lock ends, as Microsoft documents for receivers that are unable to close;
            without it, the session is free at once, before its holder can know.
        fetches_ahead: Credit of a session's receiver that is lowered to nothing, not drained, leaves a message
            fetched for it, which comes with the next credit, before what was given back meanwhile. That is how
            sessions of Service Bus lose their order: https://github.com/Azure/azure-sdk-for-net/issues/35846

    Raises:
        ValidationError: A value is outside what is accepted.
    """

    requires_session: bool = False
    lock_duration: float = 60.0
    max_delivery_count: int = 10
    default_time_to_live: float | None = None
    dead_letter_expired: bool = False
    duplicate_window: float = 0.0
    max_message_bytes: int = 262_144
    max_queue_bytes: int = 1 << 30
    locks_outlast_links: bool = False
    fetches_ahead: bool = False

    def __attrs_post_init__(self) -> None:
        lives = 1.0 if self.default_time_to_live is None else self.default_time_to_live
        for name, value, accepted, expected in (
            ("lock_duration", self.lock_duration, 0 < self.lock_duration < NEVER, "above 0"),
            ("default_time_to_live", self.default_time_to_live, 0 < lives < NEVER, "above 0"),
            (
                "duplicate_window",
                self.duplicate_window,
                0 <= self.duplicate_window < NEVER,
                "from 0",
            ),
            ("max_delivery_count", self.max_delivery_count, self.max_delivery_count >= 1, "from 1"),
            ("max_message_bytes", self.max_message_bytes, self.max_message_bytes >= 1, "from 1"),
            ("max_queue_bytes", self.max_queue_bytes, self.max_queue_bytes >= 1, "from 1"),
        ):
            if not accepted:
                raise ValidationError(f"{name} is {value!r}: expected a finite number {expected}")


@final
@attrs.frozen(kw_only=True)
class QueueCounts:
    """What is in a queue.

    Args:
        active: Messages ready or locked.
        locked: Those of the active and deferred ones that somebody has locked.
        deferred: Messages that only their number brings back.
        scheduled: Messages that are not due yet.
        dead_letters: Messages in the dead-letter sub-queue.
        sessions: Sessions that have messages, a state or a lock.
        locked_sessions: Those that somebody has locked.
        size_bytes: What the messages occupy together, without dead letters.
    """

    active: int
    locked: int
    deferred: int
    scheduled: int
    dead_letters: int
    sessions: int
    locked_sessions: int
    size_bytes: int


@final
@attrs.frozen(kw_only=True)
class Content:
    """A message as its sender made it: what the broker looks at, and what it only passes on.

    Args:
        payload: The encoded message, meaningful to the codec alone.
        size: Its bytes.
        message_id: Compared when duplicates are detected; AMQP allows text, numbers, bytes and UUIDs.
        session_id: The session, where the queue has them.
        time_to_live: Seconds.
        due: When the message is to become active, in seconds since 1970.
    """

    payload: Any = None
    size: int = 0
    message_id: Hashable = None
    session_id: str | None = None
    time_to_live: float | None = None
    due: float | None = None


@final
class Stored:
    """A message in a queue."""

    __slots__ = (
        "content",
        "count",
        "enqueued_at",
        "enqueued_sequence",
        "expires_at",
        "lane",
        "lock",
        "overrides",
        "sequence",
        "source",
        "state",
        "timer",
    )

    def __init__(self, content: Content, lane: Lane, now: float) -> None:
        self.content = content
        self.lane = lane
        self.sequence = 0
        self.enqueued_sequence = 0
        self.enqueued_at = now
        self.expires_at = NEVER
        self.state = ACTIVE
        self.count = 0  # failed deliveries
        self.lock: Lock | None = None
        self.timer: Timer | None = None  # falls due, or expires
        self.overrides: Mapping[str, Any] | None = None  # properties that settlements set
        self.source: str | None = None  # the queue that dead-lettered it

    @property
    def locked_until(self) -> float | None:
        """When the lock on the message ends, in seconds since 1970; ``None`` without a lock."""
        return None if self.lock is None else self.lock.until


@final
class Lock:
    """A lock on one message. That of a session's message lasts as long as the session's."""

    __slots__ = ("consumer", "message", "own_until", "timer", "token")

    def __init__(
        self, token: UUID, message: Stored, consumer: Consumer | None, until: float
    ) -> None:
        self.token = token
        self.message = message
        self.consumer = consumer
        self.own_until = until
        self.timer: Timer | None = None

    @property
    def until(self) -> float:
        """When it ends."""
        lane = self.message.lane
        return self.own_until if lane.session_id is None else lane.until


@final
class Lane:
    """The messages of one session, or all of a queue without sessions, and the session's lock and state."""

    __slots__ = (
        "index",
        "locks",
        "messages",
        "owner",
        "ready",
        "session_id",
        "state",
        "state_set_at",
        "timer",
        "until",
    )

    def __init__(self, session_id: str | None) -> None:
        self.session_id = session_id
        self.index = Index()  # of sessions only
        self.ready: list[int] = []  # a heap of sequence numbers, with leftovers
        self.messages = 0
        self.locks: dict[UUID, Lock] = {}  # of sessions only
        self.owner: Consumer | None = None
        self.until = 0.0
        self.timer: Timer | None = None
        self.state: bytes | None = None
        self.state_set_at = 0.0


@final
class Index:
    """Sequence numbers in ascending order, those of messages gone among them until they are the majority."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def append(self, number: int) -> None:
        """Add a number above all others."""
        self._numbers.append(number)

    def since(self, number: int) -> Iterator[int]:
        """Numbers from ``number``; the index must not change meanwhile."""
        numbers = self._numbers
        for position in range(bisect_left(numbers, number), len(numbers)):
            yield numbers[position]

    def sweep(self, alive: Collection[int], count: int) -> None:
        """Drop what is not ``alive`` when that is worth it; ``count`` are alive."""
        if len(self._numbers) > 2 * count + _SLACK:
            self._numbers = [number for number in self._numbers if number in alive]


class Receiver(Protocol):
    """What the edge gives the broker to reach one receiving client. Calls must not come back at once."""

    def deliver(self, message: Stored, token: UUID | None) -> None:
        """Send a message; without a token it is the client's own already."""

    def granted(self, session_id: str, until: float) -> None:
        """The session is locked for this client until ``until``."""

    def lost(self, refusal: Refused) -> None:
        """Nothing more will come: no session could be had, or its lock is gone."""


@final
class Consumer:
    """A receiving client as the broker sees it.

    Args:
        receiver: How to reach it.
        settles: Whether it settles what it gets; otherwise messages are gone once sent.
    """

    __slots__ = ("credit", "fetched", "is_fetching", "lane", "receiver", "settles", "waiting")

    def __init__(self, receiver: Receiver, *, settles: bool = True) -> None:
        self.receiver = receiver
        self.settles = settles
        self.credit = 0
        self.is_fetching = False
        self.fetched: Lock | None = None  # to be sent when there is credit
        self.lane: Lane | None = None
        self.waiting: Timer | None = None  # for a session: when it has waited long enough
