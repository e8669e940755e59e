"""What a receiver holds: leases, and under each of them the messages in flight. Plain values on trio's side.

SQS locks messages, not sessions: a group is blocked while messages of it are in flight. So a lease is what one
answer brought of one group, and it ends with the last of these messages.
"""

from __future__ import annotations

import enum
import math
from typing import final

from queue_runtime.abc import Lease
from queue_runtime.errors import LockLost
from queue_runtime.messages import SessionId

from ..leases import HeldLease, lock_is_over
from .claims import Raw
from .config import MAX_VISIBILITY

__all__ = ["Flight", "FlightState", "Hold", "lock_lost"]


class FlightState(enum.Enum):
    """Where a message in flight stands."""

    HELD = enum.auto()
    """Delivered; nothing was decided."""
    DELETING = enum.auto()
    """A call that deletes it is under way."""
    RETURNING = enum.auto()
    """A call that makes it visible, now or later, is under way."""
    POSTPONED = enum.auto()
    """Decided to be made visible, once everything else under its lease is settled: see ``visible_at``."""
    OVER = enum.auto()
    """Settled, given back or lost."""


@final
class Flight:
    """One delivery of one message.

    Attributes:
        visible_at: ``trio.current_time()`` at which it may be delivered again, once that was decided.
    """

    __slots__ = ("raw", "receipt", "state", "visible_at")

    def __init__(self, raw: Raw, receipt: str) -> None:
        self.raw = raw
        self.receipt = receipt
        self.state = FlightState.HELD
        self.visible_at = 0.0


@final
class Hold(HeldLease):
    """A lease and its messages.

    Attributes:
        flights: By receipt, in the order of delivery.
        received_at: ``trio.current_time()`` before the first of it was asked for; SQS ends it 12 hours later.
        expires: ``trio.current_time()`` when SQS's lock ends.
    """

    __slots__ = ("expires", "flights", "received_at")

    def __init__(
        self, owner: object, session_id: SessionId | None, asked_at: float, lock_duration: float
    ) -> None:
        super().__init__(owner, session_id, asked_at, lock_duration)
        self.flights: dict[str, Flight] = {}
        self.received_at = asked_at
        self.expires = asked_at + lock_duration

    def is_over(self) -> bool:
        """Whether nothing of it is unsettled."""
        return all(flight.state is FlightState.OVER for flight in self.flights.values())

    def unsettled(self) -> list[Flight]:
        """What was delivered and nothing decided about, in the order of delivery."""
        return [flight for flight in self.flights.values() if flight.state is FlightState.HELD]

    def postponed(self) -> list[Flight]:
        """What is to be made visible with the end of the lease, in the order of delivery."""
        return [f for f in self.flights.values() if f.state is FlightState.POSTPONED]

    def add(self, raw: Raw) -> Flight:
        """Put one more message under the lease."""
        flight = Flight(raw, str(raw.get("ReceiptHandle") or ""))
        self.flights[flight.receipt] = flight
        return flight

    def renewed(self, asked_at: float, lock_duration: float) -> None:
        """The lock was extended, as asked for at ``asked_at``."""
        super().renewed(asked_at, lock_duration)
        self.expires = asked_at + lock_duration

    def visibility(self, until: float, now: float) -> int:
        """Seconds of invisibility to ask for: whole ones, rounded up, as far as SQS grants them."""
        return max(0, min(math.ceil(until - now), self.visibility_left(now)))

    def visibility_left(self, now: float) -> int:
        """Whole seconds for which SQS lets its messages stay invisible from now on."""
        return max(0, int(self.received_at + MAX_VISIBILITY - now))


def lock_lost(lease: Lease) -> LockLost:
    """The refusal of a call under a lease that is over."""
    return lock_is_over(
        lease,
        "it expired, was given back, or everything under it was settled",
        "handle for less than lock_duration, renew in time, or make lock_duration longer",
    )
