"""What a queue in memory is made of: entries, the lanes that link them, locks and holders."""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime
from typing import Final, TypeAlias, cast, final

from queue_runtime.abc import ReceiverOptions
from queue_runtime.messages import DeadLetterInfo, Message, MessageId, SessionId

__all__ = [
    "DEAD",
    "DELAYED",
    "GONE",
    "IN_FLIGHT",
    "NEVER",
    "READY",
    "SCHEDULED",
    "Entry",
    "Holder",
    "Lane",
    "Lock",
    "Ring",
]

# States of an entry. Plain numbers: they are compared several times per message.
READY: Final = 0
DELAYED: Final = 1
SCHEDULED: Final = 2
IN_FLIGHT: Final = 3
DEAD: Final = 4
GONE: Final = 5

NEVER: Final = float("inf")
"""A time that does not come, and a sequence number that no message has."""

Ring: TypeAlias = "OrderedDict[Lane, None]"


@final
class Entry:
    """A stored message."""

    __slots__ = (
        "count",
        "dead_letter",
        "enqueued_at",
        "expires_at",
        "first_failed_at",
        "lane",
        "message",
        "message_id",
        "next",
        "previous",
        "receipt",
        "sequence",
        "state",
        "timer",
    )

    def __init__(
        self,
        message: Message,
        message_id: MessageId,
        sequence: int,
        enqueued_at: datetime,
        lane: Lane,
        state: int,
    ) -> None:
        self.message = message
        self.message_id = message_id
        self.sequence = sequence
        self.enqueued_at = enqueued_at
        self.lane = lane
        self.state = state
        self.expires_at = NEVER
        self.count = 0
        self.receipt = ""  # of the newest delivery
        self.timer = 0  # number of the timer that ends a delay or falls due
        self.previous: Entry | None = None
        self.next: Entry | None = None
        self.first_failed_at: datetime | None = None
        self.dead_letter: DeadLetterInfo | None = None


@final
class Lane:
    """The waiting messages of one session - or, with ``session_id`` ``None``, of all without one - in order.

    A delayed message of a session keeps its place, as it holds back what is behind it; one without a session
    is unlinked until its delay ends.
    """

    __slots__ = (
        "barrier",
        "halts",
        "head",
        "hint",
        "lock",
        "messages",
        "ring",
        "session_id",
        "stamp",
        "state",
        "tail",
    )

    def __init__(self, session_id: SessionId | None) -> None:
        self.session_id = session_id
        self.head: Entry | None = None
        self.tail: Entry | None = None
        self.hint: Entry | None = None  # where the last message was put in between, if still linked
        self.lock: Lock | None = None
        self.messages = 0  # waiting and in flight
        self.ring: Ring | None = None
        self.stamp = 0  # when it entered the ring: orders the lanes of two rings
        self.halts: set[int] | None = None  # sequence numbers of halting dead letters
        self.barrier = NEVER  # the lowest of them
        self.state: bytes | None = None

    def append(self, entry: Entry) -> None:
        """Link an entry above all others."""
        tail = self.tail
        if tail is None:
            self.head = entry
        else:
            tail.next = entry
            entry.previous = tail
        self.tail = entry

    def insert(self, entry: Entry) -> None:
        """Link an entry at its place: at an end, as nearly always, or after a walk from the last such place."""
        head, tail = self.head, self.tail
        if head is None or tail is None or entry.sequence > tail.sequence:
            self.append(entry)
        elif entry.sequence < head.sequence:
            entry.next = head
            head.previous = entry
            self.head = entry
        else:
            before = head
            if self.hint is not None and self.hint.sequence < entry.sequence:
                before = self.hint
            after = cast(Entry, before.next)  # the tail is above the entry
            while after.sequence < entry.sequence:
                before, after = after, cast(Entry, after.next)
            entry.previous, entry.next = before, after
            before.next = after.previous = entry
        self.hint = entry

    def remove(self, entry: Entry) -> None:
        """Unlink an entry from wherever it is."""
        before, after = entry.previous, entry.next
        if before is None:
            self.head = after
        else:
            before.next = after
        if after is None:
            self.tail = before
        else:
            after.previous = before
        entry.previous = entry.next = None
        if self.hint is entry:
            self.hint = None

    def release_hold(self, sequence: int) -> None:
        """The halting dead letter with this number, if it is one, halts no more."""
        if self.halts is not None:
            self.halts.discard(sequence)
            self.barrier = min(self.halts, default=NEVER)
            if not self.halts:
                self.halts = None


@final
class Lock:
    """A lock on a lane or on one message of the lane without a session; current while ``HeapQueue.locks`` has it."""

    __slots__ = ("holder", "in_flight", "lane", "token", "until")

    def __init__(self, token: int, holder: Holder, lane: Lane, until: float) -> None:
        self.token = token
        self.holder = holder
        self.lane = lane
        self.until = until
        self.in_flight: dict[int, Entry] = {}


@final
class Holder:
    """A receiver: what it may take and what it has."""

    __slots__ = (
        "auto_accept",
        "id",
        "locks",
        "max_per_session",
        "max_sessions",
        "ring",
        "sessions",
    )

    def __init__(self, holder_id: str, options: ReceiverOptions) -> None:
        self.id = holder_id
        self.auto_accept = options.auto_accept
        self.max_sessions = options.max_sessions
        self.max_per_session = options.max_per_session
        self.ring: Ring = OrderedDict()
        self.locks: dict[int, Lock] = {}
        self.sessions = 0  # how many of the locks are on sessions
