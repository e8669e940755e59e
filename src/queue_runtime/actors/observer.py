"""Turns what the actors report into instrumentation events; the only place among the actors that does."""

from __future__ import annotations

import math
from typing import final

import attrs
import trio

from ..abc import Lease
from ..errors import LockLost
from ..handlers import CloseReason, Outcome, Retry
from ..instrumentation import (
    BreakerChanged,
    Event,
    Instruments,
    LeaseLost,
    RetryScheduled,
    SessionClosed,
    SessionOpened,
    SupervisorDraining,
    SupervisorStarted,
    SupervisorStopped,
)
from ..messages import Delivery, QueueName
from ..policies.breaker import BreakerState
from ..policies.outcomes import Park, Wait

__all__ = ["SupervisorObserver"]


@final
@attrs.define(eq=False)
class SupervisorObserver:
    """Emits events for one supervisor; every method does nothing when nobody listens.

    Args:
        instruments: Who listens.
        queue: The supervised queue.
        provider: The provider's name.
    """

    instruments: Instruments
    queue: QueueName
    provider: str
    _opened: dict[Lease, float] = attrs.field(factory=dict, init=False)
    _started: float = attrs.field(default=math.nan, init=False)

    def _emit(self, kind: type[Event], **fields: object) -> None:
        self.instruments.emit(kind(queue=self.queue, provider=self.provider, **fields))

    def started(self) -> None:
        """The supervisor is ready."""
        if self.instruments:
            self._started = trio.current_time()
            self._emit(SupervisorStarted)

    def draining(self, grace: float) -> None:
        """The supervisor takes no more messages."""
        if self.instruments:
            self._emit(SupervisorDraining, grace=grace)

    def stopped(self, clean: bool) -> None:
        """The supervisor is gone."""
        if self.instruments:
            self._emit(SupervisorStopped, clean=clean, duration=trio.current_time() - self._started)

    def session_opened(self, lease: Lease) -> None:
        """A session has an actor."""
        if self.instruments:
            self._opened[lease] = trio.current_time()
            self._emit(SessionOpened, session_id=lease.session_id)

    def session_closed(self, lease: Lease, reason: CloseReason, messages: int) -> None:
        """A session's actor is gone."""
        if self.instruments:
            if reason is CloseReason.LOCK_LOST:
                error = lease.lost or LockLost("the lock was lost")
                self._emit(LeaseLost, lease=lease, error=error)
            duration = trio.current_time() - self._opened.pop(lease)
            self._emit(
                SessionClosed,
                session_id=lease.session_id,
                reason=reason,
                messages=messages,
                duration=duration,
            )

    def handler_failed(
        self, delivery: Delivery, result: BaseException | Outcome, decision: object
    ) -> None:
        """A handler did not complete a message."""
        if self.instruments and isinstance(decision, (Wait, Park)):
            self._emit(
                RetryScheduled,
                delivery=delivery,
                delay=decision.delay,
                attempt=delivery.delivery_count,
                parked=isinstance(decision, Park),
                reason=(result.reason if isinstance(result, Retry) else "")
                or type(result).__name__,
            )

    def breaker_changed(self, name: str, previous: BreakerState, current: BreakerState) -> None:
        """A circuit breaker moved."""
        if self.instruments:
            self._emit(BreakerChanged, breaker=name, previous=previous, current=current)
