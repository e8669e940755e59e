"""A memory broker behind a provider whose calls a test can tamper with, one operation at a time."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, settings

from queue_runtime.abc import DeadLetters, Lease, Provider, Receiver, ReceiverOptions, Sender
from queue_runtime.actors.supervisor import Supervisor
from queue_runtime.client import open_supervisor
from queue_runtime.config import SupervisorConfig
from queue_runtime.errors import QueueError
from queue_runtime.handlers import CloseReason, Outcome, Session
from queue_runtime.messages import (
    Delivery,
    Message,
    PeekedMessage,
    QueueName,
    QueueStats,
    SendResult,
    SessionId,
    Settlement,
)
from queue_runtime.policies.backoff import RetryPolicy
from queue_runtime.providers.memory import MEMORY_FACTORY, MemoryConfig

# What is drawn first pays for what is imported then, and the machine may be busy: neither is a test's failure.
settings.register_profile("unhurried", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("unhurried")

# A shell has what it starts in the background ignore interrupts; tests send some, also to processes that inherit this.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

Proceed = Callable[..., Awaitable[Any]]
Hook = Callable[..., Awaitable[Any]]


class Tampered(Provider):
    """``inner`` with hooks: ``provider.on["settle"] = hook`` calls ``await hook(proceed, *args)`` instead."""

    name: ClassVar[str] = "tampered"

    def __init__(self, inner: Provider) -> None:
        self.inner = inner
        self.capabilities = inner.capabilities
        self.on: dict[str, Hook] = {}
        self.calls: Counter[str] = Counter()

    async def call(self, operation: str, proceed: Proceed, *args: Any) -> Any:
        self.calls[operation] += 1
        hook = self.on.get(operation)
        return await (proceed(*args) if hook is None else hook(proceed, *args))

    async def open_sender(self, queue: QueueName) -> Sender:
        sender: Sender = await self.call("open_sender", self.inner.open_sender, queue)
        return _Sender(sender, self)

    async def open_receiver(self, queue: QueueName, options: ReceiverOptions) -> Receiver:
        receiver = await self.call("open_receiver", self.inner.open_receiver, queue, options)
        return _Receiver(receiver, self)

    async def open_dead_letters(self, queue: QueueName) -> DeadLetters:
        letters: DeadLetters = await self.call(
            "open_dead_letters", self.inner.open_dead_letters, queue
        )
        return letters

    async def peek(
        self, queue: QueueName, max_messages: int, after: int = 0
    ) -> list[PeekedMessage]:
        return await self.inner.peek(queue, max_messages, after)

    async def purge(self, queue: QueueName) -> int:
        return await self.inner.purge(queue)

    async def stats(self, queue: QueueName) -> QueueStats:
        stats: QueueStats = await self.call("stats", self.inner.stats, queue)
        return stats

    async def aclose(self) -> None:
        await self.inner.aclose()


class _Sender(Sender):
    def __init__(self, inner: Sender, provider: Tampered) -> None:
        self.inner = inner
        self.provider = provider
        self.provider_name = provider.name

    async def send(self, messages: Sequence[Message]) -> list[SendResult]:
        results: list[SendResult] = await self.provider.call("send", self.inner.send, messages)
        return results

    async def cancel_scheduled(self, sequence_numbers: Sequence[int]) -> list[bool]:
        return await self.inner.cancel_scheduled(sequence_numbers)

    async def aclose(self) -> None:
        await self.provider.call("close_sender", self.inner.aclose)


class _Receiver(Receiver):
    def __init__(self, inner: Receiver, provider: Tampered) -> None:
        self.inner = inner
        self.provider = provider
        self.provider_name = provider.name
        self.lock_duration = inner.lock_duration
        self.max_delivery_count = inner.max_delivery_count

    async def receive(self, max_messages: int, timeout: float) -> list[Delivery]:
        deliveries: list[Delivery] = await self.provider.call(
            "receive", self.inner.receive, max_messages, timeout
        )
        return deliveries

    async def settle(self, settlements: Sequence[Settlement]) -> list[QueueError | None]:
        answers: list[QueueError | None] = await self.provider.call(
            "settle", self.inner.settle, settlements
        )
        return answers

    async def renew(self, leases: Sequence[Lease]) -> list[QueueError | None]:
        answers: list[QueueError | None] = await self.provider.call(
            "renew", self.inner.renew, leases
        )
        return answers

    async def release(self, leases: Sequence[Lease]) -> None:
        await self.provider.call("release", self.inner.release, leases)

    async def accept(self, session_id: SessionId | None, timeout: float) -> Lease | None:
        lease: Lease | None = await self.provider.call(
            "accept", self.inner.accept, session_id, timeout
        )
        return lease

    async def get_state(self, lease: Lease) -> bytes | None:
        state: bytes | None = await self.provider.call("get_state", self.inner.get_state, lease)
        return state

    async def set_state(self, lease: Lease, state: bytes | None) -> None:
        await self.provider.call("set_state", self.inner.set_state, lease, state)

    async def aclose(self) -> None:
        await self.provider.call("close", self.inner.aclose)


class Lab:
    """One queue, what is in it, and what handlers did.

    Messages are written ``"session:body"``; ``":body"`` has no session.
    """

    queue = QueueName("q")

    def __init__(self, provider: Tampered) -> None:
        self.provider = provider
        self.log: list[str] = []  # "a:1 2" is the second delivery or try of message 1 of session a
        self.closed: list[tuple[str | None, CloseReason]] = []
        self.running = 0
        self.most_running = 0
        self.changed = trio.Condition()

    async def send(self, *texts: str, **fields: Any) -> None:
        sender = await self.provider.inner.open_sender(self.queue)
        messages = []
        for text in texts:
            session, _, body = text.partition(":")
            messages.append(Message(body.encode(), session_id=session or None, **fields))
        for result in await sender.send(messages):
            assert result.error is None

    async def stats(self) -> QueueStats:
        return await self.provider.inner.stats(self.queue)

    async def dead(self) -> list[PeekedMessage]:
        letters = await self.provider.inner.open_dead_letters(self.queue)
        return await letters.peek(100)

    async def waiting(self) -> list[tuple[str, int]]:
        """Body and delivery count of what is stored, in order."""
        stored = await self.provider.inner.peek(self.queue, 100, 0)
        return [(each.message.body.decode(), each.delivery_count) for each in stored]

    async def assert_all_free(self) -> None:
        stats = await self.stats()
        assert (stats.in_flight, stats.locked_sessions) == (0, 0)

    def supervise(
        self, handler: Any, *, instruments: Any = (), **options: Any
    ) -> AbstractAsyncContextManager[Supervisor]:
        options.setdefault("retry", RetryPolicy.fixed(1.0))
        return open_supervisor(
            self.provider,
            self.queue,
            handler,
            config=SupervisorConfig(**options),
            instruments=instruments,
        )

    def handler(self, script: Callable[[Delivery, int], Any] | None = None) -> Callable[[], Any]:
        """A maker of handlers that write the log.

        Args:
            script: Called with the delivery and which try of the message it is; what it returns is awaited if
                need be and is the outcome.
        """
        lab = self
        tries: Counter[str] = Counter()

        class Scripted:
            session: Session

            async def opened(self, session: Session) -> None:
                self.session = session

            async def handle(self, delivery: Delivery) -> Outcome | None:
                text = f"{delivery.session_id or ''}:{delivery.body.decode()}"
                tries[text] += 1
                lab.log.append(f"{text} {tries[text]}" if tries[text] > 1 else text)
                lab.running += 1
                lab.most_running = max(lab.most_running, lab.running)
                try:
                    result = None if script is None else script(delivery, tries[text])
                    if isinstance(result, Awaitable):
                        result = await result
                    return result  # type: ignore[no-any-return]
                finally:
                    lab.running -= 1

            async def closed(self, reason: CloseReason) -> None:
                lab.closed.append((self.session.id, reason))

        return Scripted


def _run(*args: Any, clock: Any = None, **kwargs: Any) -> Any:
    return trio.run(*args, clock=clock or trio.testing.MockClock(autojump_threshold=0), **kwargs)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever uses a lab has no time to lose: the clock jumps whenever everything waits."""
    for item in items:
        if "open_lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.trio(run=_run))


@pytest.fixture
def open_lab() -> Callable[..., Awaitable[Lab]]:
    """Makes labs over brokers of their own; options are those of ``MemoryConfig``."""

    async def open_lab(**options: Any) -> Lab:
        return Lab(Tampered(await MEMORY_FACTORY.open(MemoryConfig(**options))))

    return open_lab


@pytest.fixture
async def lab(open_lab: Callable[..., Awaitable[Lab]]) -> AsyncIterator[Lab]:
    lab = await open_lab()
    with trio.fail_after(200_000):  # a program that waits for ever fails
        yield lab
