"""What happens in the runtime, as frozen values: one class per kind of event.

An event is what an instrument gets: a log, metrics and traces are different readings of the same events.
At the borders to the broker there is one event per call, whatever the size of the batch. Durations are
seconds by the clock of :func:`trio.current_time`, so in tests a mock clock rules them.

Every event names its ``queue`` and its ``provider``. Each class lists its other fields: *measurements* are
numbers worth adding up or averaging (the length of a tuple is one), *metadata* tells what they belong to.
Ids, texts and errors may come from strangers: escape them before showing them
(:func:`queue_runtime.text.escape`), never use ids as metric labels, and show neither bodies nor headers.
Events hold the messages themselves: do not keep them longer than the call.

Emitted by the ports that :func:`~queue_runtime.instrumentation.ports.instrument_provider` wraps:
``PortOpened``, ``PortClosed``, ``MessagesSent``, ``MessagesReceived``, ``MessagesSettled``,
``MessageDeadLettered``, ``LeasesRenewed``, ``LeasesReleased``, ``MessagesRedriven``, ``DeadLettersPurged``,
``QueuePurged``, ``OperationFailed``. The others come from the actors, who know what the ports cannot see.
"""

from __future__ import annotations

from typing import final

import attrs

from ..abc import Lease
from ..errors import QueueError
from ..handlers import CloseReason, Outcome
from ..messages import Delivery, Message, QueueName, SendResult, SessionId, Settlement
from ..policies.breaker import BreakerState

__all__ = [
    "BreakerChanged",
    "DeadLettersPurged",
    "Event",
    "HandlerFinished",
    "LeaseLost",
    "LeasesReleased",
    "LeasesRenewed",
    "MessageDeadLettered",
    "MessagesReceived",
    "MessagesRedriven",
    "MessagesSent",
    "MessagesSettled",
    "OperationFailed",
    "PortClosed",
    "PortOpened",
    "QueuePurged",
    "RetryScheduled",
    "SessionClosed",
    "SessionOpened",
    "SupervisorDraining",
    "SupervisorStarted",
    "SupervisorStopped",
]


def _count(values: tuple[object, ...]) -> str:
    return f"<{len(values)}>"


# Two occurrences are never the same one, so events compare by identity.
@attrs.frozen(kw_only=True, eq=False)
class Event:
    """Root of all events. New kinds may appear in any release: pass over what you do not know.

    Args:
        queue: The queue it is about.
        provider: The provider's ``name``.
    """

    queue: QueueName
    provider: str


# --- the ports ---------------------------------------------------------------------------------------


@final
@attrs.frozen(kw_only=True, eq=False)
class PortOpened(Event):
    """A sender, a receiver or the access to dead letters was opened.

    Measurements:
        duration: Seconds it took.

    Metadata:
        port: ``sender``, ``receiver`` or ``dead_letters``.
    """

    port: str
    duration: float


@final
@attrs.frozen(kw_only=True, eq=False)
class PortClosed(Event):
    """A sender or a receiver was closed, once per port, also when closing it was cancelled or failed.

    Measurements:
        duration: Seconds it took.

    Metadata:
        port: ``sender`` or ``receiver``.
    """

    port: str
    duration: float


@final
@attrs.frozen(kw_only=True, eq=False)
class MessagesSent(Event):
    """The broker answered to a batch of messages; some of them it may have refused.

    Measurements:
        duration: Seconds until the answer.

    Metadata:
        messages: What was to be sent.
        results: What became of each, in the same order; ``result.error`` tells why one was refused.
    """

    messages: tuple[Message, ...] = attrs.field(repr=_count)
    results: tuple[SendResult, ...] = attrs.field(repr=_count)
    duration: float


@final
@attrs.frozen(kw_only=True, eq=False)
class MessagesReceived(Event):
    """A receive call came back, possibly with nothing.

    Measurements:
        duration: Seconds of the call, waiting for messages included.

    Metadata:
        deliveries: What came; empty at the timeout.
    """

    deliveries: tuple[Delivery, ...] = attrs.field(repr=_count)
    duration: float


@final
@attrs.frozen(kw_only=True, eq=False)
class MessagesSettled(Event):
    """The broker answered to a batch of settlements; some of them it may have refused.

    Measurements:
        duration: Seconds until the answer.

    Metadata:
        settlements: What was decided.
        errors: For each settlement, in the same order, ``None`` or why it was refused.
    """

    settlements: tuple[Settlement, ...] = attrs.field(repr=_count)
    errors: tuple[QueueError | None, ...] = attrs.field(repr=_count)
    duration: float


@final
@attrs.frozen(kw_only=True, eq=False)
class MessageDeadLettered(Event):
    """The broker confirmed that a message is in the dead-letter queue. Follows its ``MessagesSettled``.

    Dead-lettering that the broker does on its own (expiry, its own limit of deliveries) is not seen here;
    ``QueueStats.dead_lettered`` counts both.

    Metadata:
        delivery: The message, as it was last delivered.
        reason: Short and stable, for grouping.
        description: Text for people.
        halted: Whether the rest of its session waits for it.
    """

    delivery: Delivery
    reason: str
    description: str = attrs.field(repr=False)
    halted: bool


@final
@attrs.frozen(kw_only=True, eq=False)
class LeasesRenewed(Event):
    """The broker answered to a batch of renewals; some of them it may have refused.

    Measurements:
        duration: Seconds until the answer.

    Metadata:
        leases: What was to be renewed.
        errors: For each lease, in the same order, ``None`` or why it was refused.
    """

    leases: tuple[Lease, ...] = attrs.field(repr=_count)
    errors: tuple[QueueError | None, ...] = attrs.field(repr=_count)
    duration: float


@final
@attrs.frozen(kw_only=True, eq=False)
class LeasesReleased(Event):
    """Leases were given back, and with them the deliveries not settled yet.

    Measurements:
        duration: Seconds until the broker's answer.

    Metadata:
        leases: What was given back.
    """

    leases: tuple[Lease, ...] = attrs.field(repr=_count)
    duration: float


@final
@attrs.frozen(kw_only=True, eq=False)
class MessagesRedriven(Event):
    """Dead letters were moved back into their queue.

    Measurements:
        count: How many.
        duration: Seconds it took.
    """

    count: int
    duration: float


@final
@attrs.frozen(kw_only=True, eq=False)
class DeadLettersPurged(Event):
    """Dead letters were deleted for good.

    Measurements:
        count: How many.
        duration: Seconds it took.
    """

    count: int
    duration: float


@final
@attrs.frozen(kw_only=True, eq=False)
class QueuePurged(Event):
    """Waiting and scheduled messages of a queue were deleted for good.

    Measurements:
        count: How many.
        duration: Seconds it took.
    """

    count: int
    duration: float


@final
@attrs.frozen(kw_only=True, eq=False)
class OperationFailed(Event):
    """A call to the provider raised. Cancelled calls, and calls on what the caller had closed, do not count.

    Measurements:
        duration: Seconds until the error.

    Metadata:
        operation: ``send``, ``receive``, ``settle``, ``renew``, ``release``, ``accept``, ``get_state``,
            ``set_state``, ``cancel_scheduled``, ``peek``, ``purge``, ``stats``, ``provision``, ``open_sender``,
            ``open_receiver``, ``open_dead_letters``, ``peek_dead_letters``, ``redrive_dead_letters``,
            ``purge_dead_letters`` or ``close``.
        error: What was raised; anything but a ``QueueError`` is a defect of the provider.
    """

    operation: str
    error: Exception
    duration: float


# --- the actors --------------------------------------------------------------------------------------


@final
@attrs.frozen(kw_only=True, eq=False)
class LeaseLost(Event):
    """The lock on a session or message is gone before its holder gave it back: once per lease.

    Metadata:
        lease: The lost lease.
        error: How it was lost.
    """

    lease: Lease
    error: QueueError


@final
@attrs.frozen(kw_only=True, eq=False)
class SessionOpened(Event):
    """A session has an actor now.

    Metadata:
        session_id: The session; ``None`` when the actor serves a single message without one.
    """

    session_id: SessionId | None


@final
@attrs.frozen(kw_only=True, eq=False)
class SessionClosed(Event):
    """A session's actor is gone.

    Measurements:
        messages: How many messages its handler finished.
        duration: Seconds since ``SessionOpened``.

    Metadata:
        session_id: The session; ``None`` when the actor served a single message without one.
        reason: Why it was closed.
    """

    session_id: SessionId | None
    reason: CloseReason
    messages: int
    duration: float


@final
@attrs.frozen(kw_only=True, eq=False)
class HandlerFinished(Event):
    """A handler returned from one message, raised, or was cancelled. The one event per message and attempt.

    Measurements:
        duration: Seconds in ``handle``.
        attempt: 1 for the first try; redeliveries and tries in place count alike.

    Metadata:
        delivery: What was handled.
        outcome: What it returned (``Complete()`` for ``None``); ``None`` if it raised.
        error_type: The class of what it raised, ``None`` if it returned. The error itself stays out: its
            text may quote the body.
    """

    delivery: Delivery
    outcome: Outcome | None
    error_type: type[BaseException] | None
    attempt: int
    duration: float


@final
@attrs.frozen(kw_only=True, eq=False)
class RetryScheduled(Event):
    """A message failed and will be tried again; the rest of its session waits behind it.

    Measurements:
        delay: Seconds until the next try.
        attempt: Which try failed, counted as in ``HandlerFinished``.

    Metadata:
        delivery: The message.
        parked: ``True``: it went back to the broker and the lock with it; ``False``: it is tried again in
            place, the lock kept.
        reason: Why it failed: the handler's word, or the class of its exception.
    """

    delivery: Delivery
    delay: float
    attempt: int
    parked: bool
    reason: str


@final
@attrs.frozen(kw_only=True, eq=False)
class BreakerChanged(Event):
    """A circuit breaker changed its state.

    Metadata:
        breaker: The breaker's name.
        previous: The state it left.
        current: The state it is in.
    """

    breaker: str
    previous: BreakerState
    current: BreakerState


@final
@attrs.frozen(kw_only=True, eq=False)
class SupervisorStarted(Event):
    """A supervisor is ready: its receivers are open and asking for messages."""


@final
@attrs.frozen(kw_only=True, eq=False)
class SupervisorDraining(Event):
    """A supervisor takes no more messages and finishes those it has.

    Measurements:
        grace: Seconds it may take; ``math.inf``: as long as it needs.
    """

    grace: float


@final
@attrs.frozen(kw_only=True, eq=False)
class SupervisorStopped(Event):
    """A supervisor is gone.

    Measurements:
        duration: Seconds since ``SupervisorStarted``.

    Metadata:
        clean: Whether everything it had was finished and settled; ``False`` when handlers were cancelled.
    """

    clean: bool
    duration: float
