"""How long to wait before the next try, and when to give up.

The formulas are those of Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, Self, final

import attrs

from ..errors import ValidationError
from ..messages import MAX_DURATION
from ._checks import check_count, check_number, to_float

__all__ = ["MAX_FACTOR", "Backoff", "Jitter", "RetryPolicy"]

MAX_FACTOR: Final = 1_000.0
"""Largest growth from one delay to the next; anything larger is a mistake in the unit."""


class Backoff(enum.Enum):
    """How the delay grows with the attempts."""

    EXPONENTIAL = "exponential"
    """``min(max_delay, initial x factor ** (attempt - 1))``"""
    FIXED = "fixed"
    """``initial``, every time."""
    NONE = "none"
    """There is no next try."""


class Jitter(enum.Enum):
    """How the delay is spread, so that callers that failed together do not come back together."""

    FULL = "full"
    """Anything from 0 to the delay. Spreads best, and so is the default."""
    EQUAL = "equal"
    """Half of the delay, and anything up to the other half."""
    NONE = "none"
    """The delay as it is."""


@final
@attrs.frozen
class RetryPolicy:
    """When to try again. The first try is attempt 1 and is never delayed.

    Args:
        backoff: How the delay grows.
        initial: Seconds before the second attempt, before jitter.
        factor: Growth from one delay to the next, at least 1 (``EXPONENTIAL`` only).
        max_delay: Longest delay in seconds, at least ``initial``. A broker's ``retry_after`` may exceed it.
        jitter: How the delay is spread.
        max_attempts: Tries in all, the first included; ``None``: no limit.
        max_elapsed: Seconds from the first try of one delivery after which no other begins; it starts anew when
            the message was parked and is delivered again. ``None``: no limit.

    Raises:
        ValidationError: A value is outside what is accepted.
    """

    backoff: Backoff = attrs.field(
        default=Backoff.EXPONENTIAL, validator=attrs.validators.instance_of(Backoff)
    )
    initial: float = attrs.field(default=1.0, converter=to_float)
    factor: float = attrs.field(default=2.0, converter=to_float)
    max_delay: float = attrs.field(default=60.0, converter=to_float)
    jitter: Jitter = attrs.field(
        default=Jitter.FULL, validator=attrs.validators.instance_of(Jitter)
    )
    max_attempts: int | None = 5
    max_elapsed: float | None = attrs.field(default=None, converter=to_float)

    def __attrs_post_init__(self) -> None:
        check_number("initial", self.initial, 0.0, MAX_DURATION)
        check_number("factor", self.factor, 1.0, MAX_FACTOR)
        check_number("max_delay", self.max_delay, 0.0, MAX_DURATION)
        if self.max_delay < self.initial:
            raise ValidationError(
                f"max_delay is {self.max_delay!r}, less than initial ({self.initial!r}): "
                "raise the one or lower the other"
            )
        if self.max_attempts is not None:
            check_count("max_attempts", self.max_attempts)
        if self.max_elapsed is not None:
            check_number("max_elapsed", self.max_elapsed, 0.0, MAX_DURATION)

    @classmethod
    def exponential(
        cls,
        initial: float = 1.0,
        *,
        factor: float = 2.0,
        max_delay: float = 60.0,
        jitter: Jitter = Jitter.FULL,
        max_attempts: int | None = 5,
        max_elapsed: float | None = None,
    ) -> Self:
        """Delays that grow by ``factor``. Arguments as for the class."""
        return cls(
            Backoff.EXPONENTIAL, initial, factor, max_delay, jitter, max_attempts, max_elapsed
        )

    @classmethod
    def fixed(
        cls,
        delay: float,
        *,
        jitter: Jitter = Jitter.NONE,
        max_attempts: int | None = 5,
        max_elapsed: float | None = None,
    ) -> Self:
        """The same ``delay`` in seconds before every try. Other arguments as for the class."""
        return cls(Backoff.FIXED, delay, 1.0, delay, jitter, max_attempts, max_elapsed)

    @classmethod
    def none(cls) -> Self:
        """One try and no other."""
        return cls(Backoff.NONE, jitter=Jitter.NONE, max_attempts=1)

    def allows(self, attempt: int, delay: float = 0.0, *, elapsed: float = 0.0) -> bool:
        """Whether another try may begin ``delay`` seconds after failed attempt number ``attempt``.

        Args:
            attempt: Number of the attempt that failed; the first is 1.
            delay: Seconds until the next one would begin.
            elapsed: Seconds since the first attempt began.
        """
        if self.backoff is Backoff.NONE:
            return False
        if self.max_attempts is not None and attempt >= self.max_attempts:
            return False
        return self.max_elapsed is None or elapsed + delay <= self.max_elapsed

    def delay(
        self,
        attempt: int,
        *,
        elapsed: float = 0.0,
        retry_after: float | None = None,
        random: Callable[[], float],
    ) -> float | None:
        """Seconds to wait before the next try, or ``None`` to give up.

        Args:
            attempt: Number of the attempt that failed; the first is 1.
            elapsed: Seconds since the first attempt began.
            retry_after: Seconds the broker asked to wait: the delay is never shorter, whatever the jitter
                and ``max_delay`` say.
            random: Returns numbers from 0 (included) to 1, such as :func:`random.random`.

        Raises:
            ValidationError: ``attempt`` is below 1.
        """
        check_count("attempt", attempt)
        if not self.allows(attempt, elapsed=elapsed):
            return None
        delay = self._jittered(self._base(attempt), random)
        if retry_after is not None and retry_after > delay:
            delay = min(retry_after, MAX_DURATION)
        return delay if self.allows(attempt, delay, elapsed=elapsed) else None

    def _base(self, attempt: int) -> float:
        if self.backoff is Backoff.FIXED:
            return self.initial
        try:
            return min(self.max_delay, self.initial * self.factor ** (attempt - 1))
        except (
            OverflowError
        ):  # a float ends at 1.8e308, attempts do not; 0 stays 0 however often it grows
            return self.max_delay if self.initial else 0.0

    def _jittered(self, delay: float, random: Callable[[], float]) -> float:
        if self.jitter is Jitter.FULL:
            return delay * random()
        if self.jitter is Jitter.EQUAL:
            return delay / 2 + delay / 2 * random()
        return delay
