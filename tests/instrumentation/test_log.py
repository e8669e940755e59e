from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

import attrs
import pytest
import structlog
import trio
from structlog.testing import CapturingLogger, capture_logs

from queue_runtime.abc import Lease
from queue_runtime.errors import (
    ConfigurationError,
    ConnectionFailed,
    InvalidReceipt,
    LockLost,
    MessageTooLarge,
    PermissionDenied,
    ProviderError,
    QueueFull,
)
from queue_runtime.handlers import CloseReason, Complete, Retry
from queue_runtime.instrumentation import (
    BreakerChanged,
    DeadLettersPurged,
    Event,
    HandlerFinished,
    Instruments,
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
    StructlogInstrument,
    SupervisorDraining,
    SupervisorStarted,
    SupervisorStopped,
    configure_logging,
    events,
)
from queue_runtime.messages import (
    Delivery,
    Message,
    MessageId,
    QueueName,
    SendResult,
    SessionId,
    Settlement,
    SettlementAction,
)
from queue_runtime.policies.breaker import BreakerState

E = TypeVar("E", bound=Event)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
LEASE = Lease(SessionId("s-1"), 1, math.inf, NOON, provider_data="CANARY")
MESSAGE = Message(
    b"CANARY",
    session_id=SessionId("s-1"),
    headers={"authorization": "CANARY"},
    correlation_id="c-1",
)
DELIVERY = Delivery(MESSAGE, MessageId("m-1"), "CANARY", LEASE, 2, NOON)
IDS = {"message_id": "m-1", "session_id": "s-1", "correlation_id": "c-1"}


@pytest.fixture(autouse=True)
def default_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def make(kind: type[E], **fields: Any) -> E:
    return kind(queue=QueueName("orders"), provider="memory", **fields)


def lines_of(event: Event, instrument: StructlogInstrument | None = None) -> list[dict[str, Any]]:
    with capture_logs() as lines:
        (instrument or StructlogInstrument())(event)
    return [dict(line) for line in lines]


def sent(result: SendResult) -> MessagesSent:
    return make(MessagesSent, messages=(MESSAGE,), results=(result,), duration=0.5)


def settled(action: SettlementAction, error: Any = None) -> MessagesSettled:
    settlement = Settlement(DELIVERY, action, reason="CANARY", description="CANARY")
    return make(MessagesSettled, settlements=(settlement,), errors=(error,), duration=0.5)


def failed(error: Exception) -> OperationFailed:
    return make(OperationFailed, operation="send", error=error, duration=0.5)


def handled(error_type: type[BaseException] | None) -> HandlerFinished:
    outcome = Retry(reason="CANARY") if error_type is None else None
    return make(
        HandlerFinished,
        delivery=DELIVERY,
        outcome=outcome,
        error_type=error_type,
        attempt=3,
        duration=0.5,
    )


def breaker(current: BreakerState) -> BreakerChanged:
    return make(
        BreakerChanged, breaker="provider", previous=BreakerState.HALF_OPEN, current=current
    )


def closed(reason: CloseReason) -> SessionClosed:
    return make(SessionClosed, session_id=SessionId("s-1"), reason=reason, messages=4, duration=0.5)


def renewed(error: LockLost | None) -> LeasesRenewed:
    return make(LeasesRenewed, leases=(LEASE,), errors=(error,), duration=0.5)


DEAD = make(
    MessageDeadLettered, delivery=DELIVERY, reason="Poison", description="CANARY", halted=True
)
RETRY = make(
    RetryScheduled, delivery=DELIVERY, delay=2.0, attempt=1, parked=True, reason="TimeoutError"
)

TABLE: list[tuple[Event, str, str, str]] = [
    # event, level, name of the line, operation
    (make(PortOpened, port="sender", duration=0.5), "debug", "port_opened", "open"),
    (make(PortClosed, port="sender", duration=0.5), "debug", "port_closed", "close"),
    (make(SessionOpened, session_id=SessionId("s-1")), "debug", "session_opened", "session"),
    (closed(CloseReason.IDLE), "debug", "session_closed", "session"),
    (renewed(None), "debug", "leases_renewed", "renew"),
    (make(LeasesReleased, leases=(LEASE,), duration=0.5), "debug", "leases_released", "release"),
    (settled(SettlementAction.RELEASE), "debug", "message_released", "release"),
    (handled(None), "debug", "handler_finished", "handle"),
    (handled(trio.Cancelled), "debug", "handler_finished", "handle"),
    (sent(SendResult(MessageId("m-1"))), "info", "message_sent", "send"),
    (sent(SendResult(MessageId("m-1"), duplicate=True)), "info", "message_duplicate", "send"),
    (
        make(MessagesReceived, deliveries=(DELIVERY,), duration=0.5),
        *("info", "message_received", "receive"),
    ),
    (settled(SettlementAction.COMPLETE), "info", "message_completed", "complete"),
    (settled(SettlementAction.ABANDON), "info", "message_abandoned", "abandon"),
    (make(MessagesRedriven, count=3, duration=0.5), "info", "messages_redriven", "redrive"),
    (make(DeadLettersPurged, count=3, duration=0.5), "info", "dead_letters_purged", "purge"),
    (make(QueuePurged, count=3, duration=0.5), "info", "queue_purged", "purge"),
    (make(SupervisorStarted), "info", "supervisor_started", "supervise"),
    (make(SupervisorDraining, grace=math.inf), "info", "supervisor_draining", "supervise"),
    (
        make(SupervisorStopped, clean=True, duration=9.0),
        *("info", "supervisor_stopped", "supervise"),
    ),
    (breaker(BreakerState.CLOSED), "info", "breaker_changed", "breaker"),
    (breaker(BreakerState.OPEN), "warning", "breaker_changed", "breaker"),
    (breaker(BreakerState.HALF_OPEN), "warning", "breaker_changed", "breaker"),
    (failed(ConnectionFailed("away")), "warning", "operation_failed", "send"),
    (
        failed(ProviderError("busy", code="7", transient=True)),
        *("warning", "operation_failed"),
        "send",
    ),
    (sent(SendResult(None, error=QueueFull("full"))), "warning", "message_refused", "send"),
    (
        settled(SettlementAction.COMPLETE, LockLost("expired")),
        *("warning", "settlement_refused", "complete"),
    ),
    (
        settled(SettlementAction.DEAD_LETTER, InvalidReceipt("settled before")),
        *("warning", "settlement_refused", "dead_letter"),
    ),
    (renewed(LockLost("taken over")), "warning", "renewal_refused", "renew"),
    (make(LeaseLost, lease=LEASE, error=LockLost("revoked")), "warning", "lease_lost", "renew"),
    (RETRY, "warning", "retry_scheduled", "retry"),
    (handled(ValueError), "warning", "handler_failed", "handle"),
    (handled(SystemExit), "warning", "handler_failed", "handle"),
    (closed(CloseReason.LOCK_LOST), "warning", "session_closed", "session"),
    (closed(CloseReason.CRASHED), "warning", "session_closed", "session"),
    (
        make(SupervisorStopped, clean=False, duration=9.0),
        *("warning", "supervisor_stopped", "supervise"),
    ),
    (failed(PermissionDenied("no")), "error", "operation_failed", "send"),
    (failed(KeyError("CANARY")), "error", "operation_failed", "send"),
    (sent(SendResult(None, error=MessageTooLarge(9, 8))), "error", "message_refused", "send"),
    (DEAD, "error", "message_dead_lettered", "dead_letter"),
]
ORDER = ["debug", "info", "warning", "error", "critical"]


def test_the_table_has_every_event() -> None:
    assert {type(row[0]).__name__ for row in TABLE} == set(events.__all__) - {"Event"}


@pytest.mark.parametrize(("event", "level", "name", "operation"), TABLE)
def test_levels_names_and_operations(event: Event, level: str, name: str, operation: str) -> None:
    (line,) = lines_of(event)
    assert (line["log_level"], line["event"], line["operation"]) == (level, name, operation)
    assert (line["queue_name"], line["provider"]) == ("orders", "memory")


@pytest.mark.parametrize(("event", "level", "name", "operation"), TABLE)
def test_nothing_below_the_level_is_written(
    event: Event, level: str, name: str, operation: str
) -> None:
    for lowest in ORDER:
        expected = 1 if ORDER.index(level) >= ORDER.index(lowest) else 0
        assert len(lines_of(event, StructlogInstrument(level=lowest))) == expected


@pytest.mark.parametrize(("event", "level", "name", "operation"), TABLE)
@pytest.mark.parametrize("as_json", [False, True])
def test_no_line_holds_what_must_not_be_seen(
    event: Event, level: str, name: str, operation: str, as_json: bool
) -> None:
    stream = io.StringIO()
    configure_logging("debug", as_json, stream)
    StructlogInstrument()(event)
    assert name in stream.getvalue()
    assert stream.getvalue().count("\n") == 1
    assert "CANARY" not in stream.getvalue()


# --- fields ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        (sent(SendResult(MessageId("m-1"))), {**IDS, "duration": 0.5}),
        (
            make(MessagesReceived, deliveries=(DELIVERY,), duration=0.5),
            {**IDS, "delivery_count": 2},
        ),
        (settled(SettlementAction.COMPLETE), {**IDS, "delivery_count": 2, "duration": 0.5}),
        (DEAD, {**IDS, "delivery_count": 2, "reason": "Poison", "halted": True}),
        (RETRY, {**IDS, "delivery_count": 2, "delay": 2.0, "attempt": 1, "parked": True}),
        (RETRY, {"reason": "TimeoutError"}),
        (handled(ValueError), {**IDS, "error_type": "ValueError", "attempt": 3, "duration": 0.5}),
        (handled(None), {**IDS, "outcome": "Retry"}),
        (failed(ConnectionFailed("away")), {"error_type": "ConnectionFailed", "error": "away"}),
        (renewed(LockLost("expired")), {"session_id": "s-1", "error": "expired"}),
        (closed(CloseReason.IDLE), {"session_id": "s-1", "reason": "idle", "messages": 4}),
        (breaker(BreakerState.OPEN), {"previous": "half_open", "current": "open"}),
        (make(MessagesRedriven, count=3, duration=0.5), {"messages": 3}),
        (make(SupervisorDraining, grace=30.0), {"grace": 30.0}),
        (make(SupervisorDraining, grace=math.inf), {"grace": None}),
    ],
)
def test_fields(event: Event, fields: dict[str, Any]) -> None:
    (line,) = lines_of(event)
    assert {key: line.get(key, "absent") for key in fields} == fields


def test_absent_ids_are_left_out() -> None:
    bare = attrs.evolve(DELIVERY, message=Message(b""))
    (line,) = lines_of(make(MessagesReceived, deliveries=(bare,), duration=0.0))
    assert "message_id" in line
    assert not {"session_id", "correlation_id"} & line.keys()


def test_a_batch_gives_one_line_per_message_and_refusals_their_own() -> None:
    event = make(
        MessagesSent,
        messages=(MESSAGE, MESSAGE, MESSAGE),
        results=(
            SendResult(MessageId("m-1")),
            SendResult(None, error=QueueFull("full")),
            SendResult(MessageId("m-3")),
        ),
        duration=0.5,
    )
    assert [line["event"] for line in lines_of(event)] == [
        *("message_sent", "message_refused", "message_sent")
    ]
    quiet = StructlogInstrument(level="warning")
    assert [line["event"] for line in lines_of(event, quiet)] == ["message_refused"]


def test_an_empty_receive_says_nothing() -> None:
    assert lines_of(make(MessagesReceived, deliveries=(), duration=1.0)) == []


def test_a_confirmed_dead_letter_is_told_by_its_own_event_only() -> None:
    assert lines_of(settled(SettlementAction.DEAD_LETTER)) == []


def test_an_unknown_kind_is_passed_over() -> None:
    @attrs.frozen(kw_only=True, eq=False)
    class FromTheFuture(Event):
        pass

    assert lines_of(make(FromTheFuture)) == []


# --- hostile texts -----------------------------------------------------------------------------------

HOSTILE = "a\u202eb\u200b\u2028c"
"""What ids accept although it confuses a reader; control characters they refuse themselves."""


def test_hostile_ids_are_escaped_and_cut() -> None:
    message = Message(b"", session_id=SessionId(HOSTILE), correlation_id="x" * 100 + HOSTILE)
    hostile = Delivery(message, MessageId(HOSTILE * 20), "r", LEASE, 1, NOON)
    (line,) = lines_of(make(MessagesReceived, deliveries=(hostile,), duration=0.0))
    assert line["session_id"] == r"a\u202eb\u200b\u2028c"
    assert line["correlation_id"] == "x" * 100 + r"a\u202eb\u200b\u2028c"
    assert len(line["message_id"]) <= 256
    assert line["message_id"].endswith("…")


@pytest.mark.parametrize("as_json", [False, True])
def test_reasons_and_errors_cannot_forge_lines(as_json: bool) -> None:
    text = "ok\n2026-05-01 [info] forged \x1b[2J" + "y" * 10_000
    stream = io.StringIO()
    configure_logging("debug", as_json, stream)
    instrument = StructlogInstrument()
    instrument(attrs.evolve(DEAD, reason=text))
    instrument(attrs.evolve(RETRY, reason=text))
    instrument(failed(ConnectionFailed(text)))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert all(len(line) < 1_000 for line in lines)
    assert "\x1b" not in stream.getvalue()


def test_errors_are_scrubbed() -> None:
    error = ConnectionFailed("cannot reach amqp://bot:CANARY@broker:5672/v, password=CANARY")
    (line,) = lines_of(failed(error))
    assert "CANARY" not in str(line)
    assert "amqp://***@broker:5672/v" in line["error"]


def test_only_errors_of_this_package_are_quoted() -> None:
    (line,) = lines_of(failed(ValueError("cannot decode b'CANARY'")))
    assert line["error_type"] == "ValueError"
    assert "error" not in line


# --- loggers -----------------------------------------------------------------------------------------


class CountingId(str):
    """An id that counts how often it is looked at."""

    __slots__ = ()
    looks = 0

    def isprintable(self) -> bool:
        CountingId.looks += 1
        return super().isprintable()


def test_lines_are_not_made_when_the_logger_filters_them() -> None:
    delivery = attrs.evolve(DELIVERY)
    object.__setattr__(delivery, "message_id", CountingId("m-1"))
    received = make(MessagesReceived, deliveries=(delivery,), duration=0.0)
    stream = io.StringIO()
    configure_logging("warning", False, stream)
    StructlogInstrument()(received)
    StructlogInstrument(level="warning")(received)
    assert CountingId.looks == 0
    assert stream.getvalue() == ""
    configure_logging("info", False, stream)
    StructlogInstrument()(received)
    assert CountingId.looks == 1
    assert "m-1" in stream.getvalue()


def test_a_logger_of_one_s_own_without_a_filter() -> None:
    capture = CapturingLogger()
    logger = structlog.wrap_logger(
        capture, processors=[], wrapper_class=structlog.BoundLogger, tenant="t-1"
    )
    StructlogInstrument(logger)(make(SupervisorStarted))
    (call,) = capture.calls
    assert call.method_name == "info"
    assert call.kwargs["tenant"] == "t-1"
    assert call.kwargs["event"] == "supervisor_started"


def test_a_standard_library_logger(caplog: pytest.LogCaptureFixture) -> None:
    structlog.configure(
        processors=[structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    StructlogInstrument()(make(SupervisorStarted))
    assert caplog.records == []  # the standard library's default is WARNING
    StructlogInstrument()(DEAD)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("queue_runtime", "ERROR")
    assert record.getMessage() == "message_dead_lettered"


def test_a_closed_stream_does_not_disturb_the_runtime(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    configure_logging("info", True, stream)
    instruments = Instruments([StructlogInstrument()])
    stream.close()
    instruments.emit(make(SupervisorStarted))
    assert "StructlogInstrument failed at SupervisorStarted" in caplog.text


@pytest.mark.parametrize("level", ["loud", "", "10"])
def test_unknown_levels(level: str) -> None:
    with pytest.raises(ConfigurationError, match="is unknown: choose one of debug, info"):
        StructlogInstrument(level=level)
    with pytest.raises(ConfigurationError, match="is unknown"):
        configure_logging(level, False, io.StringIO())


# --- configure_logging -------------------------------------------------------------------------------


def test_json_lines_carry_time_in_utc() -> None:
    stream = io.StringIO()
    configure_logging("INFO", True, stream)
    StructlogInstrument()(sent(SendResult(MessageId("m-1"))))
    line = json.loads(stream.getvalue())
    moment = datetime.fromisoformat(line.pop("timestamp"))
    assert moment.tzinfo is not None
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
    assert line == {
        "event": "message_sent",
        "level": "info",
        "queue_name": "orders",
        "provider": "memory",
        "operation": "send",
        **IDS,
        "duration": 0.5,
    }


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colour_only_where_a_person_wants_it(
    monkeypatch: pytest.MonkeyPatch, no_color: str, coloured: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        configure_logging("info", False, stream)
        StructlogInstrument()(make(SupervisorStarted))
        assert "supervisor_started" in stream.getvalue()
    assert ("\x1b[" in terminal.getvalue()) is coloured
    assert "\x1b[" not in file.getvalue()


@pytest.mark.parametrize("as_json", [False, True])
def test_tracebacks_show_no_local_variables(as_json: bool) -> None:
    stream = io.StringIO()
    configure_logging("info", as_json, stream)

    def fail() -> None:
        password = "canary".upper()  # not in the source line, which tracebacks do show
        raise ValueError(len(password))

    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "ValueError" in stream.getvalue()
    assert "CANARY" not in stream.getvalue()


def test_configuring_again_takes_effect() -> None:
    first, second = io.StringIO(), io.StringIO()
    instrument = StructlogInstrument()
    configure_logging("info", True, first)
    instrument(make(SupervisorStarted))
    configure_logging("warning", True, second)
    instrument(make(SupervisorStarted))
    instrument(DEAD)
    assert first.getvalue().count("\n") == second.getvalue().count("\n") == 1


def test_the_default_outcome_has_a_name() -> None:
    (line,) = lines_of(attrs.evolve(handled(None), outcome=Complete()))
    assert line["outcome"] == "Complete"
