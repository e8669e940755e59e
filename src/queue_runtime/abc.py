"""The ports: everything a provider's author has to implement, and nothing else.

A provider turns one broker into these classes. The actors and the client use only what stands here, so a
provider that passes ``queue_runtime.testing``'s contract suite works with all of them.

Rules that hold for every method:

* It is an async function on trio and a checkpoint. When it is cancelled, nothing is lost: a message that
  was claimed but not returned goes back to the queue, uncounted where the broker allows.
* It raises only :class:`~queue_runtime.errors.QueueError` subclasses (``raise … from`` the SDK's error),
  or :class:`trio.ClosedResourceError` after ``aclose``.
* A feature that ``Capabilities`` does not declare raises ``Unsupported``.
* Calls on one object may overlap, unless said otherwise.
* Deadlines and timeouts are seconds; ``lease.deadline`` is on the clock of :func:`trio.current_time`.

Register a third-party provider as an entry point in the group ``queue_runtime.providers``: the name is the
URL scheme, the object a :class:`ProviderFactory`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final, Protocol, final, runtime_checkable

import attrs

from .errors import LockLost, QueueError, Unsupported
from .messages import (
    Capabilities,
    Delivery,
    Message,
    PeekedMessage,
    QueueName,
    QueueStats,
    SendResult,
    SessionId,
    Settlement,
)

__all__ = [
    "LOCAL_DEADLINE_FRACTION",
    "DeadLetters",
    "Lease",
    "Provider",
    "ProviderFactory",
    "Receiver",
    "ReceiverOptions",
    "Sender",
]

LOCAL_DEADLINE_FRACTION: Final = 0.9
"""How much of a lease its holder uses: at ``request time + 0.9 x lock duration`` the handler is cancelled.

The time is taken *before* the acquire or renew request is sent, so the holder stops before the broker lets
anybody else start, whatever the network did. The last tenth covers clock drift and unwinding.
"""


@final
class Lease:
    """An exclusive, expiring lock on a session, or on one message that has no session.

    Made by providers only. It is lost by event: whoever learns of the loss (a refused renewal, a detached
    link, a revoked partition) calls :meth:`lose`, and the holder is told through :meth:`on_lost`.

    Args:
        session_id: The locked session; ``None`` for the lock of a single message.
        token: Fencing token; for one session it only grows. Code that cannot be cancelled passes it on.
        deadline: ``trio.current_time()`` after which the holder must not act: see
            :data:`LOCAL_DEADLINE_FRACTION`. ``math.inf`` when the broker's lock does not expire by time.
        expires_at: When the broker's lock expires, for people and logs.
        provider_data: Whatever the provider wants to find again; nobody else touches it.

    Attributes:
        lost: Why the lease is gone; ``None`` while it is held or was given back.
        released: The holder decided to give it back; deliveries under it still on their way are void.
    """

    __slots__ = (
        "_listener",
        "deadline",
        "expires_at",
        "lost",
        "provider_data",
        "released",
        "session_id",
        "token",
    )

    def __init__(
        self,
        session_id: SessionId | None,
        token: int,
        deadline: float,
        expires_at: datetime,
        provider_data: Any = None,
    ) -> None:
        self.session_id = session_id
        self.token = token
        self.deadline = deadline
        self.expires_at = expires_at
        self.provider_data = provider_data
        self.lost: LockLost | None = None
        self.released = False
        self._listener: Callable[[Lease], None] | None = None

    def __repr__(self) -> str:
        state = "lost" if self.lost is not None else f"deadline={self.deadline:.3f}"
        return f"<Lease session_id={self.session_id!r} token={self.token} {state}>"

    def on_lost(self, listener: Callable[[Lease], None] | None) -> None:
        """Call ``listener(lease)`` once when the lease is lost; at once if it is already. ``None`` removes it."""
        self._listener = listener
        if listener is not None and self.lost is not None:
            listener(self)

    def lose(self, error: LockLost) -> None:
        """Mark the lease as lost and tell its holder. Only the first call counts."""
        if self.lost is None:
            self.lost = error
            if self._listener is not None:
                self._listener(self)


@attrs.frozen(kw_only=True)
class ReceiverOptions:
    """How a receiver reads a queue.

    Args:
        auto_accept: Lock the next available session whenever there is room. ``False``: only sessions locked
            through :meth:`Receiver.accept` are read.
        max_sessions: Most session leases held at once; reaching it, only held sessions are read.
        max_per_session: Most unsettled deliveries of one session at once.
    """

    auto_accept: bool = True
    max_sessions: int = 1_000_000
    max_per_session: int = 64


class Sender(ABC):
    """Puts messages into one queue. Safe for concurrent use.

    Attributes:
        provider_name: The provider's ``name``, for errors.
    """

    provider_name: str

    @abstractmethod
    async def send(self, messages: Sequence[Message]) -> list[SendResult]:
        """Send a batch within the capabilities' limits, in order; return one result per message, in order.

        A returned result without an error is the broker's acknowledgement: the message is stored. When the
        call raises or is cancelled, each message may or may not have been stored.

        Raises:
            MessageTooLarge, BatchTooLarge: Before anything is sent.
            QueueError: The call failed as a whole.
        """

    async def cancel_scheduled(self, sequence_numbers: Sequence[int]) -> list[bool]:
        """Take back scheduled messages; for each, whether it was still waiting.

        Args:
            sequence_numbers: As returned in ``SendResult.sequence_number``.
        """
        raise Unsupported("cancel_scheduled", self.provider_name)

    @abstractmethod
    async def aclose(self) -> None:
        """Release what the sender holds, even when cancelled. Idempotent."""


class Receiver(ABC):
    """Reads one queue under leases. One actor receives; settling, renewing and releasing may overlap with it.

    Attributes:
        provider_name: The provider's ``name``, for errors.
        lock_duration: Seconds a fresh or renewed lease lasts at the broker; ``math.inf`` if it does not expire.
        max_delivery_count: Deliveries after which the broker itself dead-letters; ``None``: never.
    """

    provider_name: str
    lock_duration: float
    max_delivery_count: int | None

    @abstractmethod
    async def receive(self, max_messages: int, timeout: float) -> list[Delivery]:
        """Return between 1 and ``max_messages`` deliveries as soon as there are any; ``[]`` at the timeout.

        * Deliveries of a session come in order, under a lease of that session, and never beside another
          holder's. Within one lease a message comes once, unless it was abandoned or released meanwhile.
        * A new lease is made for a session this receiver does not hold (``auto_accept``); a held one is
          reused until it is over. Each message without a session has a lease of its own.
        * A lease is over when it was released or lost and, where ``Capabilities.keeps_empty_sessions`` does
          not hold, when its last unsettled delivery was settled. Nothing is delivered under a lease that is
          over: what comes next of the session comes under a new one with a higher token.
        * Calls overlap where ``Capabilities.max_concurrent_receives`` is above 1. There a session's deliveries
          come from one call at a time: what one call returned of it is settled, or its lease over, before a
          call that overlapped with it returns more. Calls that follow one another may return more of a
          session under the lease it has, in order; but where ``Capabilities.keeps_empty_sessions`` does not
          hold, everything of a lease comes in one call: its holder has to know when the lease is over.
        * Fewer than ``max_messages`` may come although more are there: ``Capabilities.max_receive_messages``.
        * Sessions take turns: a long one does not keep others waiting; where a lease ends with its last
          delivery, not while it is held.
        * ``timeout=0`` looks once. An empty answer comes within 0.1 s of the timeout.
        * Cancelled: nothing stays claimed.
        """

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> list[QueueError | None]:
        """Apply settlements in order; return for each ``None``, or why it was refused (nothing changed then).

        ``None`` means that the broker confirmed. A stale, foreign or repeated receipt gives
        ``InvalidReceipt``; an expired or lost lease gives ``LockLost``, even where the broker would still
        accept it. Settling the last delivery ends the lease of a message without a session, and that of a
        session where ``Capabilities.keeps_empty_sessions`` does not hold; a repeated settlement under such a
        lease may give either error.

        Raises:
            QueueError: The call failed as a whole; each settlement may or may not have been applied, and
                applying it again is safe.
        """

    @abstractmethod
    async def renew(self, leases: Sequence[Lease]) -> list[QueueError | None]:
        """Renew leases: move ``deadline`` and ``expires_at`` forward; for each, ``None`` or why it failed.

        A lease the broker no longer grants answers ``LockLost`` and has been told so through ``lease.lose``.
        One that ended with its last settlement answers ``LockLost`` too; as it was not lost, it is not told so
        before that settlement is answered.

        Raises:
            QueueError: The call failed as a whole; no deadline moved.
        """

    @abstractmethod
    async def release(self, leases: Sequence[Lease]) -> None:
        """Give leases back now. Unsettled deliveries return to their place in the queue, uncounted if possible.

        Releasing a lease that is already over does nothing.
        """

    async def accept(self, session_id: SessionId | None, timeout: float) -> Lease | None:
        """Lock a session without reading it; later ``receive`` calls read it.

        Where ``Capabilities.keeps_empty_sessions`` does not hold, the lease counts as unsettled until its first
        delivery was received.

        Args:
            session_id: The session to lock, existing or not; ``None``: the next one with messages.
            timeout: Seconds to wait for the next available session.

        Returns:
            The lease; ``None`` when ``session_id`` is ``None`` and no session turned up in time.

        Raises:
            SessionLocked: Somebody else holds the named session.
        """
        raise Unsupported("sessions", self.provider_name)

    async def get_state(self, lease: Lease) -> bytes | None:
        """The bytes kept with the session; ``None`` if never set or cleared. Raises ``LockLost`` when fenced."""
        raise Unsupported("session_state", self.provider_name)

    async def set_state(self, lease: Lease, state: bytes | None) -> None:
        """Keep bytes with the session; ``None`` clears. Raises ``LockLost`` when fenced; nothing changed then."""
        raise Unsupported("session_state", self.provider_name)

    @abstractmethod
    async def aclose(self) -> None:
        """Release every lease and whatever else is held, even when cancelled. Idempotent."""


class DeadLetters(ABC):
    """The dead-letter queue that belongs to one queue."""

    @abstractmethod
    async def peek(self, max_messages: int, after: int = 0) -> list[PeekedMessage]:
        """Messages in sequence order, with a sequence number above ``after``; fewer than asked at the end."""

    @abstractmethod
    async def redrive(self, sequence_numbers: Collection[int] | None = None) -> int:
        """Move messages back into the queue, each session's in its original order; return how many.

        Delivery counts start again at zero and ``Delivery.dead_letter`` tells the history.

        Args:
            sequence_numbers: Which ones; unknown numbers are ignored. ``None``: all.
        """

    @abstractmethod
    async def purge(self, sequence_numbers: Collection[int] | None = None) -> int:
        """Delete messages for good; return how many. Arguments as for :meth:`redrive`."""


class Provider(ABC):
    """A connection to one broker. Made by a :class:`ProviderFactory`; closed by its owner.

    Attributes:
        name: Short and stable, such as ``sqlite``; used in errors, logs and metrics.
        capabilities: What it can do.
    """

    name: ClassVar[str]
    capabilities: Capabilities

    @abstractmethod
    async def open_sender(self, queue: QueueName) -> Sender:
        """A sender for ``queue``.

        Raises:
            QueueNotFound, AuthenticationFailed, PermissionDenied, ConnectionFailed: At once, nothing left open.
        """

    @abstractmethod
    async def open_receiver(self, queue: QueueName, options: ReceiverOptions) -> Receiver:
        """A receiver for ``queue``. Raises as :meth:`open_sender`; nothing is locked yet."""

    async def open_dead_letters(self, queue: QueueName) -> DeadLetters:
        """The dead-letter queue of ``queue``. Raises as :meth:`open_sender`."""
        raise Unsupported("dead_letters", self.name)

    async def peek(
        self, queue: QueueName, max_messages: int, after: int = 0
    ) -> list[PeekedMessage]:
        """Stored messages in sequence order with a sequence number above ``after``; nothing changes."""
        raise Unsupported("peek", self.name)

    async def purge(self, queue: QueueName) -> int:
        """Delete every waiting and scheduled message (not those in flight, not dead letters); return how many."""
        raise Unsupported("purge", self.name)

    async def stats(self, queue: QueueName) -> QueueStats:
        """How the queue stands."""
        raise Unsupported("stats", self.name)

    async def provision(self, queue: QueueName) -> list[str]:
        """Create ``queue`` and what belongs to it, as far as it is not there; nothing else ever creates them.

        What exists is never changed. Calling again creates what is still missing.

        Returns:
            Lines for people: what was created, what was kept, and what differs from what would be created.
        """
        raise Unsupported("provisioning", self.name)

    @abstractmethod
    async def aclose(self) -> None:
        """Close everything opened from here, even when cancelled. Idempotent."""


@runtime_checkable
class ProviderFactory(Protocol):
    """What the entry point of a provider names.

    Attributes:
        config_type: The provider's frozen configuration class.
    """

    config_type: type[Any]

    def config_from_url(self, url: str) -> Any:
        """Turn a URL into a ``config_type``.

        Raises:
            ConfigurationError: With every problem at once; secrets masked.
        """
        ...

    async def open(self, config: Any) -> Provider:
        """Connect. Raises as :meth:`Provider.open_sender`; nothing is left half-open."""
        ...
