"""Events as lines of a structured log, through structlog.

What a line may hold: names, ids, counts, durations, reasons, classes of errors, and the scrubbed texts of
the errors this package defines. What no line holds: a body, a header, the text of a handler's exception,
a credential.

structlog is imported when it is used: it takes asyncio with it, and ``import queue_runtime`` stays small.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from logging import CRITICAL, DEBUG, ERROR, INFO, WARNING
from types import MappingProxyType
from typing import Any, Final, TextIO, final

import trio

from ..errors import ConfigurationError, InvalidReceipt, LockLost, QueueError
from ..handlers import CloseReason
from ..messages import Delivery, SettlementAction
from ..policies.breaker import BreakerState
from ..text import escape, scrub
from .events import (
    BreakerChanged,
    DeadLettersPurged,
    Event,
    HandlerFinished,
    LeaseLost,
    LeasesReleased,
    LeasesRenewed,
    MessageDeadLettered,
    MessagesReceived,
    MessagesRedriven,
    MessagesSent,
    MessagesSettled,
    OperationFailed,
    PortClosed,
    PortOpened,
    QueuePurged,
    RetryScheduled,
    SessionClosed,
    SessionOpened,
    SupervisorDraining,
    SupervisorStarted,
    SupervisorStopped,
)

__all__ = ["LEVELS", "StructlogInstrument", "configure_logging"]

LEVELS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "debug": DEBUG,
        "info": INFO,
        "warning": WARNING,
        "error": ERROR,
        "critical": CRITICAL,
    }
)
"""The names of the levels, in any case, and their numbers."""

_METHODS: Final = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error"}


def _level_number(level: str) -> int:
    number = LEVELS.get(level.lower())
    if number is None:
        raise ConfigurationError(
            f"log level {level!r} is unknown: choose one of {', '.join(LEVELS)}"
        )
    return number


@final
class StructlogInstrument:
    """An instrument that writes events to a structlog logger.

    Lines carry ``queue_name``, ``provider`` and ``operation``, and where there is one ``message_id``,
    ``session_id``, ``correlation_id``, ``delivery_count``, ``duration`` (seconds), ``error_type`` and
    ``error``. Ids and texts are escaped and cut at 256 characters.

    ======= ===========================================================================================
    level   what
    ======= ===========================================================================================
    debug   ports opened and closed, sessions, leases, messages released, handlers that went well
    info    messages sent, received, completed, abandoned, redriven, purged; the supervisor; a breaker
            that closes
    warning errors that trying again may cure, lost locks and refused receipts, retries, handlers that
            failed, a breaker that opens or probes, an unclean stop
    error   errors that stay, messages dead-lettered
    ======= ===========================================================================================

    A batch gives one line per message, and none of them is made when neither ``level`` nor the logger lets
    it pass.

    Args:
        logger: Where to write; ``None``: ``structlog.get_logger("queue_runtime")``.
        level: The lowest level written. The logger's own filter applies as well.

    Raises:
        ConfigurationError: The level has no such name.
    """

    def __init__(self, logger: Any = None, level: str = "debug") -> None:
        import structlog

        self._logger = structlog.get_logger("queue_runtime") if logger is None else logger
        self._level = _level_number(level)

    def __call__(self, event: Event) -> None:
        """Write what there is to say about ``event``; nothing about kinds it does not know."""
        write = _WRITERS.get(type(event))
        if write is not None:
            write(_Lines(self._logger, self._level, event), event)


class _Lines:
    """Writes the lines of one event."""

    __slots__ = ("_bound", "_event", "_level", "_logger")

    def __init__(self, logger: Any, level: int, event: Event) -> None:
        self._logger = logger
        self._bound: Any = None
        self._level = level
        self._event = event

    def enabled(self, level: int) -> bool:
        if level < self._level:
            return False
        if self._bound is None:
            self._bound = self._logger.bind()  # a lazy proxy tells its level only when bound
        # Asked of the class: structlog's plain BoundLogger takes any attribute for a method that logs.
        if hasattr(type(self._bound), "is_enabled_for"):
            return bool(self._bound.is_enabled_for(level))
        return True

    def write(
        self, level: int, name: str, operation: str, duration: float | None = None, **fields: Any
    ) -> None:
        if not self.enabled(level):
            return
        if duration is not None:
            fields["duration"] = round(duration, 6)
        getattr(self._bound, _METHODS[level])(
            name,
            queue_name=self._event.queue,
            provider=self._event.provider,
            operation=operation,
            **fields,
        )

    def failure(self, name: str, operation: str, error: Exception, **fields: Any) -> None:
        level = _severity(error)
        if self.enabled(level):
            self.write(level, name, operation, **fields, **_error(error))


def _severity(error: Exception) -> int:
    # A lost lock or a refused receipt is how another consumer's taking over looks: the message lives on.
    if isinstance(error, (LockLost, InvalidReceipt)):
        return WARNING
    return WARNING if isinstance(error, QueueError) and error.is_transient else ERROR


def _error(error: Exception) -> dict[str, Any]:
    fields: dict[str, Any] = {"error_type": type(error).__name__}
    if isinstance(error, QueueError):  # the text of any other may quote anything
        fields["error"] = escape(scrub(str(error)))
    return fields


def _ids(
    message_id: str | None, session_id: str | None, correlation_id: str | None
) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if message_id is not None:
        fields["message_id"] = escape(message_id)
    if session_id is not None:
        fields["session_id"] = escape(session_id)
    if correlation_id is not None:
        fields["correlation_id"] = escape(correlation_id)
    return fields


def _delivery(delivery: Delivery) -> dict[str, Any]:
    message = delivery.message
    fields = _ids(delivery.message_id, message.session_id, message.correlation_id)
    fields["delivery_count"] = delivery.delivery_count
    return fields


# --- the ports ---------------------------------------------------------------------------------------


def _port_opened(lines: _Lines, event: PortOpened) -> None:
    lines.write(DEBUG, "port_opened", "open", port=event.port, duration=event.duration)


def _port_closed(lines: _Lines, event: PortClosed) -> None:
    lines.write(DEBUG, "port_closed", "close", port=event.port, duration=event.duration)


def _sent(lines: _Lines, event: MessagesSent) -> None:
    info = lines.enabled(INFO)
    for message, result in zip(event.messages, event.results, strict=False):
        if result.error is None and not info:
            continue
        message_id = message.message_id if result.message_id is None else result.message_id
        fields = _ids(message_id, message.session_id, message.correlation_id)
        if result.error is not None:
            lines.failure("message_refused", "send", result.error, **fields)
        else:
            name = "message_duplicate" if result.duplicate else "message_sent"
            lines.write(INFO, name, "send", **fields, duration=event.duration)


def _received(lines: _Lines, event: MessagesReceived) -> None:
    if lines.enabled(INFO):
        for delivery in event.deliveries:
            lines.write(INFO, "message_received", "receive", **_delivery(delivery))


_SETTLED: Final = {
    SettlementAction.COMPLETE: (INFO, "message_completed"),
    SettlementAction.ABANDON: (INFO, "message_abandoned"),
    SettlementAction.RELEASE: (DEBUG, "message_released"),
}
"""``DEAD_LETTER`` is missing: ``MessageDeadLettered`` tells it."""


def _settled(lines: _Lines, event: MessagesSettled) -> None:
    for settlement, error in zip(event.settlements, event.errors, strict=False):
        action = settlement.action
        if error is not None:
            fields = _delivery(settlement.delivery)
            lines.failure("settlement_refused", action.value, error, **fields)
        elif action in _SETTLED:
            level, name = _SETTLED[action]
            if lines.enabled(level):
                fields = _delivery(settlement.delivery)
                if action is SettlementAction.ABANDON:
                    fields["delay"] = settlement.delay
                lines.write(level, name, action.value, **fields, duration=event.duration)


def _dead_lettered(lines: _Lines, event: MessageDeadLettered) -> None:
    # The description stays out: a handler writes it, and it is in the dead-letter queue for who asks.
    lines.write(
        ERROR,
        "message_dead_lettered",
        "dead_letter",
        **_delivery(event.delivery),
        reason=escape(scrub(event.reason)),
        halted=event.halted,
    )


def _renewed(lines: _Lines, event: LeasesRenewed) -> None:
    for lease, error in zip(event.leases, event.errors, strict=False):
        if error is not None:
            lines.failure("renewal_refused", "renew", error, **_ids(None, lease.session_id, None))
    renewed = event.errors.count(None)
    if renewed:
        lines.write(DEBUG, "leases_renewed", "renew", leases=renewed, duration=event.duration)


def _released(lines: _Lines, event: LeasesReleased) -> None:
    count = len(event.leases)
    lines.write(DEBUG, "leases_released", "release", leases=count, duration=event.duration)


def _redriven(lines: _Lines, event: MessagesRedriven) -> None:
    lines.write(INFO, "messages_redriven", "redrive", messages=event.count, duration=event.duration)


def _dead_letters_purged(lines: _Lines, event: DeadLettersPurged) -> None:
    lines.write(INFO, "dead_letters_purged", "purge", messages=event.count, duration=event.duration)


def _queue_purged(lines: _Lines, event: QueuePurged) -> None:
    lines.write(INFO, "queue_purged", "purge", messages=event.count, duration=event.duration)


def _failed(lines: _Lines, event: OperationFailed) -> None:
    lines.failure("operation_failed", event.operation, event.error, duration=event.duration)


# --- the actors --------------------------------------------------------------------------------------


def _lease_lost(lines: _Lines, event: LeaseLost) -> None:
    fields = _ids(None, event.lease.session_id, None)
    lines.write(WARNING, "lease_lost", "renew", **fields, **_error(event.error))


def _session_opened(lines: _Lines, event: SessionOpened) -> None:
    lines.write(DEBUG, "session_opened", "session", **_ids(None, event.session_id, None))


def _session_closed(lines: _Lines, event: SessionClosed) -> None:
    bad = event.reason in {CloseReason.CRASHED, CloseReason.LOCK_LOST}
    lines.write(
        WARNING if bad else DEBUG,
        "session_closed",
        "session",
        **_ids(None, event.session_id, None),
        reason=event.reason.value,
        messages=event.messages,
        duration=event.duration,
    )


def _handled(lines: _Lines, event: HandlerFinished) -> None:
    error_type = event.error_type
    # Who cancels a handler has an event of its own: a lost lock, a timeout, the end of a drain.
    failed = error_type is not None and not issubclass(error_type, trio.Cancelled)
    level, name = (WARNING, "handler_failed") if failed else (DEBUG, "handler_finished")
    if not lines.enabled(level):
        return
    fields = _delivery(event.delivery)
    if error_type is None:
        fields["outcome"] = type(event.outcome).__name__
    else:
        fields["error_type"] = error_type.__name__
    lines.write(level, name, "handle", **fields, attempt=event.attempt, duration=event.duration)


def _retry(lines: _Lines, event: RetryScheduled) -> None:
    if lines.enabled(WARNING):
        lines.write(
            WARNING,
            "retry_scheduled",
            "retry",
            **_delivery(event.delivery),
            attempt=event.attempt,
            delay=event.delay,
            parked=event.parked,
            reason=escape(scrub(event.reason)),
        )


def _breaker(lines: _Lines, event: BreakerChanged) -> None:
    lines.write(
        INFO if event.current is BreakerState.CLOSED else WARNING,
        "breaker_changed",
        "breaker",
        breaker=escape(event.breaker),
        previous=event.previous.value,
        current=event.current.value,
    )


def _started(lines: _Lines, _event: SupervisorStarted) -> None:
    lines.write(INFO, "supervisor_started", "supervise")


def _draining(lines: _Lines, event: SupervisorDraining) -> None:
    grace = event.grace if math.isfinite(event.grace) else None  # JSON has no infinity
    lines.write(INFO, "supervisor_draining", "supervise", grace=grace)


def _stopped(lines: _Lines, event: SupervisorStopped) -> None:
    level = INFO if event.clean else WARNING
    lines.write(
        level, "supervisor_stopped", "supervise", clean=event.clean, duration=event.duration
    )


_WRITERS: Final[Mapping[type[Event], Callable[[_Lines, Any], None]]] = {
    PortOpened: _port_opened,
    PortClosed: _port_closed,
    MessagesSent: _sent,
    MessagesReceived: _received,
    MessagesSettled: _settled,
    MessageDeadLettered: _dead_lettered,
    LeasesRenewed: _renewed,
    LeasesReleased: _released,
    MessagesRedriven: _redriven,
    DeadLettersPurged: _dead_letters_purged,
    QueuePurged: _queue_purged,
    OperationFailed: _failed,
    LeaseLost: _lease_lost,
    SessionOpened: _session_opened,
    SessionClosed: _session_closed,
    HandlerFinished: _handled,
    RetryScheduled: _retry,
    BreakerChanged: _breaker,
    SupervisorStarted: _started,
    SupervisorDraining: _draining,
    SupervisorStopped: _stopped,
}


def configure_logging(level: str, json: bool, stream: TextIO) -> None:
    """Set structlog up for a program of its own, such as the command line. Libraries leave it alone.

    Args:
        level: The lowest level written; one of :data:`LEVELS`.
        json: One JSON object per line, for machines; otherwise columns for people, in colour on a terminal.
        stream: Where to write.

    Raises:
        ConfigurationError: The level has no such name.
    """
    import structlog

    number = _level_number(level)
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if json:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        colors = stream.isatty() and not os.environ.get("NO_COLOR")
        # The plain traceback: the other ones print local variables, secrets among them.
        renderer = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback
        )
        processors.append(renderer)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,  # so that a second call takes effect
    )
