"""The states of a circuit breaker, after Michael Nygard's "Release It!", as a machine without a clock.

``CLOSED`` lets calls through and counts how they end. Too many failures lead to ``OPEN``, which refuses
calls for ``open_duration`` seconds; then ``HALF_OPEN`` lets one probe through at a time, and how the probes
end leads back to ``CLOSED`` or to ``OPEN``.

A call that is let through gets a *permit* and hands it back with its result. A permit is good for the
period it was given in: when the breaker changes its state, all earlier permits become void, so the late
result of a call from before cannot be taken for the probe's.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final, final

import attrs

from ..messages import MAX_DURATION
from ._checks import check_count, check_number, to_float

__all__ = ["BreakerConfig", "BreakerMachine", "BreakerState", "BreakerStatistics"]

_SLICES: Final = 10
"""The window moves in tenths: memory and time stay constant, and its length is off by at most a tenth."""


class BreakerState(enum.Enum):
    """What a circuit breaker does with calls."""

    CLOSED = "closed"
    """Lets them through."""
    OPEN = "open"
    """Refuses them."""
    HALF_OPEN = "half_open"
    """Lets one probe through at a time."""


@final
@attrs.frozen
class BreakerConfig:
    """When a circuit breaker opens, and for how long.

    It opens on whichever comes first: failures in a row, or their share of the calls in the window.

    Args:
        failure_threshold: Failures in a row that open it.
        window: Seconds over which the failure rate is taken.
        failure_rate: Share of failures in the window, above 0 and at most 1, that opens it; ``None``: only
            failures in a row count.
        minimum_calls: Calls in the window below which the rate says nothing.
        open_duration: Seconds it refuses calls before it probes.
        half_open_successes: Successful probes in a row that close it.

    Raises:
        ValidationError: A value is outside what is accepted.
    """

    failure_threshold: int = 5
    window: float = attrs.field(default=60.0, converter=to_float)
    failure_rate: float | None = attrs.field(default=0.5, converter=to_float)
    minimum_calls: int = 20
    open_duration: float = attrs.field(default=30.0, converter=to_float)
    half_open_successes: int = 1

    def __attrs_post_init__(self) -> None:
        check_count("failure_threshold", self.failure_threshold)
        check_number("window", self.window, 0.001, MAX_DURATION)
        if self.failure_rate is not None:
            check_number("failure_rate", self.failure_rate, 0.001, 1.0)
        check_count("minimum_calls", self.minimum_calls)
        check_number("open_duration", self.open_duration, 0.0, MAX_DURATION)
        check_count("half_open_successes", self.half_open_successes)


@final
@attrs.frozen
class BreakerStatistics:
    """A snapshot of a circuit breaker.

    Args:
        state: What it does with calls.
        consecutive_failures: Failures since the last success while closed.
        window_calls: Results that count in the window.
        window_failures: Failures among them.
        successes: Results that counted as success, ever.
        failures: Results that counted as failure, ever.
        rejected: Calls refused, ever.
        late: Results of calls let through before the last change of state; they count for nothing.
        opened_count: How often it opened.
        last_change: When the state last changed, on the clock of the calls; ``None``: never.
        retry_after: Seconds until it probes; 0 unless it is open.
    """

    state: BreakerState
    consecutive_failures: int
    window_calls: int
    window_failures: int
    successes: int
    failures: int
    rejected: int
    late: int
    opened_count: int
    last_change: float | None
    retry_after: float


class _Window:
    """Counts results over the last ``length`` seconds."""

    __slots__ = ("_slices", "_width", "calls", "failures")

    def __init__(self, length: float) -> None:
        self._width = length / _SLICES
        self._slices: deque[list[int]] = deque()  # [number of the slice, calls, failures]
        self.calls = 0
        self.failures = 0

    def add(self, now: float, failed: bool) -> None:
        self.forget(now)
        number = int(now // self._width)
        if not self._slices or self._slices[-1][0] < number:
            self._slices.append([number, 0, 0])
        last = self._slices[-1]
        last[1] += 1
        self.calls += 1
        if failed:
            last[2] += 1
            self.failures += 1

    def forget(self, now: float) -> None:
        """Drop what is older than the window."""
        slices = self._slices
        oldest = now // self._width - _SLICES
        while slices and slices[0][0] <= oldest:
            _, calls, failures = slices.popleft()
            self.calls -= calls
            self.failures -= failures

    def clear(self) -> None:
        self._slices.clear()
        self.calls = self.failures = 0


@final
class BreakerMachine:
    """A circuit breaker's state. Every ``now`` is seconds on one clock that never goes back.

    Hand each permit back exactly once, to :meth:`succeed`, :meth:`fail` or :meth:`cancel`, whatever happens
    to the call: a probe that never reports keeps the breaker half-open.

    Args:
        config: When it opens and for how long.
    """

    __slots__ = (
        "_config",
        "_consecutive",
        "_failures",
        "_last_change",
        "_last_permit",
        "_late",
        "_open_until",
        "_opened_count",
        "_probe",
        "_probe_successes",
        "_rejected",
        "_state",
        "_successes",
        "_valid_after",
        "_window",
    )

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config
        self._state = BreakerState.CLOSED
        self._window = _Window(config.window)
        self._consecutive = 0
        self._open_until = 0.0
        self._last_permit = 0
        self._valid_after = 0  # permits up to this one were given before the last change of state
        self._probe: int | None = None
        self._probe_successes = 0
        self._successes = 0
        self._failures = 0
        self._rejected = 0
        self._late = 0
        self._opened_count = 0
        self._last_change: float | None = None

    @property
    def state(self) -> BreakerState:
        """The state as of the last call; only :meth:`admit` and :meth:`tick` move on with time."""
        return self._state

    def admit(self, now: float) -> int | None:
        """Ask to let a call through.

        Returns:
            The call's permit, a positive number; ``None`` when the call is refused.
        """
        self.tick(now)
        if self._state is BreakerState.OPEN or self._probe is not None:
            self._rejected += 1
            return None
        self._last_permit += 1
        if self._state is BreakerState.HALF_OPEN:
            self._probe = self._last_permit
        return self._last_permit

    def succeed(self, permit: int, now: float) -> None:
        """The call went well, or failed in a way that says nothing against what is guarded."""
        if not self._redeem(permit):
            return
        self._successes += 1
        if self._state is BreakerState.CLOSED:
            self._consecutive = 0
            self._window.add(now, failed=False)
            return
        self._probe_successes += 1
        if self._probe_successes >= self._config.half_open_successes:
            self._consecutive = 0
            self._window.clear()
            self._enter(BreakerState.CLOSED, now)

    def fail(self, permit: int, now: float) -> None:
        """The call failed in a way that counts."""
        if not self._redeem(permit):
            return
        self._failures += 1
        self._consecutive += 1
        if self._state is BreakerState.CLOSED:
            self._window.add(now, failed=True)
            if not self._tripped():
                return
        self._open_until = now + self._config.open_duration
        self._opened_count += 1
        self._enter(BreakerState.OPEN, now)

    def cancel(self, permit: int) -> None:
        """The call ended without a result: nothing is counted, and a probe's place is free again."""
        self._redeem(permit)

    def tick(self, now: float) -> None:
        """Move on from open to half-open if it is time."""
        if self._state is BreakerState.OPEN and now >= self._open_until:
            self._enter(BreakerState.HALF_OPEN, now)

    def next_transition(self) -> float | None:
        """When :meth:`tick` will move on to half-open; ``None`` unless open."""
        return self._open_until if self._state is BreakerState.OPEN else None

    def retry_after(self, now: float) -> float:
        """Seconds until a probe may be let through; 0 unless open."""
        return max(0.0, self._open_until - now) if self._state is BreakerState.OPEN else 0.0

    def statistics(self, now: float) -> BreakerStatistics:
        """A frozen snapshot; the state does not move on."""
        self._window.forget(now)
        return BreakerStatistics(
            state=self._state,
            consecutive_failures=self._consecutive,
            window_calls=self._window.calls,
            window_failures=self._window.failures,
            successes=self._successes,
            failures=self._failures,
            rejected=self._rejected,
            late=self._late,
            opened_count=self._opened_count,
            last_change=self._last_change,
            retry_after=self.retry_after(now),
        )

    def _redeem(self, permit: int) -> bool:
        """Take a permit back; whether it was given in the present period."""
        if self._state is BreakerState.HALF_OPEN:
            current = permit == self._probe
        else:
            current = permit > self._valid_after
        if current:
            self._probe = None
        else:
            self._late += 1
        return current

    def _tripped(self) -> bool:
        config = self._config
        if self._consecutive >= config.failure_threshold:
            return True
        window = self._window
        return (
            config.failure_rate is not None
            and window.calls >= config.minimum_calls
            and window.failures >= config.failure_rate * window.calls
        )

    def _enter(self, state: BreakerState, now: float) -> None:
        self._state = state
        self._last_change = now
        self._valid_after = self._last_permit
        self._probe = None
        self._probe_successes = 0
