"""The ports, wrapped once so that neither adapters nor actors have to tell what passes through them.

The wrappers add nothing but events: results, errors, cancellation and attributes are those of the wrapped
object, and after the wrapped call returned there is no checkpoint at which a result could get lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, final

import trio

from ..abc import DeadLetters, Lease, Provider, Receiver, ReceiverOptions, Sender
from ..errors import QueueError
from ..messages import (
    Delivery,
    Message,
    PeekedMessage,
    QueueName,
    QueueStats,
    SendResult,
    SessionId,
    Settlement,
    SettlementAction,
)
from .events import (
    DeadLettersPurged,
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
)
from .instruments import Instrument, Instruments

__all__ = ["instrument_provider"]


def instrument_provider(provider: Provider, instruments: Iterable[Instrument]) -> Provider:
    """``provider`` with ``instruments`` told of every call to it and to what is opened from it.

    Without instruments it is ``provider`` itself, which costs nothing. Wrapping what is wrapped already adds
    only the instruments that are new, so nobody hears of a call twice.

    Raises:
        ConfigurationError: An instrument cannot be called.
    """
    if isinstance(provider, _Provider):
        known = provider.instruments
        new = [each for each in instruments if not any(each is other for other in known)]
        return _Provider(provider.inner, Instruments((*known, *new))) if new else provider
    instruments = Instruments(instruments)
    return _Provider(provider, instruments) if instruments else provider


class _Call:
    """Times the calls of one operation, and tells of their failures."""

    __slots__ = ("_instruments", "_operation", "_provider", "_queue", "_started")

    def __init__(
        self, instruments: Instruments, queue: QueueName, provider: str, operation: str
    ) -> None:
        self._instruments = instruments
        self._queue = queue
        self._provider = provider
        self._operation = operation
        self._started = 0.0

    def __enter__(self) -> Self:
        self._started = trio.current_time()
        return self

    @property
    def duration(self) -> float:
        return trio.current_time() - self._started

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, trio.ClosedResourceError):
            self._instruments.emit(
                OperationFailed(
                    queue=self._queue,
                    provider=self._provider,
                    operation=self._operation,
                    error=error,
                    duration=self.duration,
                )
            )


class _Wrapper:
    """What the wrappers have in common.

    A port's attributes are looked up in the wrapped object whenever they are read: an adapter may learn its
    lock duration from the broker only after the first session was opened.
    """

    def __init__(self, inner: Any, instruments: Instruments, queue: QueueName, name: str) -> None:
        self._inner = inner
        self._instruments = instruments
        self._queue = queue
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._inner, attribute)

    def _call(self, operation: str) -> _Call:
        return _Call(self._instruments, self._queue, self._name, operation)


class _Closable(_Wrapper):
    _port: str
    _closed = False

    async def aclose(self) -> None:
        with self._call("close") as call:
            try:
                await self._inner.aclose()
            finally:
                if not self._closed:
                    self._closed = True
                    self._instruments.emit(
                        PortClosed(
                            queue=self._queue,
                            provider=self._name,
                            port=self._port,
                            duration=call.duration,
                        )
                    )


@final
class _Sender(_Closable, Sender):
    _inner: Sender
    _port = "sender"

    async def send(self, messages: Sequence[Message]) -> list[SendResult]:
        sent = tuple(messages)
        with self._call("send") as call:
            results = await self._inner.send(messages)
        self._instruments.emit(
            MessagesSent(
                queue=self._queue,
                provider=self._name,
                messages=sent,
                results=tuple(results),
                duration=call.duration,
            )
        )
        return results

    async def cancel_scheduled(self, sequence_numbers: Sequence[int]) -> list[bool]:
        with self._call("cancel_scheduled"):
            return await self._inner.cancel_scheduled(sequence_numbers)


@final
class _Receiver(_Closable, Receiver):
    _inner: Receiver
    _port = "receiver"

    async def receive(self, max_messages: int, timeout: float) -> list[Delivery]:
        with self._call("receive") as call:
            deliveries = await self._inner.receive(max_messages, timeout)
        self._instruments.emit(
            MessagesReceived(
                queue=self._queue,
                provider=self._name,
                deliveries=tuple(deliveries),
                duration=call.duration,
            )
        )
        return deliveries

    async def settle(self, settlements: Sequence[Settlement]) -> list[QueueError | None]:
        settled = tuple(settlements)
        with self._call("settle") as call:
            errors = await self._inner.settle(settlements)
        self._instruments.emit(
            MessagesSettled(
                queue=self._queue,
                provider=self._name,
                settlements=settled,
                errors=tuple(errors),
                duration=call.duration,
            )
        )
        for settlement, error in zip(settled, errors, strict=False):
            if settlement.action is SettlementAction.DEAD_LETTER and error is None:
                self._instruments.emit(
                    MessageDeadLettered(
                        queue=self._queue,
                        provider=self._name,
                        delivery=settlement.delivery,
                        reason=settlement.reason,
                        description=settlement.description,
                        halted=settlement.halt,
                    )
                )
        return errors

    async def renew(self, leases: Sequence[Lease]) -> list[QueueError | None]:
        renewed = tuple(leases)
        with self._call("renew") as call:
            errors = await self._inner.renew(leases)
        self._instruments.emit(
            LeasesRenewed(
                queue=self._queue,
                provider=self._name,
                leases=renewed,
                errors=tuple(errors),
                duration=call.duration,
            )
        )
        return errors

    async def release(self, leases: Sequence[Lease]) -> None:
        released = tuple(leases)
        with self._call("release") as call:
            await self._inner.release(leases)
        self._instruments.emit(
            LeasesReleased(
                queue=self._queue, provider=self._name, leases=released, duration=call.duration
            )
        )

    async def accept(self, session_id: SessionId | None, timeout: float) -> Lease | None:
        with self._call("accept"):
            return await self._inner.accept(session_id, timeout)

    async def get_state(self, lease: Lease) -> bytes | None:
        with self._call("get_state"):
            return await self._inner.get_state(lease)

    async def set_state(self, lease: Lease, state: bytes | None) -> None:
        with self._call("set_state"):
            await self._inner.set_state(lease, state)


@final
class _DeadLetters(_Wrapper, DeadLetters):
    _inner: DeadLetters

    async def peek(self, max_messages: int, after: int = 0) -> list[PeekedMessage]:
        with self._call("peek_dead_letters"):
            return await self._inner.peek(max_messages, after)

    async def redrive(self, sequence_numbers: Collection[int] | None = None) -> int:
        with self._call("redrive_dead_letters") as call:
            count = await self._inner.redrive(sequence_numbers)
        self._instruments.emit(
            MessagesRedriven(
                queue=self._queue, provider=self._name, count=count, duration=call.duration
            )
        )
        return count

    async def purge(self, sequence_numbers: Collection[int] | None = None) -> int:
        with self._call("purge_dead_letters") as call:
            count = await self._inner.purge(sequence_numbers)
        self._instruments.emit(
            DeadLettersPurged(
                queue=self._queue, provider=self._name, count=count, duration=call.duration
            )
        )
        return count


@final
class _Provider(Provider):
    def __init__(self, inner: Provider, instruments: Instruments) -> None:
        self.inner = inner
        self.instruments = instruments

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.inner, attribute)

    def _call(self, queue: QueueName, operation: str) -> _Call:
        return _Call(self.instruments, queue, self.name, operation)

    def _opened(self, queue: QueueName, port: str, duration: float) -> None:
        self.instruments.emit(
            PortOpened(queue=queue, provider=self.name, port=port, duration=duration)
        )

    async def open_sender(self, queue: QueueName) -> Sender:
        with self._call(queue, "open_sender") as call:
            sender = await self.inner.open_sender(queue)
        self._opened(queue, "sender", call.duration)
        return _Sender(sender, self.instruments, queue, self.name)

    async def open_receiver(self, queue: QueueName, options: ReceiverOptions) -> Receiver:
        with self._call(queue, "open_receiver") as call:
            receiver = await self.inner.open_receiver(queue, options)
        self._opened(queue, "receiver", call.duration)
        return _Receiver(receiver, self.instruments, queue, self.name)

    async def open_dead_letters(self, queue: QueueName) -> DeadLetters:
        with self._call(queue, "open_dead_letters") as call:
            dead_letters = await self.inner.open_dead_letters(queue)
        self._opened(queue, "dead_letters", call.duration)
        return _DeadLetters(dead_letters, self.instruments, queue, self.name)

    async def peek(
        self, queue: QueueName, max_messages: int, after: int = 0
    ) -> list[PeekedMessage]:
        with self._call(queue, "peek"):
            return await self.inner.peek(queue, max_messages, after)

    async def purge(self, queue: QueueName) -> int:
        with self._call(queue, "purge") as call:
            count = await self.inner.purge(queue)
        self.instruments.emit(
            QueuePurged(queue=queue, provider=self.name, count=count, duration=call.duration)
        )
        return count

    async def stats(self, queue: QueueName) -> QueueStats:
        with self._call(queue, "stats"):
            return await self.inner.stats(queue)

    async def provision(self, queue: QueueName) -> list[str]:
        with self._call(queue, "provision"):
            return await self.inner.provision(queue)

    async def aclose(self) -> None:
        # Belongs to no queue, and an error of it goes to the owner anyway: nothing to tell.
        await self.inner.aclose()
