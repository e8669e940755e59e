"""What becomes of a message, given what its handler did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias, final

import attrs

from ..errors import QueueError, SerializationError
from ..handlers import Abandon, Complete, DeadLetter, Retry
from ..messages import MAX_DURATION, SettlementAction
from ..text import escape
from ._checks import check_count, check_number, to_float
from .backoff import RetryPolicy

__all__ = [
    "HANDLER_FAILED",
    "MAX_DELIVERY_COUNT_EXCEEDED",
    "SERIALIZATION_FAILED",
    "Decision",
    "FailurePolicy",
    "Park",
    "Settle",
    "Wait",
    "decide",
    "error_text",
]

MAX_DELIVERY_COUNT_EXCEEDED: Final = "MaxDeliveryCountExceeded"
"""Reason of a dead letter whose handler asked for another try when none was left."""

HANDLER_FAILED: Final = "HandlerFailed"
"""Reason of a dead letter whose handler raised when no try was left."""

SERIALIZATION_FAILED: Final = "SerializationFailed"
"""Reason of a dead letter whose body did not fit what the handler reads."""

_MAX_REASON: Final = 256
_MAX_DESCRIPTION: Final = 4_096
_MAX_TYPE_NAME: Final = 128
_MAX_PROBLEMS: Final = 100


@final
@attrs.frozen
class Settle:
    """Settle the message now.

    Args:
        action: ``COMPLETE`` or ``DEAD_LETTER``.
        reason: Why it is dead-lettered; at most 256 printable characters.
        description: Text for people; at most 4,096 printable characters.
    """

    action: SettlementAction
    reason: str = ""
    description: str = ""


@final
@attrs.frozen
class Wait:
    """Try again in place, in ``delay`` seconds, holding on to the session."""

    delay: float


@final
@attrs.frozen
class Park:
    """Abandon the message with ``delay`` seconds, give back what is behind it, and let go of the session."""

    delay: float


Decision: TypeAlias = Settle | Wait | Park


@final
@attrs.frozen
class FailurePolicy:
    """How failures of a handler are treated.

    Args:
        retry: When to try again, and when to stop.
        park_threshold: Longest delay in seconds that is waited out in place; for longer ones the session is
            given back.
        max_delivery_count: Deliveries after which the broker itself dead-letters; ``None``: never. The
            tries end at the lower of this and ``retry.max_attempts``, with a better reason than the broker's.

    Raises:
        ValidationError: A value is outside what is accepted.
    """

    retry: RetryPolicy = attrs.field(
        factory=RetryPolicy, validator=attrs.validators.instance_of(RetryPolicy)
    )
    park_threshold: float = attrs.field(default=5.0, converter=to_float)
    max_delivery_count: int | None = None

    def __attrs_post_init__(self) -> None:
        check_number("park_threshold", self.park_threshold, 0.0, MAX_DURATION)
        if self.max_delivery_count is not None:
            check_count("max_delivery_count", self.max_delivery_count)


_COMPLETE: Final = Settle(SettlementAction.COMPLETE)


def decide(
    result: object,
    *,
    attempt: int,
    elapsed: float,
    policy: FailurePolicy,
    random: Callable[[], float],
) -> Decision:
    """What becomes of a message.

    Args:
        result: What the handler returned (an ``Outcome`` or ``None``) or raised. Anything else counts as a
            ``TypeError`` raised by the handler.
        attempt: Deliveries of the message so far, tries in place included; the first is 1.
        elapsed: Seconds since the first attempt known to the caller.
        policy: How failures are treated.
        random: Returns numbers from 0 (included) to 1.
    """
    if result is None or type(result) is Complete:
        return _COMPLETE
    if isinstance(result, DeadLetter):
        return _dead_letter(result.reason, result.description)
    if isinstance(result, Abandon):
        return Park(0.0)
    if isinstance(result, Retry):
        if result.delay is None:
            delay = _policy_delay(policy, attempt, elapsed, None, random)
        else:
            delay = _asked_delay(policy, attempt, elapsed, result.delay)
        if delay is None:
            return _dead_letter(MAX_DELIVERY_COUNT_EXCEEDED, result.reason)
    else:
        error = result if isinstance(result, BaseException) else _no_outcome(result)
        poison = _poison(error)
        if poison:
            return _dead_letter(SERIALIZATION_FAILED, "; ".join(poison))
        delay = _policy_delay(policy, attempt, elapsed, _retry_after(error), random)
        if delay is None:
            return _dead_letter(HANDLER_FAILED, error_text(error))
    return Wait(delay) if delay <= policy.park_threshold else Park(delay)


def error_text(error: BaseException) -> str:
    """An exception as ``Type: text`` on one line of at most 4,096 printable characters.

    A group shows its leaves instead of itself. Only types and texts are read, never a traceback's locals;
    a text that cannot be read is replaced by a remark.
    """
    texts: list[str] = []
    length = 0
    for leaf in _leaves(error):
        text = _leaf_text(leaf)
        texts.append(text)
        length += len(text) + 2
        if length > _MAX_DESCRIPTION:
            break
    return escape("; ".join(texts), _MAX_DESCRIPTION)


def _no_outcome(result: object) -> TypeError:
    return TypeError(
        f"handle() returned {type(result).__name__}: "
        "it must return Complete, Retry, DeadLetter, Abandon or None"
    )


def _policy_delay(
    policy: FailurePolicy,
    attempt: int,
    elapsed: float,
    retry_after: float | None,
    random: Callable[[], float],
) -> float | None:
    if policy.max_delivery_count is not None and attempt >= policy.max_delivery_count:
        return None
    return policy.retry.delay(attempt, elapsed=elapsed, retry_after=retry_after, random=random)


def _asked_delay(policy: FailurePolicy, attempt: int, elapsed: float, delay: float) -> float | None:
    if policy.max_delivery_count is not None and attempt >= policy.max_delivery_count:
        return None
    return float(delay) if policy.retry.allows(attempt, delay, elapsed=elapsed) else None


def _poison(error: BaseException) -> list[str]:
    """The problems of an error that is about nothing but the body; ``[]`` when it is not."""
    problems: list[str] = []
    for leaf in _leaves(error):
        if not isinstance(leaf, SerializationError):
            return []
        if len(problems) < _MAX_PROBLEMS:
            problems.extend(_text(problem) for problem in leaf.problems or (leaf,))
    return problems


def _retry_after(error: BaseException) -> float | None:
    """The longest that any of the errors asks to wait."""
    waits = (leaf.retry_after for leaf in _leaves(error) if isinstance(leaf, QueueError))
    return max((wait for wait in waits if wait is not None), default=None)


def _dead_letter(reason: object, description: object) -> Settle:
    return Settle(
        SettlementAction.DEAD_LETTER,
        escape(_text(reason), _MAX_REASON),
        escape(_text(description), _MAX_DESCRIPTION),
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside a group, or the exception itself. Not recursive: groups may nest deeply."""
    pending = [error]
    while pending:
        current = pending.pop()
        if isinstance(current, BaseExceptionGroup):
            pending.extend(reversed(current.exceptions))
        else:
            yield current


def _leaf_text(error: BaseException) -> str:
    name = type(error).__name__[:_MAX_TYPE_NAME]
    text = _text(error)
    return f"{name}: {text}" if text else name


def _text(value: object) -> str:
    """``str(value)``, no more of it than can be shown, whatever the class does in its ``__str__``."""
    try:
        text = str(value)
    except Exception as error:
        return f"(its text could not be read: {type(error).__name__[:_MAX_TYPE_NAME]})"
    return text[: _MAX_DESCRIPTION + 1]
