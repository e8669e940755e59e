"""Every error the runtime raises: one root, one flat family.

Adapters translate their broker's errors into these classes in one table each, with ``raise … from``;
an error a table does not know becomes :class:`ProviderError` and keeps the broker's raw code.

Two attributes decide what a caller does next:

``is_transient``
    Whether the same call may succeed later without anybody changing anything. Retries and circuit
    breakers look at this and at nothing else.
``retry_after``
    Seconds the broker asked the caller to wait, or ``None`` when it did not say.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AuthenticationFailed",
    "BatchTooLarge",
    "CircuitOpen",
    "ConfigurationError",
    "ConnectionFailed",
    "InvalidReceipt",
    "LockLost",
    "MessageTooLarge",
    "OperationTimeout",
    "PermissionDenied",
    "ProviderError",
    "QueueError",
    "QueueFull",
    "QueueNotFound",
    "SerializationError",
    "SessionLocked",
    "Throttled",
    "Unsupported",
    "ValidationError",
]


class QueueError(Exception):
    """Root of every error raised by this package.

    Args:
        message: What was wrong, with the value, what was expected and what to do.
        retry_after: Seconds the broker asked to wait before the next try; ``None`` if it did not say.
    """

    is_transient: ClassVar[bool] = False
    """Whether the same call may succeed later with nothing changed."""

    retry_after: float | None

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are unpickled by calling them with their text, which is not what all of ours take.
        return _restored, (type(self), self.args), self.__dict__


def _restored(cls: type[QueueError], args: tuple[Any, ...]) -> QueueError:
    return cls.__new__(cls, *args)


class QueueNotFound(QueueError):
    """The queue (or its dead-letter queue) does not exist and was not to be created."""


class ConnectionFailed(QueueError):
    """The broker could not be reached, or the connection broke. Transient."""

    is_transient = True


class AuthenticationFailed(QueueError):
    """The broker refused the credentials, or they expired and could not be refreshed."""


class PermissionDenied(QueueError):
    """The credentials are good but may not do this."""


class Throttled(QueueError):
    """The broker asked for fewer calls. Transient; ``retry_after`` is set when the broker said how long."""

    is_transient = True


class OperationTimeout(QueueError):
    """The broker did not answer in time; whether the operation took effect is unknown. Transient."""

    is_transient = True


class MessageTooLarge(QueueError):
    """One message exceeds the broker's limit; nothing was sent.

    Args:
        size: Size of the message in bytes, as the broker counts it.
        limit: The largest size accepted, in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the message is {size} bytes, the limit is {limit}: "
            "send a smaller body, or store it elsewhere and send a reference"
        )
        self.size = size
        self.limit = limit


class BatchTooLarge(QueueError):
    """A batch exceeds what one broker call accepts and could not be split; nothing was sent.

    Args:
        count: Number of messages in the batch.
        limit: The largest number accepted in one call.
    """

    def __init__(self, count: int, limit: int) -> None:
        super().__init__(f"the batch holds {count} messages, the limit for one call is {limit}")
        self.count = count
        self.limit = limit


class QueueFull(QueueError):
    """The queue holds as much as it may; nothing was stored. Transient: it empties as consumers work."""

    is_transient = True


class SessionLocked(QueueError):
    """Another consumer holds the session's lock. Transient: locks are released or expire."""

    is_transient = True


class LockLost(QueueError):
    """The lock on a session (or on a message without one) is no longer held.

    The broker may already have handed the messages to another consumer; settling them is refused.
    """


class InvalidReceipt(QueueError):
    """A delivery was settled twice, after its lock expired, or by somebody who does not hold it.

    Nothing changed in the queue.
    """


class SerializationError(QueueError):
    """A body could not be turned into the asked-for type, or an object into a body.

    Args:
        message: Summary, one line.
        problems: Every problem found, each as ``problem @ path``.
    """

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join((message, *(f"  {problem}" for problem in problems))))
        self.problems = problems


class ConfigurationError(QueueError):
    """The configuration does not hold together.

    Args:
        message: Summary, one line.
        problems: Every problem found, each as ``problem @ path``; secrets are masked.
    """

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join((message, *(f"  {problem}" for problem in problems))))
        self.problems = problems


class ValidationError(QueueError, ValueError):
    """A value (a name, an id, a duration, a header …) is outside what is accepted."""


class Unsupported(QueueError):
    """The broker lacks a feature, and the runtime does not pretend otherwise.

    Args:
        feature: The missing feature, as the field of ``Capabilities`` calls it.
        provider: The provider that lacks it.
    """

    def __init__(self, feature: str, provider: str, hint: str = "") -> None:
        super().__init__(f"{provider} does not support {feature}" + (f": {hint}" if hint else ""))
        self.feature = feature
        self.provider = provider


class CircuitOpen(QueueError):
    """A circuit breaker is open, so the broker was not asked. Transient; ``retry_after`` tells when it probes."""

    is_transient = True


class ProviderError(QueueError):
    """The broker reported something this package has no class for.

    Args:
        message: The broker's text, scrubbed of secrets.
        code: The broker's raw error code.
        transient: Whether the adapter believes that trying again may help.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        transient: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{message} (code {code})", retry_after=retry_after)
        self.code = code
        self.is_transient = transient  # type: ignore[misc]  # an instance overrides the class's word
