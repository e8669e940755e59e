"""What receivers hold and say of leases on a broker that has no fencing tokens of its own. Plain values."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final, final

import trio

from queue_runtime.abc import LOCAL_DEADLINE_FRACTION, Lease
from queue_runtime.errors import InvalidReceipt, LockLost
from queue_runtime.messages import SessionId, Settlement

__all__ = ["TOKENS", "HeldLease", "Tokens", "invalid_receipt", "lock_is_over"]


@final
class Tokens:
    """Fencing tokens: microseconds of the wall clock, made growing within the process.

    A session's next holder gets its token later than the one before, so it is higher as far as the clocks of the
    hosts agree. Correctness does not rest on it: the local deadline ends a lease before the broker lets others in.
    """

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        """A token higher than all before."""
        self._last = max(self._last + 1, time.time_ns() // 1_000)
        return self._last


TOKENS: Final = Tokens()
"""Of the process: several connections in it may hold one session one after the other."""


class HeldLease:
    """A lease, for a provider to add what it keeps with one. It is the lease's ``provider_data``.

    Args:
        owner: The receiver that hands it out.
        session_id: The session; ``None``: it is the lock of one message.
        asked_at: ``trio.current_time()`` before the lock was asked for.
        lock_duration: Seconds that it lasts.

    Attributes:
        lease: What users see of it.
    """

    __slots__ = ("lease", "owner")

    def __init__(
        self, owner: object, session_id: SessionId | None, asked_at: float, lock_duration: float
    ) -> None:
        self.owner = owner
        deadline = asked_at + LOCAL_DEADLINE_FRACTION * lock_duration
        expires_at = _moment(asked_at + lock_duration)
        self.lease = Lease(session_id, TOKENS.next(), deadline, expires_at, self)

    def is_live(self, now: float) -> bool:
        """Whether the lease still holds."""
        return self.lease.lost is None and now < self.lease.deadline

    def renewed(self, asked_at: float, lock_duration: float) -> None:
        """The lock was made to last anew, as asked for at ``asked_at``."""
        self.lease.deadline = asked_at + LOCAL_DEADLINE_FRACTION * lock_duration
        self.lease.expires_at = _moment(asked_at + lock_duration)


def _moment(time: float) -> datetime:
    """A moment by trio's clock."""
    return datetime.now(UTC) + timedelta(seconds=time - trio.current_time())


def lock_is_over(lease: Lease, how: str, cure: str) -> LockLost:
    """The refusal of a call under a lease that is over: ``how`` that may have come, and a ``cure``."""
    what = (
        "a message without a session"
        if lease.session_id is None
        else f"session {lease.session_id!a}"
    )
    return LockLost(f"the lock on {what} (token {lease.token}) is over: {how}; {cure}")


def invalid_receipt(settlement: Settlement) -> InvalidReceipt:
    """The refusal of a settlement whose delivery is not in flight here."""
    return InvalidReceipt(
        f"this delivery of message {settlement.delivery.message_id!a} is not in flight at this receiver: it was "
        "settled before, or came from another receiver; nothing changed"
    )
