"""A provider with a bad network in front of it: latency, errors, lost replies, stalls, lost leases, crashes.

:class:`FaultyProvider` wraps any provider. Used by the simulation, and good for testing programs: give it to
``open_client`` or ``supervise`` in place of the provider it wraps.

What it does to a call, in this order: the request travels (latency, stall); it may be refused on the way
(error or throttling: nothing happened); the wrapped provider does it; the reply travels back (latency,
stall) and may be lost (an error, although it happened).

Leases are seen through the network too: the caller's :class:`~queue_runtime.abc.Lease` is a copy that learns
of a renewal or a loss when the reply arrives, and of nothing when it does not. A lost reply to ``receive``
costs the leases it named, as in any adapter that cannot know what it missed: they are lost here, and their
messages stay locked at the broker until the lock expires.
"""

# ruff: noqa: D102 - the methods are documented where they are declared, in queue_runtime.abc

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, ClassVar, TypeVar, final

import attrs
import trio

from ..abc import DeadLetters, Lease, Provider, Receiver, ReceiverOptions, Sender
from ..errors import (
    ConnectionFailed,
    LockLost,
    OperationTimeout,
    ProviderError,
    QueueError,
    Throttled,
    ValidationError,
)
from ..messages import (
    Capabilities,
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

__all__ = ["NO_FAULTS", "Faults", "FaultyProvider"]

T = TypeVar("T")

_DETACH_DELAY = 0.001
"""Seconds from telling a holder that its lease is gone to the broker freeing the lock."""


def _check_share(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value <= 1:
        raise ValidationError(
            f"{attribute.name} is {value!r}: expected a share of calls from 0 to 1"
        )


def _share() -> Any:
    return attrs.field(default=0.0, validator=_check_share)


@final
@attrs.frozen(kw_only=True)
class Faults:
    """How bad the network is. Shares are parts of the calls, from 0 to 1; each fault is drawn on its own.

    Args:
        latency: Mean seconds a request or a reply travels; drawn evenly from 0 to twice that.
        fails: Share of calls refused with ``ConnectionFailed`` before anything happened.
        drops_reply: Share of calls that end with ``OperationTimeout`` although they took effect.
        throttles: Share of calls refused with ``Throttled``.
        retry_after: Seconds a throttled caller is asked to wait.
        stalls: Share of requests, and of replies, that travel for ``stall`` seconds more.
        stall: Seconds.
        loses_lease: Share of calls of a receiver before which the broker takes a session away: the holder is
            told, then the lock is freed.
        sends_twice: Share of sends that reach the broker twice.
        announces_losses: Whether the holder is told at once of a lock that expired at the broker.
    """

    latency: float = 0.0
    fails: float = _share()
    drops_reply: float = _share()
    throttles: float = _share()
    retry_after: float = 0.2
    stalls: float = _share()
    stall: float = 5.0
    loses_lease: float = _share()
    sends_twice: float = _share()
    announces_losses: bool = False


NO_FAULTS = Faults()
"""A network that does not exist."""


@final
class _Line:
    """The network between one client and the broker."""

    def __init__(
        self,
        faults: Faults,
        numbers: random.Random,
        observer: Callable[[str, str], None] | None,
    ) -> None:
        self.faults = faults
        self.numbers = numbers
        self.observer = observer
        self.injected: Counter[str] = Counter()
        self.is_crashed = False
        self.cut_until = 0.0
        self._calls: dict[trio.CancelScope, None] = {}

    def happens(self, share: float) -> bool:
        # No number is drawn for what never happens: a quiet network is a quick one.
        return share > 0 and self.numbers.random() < share

    def inject(self, fault: str, operation: str) -> None:
        self.injected[fault] += 1
        if self.observer is not None:
            self.observer(fault, operation)

    def crash(self) -> None:
        self.is_crashed = True
        for scope in self._calls:
            scope.cancel()

    def gone(self, operation: str) -> ProviderError:
        return ProviderError(f"{operation}: this client has crashed", code="crashed")

    async def call(self, operation: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """``await attempt()``, ended by a crash."""
        if self.is_crashed:
            await trio.lowlevel.checkpoint()
            raise self.gone(operation)
        with trio.CancelScope() as scope:
            self._calls[scope] = None
            try:
                return await attempt()
            finally:
                del self._calls[scope]
        raise self.gone(operation)

    async def ask(self, operation: str, apply: Callable[[], Awaitable[T]]) -> T:
        """A call whose answer the caller has to close or give back: its reply is never lost."""

        async def attempt() -> T:
            await self.request(operation)
            return await apply()

        return await self.call(operation, attempt)

    async def exchange(self, operation: str, apply: Callable[[], Awaitable[T]]) -> T:
        """A request, its effect and the reply."""

        async def attempt() -> T:
            try:
                await self.request(operation)
            except trio.Cancelled:
                # It may have been on the wire already.
                if self.happens(0.5) and not self.is_cut:
                    with trio.CancelScope(shield=True):
                        try:
                            await apply()
                        except (QueueError, trio.ClosedResourceError):
                            pass
                raise
            result = await apply()
            await self.reply(operation)
            return result

        return await self.call(operation, attempt)

    @property
    def is_cut(self) -> bool:
        return trio.current_time() < self.cut_until

    async def request(self, operation: str) -> None:
        """Travel to the broker. Raises what keeps the request from arriving."""
        faults = self.faults
        await self._travel(operation)
        if self.happens(faults.fails):
            self.inject("fails", operation)
            raise ConnectionFailed(f"{operation}: the connection broke before the broker was asked")
        if self.happens(faults.throttles):
            self.inject("throttles", operation)
            raise Throttled(f"{operation}: too many calls", retry_after=faults.retry_after)

    async def reply(self, operation: str) -> None:
        """Travel back. Raises when the reply is lost."""
        await self._travel(operation)
        if self.happens(self.faults.drops_reply):
            self.inject("drops_reply", operation)
            raise OperationTimeout(f"{operation}: no reply; whether it took effect is unknown")

    async def _travel(self, operation: str) -> None:
        faults = self.faults
        seconds = 2 * faults.latency * self.numbers.random() if faults.latency else 0.0
        if self.happens(faults.stalls):
            self.inject("stalls", operation)
            seconds += faults.stall
        while seconds > 0 or self.is_cut:
            if self.is_cut:
                self.inject("cut", operation)
                seconds = max(seconds, self.cut_until - trio.current_time())
            await trio.sleep(seconds)
            seconds = 0.0


@final
class FaultyProvider(Provider):
    """``inner`` behind a bad network.

    Args:
        inner: What is wrapped; stays open, its owner closes it.
        faults: How bad the network is; may be assigned at any time.
        random: Where the chances come from; give one with a seed to have them repeat.
        capabilities: Declared in place of those of ``inner``, to make it look slower or smaller.
        observer: Called with the fault's name and the operation, for every fault as it happens.
    """

    name: ClassVar[str] = "faulty"

    def __init__(
        self,
        inner: Provider,
        faults: Faults = NO_FAULTS,
        *,
        random: random.Random | None = None,
        capabilities: Capabilities | None = None,
        observer: Callable[[str, str], None] | None = None,
    ) -> None:
        self._inner = inner
        self._line = _Line(faults, random or _new_random(), observer)
        self.capabilities = inner.capabilities if capabilities is None else capabilities

    @property
    def faults(self) -> Faults:
        """How bad the network is now."""
        return self._line.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._line.faults = faults

    @property
    def injected(self) -> Counter[str]:
        """How often each fault happened so far."""
        return Counter(self._line.injected)

    def crash(self) -> None:
        """From now on nothing gets through, for good: as if the process had been killed.

        Every call under way and every later one raises ``ProviderError`` with code ``crashed``; what was on its
        way may still reach the broker. Nothing is given back: locks expire. Closing does nothing.
        """
        self._line.crash()

    def cut_off(self, seconds: float) -> None:
        """Hold everything in both directions for ``seconds`` from now; then it goes on as if it were slow."""
        self._line.cut_until = max(self._line.cut_until, trio.current_time() + seconds)

    def heal(self) -> None:
        """End every fault but a crash: no faults any more, no cut. What stalls already still does."""
        self._line.faults = NO_FAULTS
        self._line.cut_until = 0.0

    async def open_sender(self, queue: QueueName) -> Sender:
        sender = await self._line.ask("open_sender", lambda: self._inner.open_sender(queue))
        return _FaultySender(sender, self._line)

    async def open_receiver(self, queue: QueueName, options: ReceiverOptions) -> Receiver:
        receiver = await self._line.ask(
            "open_receiver", lambda: self._inner.open_receiver(queue, options)
        )
        return _FaultyReceiver(receiver, self._line)

    async def open_dead_letters(self, queue: QueueName) -> DeadLetters:
        letters = await self._line.ask(
            "open_dead_letters", lambda: self._inner.open_dead_letters(queue)
        )
        return _FaultyDeadLetters(letters, self._line)

    async def peek(
        self, queue: QueueName, max_messages: int, after: int = 0
    ) -> list[PeekedMessage]:
        return await self._line.exchange(
            "peek", lambda: self._inner.peek(queue, max_messages, after)
        )

    async def purge(self, queue: QueueName) -> int:
        return await self._line.exchange("purge", lambda: self._inner.purge(queue))

    async def stats(self, queue: QueueName) -> QueueStats:
        return await self._line.exchange("stats", lambda: self._inner.stats(queue))

    async def provision(self, queue: QueueName) -> list[str]:
        return await self._line.exchange("provision", lambda: self._inner.provision(queue))

    async def aclose(self) -> None:
        """Nothing of its own to close."""
        await trio.lowlevel.checkpoint()


def _new_random() -> random.Random:
    return random.Random()


@final
class _FaultySender(Sender):
    def __init__(self, inner: Sender, line: _Line) -> None:
        self._inner = inner
        self._line = line
        self.provider_name = inner.provider_name

    async def send(self, messages: Sequence[Message]) -> list[SendResult]:
        async def send() -> list[SendResult]:
            results = await self._inner.send(messages)
            if self._line.happens(self._line.faults.sends_twice):
                self._line.inject("sends_twice", "send")
                await self._inner.send(messages)
            return results

        return await self._line.exchange("send", send)

    async def cancel_scheduled(self, sequence_numbers: Sequence[int]) -> list[bool]:
        return await self._line.exchange(
            "cancel_scheduled", lambda: self._inner.cancel_scheduled(sequence_numbers)
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


@final
class _FaultyDeadLetters(DeadLetters):
    def __init__(self, inner: DeadLetters, line: _Line) -> None:
        self._inner = inner
        self._line = line

    async def peek(self, max_messages: int, after: int = 0) -> list[PeekedMessage]:
        return await self._line.exchange(
            "peek_dead_letters", lambda: self._inner.peek(max_messages, after)
        )

    async def redrive(self, sequence_numbers: Collection[int] | None = None) -> int:
        return await self._line.exchange("redrive", lambda: self._inner.redrive(sequence_numbers))

    async def purge(self, sequence_numbers: Collection[int] | None = None) -> int:
        return await self._line.exchange(
            "purge_dead_letters", lambda: self._inner.purge(sequence_numbers)
        )


@final
class _FaultyReceiver(Receiver):
    """The caller's leases are copies; ``provider_data`` of a copy is the wrapped provider's lease."""

    def __init__(self, inner: Receiver, line: _Line) -> None:
        self._inner = inner
        self._line = line
        self._copies: dict[Lease, Lease] = {}  # by the wrapped provider's
        self._forfeited: set[Lease] = (
            set()
        )  # the wrapped provider's, whose messages the caller missed
        self._replies = (
            trio.Lock()
        )  # first come, first served: replies to `receive` do not overtake
        self.provider_name = inner.provider_name
        self.lock_duration = inner.lock_duration
        self.max_delivery_count = inner.max_delivery_count

    # Receiving

    async def receive(self, max_messages: int, timeout: float) -> list[Delivery]:
        return await self._line.call("receive", lambda: self._receive(max_messages, timeout))

    async def _receive(self, max_messages: int, timeout: float) -> list[Delivery]:
        await self._lose_some()
        await self._line.request("receive")
        deadline = trio.current_time() + timeout
        while True:
            left = max(0.0, deadline - trio.current_time())
            received = await self._inner.receive(max_messages, left)
            deliveries = self._without_lost(received)
            if deliveries or trio.current_time() >= deadline:
                break
        # Now, not when the reply arrives: a lease given back meanwhile stays the one that was given back.
        fresh = [
            lease for lease in {d.lease: None for d in deliveries} if lease not in self._copies
        ]
        copies = {delivery.lease: self._copy(delivery.lease) for delivery in deliveries}
        try:
            if deliveries:
                async with self._replies:
                    await self._line.reply("receive")
        except QueueError:
            self._forfeit(deliveries)
            raise
        except trio.Cancelled:
            if not self._line.is_crashed:
                with trio.CancelScope(shield=True):
                    await self._give_back(deliveries, fresh)
            raise
        # A call whose reply came before this one may have cost the lease.
        return [
            attrs.evolve(delivery, lease=copies[delivery.lease])
            for delivery in deliveries
            if copies[delivery.lease].lost is None
        ]

    def _without_lost(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Without those under a lease that is over for the caller: nobody may see them in this order."""
        copies = self._copies
        return [
            delivery
            for delivery in deliveries
            if not delivery.lease.released
            and delivery.lease.lost is None
            and (delivery.lease not in copies or copies[delivery.lease].lost is None)
        ]

    def _forfeit(self, deliveries: list[Delivery]) -> None:
        """Nobody knows what the lost reply said: whatever it was about is left to expire."""
        for delivery in deliveries:
            session_id = delivery.lease.session_id
            self._lose(delivery.lease, LockLost(f"a reply about session {session_id!r} was lost"))

    async def _give_back(self, deliveries: list[Delivery], fresh: list[Lease]) -> None:
        """Undo a receive that was cancelled: what nobody saw goes back to its place."""
        held = [delivery for delivery in deliveries if delivery.lease not in fresh]
        if held:
            await self._inner.settle([Settlement(d, SettlementAction.RELEASE) for d in held])
        if fresh:
            await self._inner.release(fresh)
        for lease in fresh:
            self._copies.pop(lease, None)

    async def accept(self, session_id: SessionId | None, timeout: float) -> Lease | None:
        async def accept() -> Lease | None:
            await self._line.request("accept")
            lease = await self._inner.accept(session_id, timeout)
            if lease is None:
                return None
            try:
                await self._line.reply("accept")
            except trio.Cancelled:
                if not self._line.is_crashed:
                    with trio.CancelScope(shield=True):
                        await self._inner.release([lease])
                raise
            return self._copy(lease)

        return await self._line.call("accept", accept)

    # Leases

    def _copy(self, lease: Lease) -> Lease:
        """The caller's copy of a lease."""
        copy = self._copies.get(lease)
        if copy is None:
            copy = Lease(lease.session_id, lease.token, lease.deadline, lease.expires_at, lease)
            self._copies[lease] = copy
            lease.on_lost(self._lost_at_the_broker)
        return copy

    def _lost_at_the_broker(self, lease: Lease) -> None:
        if self._line.faults.announces_losses and lease.lost is not None:
            self._lose(lease, lease.lost)
        self._copies.pop(lease, None)

    def _lose(self, lease: Lease, error: LockLost) -> None:
        copy = self._copies.get(lease)
        if copy is not None:
            copy.lose(error)

    async def _lose_some(self) -> None:
        """The broker takes a session away from its holder, if it so happens."""
        if not self._line.happens(self._line.faults.loses_lease):
            return
        held = [
            lease
            for lease, copy in self._copies.items()
            if lease.session_id is not None and copy.lost is None
        ]
        if held:
            lease = self._line.numbers.choice(held)
            self._line.inject("loses_lease", str(lease.session_id))
            self._lose(lease, LockLost(f"the broker took session {lease.session_id!r} away"))
            await trio.sleep(_DETACH_DELAY)
            lease.released = True
            await self._inner.release([lease])
            self._copies.pop(lease, None)

    async def renew(self, leases: Sequence[Lease]) -> list[QueueError | None]:
        asked_at = arrived_at = trio.current_time()

        async def renew() -> list[QueueError | None]:
            nonlocal arrived_at
            await self._lose_some()
            arrived_at = trio.current_time()
            return await self._inner.renew([lease.provider_data for lease in leases])

        errors = await self._line.exchange("renew", renew)
        for lease, error in zip(leases, errors, strict=True):
            original: Lease = lease.provider_data
            if error is None:
                # Counted from when this side asked, not from when the other side heard.
                travelled = arrived_at - asked_at
                lease.deadline = max(lease.deadline, original.deadline - travelled)
                lease.expires_at = original.expires_at
            elif isinstance(error, LockLost):
                lease.lose(error)
        return errors

    async def release(self, leases: Sequence[Lease]) -> None:
        originals: list[Lease] = [lease.provider_data for lease in leases]
        for original in originals:
            original.released = True  # what is on its way under it is void
        await self._line.exchange("release", lambda: self._inner.release(originals))
        for original in originals:
            self._copies.pop(original, None)

    async def get_state(self, lease: Lease) -> bytes | None:
        return await self._fenced(
            "get_state", lease, lambda: self._inner.get_state(lease.provider_data)
        )

    async def set_state(self, lease: Lease, state: bytes | None) -> None:
        await self._fenced(
            "set_state", lease, lambda: self._inner.set_state(lease.provider_data, state)
        )

    async def _fenced(self, operation: str, lease: Lease, apply: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._line.exchange(operation, apply)
        except LockLost as error:
            lease.lose(error)
            raise

    # Settling

    async def settle(self, settlements: Sequence[Settlement]) -> list[QueueError | None]:
        originals = [
            attrs.evolve(
                settlement,
                delivery=attrs.evolve(
                    settlement.delivery, lease=settlement.delivery.lease.provider_data
                ),
            )
            for settlement in settlements
        ]

        async def settle() -> list[QueueError | None]:
            await self._lose_some()
            return await self._inner.settle(originals)

        errors = await self._line.exchange("settle", settle)
        for settlement, error in zip(settlements, errors, strict=True):
            lease = settlement.delivery.lease
            if isinstance(error, LockLost):
                lease.lose(error)
            elif error is None and lease.session_id is None:
                self._copies.pop(lease.provider_data, None)
        return errors

    # Closing

    async def aclose(self) -> None:
        if self._line.is_crashed or self._line.is_cut:
            # The broker does not learn of it.
            await trio.lowlevel.checkpoint()
        else:
            await self._inner.aclose()
