"""What the embedded broker's two stores have in common: the calls, their values and their rules.

An :class:`Engine` is one connection to a store. It is plain synchronous code: no trio, no clock of its own
(``now`` is wall-clock seconds and never moves backwards by design of the caller), no callbacks. The provider
calls an engine in memory inline and one on disk in a worker thread, a batch per call. Calls on one engine
never overlap.

Rules for every call
    * It is atomic: one transaction on disk. When it raises, nothing changed.
    * It first moves what is due at ``now`` (see :meth:`Engine.advance`), so its answer is never stale.
    * Whatever it changes is reported once through :meth:`Engine.take_signals`.
    * It raises only :class:`~queue_runtime.errors.QueueError`.

Locks
    A lock is a *token* held by a *holder* (one receiver): on a session, or on one message without a session.
    Tokens come from one counter per queue and only grow. A lock is current while its token is the newest of
    its session (or message), it was not released, and ``now < locked_until``.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeAlias, final

import attrs

from queue_runtime.abc import Lease, ReceiverOptions
from queue_runtime.errors import ValidationError
from queue_runtime.messages import (
    MAX_DURATION,
    DeadLetterInfo,
    Message,
    MessageId,
    PeekedMessage,
    QueueName,
    QueueStats,
    SendResult,
    SessionId,
    Settlement,
)

__all__ = [
    "FAIR_CHUNK",
    "MAX_DELIVERY_COUNT_EXCEEDED",
    "MAX_DESCRIPTION",
    "NOTHING",
    "TIME_TO_LIVE_EXPIRED",
    "ClaimedMessage",
    "Engine",
    "Grant",
    "QueueOptions",
    "Refusal",
    "Signals",
    "count",
    "seconds",
]

FAIR_CHUNK: Final = 8
"""Most messages one session (or the messages without a session together) get per turn."""

MAX_DELIVERY_COUNT_EXCEEDED: Final = "MaxDeliveryCountExceeded"
"""Dead-letter reason of a message whose last allowed delivery failed."""

MAX_DESCRIPTION: Final = 4_096
"""Characters kept of a dead letter's description; an engine cuts the rest."""

TIME_TO_LIVE_EXPIRED: Final = "TimeToLiveExpired"
"""Dead-letter reason of a message that nobody took in time."""


_Validator: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def seconds(*, zero: bool = False, optional: bool = False) -> _Validator:
    """Accept a duration: above 0 (``zero``: or exactly), at most ten years; ``optional``: or ``None``."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None and optional:
            return
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else -1
        if not 0 <= number <= MAX_DURATION or (number == 0 and not zero):
            raise ValidationError(
                f"{attribute.name} is {value!r}: expected seconds, {'at least' if zero else 'more than'} 0 "
                f"and at most {MAX_DURATION:.0f}" + (", or none" if optional else "")
            )

    return check


def count(*, least: int, optional: bool = False) -> _Validator:
    """Accept a whole number from ``least``; ``optional``: or ``None``."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValidationError(
                f"{attribute.name} is {value!r}: expected a whole number, at least {least}"
                + (", or none" if optional else "")
            )

    return check


@attrs.frozen(kw_only=True)
class QueueOptions:
    """The rules a connection applies to every queue it uses.

    They are kept per connection, not in the store: when two connections with different options share a
    queue, each applies its own to what it sends, claims and finds due.

    Args:
        lock_duration: Seconds a lock lasts after it was taken or renewed.
        max_delivery_count: Failed deliveries after which a message is dead-lettered; 0 or ``None``: never.
        declare: Create a queue that does not exist; otherwise using it raises ``QueueNotFound``.
        max_queue_size: Most messages in a queue: waiting, scheduled and in flight, not dead letters.
        max_message_bytes: Largest message, as ``Message.size`` counts.
        default_time_to_live: Seconds to live of messages that do not say; ``None``: for ever.
        deduplication_window: Seconds a deduplication id is remembered; 0 turns deduplication off.
        dead_letter_expired: Keep expired messages as dead letters; otherwise they are deleted.

    Raises:
        ValidationError: A value is outside what is accepted.
        TypeError: A flag is not a bool.
    """

    lock_duration: float = attrs.field(default=30.0, validator=seconds())
    max_delivery_count: int | None = attrs.field(
        default=10, validator=count(least=0, optional=True)
    )
    declare: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    max_queue_size: int = attrs.field(default=1_000_000, validator=count(least=1))
    max_message_bytes: int = attrs.field(default=262_144, validator=count(least=1))
    default_time_to_live: float | None = attrs.field(default=None, validator=seconds(optional=True))
    deduplication_window: float = attrs.field(default=300.0, validator=seconds(zero=True))
    dead_letter_expired: bool = attrs.field(
        default=True, validator=attrs.validators.instance_of(bool)
    )

    @property
    def delivery_limit(self) -> float:
        """``max_delivery_count`` as a number to compare with; infinite when there is no limit."""
        return self.max_delivery_count or math.inf


ClaimedMessage: TypeAlias = tuple[
    Message, MessageId, str, int, datetime, int, DeadLetterInfo | None
]
"""Message, its id, receipt, delivery count, enqueue time, sequence number, history when redriven.

A plain tuple because one is made and unpacked per delivery. The receipt names this delivery of this message
and is never used again, also after the delivery count was restored.
"""


@final
class Grant(NamedTuple):
    """One lock and what was claimed under it in one turn, lowest sequence first."""

    session_id: SessionId | None
    """The session; ``None``: the lock of the single message in ``messages``."""
    token: int
    """The lock's token."""
    locked_until: float
    """When the lock expires, on the engine's clock."""
    is_new: bool
    """Whether the lock was taken by this call."""
    messages: Sequence[ClaimedMessage]
    """In the session's order. Empty after :meth:`Engine.accept`."""


@final
class Refusal(enum.Enum):
    """Why a settlement was not applied."""

    LOCK_LOST = "lock_lost"
    """The lock is not current: it expired, was released or taken over, or - on a message without a
    session - ended with an earlier settlement (the provider, which remembers, tells these apart)."""
    INVALID_RECEIPT = "invalid_receipt"
    """The lock is current, but somebody else's; or the receipt is not that of a message in flight under it."""


@final
class Signals(NamedTuple):
    """What changed for receivers since the last time anybody asked.

    Naming too much costs a useless look; naming too little loses a wake-up.
    """

    anyone: bool
    """Whether there is deliverable work under no lock: a waiting receiver with room should look."""
    holders: Collection[str]
    """Holders for which a session they hold became deliverable."""
    lost: Sequence[tuple[str, int]]
    """Holder and token of every lock found expired."""
    next_timer: float | None
    """When :meth:`Engine.advance` has something to do next; ``None``: nothing is pending."""


NOTHING: Final = Signals(False, (), (), None)


class Engine(Protocol):
    """One connection to a store of queues.

    Attributes:
        options: The rules this connection applies.
        is_blocking: Whether calls do I/O and belong in a worker thread.
        poll_interval: Seconds between calls of :meth:`poll` while receivers wait; ``None``: nothing else
            can change the store, so it is never called.
    """

    options: QueueOptions
    is_blocking: ClassVar[bool]
    poll_interval: ClassVar[float | None]

    def open_queue(self, queue: QueueName, now: float) -> None:
        """Make sure that the queue exists. To be called before any other call names the queue.

        Raises:
            QueueNotFound: It does not exist and ``options.declare`` is false.
        """
        ...

    def close(self) -> None:
        """Close the connection. Its holders were closed before. Idempotent."""
        ...

    # Sending

    def send(self, queue: QueueName, messages: Sequence[Message], now: float) -> list[SendResult]:
        """Store messages in order; one result each, in order.

        Sizes were checked by the caller. A message above ``max_queue_size`` gets a result with ``QueueFull``;
        a repeated deduplication id (looked at first) one with ``duplicate`` and the first message's id; it is
        remembered only when the message is stored. A message whose
        ``scheduled_at`` is after ``now`` is scheduled: the result's sequence number only names it for
        :meth:`cancel_scheduled`; when due it takes the next sequence number, and ``scheduled_at`` becomes its
        ``enqueued_at``. Time to live counts from ``enqueued_at``.
        """
        ...

    def cancel_scheduled(
        self, queue: QueueName, sequence_numbers: Sequence[int], now: float
    ) -> list[bool]:
        """Delete scheduled messages; for each number, whether it named one that was still scheduled."""
        ...

    # Receiving

    def open_holder(self, queue: QueueName, options: ReceiverOptions, now: float) -> str:
        """Register a receiver; its id is unique among all processes."""
        ...

    def close_holder(self, queue: QueueName, holder: str, now: float) -> None:
        """Release every lock of the holder and forget it. An unknown holder is ignored."""
        ...

    def claim(self, queue: QueueName, holder: str, max_messages: int, now: float) -> list[Grant]:
        """Deliver up to ``max_messages``; nothing to an unknown (closed) holder.

        Eligible sources, which take turns in the order they became eligible, with at most ``FAIR_CHUNK``
        messages per turn (a session may come up several times in one call):

        * sessions locked by this holder with fewer than ``max_per_session`` in flight;
        * unless the holder has ``max_sessions`` session locks or ``auto_accept`` is false: sessions under no
          lock (which are locked), and the messages without a session (each is locked on its own).

        A session is deliverable when its lowest waiting message is neither delayed nor behind a halting dead
        letter (one with a lower sequence number). ``delivery_count`` is incremented.
        """
        ...

    def unclaim(self, queue: QueueName, holder: str, grants: Sequence[Grant], now: float) -> None:
        """Undo a claim or accept whose answer nobody took.

        Its messages return as by ``RELEASE``; locks with ``is_new`` are freed. What is no longer held is skipped.
        """
        ...

    def accept(
        self, queue: QueueName, holder: str, session_id: SessionId | None, now: float
    ) -> Grant | None:
        """Lock a session without claiming from it; ``max_sessions`` and ``auto_accept`` do not matter.

        Args:
            session_id: An existing or new session; ``None``: the unlocked, deliverable one whose turn it is.

        Returns:
            The grant; ``None`` if ``session_id`` is ``None`` and there is no such session, or if the holder is
            unknown (closed).

        Raises:
            SessionLocked: The named session's lock is current, whoever holds it.
        """
        ...

    def settle(
        self, queue: QueueName, holder: str, settlements: Sequence[Settlement], now: float
    ) -> list[Refusal | None]:
        """Apply settlements in order; for each, ``None`` or why nothing changed for it.

        Read are, of ``delivery``: ``receipt``, ``sequence_number``, ``lease.session_id``, ``lease.token``.
        Applied if the lock is current and the holder's, and exactly this receipt is in flight under it.
        A message without a session is unlocked by its settlement.

        * ``COMPLETE``: deleted.
        * ``ABANDON``: dead-lettered (``MAX_DELIVERY_COUNT_EXCEEDED``) when its delivery count has reached the
          limit; else it waits again at its place, delayed by ``delay`` seconds if positive.
        * ``RELEASE``: waits again at its place, delivery count one less.
        * ``DEAD_LETTER``: dead-lettered with reason and description; ``halt`` (sessions only) holds back every
          message of the session with a higher sequence number until it is redriven or purged.

        A message that waits again past its time to live expires at once.
        """
        ...

    def renew(
        self, queue: QueueName, holder: str, leases: Sequence[Lease], now: float
    ) -> list[float | None]:
        """Renew locks; for each the new ``locked_until``, or ``None`` if it is not current or not the holder's.

        ``lease.provider_data`` is the sequence number of the locked message where ``session_id`` is ``None``
        (here and in :meth:`release`).
        """
        ...

    def release(self, queue: QueueName, holder: str, leases: Sequence[Lease], now: float) -> None:
        """Free current locks of this holder; everything in flight under them returns as by ``RELEASE``."""
        ...

    def get_state(self, queue: QueueName, holder: str, lease: Lease, now: float) -> bytes | None:
        """The session's state. Raises ``LockLost`` unless the lock is current and the holder's."""
        ...

    def set_state(
        self, queue: QueueName, holder: str, lease: Lease, state: bytes | None, now: float
    ) -> None:
        """Keep or (``None``) clear the session's state. Raises as :meth:`get_state`."""
        ...

    # Looking and operating

    def peek(
        self, queue: QueueName, max_messages: int, after: int, now: float
    ) -> list[PeekedMessage]:
        """Waiting, delayed, scheduled and in-flight messages above ``after``, by sequence number."""
        ...

    def purge(self, queue: QueueName, now: float) -> int:
        """Delete every waiting, delayed and scheduled message; return how many."""
        ...

    def stats(self, queue: QueueName, now: float) -> QueueStats:
        """Counters; every field is set (``oldest_age`` is ``None`` when nothing waits)."""
        ...

    def peek_dead(
        self, queue: QueueName, max_messages: int, after: int, now: float
    ) -> list[PeekedMessage]:
        """Dead letters above ``after``, by sequence number."""
        ...

    def redrive(
        self, queue: QueueName, sequence_numbers: Collection[int] | None, now: float
    ) -> int:
        """Move dead letters (``None``: all) back to the queue under their own sequence numbers.

        Delivery count 0, history kept, time to live counted from ``now``. The queue's size limit does not
        apply. A halting one no longer halts. Unknown numbers are ignored; returns how many moved.
        """
        ...

    def purge_dead(
        self, queue: QueueName, sequence_numbers: Collection[int] | None, now: float
    ) -> int:
        """Delete dead letters (``None``: all); halting ones no longer halt. Returns how many."""
        ...

    # Time and wake-ups

    def advance(self, queue: QueueName, now: float) -> None:
        """Move what is due, in the order of its due times; the cost is that of what moved.

        * A lock with ``locked_until <= now`` is over. Of a session's messages in flight the lowest keeps its
          delivery count (and is dead-lettered when it has reached the limit), the others are restored as by
          ``RELEASE``: order is strict, so nobody can have started them. A single message counts as lowest.
        * A scheduled message enters the queue; a delayed one is deliverable.
        * A *waiting* (also delayed) message with ``enqueued_at + time to live <= now`` expires:
          dead-lettered (``TIME_TO_LIVE_EXPIRED``) or, by ``dead_letter_expired``, deleted.
        """
        ...

    def take_signals(self, queue: QueueName) -> Signals:
        """What this connection's calls on ``queue`` changed since it was last asked; and the next timer."""
        ...

    def poll(self, queue: QueueName, now: float) -> Signals | None:
        """Look cheaply whether another process changed the store since the last call; ``None``: it did not.

        Otherwise what holders of this connection may find now. Not bound to the thread of other calls' but
        never overlapping with them.
        """
        ...
