"""The wrappers around a provider whose every answer the test decides."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from queue_runtime.abc import DeadLetters, Lease, Provider, Receiver, ReceiverOptions, Sender
from queue_runtime.errors import (
    ConnectionFailed,
    LockLost,
    QueueError,
    QueueFull,
    Unsupported,
)
from queue_runtime.instrumentation import (
    DeadLettersPurged,
    Event,
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
    instrument_provider,
)
from queue_runtime.instrumentation import ports as ports_module
from queue_runtime.messages import (
    Capabilities,
    Delivery,
    Message,
    MessageId,
    PeekedMessage,
    QueueName,
    QueueStats,
    SendResult,
    SessionId,
    Settlement,
    SettlementAction,
)

T = TypeVar("T")
QUEUE = QueueName("orders")
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
LATENCY = 0.25
"""Seconds that every call to the scripted provider takes."""


class Script:
    """What the provider answers, by operation: a value, or an exception to raise."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[tuple[Any, ...]] = []

    async def play(self, operation: str, *args: Any) -> Any:
        self.calls.append((operation, *args))
        await trio.sleep(LATENCY)
        answer = self.answers.get(operation)
        if isinstance(answer, Exception):
            raise answer
        return answer


class ScriptedSender(Sender):
    provider_name = "scripted"

    def __init__(self, script: Script) -> None:
        self.script = script

    async def send(self, messages: Sequence[Message]) -> list[SendResult]:
        return await self.script.play("send", messages)  # type: ignore[no-any-return]

    async def cancel_scheduled(self, sequence_numbers: Sequence[int]) -> list[bool]:
        return await self.script.play("cancel_scheduled", sequence_numbers)  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        await self.script.play("close")


class ScriptedReceiver(Receiver):
    provider_name = "scripted"
    max_delivery_count = 10

    def __init__(self, script: Script) -> None:
        self.script = script
        self.lock_duration = math.inf  # until the broker tells better

    async def receive(self, max_messages: int, timeout: float) -> list[Delivery]:
        return await self.script.play("receive", max_messages, timeout)  # type: ignore[no-any-return]

    async def settle(self, settlements: Sequence[Settlement]) -> list[QueueError | None]:
        return await self.script.play("settle", settlements)  # type: ignore[no-any-return]

    async def renew(self, leases: Sequence[Lease]) -> list[QueueError | None]:
        return await self.script.play("renew", leases)  # type: ignore[no-any-return]

    async def release(self, leases: Sequence[Lease]) -> None:
        await self.script.play("release", leases)

    async def accept(self, session_id: SessionId | None, timeout: float) -> Lease | None:
        return await self.script.play("accept", session_id, timeout)  # type: ignore[no-any-return]

    async def get_state(self, lease: Lease) -> bytes | None:
        return await self.script.play("get_state", lease)  # type: ignore[no-any-return]

    async def set_state(self, lease: Lease, state: bytes | None) -> None:
        await self.script.play("set_state", lease, state)

    async def aclose(self) -> None:
        await self.script.play("close")


class ScriptedDeadLetters(DeadLetters):
    def __init__(self, script: Script) -> None:
        self.script = script

    async def peek(self, max_messages: int, after: int = 0) -> list[PeekedMessage]:
        return await self.script.play("peek_dead_letters", max_messages, after)  # type: ignore[no-any-return]

    async def redrive(self, sequence_numbers: Collection[int] | None = None) -> int:
        return await self.script.play("redrive_dead_letters", sequence_numbers)  # type: ignore[no-any-return]

    async def purge(self, sequence_numbers: Collection[int] | None = None) -> int:
        return await self.script.play("purge_dead_letters", sequence_numbers)  # type: ignore[no-any-return]


class ScriptedProvider(Provider):
    name: ClassVar[str] = "scripted"
    capabilities = Capabilities(
        sessions=True,
        session_state=True,
        session_halt=True,
        accept_by_name=True,
        lock_renewal=True,
        abandon_delay=True,
        release_restores_count=True,
        keeps_empty_sessions=True,
        scheduling=True,
        cancel_scheduled=True,
        time_to_live=True,
        deduplication=True,
        peek=True,
        purge=True,
        stats=True,
        dead_letters=True,
        durable=False,
        multi_process=False,
        max_message_bytes=262_144,
        max_batch_messages=100,
    )
    region = "beyond the port"

    def __init__(self, script: Script) -> None:
        self.script = script

    async def open_sender(self, queue: QueueName) -> Sender:
        await self.script.play("open_sender", queue)
        return ScriptedSender(self.script)

    async def open_receiver(self, queue: QueueName, options: ReceiverOptions) -> Receiver:
        await self.script.play("open_receiver", queue, options)
        return ScriptedReceiver(self.script)

    async def open_dead_letters(self, queue: QueueName) -> DeadLetters:
        await self.script.play("open_dead_letters", queue)
        return ScriptedDeadLetters(self.script)

    async def peek(
        self, queue: QueueName, max_messages: int, after: int = 0
    ) -> list[PeekedMessage]:
        return await self.script.play("peek", queue, max_messages, after)  # type: ignore[no-any-return]

    async def purge(self, queue: QueueName) -> int:
        return await self.script.play("purge", queue)  # type: ignore[no-any-return]

    async def stats(self, queue: QueueName) -> QueueStats:
        return await self.script.play("stats", queue)  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        await self.script.play("close_provider")


class Bench:
    """A wrapped provider with its three ports open, and the events since then."""

    def __init__(self) -> None:
        self.script = Script()
        self.events: list[Event] = []
        self.raw = ScriptedProvider(self.script)
        self.provider = instrument_provider(self.raw, [self.events.append])
        self.sender: Sender
        self.receiver: Receiver
        self.dead_letters: DeadLetters

    async def open(self) -> None:
        self.sender = await self.provider.open_sender(QUEUE)
        self.receiver = await self.provider.open_receiver(QUEUE, ReceiverOptions())
        self.dead_letters = await self.provider.open_dead_letters(QUEUE)

    def forget(self) -> None:
        self.events.clear()
        self.script.calls.clear()

    def one(self, kind: type[T]) -> T:
        (event,) = self.events
        assert type(event) is kind
        return event


@pytest.fixture
async def bench() -> Bench:
    bench = Bench()
    await bench.open()
    bench.forget()
    return bench


def make_lease() -> Lease:
    return Lease(SessionId("s-1"), 1, math.inf, NOON)


def make_delivery() -> Delivery:
    message = Message(b"body", session_id=SessionId("s-1"))
    return Delivery(message, MessageId("m-1"), "receipt", make_lease(), 1, NOON)


# --- nothing is wrapped in vain ----------------------------------------------------------------------


def test_without_instruments_the_provider_stays_itself() -> None:
    raw = ScriptedProvider(Script())
    assert instrument_provider(raw, ()) is raw


async def test_wrapping_twice_tells_once(autojump_clock: MockClock) -> None:
    raw = ScriptedProvider(Script())
    first: list[Event] = []
    second: list[Event] = []
    tell_first, tell_second = first.append, second.append
    once = instrument_provider(raw, [tell_first])
    assert instrument_provider(once, [tell_first]) is once
    assert instrument_provider(once, []) is once
    twice = instrument_provider(once, [tell_first, tell_second])
    await twice.stats(QUEUE)
    await twice.open_sender(QUEUE)
    assert [type(event) for event in first] == [PortOpened]
    assert first == second


@pytest.mark.parametrize("port", [Provider, Sender, Receiver, DeadLetters])
def test_a_wrapper_covers_its_port(port: type) -> None:
    (wrapper,) = [
        kind
        for kind in vars(ports_module).values()
        if inspect.isclass(kind) and issubclass(kind, port) and kind is not port
    ]
    methods = {name for name, member in vars(port).items() if inspect.isfunction(member)}
    covered = {
        name for kind in wrapper.__mro__[: wrapper.__mro__.index(port)] for name in vars(kind)
    }
    assert methods - {"__init__"} <= covered, "the port's default would hide the wrapped object's"
    assert {name for name in vars(port) if not name.startswith("_")} <= methods, (
        "an attribute with a value in the port would hide the wrapped object's"
    )


# --- transparency ------------------------------------------------------------------------------------


async def test_attributes_pass_through(autojump_clock: MockClock, bench: Bench) -> None:
    assert bench.provider.name == "scripted"
    assert bench.provider.capabilities is ScriptedProvider.capabilities
    assert bench.provider.region == "beyond the port"  # type: ignore[attr-defined]
    assert bench.sender.provider_name == bench.receiver.provider_name == "scripted"
    assert bench.receiver.max_delivery_count == 10
    with pytest.raises(AttributeError, match="volume"):
        bench.sender.volume  # type: ignore[attr-defined] # noqa: B018


async def test_attributes_are_those_of_now(autojump_clock: MockClock) -> None:
    class Late(ScriptedProvider):
        async def open_receiver(self, queue: QueueName, options: ReceiverOptions) -> Receiver:
            self.receiver = ScriptedReceiver(self.script)
            return self.receiver

    raw = Late(Script())
    receiver = await instrument_provider(raw, [lambda _: None]).open_receiver(
        QUEUE, ReceiverOptions()
    )
    assert receiver.lock_duration == math.inf
    raw.receiver.lock_duration = 30.0
    assert receiver.lock_duration == 30.0


Operation = Callable[[Bench], Awaitable[Any]]
LEASE = make_lease()
OPTIONS = ReceiverOptions(max_sessions=3)

OPERATIONS: dict[str, tuple[Operation, tuple[Any, ...]]] = {
    # operation: (the call, what must reach the wrapped object)
    "send": (lambda b: b.sender.send([]), ([],)),
    "cancel_scheduled": (lambda b: b.sender.cancel_scheduled([7]), ([7],)),
    "receive": (lambda b: b.receiver.receive(5, 1.5), (5, 1.5)),
    "settle": (lambda b: b.receiver.settle([]), ([],)),
    "renew": (lambda b: b.receiver.renew([LEASE]), ([LEASE],)),
    "release": (lambda b: b.receiver.release([LEASE]), ([LEASE],)),
    "accept": (lambda b: b.receiver.accept(None, 2.0), (None, 2.0)),
    "get_state": (lambda b: b.receiver.get_state(LEASE), (LEASE,)),
    "set_state": (lambda b: b.receiver.set_state(LEASE, b"kept"), (LEASE, b"kept")),
    "close": (lambda b: b.receiver.aclose(), ()),
    "peek_dead_letters": (lambda b: b.dead_letters.peek(9, 4), (9, 4)),
    "redrive_dead_letters": (lambda b: b.dead_letters.redrive({1}), ({1},)),
    "purge_dead_letters": (lambda b: b.dead_letters.purge(), (None,)),
    "open_sender": (lambda b: b.provider.open_sender(QUEUE), (QUEUE,)),
    "open_receiver": (lambda b: b.provider.open_receiver(QUEUE, OPTIONS), (QUEUE, OPTIONS)),
    "open_dead_letters": (lambda b: b.provider.open_dead_letters(QUEUE), (QUEUE,)),
    "peek": (lambda b: b.provider.peek(QUEUE, 9, 4), (QUEUE, 9, 4)),
    "purge": (lambda b: b.provider.purge(QUEUE), (QUEUE,)),
    "stats": (lambda b: b.provider.stats(QUEUE), (QUEUE,)),
}


def test_the_table_is_what_the_event_documents() -> None:
    documentation = inspect.getdoc(OperationFailed) or ""
    assert [name for name in OPERATIONS if f"``{name}``" not in documentation] == []


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_failure_is_told_and_passes(
    autojump_clock: MockClock, bench: Bench, operation: str
) -> None:
    error = ConnectionFailed("the broker is away")
    bench.script.answers[operation] = error
    call, arguments = OPERATIONS[operation]
    with pytest.raises(ConnectionFailed) as caught:
        await call(bench)
    assert caught.value is error
    assert bench.script.calls == [(operation, *arguments)]
    (event,) = [event for event in bench.events if isinstance(event, OperationFailed)]
    assert (event.queue, event.provider) == (QUEUE, "scripted")
    assert (event.operation, event.error, event.duration) == (operation, error, LATENCY)
    assert {type(other) for other in bench.events} - {OperationFailed} <= {PortClosed}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_cancellation_passes_and_is_no_failure(
    autojump_clock: MockClock, bench: Bench, operation: str
) -> None:
    with trio.move_on_after(LATENCY / 2) as scope:
        await OPERATIONS[operation][0](bench)
    assert scope.cancelled_caught
    assert {type(event) for event in bench.events} <= {PortClosed}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_call_on_what_was_closed_is_no_failure_of_the_broker(
    autojump_clock: MockClock, bench: Bench, operation: str
) -> None:
    bench.script.answers[operation] = trio.ClosedResourceError("closed")
    with pytest.raises(trio.ClosedResourceError):
        await OPERATIONS[operation][0](bench)
    assert {type(event) for event in bench.events} <= {PortClosed}


@pytest.mark.parametrize("operation", ["cancel_scheduled", "accept", "get_state", "peek", "stats"])
async def test_answers_without_an_event_pass(
    autojump_clock: MockClock, bench: Bench, operation: str
) -> None:
    answer = bench.script.answers[operation] = object()
    assert await OPERATIONS[operation][0](bench) is answer
    assert bench.events == []


async def test_what_the_provider_lacks_stays_unsupported(
    autojump_clock: MockClock,
) -> None:
    class Poor(ScriptedProvider):
        stats = Provider.stats

    events: list[Event] = []
    with pytest.raises(Unsupported, match="scripted does not support stats"):
        await instrument_provider(Poor(Script()), [events.append]).stats(QUEUE)
    assert [type(event) for event in events] == [OperationFailed]


async def test_closing_the_provider_passes(autojump_clock: MockClock, bench: Bench) -> None:
    await bench.provider.aclose()
    assert bench.script.calls == [("close_provider",)]
    assert bench.events == []


# --- the events --------------------------------------------------------------------------------------


async def test_opening_and_closing(autojump_clock: MockClock) -> None:
    bench = Bench()
    await bench.open()
    opened = [event for event in bench.events if isinstance(event, PortOpened)]
    assert [(event.port, event.duration) for event in opened] == [
        ("sender", LATENCY),
        ("receiver", LATENCY),
        ("dead_letters", LATENCY),
    ]
    bench.forget()
    for _ in range(2):
        await bench.sender.aclose()
        await bench.receiver.aclose()
    closed = [event for event in bench.events if isinstance(event, PortClosed)]
    assert [(event.port, event.duration) for event in closed] == [
        ("sender", LATENCY),
        ("receiver", LATENCY),
    ]
    assert bench.script.calls == [("close",)] * 4


async def test_closing_is_told_also_when_cancelled(autojump_clock: MockClock, bench: Bench) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await bench.sender.aclose()
    assert bench.one(PortClosed).port == "sender"


async def test_sent(autojump_clock: MockClock, bench: Bench) -> None:
    messages = [Message(b"1"), Message(b"2")]
    results = [SendResult(MessageId("m-1"), 1), SendResult(None, error=QueueFull("full"))]
    bench.script.answers["send"] = results
    assert await bench.sender.send(messages) is results
    event = bench.one(MessagesSent)
    assert (event.queue, event.provider) == (QUEUE, "scripted")
    assert event.messages == tuple(messages)
    assert event.results == tuple(results)
    assert event.duration == LATENCY


async def test_received(autojump_clock: MockClock, bench: Bench) -> None:
    deliveries = [make_delivery()]
    bench.script.answers["receive"] = deliveries
    assert await bench.receiver.receive(5, 1.0) is deliveries
    event = bench.one(MessagesReceived)
    assert event.deliveries == tuple(deliveries)
    assert event.duration == LATENCY


async def test_an_empty_receive_is_told_too(autojump_clock: MockClock, bench: Bench) -> None:
    bench.script.answers["receive"] = []
    assert await bench.receiver.receive(5, 1.0) == []
    assert bench.one(MessagesReceived).deliveries == ()


async def test_settled_and_dead_lettered(autojump_clock: MockClock, bench: Bench) -> None:
    complete = Settlement(make_delivery(), SettlementAction.COMPLETE)
    dead = Settlement(make_delivery(), SettlementAction.DEAD_LETTER, 0.0, "Poison", "why", True)
    refused = Settlement(make_delivery(), SettlementAction.DEAD_LETTER, reason="Poison")
    errors = [None, None, LockLost("taken over")]
    bench.script.answers["settle"] = errors
    assert await bench.receiver.settle([complete, dead, refused]) is errors
    settled, dead_lettered = bench.events
    assert isinstance(settled, MessagesSettled)
    assert settled.settlements == (complete, dead, refused)
    assert settled.errors == tuple(errors)
    assert settled.duration == LATENCY
    assert isinstance(dead_lettered, MessageDeadLettered)
    assert dead_lettered.delivery is dead.delivery
    assert dead_lettered.reason == "Poison"
    assert dead_lettered.description == "why"
    assert dead_lettered.halted


async def test_renewed(autojump_clock: MockClock, bench: Bench) -> None:
    leases = [make_lease(), make_lease()]
    errors = [None, LockLost("expired")]
    bench.script.answers["renew"] = errors
    assert await bench.receiver.renew(leases) is errors
    event = bench.one(LeasesRenewed)
    assert event.leases == tuple(leases)
    assert event.errors == tuple(errors)
    assert event.duration == LATENCY


async def test_released(autojump_clock: MockClock, bench: Bench) -> None:
    leases = [make_lease()]
    await bench.receiver.release(leases)
    event = bench.one(LeasesReleased)
    assert event.leases == tuple(leases)
    assert event.duration == LATENCY


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("redrive_dead_letters", MessagesRedriven),
        ("purge_dead_letters", DeadLettersPurged),
        ("purge", QueuePurged),
    ],
)
async def test_counted(
    autojump_clock: MockClock,
    bench: Bench,
    operation: str,
    kind: type[MessagesRedriven | DeadLettersPurged | QueuePurged],
) -> None:
    bench.script.answers[operation] = 12
    assert await OPERATIONS[operation][0](bench) == 12
    event = bench.one(kind)
    assert (event.count, event.duration) == (12, LATENCY)


async def test_events_hold_what_was_asked_though_the_caller_goes_on_with_its_list(
    autojump_clock: MockClock,
    bench: Bench,
) -> None:
    messages = [Message(b"1")]
    bench.script.answers["send"] = [SendResult(MessageId("m-1"))]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.sender.send, messages)
        await wait_all_tasks_blocked()
        messages.clear()
    assert len(bench.one(MessagesSent).messages) == 1
