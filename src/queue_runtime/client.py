"""The client: one imperative API for every broker, gated by a circuit breaker and retried."""

from __future__ import annotations

import math
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from datetime import datetime
from functools import partial
from random import random
from typing import Any, Final, TypeVar, final

import attrs
import trio

from .abc import DeadLetters, Lease, Provider, Receiver, ReceiverOptions, Sender
from .actors.breaker import Breaker
from .actors.coalescer import Coalescer
from .actors.supervisor import Supervisor, supervise
from .config import ClientConfig, SupervisorConfig
from .errors import (
    CircuitOpen,
    InvalidReceipt,
    LockLost,
    MessageTooLarge,
    OperationTimeout,
    QueueError,
    Unsupported,
    ValidationError,
)
from .handlers import HandlerFactory, SessionState
from .instrumentation import Instrument, instrument_provider
from .messages import (
    MAX_DURATION,
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
from .providers import open_provider

__all__ = [
    "DeadLetterClient",
    "QueueClient",
    "SessionReceiver",
    "open_client",
    "open_supervisor",
]

T = TypeVar("T")

_EVERYTHING: Final = 1_000_000
_PAGE: Final = 500


def _positive(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValidationError(f"{name} is {value!r}: it must be a whole number, at least 1")
    return value


def _timeout(value: object, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValidationError(f"timeout is {value!r}: it must be seconds, at least 0")
    return float(value)


@final
class _Inbox:
    """A receiver of the client, and what was received and not settled, by lease and receipt.

    Args:
        receiver: The provider's receiver.
        keeps_leases: Whether a session stays locked when nothing of it is owed any more.
    """

    def __init__(self, receiver: Receiver, *, keeps_leases: bool = False) -> None:
        self.receiver = receiver
        self.keeps_leases = keeps_leases
        self.owed: dict[Lease, dict[str, Delivery]] = {}


@final
class QueueClient:
    """Sends, receives and settles, on any broker. Made by :func:`open_client`; no public constructor.

    Methods may be called from any number of tasks. Transient errors are retried as the configuration says;
    what still fails is raised.
    """

    def __init__(self, provider: Provider, config: ClientConfig, nursery: trio.Nursery) -> None:
        self._provider = provider
        self._config = config
        self._nursery = nursery
        self._breaker = Breaker(f"provider {provider.name}", config.breaker)
        self._opening = trio.Lock()
        self._senders: dict[QueueName, Sender] = {}
        self._outboxes: dict[QueueName, Coalescer[Message, SendResult]] = {}
        self._inboxes: dict[QueueName, _Inbox] = {}
        self._owners: dict[Lease, _Inbox] = {}
        self._closed = False

    @property
    def provider(self) -> Provider:
        """The provider behind the client."""
        return self._provider

    @property
    def capabilities(self) -> Capabilities:
        """What the broker can do."""
        return self._provider.capabilities

    # Sending.

    async def send(self, queue: str, message: Message) -> SendResult:
        """Send one message; sends from several tasks at once travel together.

        Returns:
            The message's id and position. The broker has stored it.

        Raises:
            MessageTooLarge: Before anything is sent.
            QueueFull, QueueNotFound, …: It was not stored.
        """
        self._check_size(message)
        outbox = await self._outbox(QueueName(queue))
        result = await outbox.ask(message)
        if result.error is not None:
            raise result.error
        return result

    async def send_batch(self, queue: str, messages: Iterable[Message]) -> list[SendResult]:
        """Send messages in order, split into as many calls as the broker's limits ask for.

        Returns:
            One result per message, in order. Look at ``result.error``: part of a batch can fail. When a
            call fails as a whole, its messages and those behind them carry that error: nothing overtakes.

        Raises:
            MessageTooLarge: One of them is too large; nothing was sent.
        """
        batch = list(messages)
        for message in batch:
            self._check_size(message)
        return await self._send_all(await self._sender(QueueName(queue)), batch)

    async def schedule(self, queue: str, message: Message, at: datetime) -> SendResult:
        """Send a message to be delivered at ``at`` (an aware datetime), not before.

        Returns:
            Its ``sequence_number`` cancels it.

        Raises:
            Unsupported: The broker cannot schedule.
        """
        return await self.send(queue, attrs.evolve(message, scheduled_at=at))

    async def cancel_scheduled(self, queue: str, sequence_number: int) -> bool:
        """Take back a scheduled message; whether it was still waiting."""
        sender = await self._sender(QueueName(queue))
        return (await self._call(sender.cancel_scheduled, [sequence_number]))[0]

    # Receiving.

    async def receive(self, queue: str, *, timeout: float | None = None) -> Delivery | None:
        """The next message, or ``None`` when none came in ``timeout`` seconds.

        Its session is locked until everything received of it is settled. The lock expires unless renewed.

        Args:
            queue: Where to read.
            timeout: Seconds to wait; 0 looks once; ``None``: as configured.
        """
        deliveries = await self.receive_batch(queue, max_messages=1, timeout=timeout)
        return deliveries[0] if deliveries else None

    async def receive_batch(
        self, queue: str, *, max_messages: int, timeout: float | None = None
    ) -> list[Delivery]:
        """Up to ``max_messages`` messages, as soon as there is one; ``[]`` at the timeout. See :meth:`receive`."""
        _positive("max_messages", max_messages)
        seconds = _timeout(timeout, self._config.receive_timeout)
        inbox = await self._inbox(QueueName(queue))
        return await self._receive(inbox, max_messages, seconds)

    @asynccontextmanager
    async def stream(
        self, queue: str, *, max_messages: int = 16
    ) -> AsyncIterator[AsyncIterator[Delivery]]:
        """An endless iterator of deliveries, closed by leaving the block.

        ::

            async with client.stream("orders") as deliveries:
                async for delivery in deliveries:
                    await client.complete(delivery)

        What was fetched and not handed out goes back to the queue when the block is left.

        Args:
            queue: Where to read.
            max_messages: How many are fetched at once.
        """
        _positive("max_messages", max_messages)
        fetched: list[Delivery] = []

        async def deliveries() -> AsyncIterator[Delivery]:
            while True:
                batch = await self.receive_batch(queue, max_messages=max_messages)
                fetched.extend(batch)
                while fetched:
                    yield fetched.pop(0)

        iterator = deliveries()
        try:
            yield iterator
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(self._config.operation_timeout):
                await iterator.aclose()  # type: ignore[attr-defined]  # an async generator
                await self.settle([Settlement(d, SettlementAction.RELEASE) for d in fetched])

    @asynccontextmanager
    async def accept_session(
        self, queue: str, session_id: str | None = None, *, timeout: float | None = None
    ) -> AsyncIterator[SessionReceiver | None]:
        """Hold one session's lock for the length of the block.

        Args:
            queue: Where to read.
            session_id: The session, existing or not; ``None``: the next one that has messages.
            timeout: Seconds to wait for the next available session; ``None``: as configured.

        Yields:
            The session, or ``None`` if ``session_id`` is ``None`` and none turned up in time.

        Raises:
            SessionLocked: Somebody else holds the named session.
            Unsupported: The broker has no sessions, or cannot lock them by name.
        """
        capabilities = self._provider.capabilities
        if not capabilities.sessions:
            raise Unsupported("sessions", self._provider.name)
        if session_id is not None and not capabilities.accept_by_name:
            raise Unsupported(
                "accept_by_name", self._provider.name, "accept the next available one"
            )
        seconds = _timeout(timeout, self._config.receive_timeout)
        name = QueueName(queue)
        wanted = None if session_id is None else SessionId(session_id)
        options = ReceiverOptions(auto_accept=False, max_sessions=1, max_per_session=_EVERYTHING)
        receiver = await self._call(self._provider.open_receiver, name, options)
        try:
            lease = await self._call(receiver.accept, wanted, seconds, allowance=seconds)
            if lease is None:
                yield None
                return
            yield SessionReceiver(self, _Inbox(receiver, keeps_leases=True), lease)
        finally:
            for held in [
                held for held, owner in self._owners.items() if owner.receiver is receiver
            ]:
                del self._owners[held]
            with trio.CancelScope(shield=True), trio.move_on_after(self._config.operation_timeout):
                await receiver.aclose()

    # Settling.

    async def complete(self, delivery: Delivery) -> None:
        """The message is done: remove it.

        Raises:
            InvalidReceipt: It was settled before, or was not received through this client.
            LockLost: The lock is gone; the message will be delivered again.
        """
        await self._settle_one(Settlement(delivery, SettlementAction.COMPLETE))

    async def abandon(self, delivery: Delivery, *, delay: float = 0.0) -> None:
        """The message failed: deliver it again, after ``delay`` seconds. Raises as :meth:`complete`.

        Messages of its session that you still hold stay yours; settle or release them too, or the order of
        the session suffers.
        """
        await self._settle_one(Settlement(delivery, SettlementAction.ABANDON, delay=delay))

    async def release(self, delivery: Delivery) -> None:
        """Give the message back untried; it is delivered again at once. Raises as :meth:`complete`."""
        await self._settle_one(Settlement(delivery, SettlementAction.RELEASE))

    async def dead_letter(self, delivery: Delivery, reason: str, description: str = "") -> None:
        """Move the message to the dead-letter queue. Raises as :meth:`complete`.

        Args:
            delivery: The message.
            reason: Short and stable, for grouping.
            description: Text for people; cut at 4,096 characters.
        """
        await self._settle_one(
            Settlement(
                delivery,
                SettlementAction.DEAD_LETTER,
                reason=reason,
                description=description[:4096],
            )
        )

    async def settle(self, settlements: Sequence[Settlement]) -> list[QueueError | None]:
        """Settle many at once; for each ``None``, or why it was refused.

        Raises:
            ValidationError: A delay is no number of seconds from 0 to ten years; nothing was settled.
            QueueError: A call failed as a whole. Settling again is safe.
        """
        for settlement in settlements:
            if not 0.0 <= settlement.delay <= MAX_DURATION:
                raise ValidationError(
                    f"delay is {settlement.delay!r}: it must be seconds from 0 to {MAX_DURATION:.0f}"
                )
        answers: list[QueueError | None] = [None] * len(settlements)
        by_inbox: dict[_Inbox, list[int]] = {}
        for index, settlement in enumerate(settlements):
            delivery = settlement.delivery
            inbox = self._owners.get(delivery.lease)
            if inbox is None or delivery.receipt not in inbox.owed.get(delivery.lease, {}):
                answers[index] = delivery.lease.lost or InvalidReceipt(
                    f"message {delivery.message_id!r} was settled before, "
                    "or was not received through this client"
                )
            else:
                by_inbox.setdefault(inbox, []).append(index)
        limit = self._provider.capabilities.max_settle_messages
        for inbox, indices in by_inbox.items():
            for start in range(0, len(indices), limit):
                chunk = indices[start : start + limit]
                results = await self._call(
                    inbox.receiver.settle, [settlements[index] for index in chunk]
                )
                for index, result in zip(chunk, results, strict=True):
                    answers[index] = result
                await self._forget(
                    inbox,
                    [
                        settlements[index].delivery
                        for index in chunk
                        if answers[index] is None
                        or isinstance(answers[index], (InvalidReceipt, LockLost))
                    ],
                )
        return answers

    async def renew(self, delivery: Delivery) -> None:
        """Extend the lock the message was delivered under; ``delivery.locked_until`` moves.

        Raises:
            LockLost: It is gone.
            InvalidReceipt: The message was not received through this client, or everything is settled.
        """
        inbox = self._owners.get(delivery.lease)
        if inbox is None:
            raise delivery.lease.lost or InvalidReceipt(
                f"message {delivery.message_id!r} is not held by this client"
            )
        error = (await self._call(inbox.receiver.renew, [delivery.lease]))[0]
        if error is not None:
            raise error

    # Looking and administering.

    async def peek(
        self, queue: str, *, max_messages: int = 10, after: int = 0
    ) -> list[PeekedMessage]:
        """Stored messages in sequence order, without taking them; page on with ``after``."""
        _positive("max_messages", max_messages)
        return await self._call(self._provider.peek, QueueName(queue), max_messages, after)

    async def purge(self, queue: str) -> int:
        """Delete every waiting and scheduled message for good; return how many."""
        return await self._call(self._provider.purge, QueueName(queue))

    async def queue_stats(self, queue: str) -> QueueStats:
        """How the queue stands."""
        return await self._call(self._provider.stats, QueueName(queue))

    async def dead_letters(self, queue: str) -> DeadLetterClient:
        """The queue's dead-letter queue."""
        port = await self._call(self._provider.open_dead_letters, QueueName(queue))
        return DeadLetterClient(self, port)

    def supervise(
        self,
        queue: str,
        handler: HandlerFactory,
        *,
        config: SupervisorConfig | None = None,
        instruments: Iterable[Instrument] = (),
        task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED,
    ) -> Awaitable[None]:
        """Run a supervisor over this client's connection; for ``await nursery.start(client.supervise, …)``.

        See :func:`open_supervisor` for the arguments. It ends when drained or cancelled.
        """
        return supervise(
            self._provider,
            queue,
            handler,
            config=config,
            instruments=instruments,
            task_status=task_status,
        )

    # Inside.

    def _check_size(self, message: Message) -> None:
        limit = self._provider.capabilities.max_message_bytes
        if message.size > limit:
            raise MessageTooLarge(message.size, limit)

    async def _call(
        self, operation: Callable[..., Awaitable[T]], *args: Any, allowance: float = 0.0
    ) -> T:
        """One call to the broker: gated, bounded in time, retried while transient.

        Raises:
            CircuitOpen: At once while the breaker is open. Half-open, refusals are retried as other errors are.
        """
        if self._closed:
            raise trio.ClosedResourceError("the client is closed")
        attempt = 0
        limit = self._config.operation_timeout + allowance
        while True:
            try:
                return await self._breaker.call(self._bounded, limit, operation, *args)
            except QueueError as error:
                attempt += 1
                if not error.is_transient or (isinstance(error, CircuitOpen) and error.retry_after):
                    raise
                delay = self._config.retry.delay(
                    attempt, retry_after=error.retry_after, random=random
                )
                if delay is None:
                    raise
            await trio.sleep(delay)

    async def _bounded(
        self, seconds: float, operation: Callable[..., Awaitable[T]], *args: Any
    ) -> T:
        with trio.move_on_after(seconds):
            return await operation(*args)
        raise OperationTimeout(
            f"{self._provider.name} did not answer within {seconds:g} s; "
            "whether the operation took effect is unknown"
        )

    async def _sender(self, queue: QueueName) -> Sender:
        sender = self._senders.get(queue)
        if sender is None:
            async with self._opening:
                sender = self._senders.get(queue)
                if sender is None:
                    sender = await self._call(self._provider.open_sender, queue)
                    self._senders[queue] = sender
        return sender

    async def _outbox(self, queue: QueueName) -> Coalescer[Message, SendResult]:
        outbox = self._outboxes.get(queue)
        if outbox is None:
            sender = await self._sender(queue)
            outbox = self._outboxes.get(queue)
            if self._closed:
                raise trio.ClosedResourceError("the client is closed")
            if outbox is None:
                outbox = Coalescer(
                    partial(self._send_all, sender),
                    max_batch=self._provider.capabilities.max_batch_messages,
                )
                self._outboxes[queue] = outbox
                self._nursery.start_soon(outbox.run)
        return outbox

    async def _inbox(self, queue: QueueName) -> _Inbox:
        inbox = self._inboxes.get(queue)
        if inbox is None:
            async with self._opening:
                inbox = self._inboxes.get(queue)
                if inbox is None:
                    options = ReceiverOptions(max_per_session=_EVERYTHING)
                    inbox = _Inbox(await self._call(self._provider.open_receiver, queue, options))
                    self._inboxes[queue] = inbox
        return inbox

    async def _send_all(self, sender: Sender, messages: Sequence[Message]) -> list[SendResult]:
        results: list[SendResult] = []
        for chunk in _split(messages, self._provider.capabilities):
            try:
                results += await self._call(sender.send, chunk)
            except QueueError as error:
                failed = SendResult(message_id=None, error=error)
                results += [failed] * (len(messages) - len(results))
                break
        return results

    async def _receive(self, inbox: _Inbox, max_messages: int, timeout: float) -> list[Delivery]:
        deadline = trio.current_time() + timeout
        while True:
            deliveries = await self._call(
                inbox.receiver.receive, max_messages, timeout, allowance=timeout
            )
            # What came under a lease that is being given back goes back with it.
            held = [delivery for delivery in deliveries if not delivery.lease.released]
            for delivery in held:
                lease = delivery.lease
                if lease not in inbox.owed:
                    inbox.owed[lease] = {}
                    self._owners[lease] = inbox
                    lease.on_lost(self._lost)
                inbox.owed[lease][delivery.receipt] = delivery
            timeout = max(0.0, deadline - trio.current_time())
            if held or not deliveries:
                return held

    def _lost(self, lease: Lease) -> None:
        """Nothing is owed under a lease that is gone; what is settled all the same is told so."""
        inbox = self._owners.pop(lease, None)
        if inbox is not None:
            inbox.owed.pop(lease, None)

    async def _settle_one(self, settlement: Settlement) -> None:
        error = (await self.settle([settlement]))[0]
        if error is not None:
            raise error

    async def _forget(self, inbox: _Inbox, deliveries: Iterable[Delivery]) -> None:
        """Strike deliveries off; a session under which nothing is owed any more is given back."""
        over: list[Lease] = []
        for delivery in deliveries:
            lease = delivery.lease
            owed = inbox.owed.get(lease)
            if owed is None:
                continue
            owed.pop(delivery.receipt, None)
            if not owed and lease not in over:
                over.append(lease)
        for lease in over:
            inbox.owed.pop(lease, None)
            self._owners.pop(lease, None)
        given_back = [
            lease for lease in over if lease.session_id is not None and lease.lost is None
        ]
        if given_back and not inbox.keeps_leases:
            for lease in given_back:
                lease.released = True
            try:
                await self._call(inbox.receiver.release, given_back)
            except QueueError:
                # The settlements stand. A lock that cannot be given back expires.
                pass

    async def _aclose(self) -> None:
        """Close what was opened for sending and receiving, even when cancelled."""
        self._closed = True
        for outbox in self._outboxes.values():
            outbox.close()
        opened: list[Sender | Receiver] = [*self._senders.values()]
        opened += [inbox.receiver for inbox in self._inboxes.values()]
        for port in opened:
            with trio.CancelScope(shield=True), trio.move_on_after(self._config.operation_timeout):
                await port.aclose()


@final
class SessionReceiver:
    """One locked session, read by hand. Made by :meth:`QueueClient.accept_session`.

    Its deliveries are settled through the client. The lock is renewed only by :meth:`renew`.

    Attributes:
        session_id: The session.
        state: Bytes the broker keeps with it.
    """

    def __init__(self, client: QueueClient, inbox: _Inbox, lease: Lease) -> None:
        self._client = client
        self._inbox = inbox
        self._lease = lease
        self.session_id = lease.session_id
        self.state = SessionState(inbox.receiver, lease)

    @property
    def locked_until(self) -> datetime:
        """When the lock expires unless renewed."""
        return self._lease.expires_at

    @property
    def fencing_token(self) -> int:
        """Grows with every holder of the session."""
        return self._lease.token

    async def receive(self, *, timeout: float | None = None) -> Delivery | None:
        """The session's next message, or ``None`` at the timeout. See :meth:`QueueClient.receive`."""
        deliveries = await self.receive_batch(max_messages=1, timeout=timeout)
        return deliveries[0] if deliveries else None

    async def receive_batch(
        self, *, max_messages: int, timeout: float | None = None
    ) -> list[Delivery]:
        """Up to ``max_messages`` messages of the session, in order; ``[]`` at the timeout.

        Raises:
            LockLost: There was nothing, and the lock is gone.
        """
        _positive("max_messages", max_messages)
        seconds = _timeout(timeout, self._client._config.receive_timeout)
        deliveries = await self._client._receive(self._inbox, max_messages, seconds)
        if not deliveries and self._lease.lost is not None:
            raise self._lease.lost
        return deliveries

    async def renew(self) -> None:
        """Extend the lock. Raises ``LockLost`` when it is gone."""
        error = (await self._client._call(self._inbox.receiver.renew, [self._lease]))[0]
        if error is not None:
            raise error


@final
class DeadLetterClient:
    """The dead-letter queue of one queue. Made by :meth:`QueueClient.dead_letters`."""

    def __init__(self, client: QueueClient, port: DeadLetters) -> None:
        self._client = client
        self._port = port

    async def list(self, *, max_messages: int = 100, after: int = 0) -> list[PeekedMessage]:
        """Dead letters in sequence order; page on with ``after`` (the last sequence number seen)."""
        _positive("max_messages", max_messages)
        return await self._client._call(self._port.peek, max_messages, after)

    async def find(
        self,
        *,
        message_ids: Collection[str] | None = None,
        session_id: str | None = None,
        reason: str | None = None,
    ) -> AsyncIterator[PeekedMessage]:
        """Every dead letter that fits all that is given, in sequence order, page by page."""
        after = 0
        while page := await self.list(max_messages=_PAGE, after=after):
            for letter in page:
                if (
                    (message_ids is None or letter.message_id in message_ids)
                    and (session_id is None or letter.message.session_id == session_id)
                    and (
                        reason is None
                        or (letter.dead_letter is not None and letter.dead_letter.reason == reason)
                    )
                ):
                    yield letter
            after = page[-1].sequence_number

    async def redrive(self, sequence_numbers: Collection[int] | None = None) -> int:
        """Move dead letters back, each session's in its original order; return how many. ``None``: all."""
        return await self._client._call(self._port.redrive, sequence_numbers)

    async def purge(self, sequence_numbers: Collection[int] | None = None) -> int:
        """Delete dead letters for good; return how many. ``None``: all."""
        return await self._client._call(self._port.purge, sequence_numbers)


def _split(messages: Sequence[Message], capabilities: Capabilities) -> Iterable[Sequence[Message]]:
    """``messages`` in order, in chunks the broker accepts in one call."""
    most, most_bytes = capabilities.max_batch_messages, capabilities.max_batch_bytes
    if most_bytes is None:
        for start in range(0, len(messages), most):
            yield messages[start : start + most]
        return
    chunk: list[Message] = []
    size = 0
    for message in messages:
        if chunk and (len(chunk) == most or size + message.size > most_bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(message)
        size += message.size
    if chunk:
        yield chunk


@contextmanager
def _single_errors() -> Iterator[None]:
    """Raise what is alone in an exception group as itself: the group is our nursery's, not the caller's."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__


@asynccontextmanager
async def open_client(
    source: Any,
    *,
    config: ClientConfig | None = None,
    instruments: Iterable[Instrument] = (),
) -> AsyncIterator[QueueClient]:
    """Connect to a broker for the length of the block.

    Args:
        source: A URL (``memory://``, ``sqlite:///jobs.db`` …), a provider's configuration object, or an open
            provider, which stays open.
        config: Retries, timeouts, breaker.
        instruments: Told of every call.

    Raises:
        ConfigurationError: The URL or the configuration does not hold together.
        ConnectionFailed, AuthenticationFailed, …: At once; nothing stays half-open.
    """
    opened = nullcontext(source) if isinstance(source, Provider) else open_provider(source)
    async with opened as raw_provider:
        provider = instrument_provider(raw_provider, instruments)
        with _single_errors():
            async with trio.open_nursery() as nursery:
                client = QueueClient(provider, config or ClientConfig(), nursery)
                nursery.start_soon(client._breaker.run)
                failure: Exception | None = None
                try:
                    yield client
                except Exception as error:
                    # Kept out of the nursery, which would wrap it.
                    failure = error
                finally:
                    await client._aclose()
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


@asynccontextmanager
async def open_supervisor(
    source: QueueClient | Any,
    queue: str,
    handler: HandlerFactory,
    *,
    config: SupervisorConfig | None = None,
    instruments: Iterable[Instrument] = (),
) -> AsyncIterator[Supervisor]:
    """Handle a queue's messages for the length of the block; leaving it drains.

    The block may do anything else, or wait: ``await trio.sleep_forever()``. Cancelling it cancels the
    handlers; what they were handling goes back to the queue.

    Args:
        source: An open client, or anything that :func:`open_client` takes.
        queue: The queue to serve.
        handler: A class with ``async def handle(self, delivery)`` (one instance per session), a function that
            makes such objects, or an async function.
        config: How the actors work.
        instruments: Told of every call and of what the actors do.

    Raises:
        ConfigurationError: The source or the handler is not what it should be.
        QueueError: The queue cannot be opened; or, from the block, a permanent error that ended the intake.
    """
    async with AsyncExitStack() as stack:
        client = source
        if not isinstance(source, QueueClient):
            client = await stack.enter_async_context(open_client(source))
        with _single_errors():
            async with trio.open_nursery() as nursery:
                start = partial(client.supervise, config=config, instruments=instruments)
                supervisor: Supervisor = await nursery.start(start, queue, handler)
                failure: Exception | None = None
                try:
                    yield supervisor
                except Exception as error:
                    # Kept out of the nursery, which would wrap it.
                    failure = error
                await supervisor.drain()
        if failure is not None:
            raise failure
