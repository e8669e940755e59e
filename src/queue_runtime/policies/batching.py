"""How much to ask for at once, and how often at the same time."""

from __future__ import annotations

import math
from typing import Final, final

from ..errors import ValidationError
from ..messages import MAX_DURATION
from ._checks import check_count, check_number, to_float

__all__ = ["AdaptiveBatch", "ReceiveConcurrency"]

_WEIGHT: Final = 0.2
"""Share of the newest observation in the running mean: about the last ten observations count."""


@final
class AdaptiveBatch:
    """A batch size that follows the time a message takes, so that a batch takes ``target_duration``.

    The time per message is an exponentially weighted moving average. From one observation to the next the
    size at most doubles, so that a few quick messages do not fetch a flood; it shrinks at once.

    Args:
        minimum: Smallest size, and the first one.
        maximum: Largest size.
        target_duration: Seconds a batch should take.

    Raises:
        ValidationError: A value is outside what is accepted.
    """

    __slots__ = ("_maximum", "_mean", "_minimum", "_size", "_target")

    def __init__(
        self, minimum: int = 1, maximum: int = 1_000, target_duration: float = 0.1
    ) -> None:
        check_count("minimum", minimum)
        check_count("maximum", maximum, minimum)
        target_duration = to_float(target_duration)
        check_number("target_duration", target_duration, 0.0, MAX_DURATION)
        self._minimum = minimum
        self._maximum = maximum
        self._target = target_duration
        self._mean: float | None = None
        self._size = minimum

    @property
    def size(self) -> int:
        """How many messages the next batch should hold."""
        return self._size

    def observe(self, count: int, duration: float) -> None:
        """Learn that ``count`` messages took ``duration`` seconds. Nothing is learnt from 0 messages.

        Raises:
            ValidationError: ``count`` is negative, or ``duration`` is negative or not finite.
        """
        check_count("count", count, 0)
        if not 0.0 <= duration < math.inf:  # also refuses NaN
            raise ValidationError(f"duration is {duration!r}: it must be seconds, at least 0")
        if not count:
            return
        taken = duration / count
        self._mean = taken if self._mean is None else self._mean + _WEIGHT * (taken - self._mean)
        most = min(self._maximum, 2 * self._size)
        fitting = most if self._mean * most <= self._target else int(self._target / self._mean)
        self._size = max(self._minimum, min(most, fitting))


@final
class ReceiveConcurrency:
    """How many receive calls to keep in flight: one more after a full batch, one less after an empty one.

    Args:
        maximum: Most calls worth having in flight, at least 1.

    Raises:
        ValidationError: ``maximum`` is below 1.
    """

    __slots__ = ("_maximum", "_size")

    def __init__(self, maximum: int) -> None:
        check_count("maximum", maximum)
        self._maximum = maximum
        self._size = 1

    @property
    def size(self) -> int:
        """How many receive calls should be in flight, from 1 to ``maximum``."""
        return self._size

    def observe(self, asked: int, received: int) -> None:
        """Learn that a call that asked for ``asked`` messages brought ``received``."""
        if received <= 0:
            self._size = max(1, self._size - 1)
        elif received >= asked:
            self._size = min(self._maximum, self._size + 1)
