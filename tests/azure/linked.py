"""A queue on the emulator that the adapter reaches through a proxy, and what tests of faults do with it."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeVar, final

import attrs
import trio

from queue_runtime import (
    ConnectionFailed,
    Delivery,
    Message,
    OperationTimeout,
    QueueError,
    QueueName,
    Settlement,
    SettlementAction,
)
from queue_runtime.abc import Lease, Receiver, ReceiverOptions, Sender
from queue_runtime.providers.azure import FACTORY
from queue_runtime.providers.azure.provider import AzureProvider
from queue_runtime.testing.tcp_proxy import TcpFaultProxy, open_tcp_proxy

from .emulator_process import EmulatorProcess

__all__ = [
    "IN_HASTE",
    "LOCK",
    "PATIENCE",
    "PROMPT",
    "SLACK",
    "SOON",
    "Ledger",
    "Link",
    "again",
    "by_session",
    "complete",
    "eventually",
    "in_order",
    "leases",
    "linked",
    "promptly",
    "receive_all",
    "settle_until_told",
    "settlements",
    "timed",
    "work",
    "work_off",
]

T = TypeVar("T")

LOCK = 30.0
"""Seconds; what comes again sooner was given back, not waited for."""

PATIENCE = 2.0
"""Seconds that a call waits for an answer; a busy machine must not take as long for one."""

SLACK = 3.0
"""Seconds that a busy machine may add."""

SOON = 20.0
"""Seconds in which everything is done that does not wait for a lock to end."""

IN_HASTE = {"operation_timeout": PATIENCE, "connect_timeout": PATIENCE}
"""Options for who waits in vain; for others no call ends by its timeout, as a busy machine would have it."""

PROMPT = 0.25
"""Seconds in which a cancelled call has to return."""

TRIES = 3
"""Times that something may take long before it is held to be slow, and not the machine."""


@final
@attrs.frozen(kw_only=True)
class Link:
    """A queue of its own, reached through a proxy.

    Args:
        emulator: Where it is.
        proxy: What breaks.
        url: The provider, through the proxy.
        provider: Connected so.
        direct: Connected past the proxy.
        queue: Empty at first.
        sessions: Whether it has sessions.
        lock: Seconds that its locks last.
    """

    emulator: EmulatorProcess
    proxy: TcpFaultProxy
    url: str
    provider: AzureProvider
    direct: AzureProvider
    queue: QueueName
    sessions: bool
    lock: float

    async def sender(self) -> Sender:
        return await self.provider.open_sender(self.queue)

    async def receiver(self, **options: Any) -> Receiver:
        return await self.provider.open_receiver(self.queue, ReceiverOptions(**options))

    def work(self, count: int, sessions: int = 2, first: int = 0) -> list[Message]:
        return work(count, sessions if self.sessions else 0, first)

    async def send(self, messages: Sequence[Message]) -> None:
        """Past the proxy."""
        sender = await self.direct.open_sender(self.queue)
        for result in await sender.send(messages):
            assert result.error is None
        await sender.aclose()

    def fault(self, name: str, *operations: str, **options: Any) -> Any:
        """A fault of the emulator's that is about this queue."""
        return self.emulator.fault(name, *operations, queue=str(self.queue), **options)

    def end_locks(self) -> None:
        """Have all locks end by the broker's clock that there are."""
        self.emulator.fault("move_time", seconds=self.lock)

    def counts(self) -> dict[str, int]:
        return self.emulator.counts(str(self.queue))

    @contextmanager
    def count_requests(self) -> Iterator[Callable[[], int]]:
        """How many requests to management nodes were answered since."""

        def made() -> int:
            return sum(self.emulator.statistics()["requests"].values())

        before = made()
        yield lambda: made() - before

    def assert_empty(self, dead: int = 0) -> None:
        counts = self.counts()
        assert (counts["active"], counts["scheduled"], counts["dead_letters"]) == (0, 0, dead)


@asynccontextmanager
async def linked(
    emulator: EmulatorProcess,
    *,
    sessions: bool = True,
    lock: float = LOCK,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Link]:
    """A queue, and two ways to it; in the end nothing of them is left at the broker.

    Args:
        emulator: Where it is made.
        sessions: Whether it has sessions.
        lock: Its locks' duration, in seconds.
        options: Of the provider.
        settings: Of the queue.
    """
    queue = QueueName(f"faults-{uuid.uuid4().hex[:12]}")
    given = {"duplicate_window": 3_600.0, "max_delivery_count": 100, **settings}
    emulator.create_queue(str(queue), requires_session=sessions, lock_duration=lock, **given)
    words = {
        "sessions": sessions,
        "deduplication": True,
        "lock_duration": lock,
        "operation_timeout": SOON,
        "connect_timeout": SOON,
        **(options or {}),
    }
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(open_tcp_proxy("127.0.0.1", emulator.port))
        url = emulator.url_with(proxy.port, **words)
        before = emulator.statistics()
        past = emulator.url_with(**{**words, "operation_timeout": SOON, "connect_timeout": SOON})
        direct = await FACTORY.open(FACTORY.config_from_url(past))
        stack.push_async_callback(direct.aclose)
        provider = await FACTORY.open(FACTORY.config_from_url(url))
        stack.push_async_callback(provider.aclose)
        yield Link(
            emulator=emulator,
            proxy=proxy,
            url=url,
            provider=provider,
            direct=direct,
            queue=queue,
            sessions=sessions,
            lock=lock,
        )
        emulator.lift_faults()
        proxy.heal()
        await provider.aclose()
        await direct.aclose()

        def over() -> bool:
            now = emulator.statistics()
            return all(now[name] <= before[name] for name in ("open_connections", "open_links"))

        await eventually(over)


async def eventually(holds: Callable[[], bool], within: float = SOON) -> None:
    """Wait until something holds at the emulator, which tells no one by itself."""
    with trio.fail_after(within):
        while not holds():  # noqa: ASYNC110 - the state of another process
            await trio.sleep(0.01)


async def promptly(attempt: Callable[[], Awaitable[float]], within: float = PROMPT) -> None:
    """Try until something took less than ``within`` seconds: what is slow itself is so each time."""
    took: list[float] = []
    while not took or took[-1] >= within:
        assert len(took) < TRIES, took
        took.append(await attempt())


def work(count: int, sessions: int = 2, first: int = 0) -> list[Message]:
    """So many messages, numbered, of so many sessions in turn; 0: of none."""
    return [
        Message(b"%d" % number, session_id=f"session-{number % sessions}" if sessions else None)
        for number in range(first, first + count)
    ]


async def again(call: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Make a call until its error is none that passes by itself."""
    while True:
        try:
            return await call(*arguments)
        except QueueError as error:
            if not error.is_transient:
                raise
            await trio.sleep(0.01)


async def timed(calls: dict[str, Callable[[], Awaitable[object]]]) -> dict[str, float]:
    """How long calls take, side by side; they fail as a network does, or have nothing to tell."""
    took: dict[str, float] = {}

    async def call(name: str) -> None:
        began = trio.current_time()
        try:
            answer = await calls[name]()
        except (OperationTimeout, ConnectionFailed):
            answer = None
        took[name] = trio.current_time() - began
        for each in answer if isinstance(answer, list) else [answer]:
            assert each is None or isinstance(each, (OperationTimeout, ConnectionFailed)), name

    with trio.fail_after(SOON):
        async with trio.open_nursery() as nursery:
            for name in calls:
                nursery.start_soon(call, name)
    return took


async def receive_all(receiver: Receiver, count: int) -> list[Delivery]:
    """So many deliveries; a failing call is made again, as the runtime does."""
    deliveries: list[Delivery] = []
    with trio.fail_after(SOON):
        while len(deliveries) < count:
            deliveries += await again(receiver.receive, count - len(deliveries), 2.0)
    return deliveries


def settlements(
    deliveries: Sequence[Delivery], action: SettlementAction = SettlementAction.COMPLETE
) -> list[Settlement]:
    return [Settlement(delivery, action, reason="Test") for delivery in deliveries]


async def complete(receiver: Receiver, deliveries: Sequence[Delivery]) -> None:
    assert await receiver.settle(settlements(deliveries)) == [None] * len(deliveries)


async def settle_until_told(
    receiver: Receiver,
    deliveries: Sequence[Delivery],
    action: SettlementAction = SettlementAction.COMPLETE,
) -> list[QueueError | None]:
    """Settle until each answer is one that lasts; each of them. What is confirmed is not asked for again."""
    told: dict[Delivery, QueueError | None] = {}
    with trio.fail_after(SOON):
        while open_ := [delivery for delivery in deliveries if delivery not in told]:
            answers = await again(receiver.settle, settlements(open_, action))
            told |= {
                delivery: answer
                for delivery, answer in zip(open_, answers, strict=True)
                if answer is None or not answer.is_transient
            }
    return [told[delivery] for delivery in deliveries]


def leases(deliveries: Sequence[Delivery]) -> list[Lease]:
    return list(dict.fromkeys(delivery.lease for delivery in deliveries))


def by_session(deliveries: Sequence[Delivery]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for delivery in deliveries:
        numbers.setdefault(str(delivery.session_id), []).append(int(delivery.body))
    return {session: numbers[session] for session in sorted(numbers)}


def in_order(count: int, sessions: int = 2) -> dict[str, list[int]]:
    return {
        f"session-{session}": list(range(session, count, sessions)) for session in range(sessions)
    }


@final
class Ledger:
    """What was delivered and what was confirmed; it complains at once of what must not be."""

    def __init__(self, confirmed: Sequence[int] = ()) -> None:
        self.confirmed = set(confirmed)
        self.deliveries: list[Delivery] = []
        self._latest: dict[str | None, Delivery] = {}

    def received(self, deliveries: Sequence[Delivery]) -> None:
        """Within a lease numbers only grow, leases follow one another, and what is confirmed is over."""
        for delivery in deliveries:
            number = int(delivery.body)
            assert number not in self.confirmed, f"{number} came again although it was confirmed"
            self.deliveries.append(delivery)
            if delivery.session_id is None:
                continue
            before = self._latest.get(delivery.session_id)
            self._latest[delivery.session_id] = delivery
            if before is None:
                continue
            if before.lease is delivery.lease:
                assert number > int(before.body), f"{number} after {before.body!r} in one lease"
            else:
                assert delivery.lease.token > before.lease.token
                lost_or_over = before.lease.lost is not None or before.lease.released
                assert lost_or_over, f"{number} came under a second lease beside the first"

    def settled(self, deliveries: Sequence[Delivery], answers: Sequence[QueueError | None]) -> None:
        for delivery, answer in zip(deliveries, answers, strict=True):
            if answer is None:
                self.confirmed.add(int(delivery.body))

    def firsts(self) -> dict[str, list[int]]:
        """Numbers of each session in the order they came first."""
        seen = by_session(self.deliveries)
        return {session: list(dict.fromkeys(numbers)) for session, numbers in seen.items()}


async def work_off(
    link: Link,
    receiver: Receiver,
    ledger: Ledger | None = None,
    within: float = SOON,
    *,
    ends_locks: bool = False,
) -> Ledger:
    """Complete what is in the queue, whatever goes wrong meanwhile; ``ends_locks`` on what nobody holds any more."""
    ledger = ledger or Ledger()
    with trio.fail_after(within):
        for most in itertools.cycle((1, 3, 10)):
            if not link.counts()["active"]:
                break
            try:
                deliveries = await receiver.receive(most, 1.0 if ends_locks else 0.2)
            except QueueError as error:
                if not error.is_transient:
                    raise
                continue
            if ends_locks and not deliveries:
                link.end_locks()
            ledger.received(deliveries)
            # Not left to their locks, which last: a busy machine may take longer than a call waits.
            answers = await settle_until_told(receiver, deliveries)
            ledger.settled(deliveries, answers)
    return ledger
