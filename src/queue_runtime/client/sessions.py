"""One locked session, read by hand."""

from __future__ import annotations

from datetime import datetime
from typing import final

from ..abc import Lease
from ..handlers import SessionState
from ..messages import Delivery
from ._checks import check_positive, check_timeout
from .calls import Calls
from .holding import Holding, Inbox

__all__ = ["SessionReceiver"]


@final
class SessionReceiver:
    """One locked session, read by hand. Made by :meth:`QueueClient.accept_session`.

    Its deliveries are settled through the client. The lock is renewed only by :meth:`renew`.

    Attributes:
        session_id: The session.
        state: Bytes the broker keeps with it.
    """

    def __init__(self, calls: Calls, holding: Holding, inbox: Inbox, lease: Lease) -> None:
        self._calls = calls
        self._holding = holding
        self._inbox = inbox
        self._lease = lease
        self.session_id = lease.session_id
        self.state = SessionState(inbox.receiver, lease, calls)

    @property
    def locked_until(self) -> datetime:
        """When the lock expires unless renewed."""
        return self._lease.expires_at

    @property
    def fencing_token(self) -> int:
        """Grows with every holder of the session."""
        return self._lease.token

    async def receive(self, *, timeout: float | None = None) -> Delivery | None:
        """The session's next message, or ``None`` at the timeout. See :meth:`QueueClient.receive`."""
        deliveries = await self.receive_batch(max_messages=1, timeout=timeout)
        return deliveries[0] if deliveries else None

    async def receive_batch(
        self, *, max_messages: int, timeout: float | None = None
    ) -> list[Delivery]:
        """Up to ``max_messages`` messages of the session, in order; ``[]`` at the timeout.

        Raises:
            LockLost: There was nothing, and the lock is gone.
        """
        check_positive("max_messages", max_messages)
        seconds = check_timeout(timeout, self._calls.config.receive_timeout)
        deliveries = await self._holding.receive(self._inbox, max_messages, seconds)
        if not deliveries and self._lease.lost is not None:
            raise self._lease.lost
        return deliveries

    async def renew(self) -> None:
        """Extend the lock. Raises ``LockLost`` when it is gone."""
        error = (await self._calls(self._inbox.receiver.renew, [self._lease]))[0]
        if error is not None:
            raise error
