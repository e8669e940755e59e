"""The workbench a case gets: connections to one fresh queue, and short words for what every case does."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any, NoReturn, TypeVar, final
from unittest import SkipTest

import attrs
import trio

from ...abc import DeadLetters, Lease, Provider, Receiver, ReceiverOptions, Sender
from ...errors import InvalidReceipt, LockLost, QueueError, Unsupported
from ...messages import (
    Capabilities,
    Delivery,
    Message,
    PeekedMessage,
    QueueName,
    SendResult,
    Settlement,
    SettlementAction,
)
from .core import ContractEnvironment, ContractViolated

__all__ = [
    "Bench",
    "Outcome",
    "bodies",
    "evolved",
    "expect",
    "expect_equal",
    "expect_refused",
    "expect_unsupported",
    "raised_by",
    "running",
    "skip",
]

_T = TypeVar("_T")


def skip(reason: str) -> NoReturn:
    """End the case without a verdict. pytest and unittest both know ``SkipTest``."""
    raise SkipTest(reason)


def expect(condition: bool, explanation: str) -> None:
    """Go on only if ``condition`` holds."""
    if not condition:
        raise ContractViolated(explanation)


def expect_equal(actual: object, expected: object, what: str) -> None:
    """Go on only if both are equal; the difference is shown, shortened."""
    if actual != expected:
        raise ContractViolated(f"{what}: expected {_short(expected)}, got {_short(actual)}")


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 600 else f"{text[:400]} … {text[-150:]}"


def expect_refused(
    result: QueueError | None, errors: type[QueueError] | tuple[type[QueueError], ...], what: str
) -> None:
    """Go on only if a settlement or renewal was refused with one of ``errors``."""
    if not isinstance(result, errors):
        names = (
            errors.__name__ if isinstance(errors, type) else " or ".join(e.__name__ for e in errors)
        )
        raise ContractViolated(f"{what}: expected to be refused with {names}, got {result!r}")


async def raised_by(call: Awaitable[object]) -> BaseException | None:
    """The error a call raised (not cancellation); ``None`` if it returned."""
    try:
        await call
    except Exception as error:
        return error
    return None


async def expect_unsupported(feature: str, call: Awaitable[Any]) -> None:
    """Go on only if the call raises ``Unsupported``, or returns it for every entry, naming ``feature``."""
    try:
        answer = await call
    except Unsupported as error:
        answers: Sequence[object] = [error]
    except Exception as error:
        raise ContractViolated(
            f"using {feature}, which is not declared: expected Unsupported, got {error!r}"
        ) from error
    else:
        answers = answer if isinstance(answer, list) and answer else [answer]
    for entry in answers:
        found = entry.error if isinstance(entry, SendResult) else entry
        if not isinstance(found, Unsupported):
            raise ContractViolated(
                f"using {feature}, which is not declared: expected Unsupported, got {found!r}"
            )
        expect_equal(found.feature, feature, "the feature that Unsupported names")


@final
class Outcome:
    """What a call in the background came to.

    Attributes:
        done: Set when it returned or raised.
        at: ``trio.current_time()`` of that.
        value: What it returned.
        error: What it raised.
    """

    def __init__(self) -> None:
        self.done = trio.Event()
        self.at = math.nan
        self.value: Any = None
        self.error: Exception | None = None

    async def result(self) -> Any:
        """Wait for the call; return or raise what it did."""
        await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.value

    async def run(self, call: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Make the call and keep what it came to."""
        try:
            self.value = await call(*args)
        except Exception as error:
            self.error = error
        self.at = trio.current_time()
        self.done.set()


@asynccontextmanager
async def running(call: Callable[..., Awaitable[Any]], *args: Any) -> AsyncIterator[Outcome]:
    """Make a call in the background, long enough under way to wait; it is cancelled at the end of the block."""
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.run, call, *args)
        await trio.sleep(0.05)
        yield outcome
        nursery.cancel_scope.cancel()


@final
class Bench:
    """One case's queue and the connections to it. Everything opened here is closed with it.

    Attributes:
        environment: As given by the provider's author.
        provider: The first connection.
        queue: A queue nobody used before.
    """

    def __init__(
        self,
        environment: ContractEnvironment,
        provider: Provider,
        open_provider: Callable[[], Awaitable[Provider]],
    ) -> None:
        self._open_provider = open_provider
        self.environment = environment
        self.provider = provider
        self.queue: QueueName = environment.queue_name()
        self._stack = AsyncExitStack()
        self._sender: Sender | None = None
        self._dead_letters: DeadLetters | None = None

    async def aclose(self) -> None:
        """Close everything the case opened."""
        await self._stack.aclose()

    @property
    def capabilities(self) -> Capabilities:
        """What the provider declares."""
        return self.provider.capabilities

    @property
    def session(self) -> str | None:
        """The session of messages in cases that work with and without sessions."""
        return "session" if self.capabilities.sessions else None

    # Opening

    async def keep(self, opening: Awaitable[_T]) -> _T:
        """What ``opening`` gives, closed at the end of the case."""
        opened: Any = await opening
        self._stack.push_async_callback(opened.aclose)
        kept: _T = opened
        return kept

    async def connect(self) -> Provider:
        """One more connection."""
        return await self.keep(self._open_provider())

    async def sender(
        self, provider: Provider | None = None, queue: QueueName | None = None
    ) -> Sender:
        """A sender of its own."""
        return await self.keep((provider or self.provider).open_sender(queue or self.queue))

    async def receiver(
        self, provider: Provider | None = None, queue: QueueName | None = None, **options: Any
    ) -> Receiver:
        """A receiver of its own; ``options`` as for ``ReceiverOptions``."""
        opening = (provider or self.provider).open_receiver(
            queue or self.queue, ReceiverOptions(**options)
        )
        return await self.keep(opening)

    async def two_receivers(self, **options: Any) -> tuple[Receiver, Receiver]:
        """Receivers of two connections."""
        return await self.receiver(**options), await self.receiver(await self.connect(), **options)

    async def dead_letters(self) -> DeadLetters:
        """The queue's dead letters."""
        if self._dead_letters is None:
            self._dead_letters = await self.provider.open_dead_letters(self.queue)
        return self._dead_letters

    # Messages

    def messages(self, count: int, session: str | None = None, first: int = 1) -> list[Message]:
        """Numbered messages: bodies ``1``, ``2`` … and ids that name the session too."""
        prefix = "m" if session is None else f"{session}-"
        return [
            Message(
                str(number).encode(),
                session_id=None if session is None else session,
                message_id=f"{prefix}{number}",
            )
            for number in range(first, first + count)
        ]

    async def send(self, *messages: Message) -> list[SendResult]:
        """Send in batches within the limits; every message must be acknowledged."""
        if self._sender is None:
            self._sender = await self.sender()
        size = min(self.capabilities.max_batch_messages, 100)
        results: list[SendResult] = []
        for start in range(0, len(messages), size):
            results += await self._sender.send(messages[start : start + size])
        expect_equal(len(results), len(messages), "results of a send")
        for result in results:
            expect(
                result.error is None and result.message_id is not None,
                f"a good message was not accepted: {result!r}",
            )
        return results

    async def receive(
        self, receiver: Receiver, count: int, *, within: float | None = None
    ) -> list[Delivery]:
        """Exactly ``count`` deliveries, in as many calls as it takes."""
        patience = self.environment.patience if within is None else within
        until = trio.current_time() + patience
        deliveries: list[Delivery] = []
        while len(deliveries) < count:
            left = until - trio.current_time()
            if left <= 0:
                raise ContractViolated(
                    f"expected {count} deliveries within {patience} s, got {len(deliveries)}: "
                    f"{_short(bodies(deliveries))}"
                )
            deliveries += await receiver.receive(count - len(deliveries), left)
        expect_equal(len(deliveries), count, "deliveries received at most")
        return deliveries

    async def gather(self, receiver: Receiver, count: int) -> list[Delivery]:
        """Exactly ``count`` deliveries, completed as they come: more than one call or one lease may bring."""
        until = trio.current_time() + self.environment.patience
        gathered: list[Delivery] = []
        while len(gathered) < count:
            left = until - trio.current_time()
            if left <= 0:
                raise ContractViolated(
                    f"expected {count} deliveries within {self.environment.patience} s, got "
                    f"{len(gathered)}: {_short(bodies(gathered))}"
                )
            deliveries = await receiver.receive(count - len(gathered), left)
            await self.finish(receiver, deliveries)
            gathered += deliveries
        return gathered

    async def expect_nothing(self, receiver: Receiver, timeout: float, why: str) -> None:
        """Receive until ``timeout``: there must be nothing."""
        deliveries = await receiver.receive(10, timeout)
        expect(not deliveries, f"{why}: expected no delivery, got {_short(bodies(deliveries))}")

    # Settling

    async def settle(
        self,
        receiver: Receiver,
        deliveries: Delivery | Iterable[Delivery],
        action: SettlementAction = SettlementAction.COMPLETE,
        **fields: Any,
    ) -> None:
        """Settle in as few calls as allowed; every settlement must be confirmed."""
        settlements = [
            Settlement(delivery, action, **fields)
            for delivery in ([deliveries] if isinstance(deliveries, Delivery) else deliveries)
        ]
        size = self.capabilities.max_settle_messages
        for start in range(0, len(settlements), size):
            batch = settlements[start : start + size]
            for settlement, error in zip(batch, await receiver.settle(batch), strict=True):
                if error is not None:
                    refused = settlement.delivery.message_id
                    raise ContractViolated(
                        f"a good {action.value} of {refused!a} was refused: {error!r}"
                    )

    async def try_settle(
        self,
        receiver: Receiver,
        delivery: Delivery,
        action: SettlementAction = SettlementAction.COMPLETE,
        **fields: Any,
    ) -> QueueError | None:
        """Settle one delivery and return the answer."""
        answer = await receiver.settle([Settlement(delivery, action, **fields)])
        expect_equal(len(answer), 1, "answers to one settlement")
        return answer[0]

    async def complete(self, receiver: Receiver, deliveries: Delivery | Iterable[Delivery]) -> None:
        """Complete; must be confirmed."""
        await self.settle(receiver, deliveries)

    async def finish(self, receiver: Receiver, deliveries: Delivery | list[Delivery]) -> None:
        """Complete, and let go of the leases: a case that waits afterwards does not hold what nobody renews."""
        deliveries = [deliveries] if isinstance(deliveries, Delivery) else deliveries
        await self.complete(receiver, deliveries)
        await receiver.release([delivery.lease for delivery in deliveries])

    async def abandon(
        self, receiver: Receiver, deliveries: Delivery | Iterable[Delivery], delay: float = 0.0
    ) -> None:
        """Abandon; must be confirmed."""
        await self.settle(receiver, deliveries, SettlementAction.ABANDON, delay=delay)

    async def give_back(
        self, receiver: Receiver, deliveries: Delivery | Iterable[Delivery]
    ) -> None:
        """Release; must be confirmed."""
        await self.settle(receiver, deliveries, SettlementAction.RELEASE)

    async def dead_letter(
        self,
        receiver: Receiver,
        deliveries: Delivery | Iterable[Delivery],
        reason: str = "ByWord",
        **fields: Any,
    ) -> None:
        """Dead-letter; must be confirmed."""
        await self.settle(
            receiver, deliveries, SettlementAction.DEAD_LETTER, reason=reason, **fields
        )

    async def renew(self, receiver: Receiver, lease: Lease) -> QueueError | None:
        """Renew one lease and return the answer."""
        answer = await receiver.renew([lease])
        expect_equal(len(answer), 1, "answers to one renewal")
        return answer[0]

    async def drain(self, receiver: Receiver, quiet: float | None = None) -> list[Delivery]:
        """Receive and complete until nothing came for ``quiet`` seconds, or the tolerance where that is longer.

        A broker with ``exact`` semantics, which is at hand, is taken at its word sooner.
        """
        if quiet is None or not self.environment.exact:
            quiet = max(quiet or 0.0, self.environment.tolerance)
        drained: list[Delivery] = []
        while deliveries := await receiver.receive(100, quiet):
            await self.complete(receiver, deliveries)
            drained += deliveries
        return drained

    async def dead(self, count: int) -> list[PeekedMessage]:
        """The dead letters, once there are ``count`` of them."""
        return await self.dead_in(await self.dead_letters(), count)

    async def dead_in(self, dead_letters: DeadLetters, count: int) -> list[PeekedMessage]:
        """As :meth:`dead`, seen through another connection."""
        found: list[PeekedMessage] = []
        environment = self.environment
        with trio.move_on_after(
            environment.tolerance if environment.exact else environment.patience
        ):
            while len(found := await dead_letters.peek(1_000)) < count:  # noqa: ASYNC110  # no event
                await trio.sleep(0.02)
        expect_equal(len(found), count, "dead letters")
        return found

    # What differs from broker to broker

    @property
    def settled_before(self) -> tuple[type[QueueError], ...]:
        """How a second settlement is refused, where the first one may have ended the lease."""
        if self.environment.exact or self.capabilities.keeps_empty_sessions:
            return (InvalidReceipt,)
        return (InvalidReceipt, LockLost)

    @property
    def tolerance_of_delays(self) -> float:
        """Seconds by which what was delayed may come late."""
        return self.environment.tolerance + self.environment.resolution

    def expect_count(self, actual: int, expected: int, what: str) -> None:
        """Go on only if a delivery count is right: where a delivery nobody saw counts, it may be higher."""
        if self.capabilities.release_restores_count:
            expect_equal(actual, expected, what)
        else:
            expect(actual >= expected, f"{what}: expected at least {expected}, got {actual}")

    # Time

    def now(self) -> datetime:
        """The broker's time of day."""
        return self.environment.now()

    def affordable(self, seconds: float, what: str) -> float:
        """``seconds``, unless a case should not wait that long."""
        if seconds > self.environment.longest_wait:
            skip(
                f"{what} takes {seconds:g} s, which is longer than the environment's longest_wait "
                f"of {self.environment.longest_wait:g} s"
            )
        return seconds

    def lock_duration(self, receiver: Receiver, times: float = 1.0) -> float:
        """The receiver's lock duration; the case is skipped when waiting for it ``times`` is too long."""
        if math.isinf(receiver.lock_duration):
            skip("locks of this broker do not expire by time")
        self.affordable(receiver.lock_duration * times, "waiting for a lock to expire")
        return receiver.lock_duration

    def delivery_limit(self, receiver: Receiver) -> int:
        """The broker's maximum delivery count; the case is skipped where there is none to speak of."""
        limit = receiver.max_delivery_count
        if limit is None or limit > 20:
            skip(f"max_delivery_count is {limit}: too many deliveries to try")
        return limit


def bodies(deliveries: Iterable[Delivery | PeekedMessage]) -> list[str]:
    """The bodies as text, to compare and to show."""
    return [delivery.message.body.decode("ascii", "backslashreplace") for delivery in deliveries]


def evolved(delivery: Delivery, **fields: Any) -> Delivery:
    """A forged delivery."""
    return attrs.evolve(delivery, **fields)
