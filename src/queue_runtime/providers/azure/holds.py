"""What a receiver holds: leases, and under each of them the messages in flight. Plain values on trio's side."""

from __future__ import annotations

from typing import final

from queue_runtime.abc import Lease
from queue_runtime.errors import LockLost
from queue_runtime.messages import SessionId

from ..leases import HeldLease, lock_is_over
from .inlet import Arrival
from .sources import Source

__all__ = ["Flight", "Hold", "lock_lost"]


@final
class Flight:
    """One delivery of one message.

    Attributes:
        is_settling: A call that settles it is under way.
    """

    __slots__ = ("arrival", "is_settling", "receipt")

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.receipt = arrival.tag.hex()
        self.is_settling = False


@final
class Hold(HeldLease):
    """A lease and what was delivered under it.

    Attributes:
        source: The session, or the queue without sessions.
        flights: By receipt, in the order of delivery; what is settled is forgotten.
        is_alone: It is the lock of one message.
    """

    __slots__ = ("flights", "is_alone", "source")

    def __init__(
        self,
        owner: object,
        source: Source,
        session_id: SessionId | None,
        asked_at: float,
        lock_duration: float,
    ) -> None:
        super().__init__(owner, session_id, asked_at, lock_duration)
        self.source = source
        self.flights: dict[str, Flight] = {}
        self.is_alone = session_id is None

    def add(self, arrival: Arrival) -> Flight:
        """Put one more message under the lease."""
        flight = Flight(arrival)
        self.flights[flight.receipt] = flight
        return flight

    def unsettled(self) -> list[Flight]:
        """What was delivered and nothing decided about, in the order of delivery."""
        return [flight for flight in self.flights.values() if not flight.is_settling]

    def conclude(self, flight: Flight, *, over: bool) -> None:
        """Note what became of a message: it is settled, or still in flight."""
        flight.is_settling = False
        if over:
            self.flights.pop(flight.receipt, None)


def lock_lost(lease: Lease) -> LockLost:
    """The refusal of a call under a lease that is over."""
    return lock_is_over(
        lease,
        "it expired, was given back, or its link was lost",
        "handle for less than the queue's lock duration, renew in time, or make it longer",
    )
