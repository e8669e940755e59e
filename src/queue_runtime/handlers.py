"""What a user writes: a handler class per kind of session, and the outcomes its ``handle`` may return."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias, cast, final, runtime_checkable

import attrs
import trio

from .abc import Lease, Receiver
from .errors import ConfigurationError, LockLost, ValidationError
from .messages import MAX_DURATION, Delivery, SessionId

__all__ = [
    "Abandon",
    "CloseReason",
    "Complete",
    "DeadLetter",
    "HandlerFactory",
    "Outcome",
    "Retry",
    "Session",
    "SessionHandler",
    "SessionState",
    "handler_maker",
]


_Calls: TypeAlias = Callable[..., Awaitable[Any]]
"""Calls an operation with its arguments, in bounded time."""


@final
@attrs.frozen
class Complete:
    """The message is done. What ``handle`` means by returning ``None``."""


def _check_delay(_instance: object, _attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is None:
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 0 <= value <= MAX_DURATION
    ):
        raise ValidationError(
            f"delay is {value!r}: it must be seconds from 0 to {MAX_DURATION:.0f}, or None for the policy's"
        )


@final
@attrs.frozen
class Retry:
    """Try the message again, later messages of the session waiting behind it.

    Args:
        delay: Seconds to wait; ``None``: what the retry policy says for this attempt.
        reason: Why, for logs and - when the attempts are used up - for the dead letter.
    """

    delay: float | None = attrs.field(default=None, validator=_check_delay)
    reason: str = ""


@final
@attrs.frozen
class DeadLetter:
    """Move the message to the dead-letter queue; trying again would not help.

    Args:
        reason: Short and stable, for grouping.
        description: Text for people; cut at 4,096 characters. Do not put the body here.
    """

    reason: str
    description: str = ""


@final
@attrs.frozen
class Abandon:
    """Give the message and the session back to the queue at once; any consumer may go on with it."""


Outcome: TypeAlias = Complete | Retry | DeadLetter | Abandon
"""What may be returned from ``handle``; ``None`` means :class:`Complete`."""


class CloseReason(enum.Enum):
    """Why a session's handler is closed."""

    IDLE = "idle"
    """No message came for the idle time."""
    PARKED = "parked"
    """A message waits for a long retry delay, or was abandoned; the lock was given back."""
    PAUSED = "paused"
    """Handlers fail across sessions, so the intake is paused and locks are given back."""
    DRAINED = "drained"
    """The supervisor is shutting down."""
    LOCK_LOST = "lock_lost"
    """The lock is no longer held; another consumer may already have the session."""
    CRASHED = "crashed"
    """``opened`` failed, or ``handle`` raised something that is not an ``Exception``; a new instance follows."""


@final
class SessionState:
    """Bytes the broker keeps with a session, fenced by its lease. Made by the runtime.

    Args:
        receiver: Where the session is held.
        lease: Its lock.
        calls: How the broker is called: ``await calls(operation, *arguments)``.
    """

    __slots__ = ("_calls", "_lease", "_receiver")

    def __init__(self, receiver: Receiver, lease: Lease, calls: _Calls) -> None:
        self._receiver = receiver
        self._lease = lease
        self._calls = calls

    async def get(self) -> bytes | None:
        """The stored bytes; ``None`` if never set or cleared.

        Raises:
            Unsupported: The broker cannot keep state.
            LockLost: The session is no longer held.
            OperationTimeout: The broker did not answer in the time that its other calls have.
        """
        state: bytes | None = await self._calls(self._receiver.get_state, self._lease)
        return state

    async def set(self, state: bytes | None) -> None:
        """Store bytes; ``None`` clears them.

        Raises as :meth:`get`. Nothing changed then, but for ``OperationTimeout``, which leaves it unknown.
        """
        await self._calls(self._receiver.set_state, self._lease, state)


@final
class Session:
    """A handler's view of the session it serves. Made by the runtime.

    Attributes:
        id: The session's id; ``None`` when the handler serves a single message without a session.
        state: Bytes the broker keeps with the session.
    """

    __slots__ = ("_lease", "id", "state")

    def __init__(self, receiver: Receiver, lease: Lease, calls: _Calls) -> None:
        self._lease = lease
        self.id: SessionId | None = lease.session_id
        self.state = SessionState(receiver, lease, calls)

    @property
    def fencing_token(self) -> int:
        """Grows with every new holder. Hand it to whatever cannot be cancelled, so that it can refuse old ones."""
        return self._lease.token

    @property
    def deadline(self) -> float:
        """``trio.current_time()`` at which the handler is cancelled unless the lease is renewed before."""
        return self._lease.deadline

    @property
    def lost(self) -> LockLost | None:
        """Why the lock is gone; ``None`` while it is held. Look here when ``handle`` is cancelled."""
        lease = self._lease
        if lease.lost is None and trio.current_time() >= lease.deadline:
            return LockLost(f"the lock on session {lease.session_id!r} was not renewed in time")
        return lease.lost


class SessionHandler:
    """Handles the messages of one session, one at a time, in order. One instance per active session.

    Only ``handle`` is needed, and inheriting from this class is optional. The instance stays the same when
    ``handle`` fails and is tried again: what a failed try left in its attributes is still there.
    """

    async def opened(self, session: Session) -> None:
        """Called once, before the first message, with the session's lock held."""

    async def handle(self, delivery: Delivery) -> Outcome | None:
        """Handle one message.

        Returns:
            What becomes of the message; ``None`` completes it. An exception goes through the retry policy,
            ``SerializationError`` dead-letters at once.
        """
        raise NotImplementedError

    async def closed(self, reason: CloseReason) -> None:
        """Called once, after the last message; the lock is still held unless ``reason`` is ``LOCK_LOST``."""


@runtime_checkable
class _Handles(Protocol):
    async def handle(self, delivery: Delivery) -> Outcome | None: ...


HandlerFactory: TypeAlias = (
    type[_Handles] | Callable[[], _Handles] | Callable[[Delivery], Awaitable[Outcome | None]]
)
"""What ``open_supervisor`` takes: a handler class, a function that makes a handler, or an async function."""


@final
class _FunctionHandler:
    """An async function as a handler."""

    def __init__(self, function: Callable[[Delivery], Awaitable[Outcome | None]]) -> None:
        self.handle = function


def handler_maker(handler: Any) -> Callable[[], Any]:
    """What makes a session's handler: from a class, a function that makes one, or an async function.

    Raises:
        ConfigurationError: ``handler`` is none of these.
    """
    if inspect.isclass(handler):
        handle = getattr(handler, "handle", None)
        if handle is None or handle is SessionHandler.handle:
            raise ConfigurationError(
                f"{handler.__qualname__} is not a handler: give it 'async def handle(self, delivery)'"
            )
        if not inspect.iscoroutinefunction(handle):
            raise ConfigurationError(
                f"{handler.__qualname__}.handle must be declared with 'async def', got {handle!r}"
            )
        _check_needs_nothing(handler, handler.__qualname__)
        return cast(Callable[[], Any], handler)
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 - an object with 'async def __call__'
    ):
        return lambda: _FunctionHandler(handler)
    if callable(handler):
        _check_needs_nothing(handler, repr(handler))
        return cast(Callable[[], Any], handler)
    if inspect.iscoroutinefunction(getattr(handler, "handle", None)):
        raise ConfigurationError(
            f"{type(handler).__qualname__} instance given: give the class, so that every session gets "
            "an instance of its own, or 'lambda: instance' to share one"
        )
    raise ConfigurationError(
        f"{handler!r} is not a handler: give a class with 'async def handle(self, delivery)', "
        "a function that makes such an object, or an async function that takes a delivery"
    )


def _check_needs_nothing(factory: Callable[..., Any], name: str) -> None:
    """Refuse what cannot make a handler because it asks for arguments."""
    try:
        inspect.signature(factory).bind()
    except ValueError:
        pass  # some built-in callables do not tell
    except TypeError as error:
        raise ConfigurationError(
            f"{name} cannot be called without arguments ({error}): what makes handlers takes none "
            "('lambda: Handler(…)'), and a function that takes a delivery needs 'async def'"
        ) from None
