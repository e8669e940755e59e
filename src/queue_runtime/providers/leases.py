"""What receivers say of leases on a broker that has no fencing tokens of its own. Plain values."""

from __future__ import annotations

import time
from typing import Final, final

from queue_runtime.abc import Lease
from queue_runtime.errors import InvalidReceipt, LockLost
from queue_runtime.messages import Settlement

__all__ = ["TOKENS", "Tokens", "invalid_receipt", "lock_is_over"]


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
