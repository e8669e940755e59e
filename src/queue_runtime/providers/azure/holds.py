"""What a receiver holds: leases, and under each of them the messages in flight. Plain values on trio's side."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import final

from queue_runtime.abc import LOCAL_DEADLINE_FRACTION, Lease
from queue_runtime.errors import LockLost
from queue_runtime.messages import SessionId

from ..leases import TOKENS, lock_is_over
from .links import Arrival
from .sources import PlainSource, SessionSource

__all__ = ["Flight", "FlightState", "Hold", "lock_lost"]


class FlightState(enum.Enum):
    """Where a message in flight stands."""

    HELD = enum.auto()
    """Delivered; nothing was decided."""
    SETTLING = enum.auto()
    """A call that settles it is under way."""
    OVER = enum.auto()
    """Settled, given back or lost."""


@final
class Flight:
    """One delivery of one message."""

    __slots__ = ("arrival", "receipt", "state")

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.receipt = arrival.tag.hex()
        self.state = FlightState.HELD


@final
class Hold:
    """A lease and what was delivered under it.

    Attributes:
        lease: What users see of it.
        source: The session, or the queue without sessions.
        flights: By receipt, in the order of delivery; what is settled is forgotten.
        is_alone: It is the lock of one message.
    """

    __slots__ = ("flights", "is_alone", "lease", "owner", "source")

    def __init__(
        self,
        owner: object,
        source: SessionSource | PlainSource,
        session_id: SessionId | None,
        asked_at: float,
        lock_duration: float,
        expires_at: datetime,
    ) -> None:
        deadline = asked_at + LOCAL_DEADLINE_FRACTION * lock_duration
        self.owner = owner
        self.source = source
        self.lease = Lease(session_id, TOKENS.next(), deadline, expires_at, self)
        self.flights: dict[str, Flight] = {}
        self.is_alone = session_id is None

    def is_live(self, now: float) -> bool:
        """Whether the lease still holds."""
        return self.lease.lost is None and now < self.lease.deadline

    def add(self, arrival: Arrival) -> Flight:
        """Put one more message under the lease."""
        flight = Flight(arrival)
        self.flights[flight.receipt] = flight
        return flight

    def unsettled(self) -> list[Flight]:
        """What was delivered and nothing decided about, in the order of delivery."""
        return [flight for flight in self.flights.values() if flight.state is FlightState.HELD]

    def conclude(self, flight: Flight, *, over: bool) -> None:
        """Note what became of a message: it is settled, or still in flight."""
        flight.state = FlightState.OVER if over else FlightState.HELD
        if over:
            self.flights.pop(flight.receipt, None)

    def renewed(self, asked_at: float, lock_duration: float, expires_at: datetime) -> None:
        """The lock was renewed at ``asked_at``."""
        self.lease.deadline = asked_at + LOCAL_DEADLINE_FRACTION * lock_duration
        self.lease.expires_at = expires_at


def lock_lost(lease: Lease) -> LockLost:
    """The refusal of a call under a lease that is over."""
    return lock_is_over(
        lease,
        "it expired, was given back, or its link was lost",
        "handle for less than the queue's lock duration, renew in time, or make it longer",
    )
