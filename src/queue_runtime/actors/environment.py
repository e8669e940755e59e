"""What a session actor gets from its supervisor, and whom it tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio

from ..abc import Receiver
from ..handlers import CloseReason, Outcome
from ..messages import Delivery, SettlementAction
from ..policies.backoff import RetryPolicy
from ..policies.outcomes import FailurePolicy, Park, Settle, Wait
from .breaker import Breaker
from .leases import LeaseKeeper
from .settlement import Settler

if TYPE_CHECKING:
    from .session import SessionActor

__all__ = ["SessionEnvironment", "SessionObserver"]


class SessionObserver(Protocol):
    """What a session actor tells the dispatcher; every call is synchronous."""

    def settled(self, action: SettlementAction | None, count: int) -> None:
        """``count`` deliveries are no longer in flight; ``None``: given back without a settlement."""

    def failed(
        self, delivery: Delivery, result: BaseException | Outcome, decision: Settle | Wait | Park
    ) -> None:
        """A handler did not complete a message; ``decision`` is what follows."""

    def idle(self, actor: SessionActor) -> None:
        """The actor has nothing to do; it may be told to stop."""

    def closed(self, actor: SessionActor, reason: CloseReason) -> None:
        """The actor is gone."""


@attrs.frozen(kw_only=True, eq=False)
class SessionEnvironment:
    """What every session actor of one supervisor shares.

    Args:
        make_handler: Makes the handler instance of a session.
        receiver: For the session's state.
        settler: Where settlements go.
        keeper: Renews and releases the lease.
        observer: Told about progress.
        failure_policy: What follows a failure.
        settle_retry: Spaces repeated settlements that failed with a transient error.
        handler_breaker: Opens when handlers fail across sessions; ``None``: no such breaker.
        pipelined: How many settlements a session may run ahead of; 0: each is confirmed before the next
            message starts (``strict``).
        handler_timeout: Seconds ``handle`` may take; ``None``: for ever.
        close_timeout: Seconds ``closed`` may take.
        restart_budget: Crashes in a row after which the message that crashes is dead-lettered.
        keeps_empty_sessions: A lease outlives its messages; otherwise it ends with the last one, and its actor
            with it.
        halt_on_dead_letter: Keep the rest of a session back behind a dead-lettered message.
        current_time: :func:`trio.current_time`, without its look-ups: it is asked before every message.
    """

    make_handler: Callable[[], Any]
    receiver: Receiver
    settler: Settler
    keeper: LeaseKeeper
    observer: SessionObserver
    failure_policy: FailurePolicy
    settle_retry: RetryPolicy
    handler_breaker: Breaker | None
    pipelined: int
    handler_timeout: float | None
    close_timeout: float
    restart_budget: int
    keeps_empty_sessions: bool
    halt_on_dead_letter: bool
    current_time: Callable[[], float] = attrs.field(
        factory=lambda: trio.lowlevel.current_clock().current_time
    )
