"""The emulator's time: a clock that never goes back and can be moved forward, and what is due by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Final, final

__all__ = ["Timer", "Timers"]

_SLACK: Final = 1_024
"""Cancelled timers that are not worth sweeping."""


@final
class Timer:
    """A call that is to come. Made by :meth:`Timers.at`."""

    __slots__ = ("args", "call")

    def __init__(self, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.call: Callable[..., None] | None = call
        self.args = args


@final
class Timers:
    """Calls in order of their time.

    Setting, cancelling and running one costs the logarithm of how many there are; cancelled ones are swept
    out as soon as they are the majority, so memory follows what is really to come.

    Args:
        clock: Wall-clock seconds since 1970: times travel to clients.
        on_sooner: Called when a timer is set that is due before all others.
    """

    def __init__(
        self, clock: Callable[[], float], on_sooner: Callable[[], None] = lambda: None
    ) -> None:
        self.on_sooner = on_sooner
        self._clock = clock
        self._moved = 0.0
        self._now = clock()
        self._heap: list[tuple[float, int, Timer]] = []
        self._number = 0
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def now(self) -> float:
        """The time: never before what was told last."""
        now = self._clock() + self._moved
        self._now = max(self._now, now)
        return self._now

    def move(self, seconds: float) -> None:
        """Have it be ``seconds`` later than the clock says; what became due runs at the next occasion."""
        if not 0 <= seconds < math.inf:
            raise ValueError(f"time moves by {seconds!r} s: expected a number of seconds from 0")
        self._moved += seconds
        self.on_sooner()

    def at(self, when: float, call: Callable[..., None], *args: Any) -> Timer:
        """Have ``call(*args)`` run once it is ``when``."""
        timer = Timer(call, args)
        self._number += 1
        heap = self._heap
        heappush(heap, (when, self._number, timer))
        if heap[0][2] is timer:
            self.on_sooner()
        return timer

    def cancel(self, timer: Timer) -> None:
        """Forget a timer; without effect after it ran or was cancelled."""
        if timer.call is None:
            return
        timer.call = None
        timer.args = ()
        self._cancelled += 1
        if self._cancelled > _SLACK and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].call is not None]
            heapify(self._heap)
            self._cancelled = 0

    def run(self) -> float:
        """Run what is due, in order; return the time."""
        now = self.now()
        while self._heap and self._heap[0][0] <= now:
            timer = heappop(self._heap)[2]
            call, args = timer.call, timer.args
            if call is None:
                self._cancelled -= 1
            else:
                timer.call = None
                timer.args = ()
                call(*args)
        return now

    def next_in(self) -> float:
        """Seconds until the next timer is due; infinite when there is none."""
        while self._heap and self._heap[0][2].call is None:
            heappop(self._heap)
            self._cancelled -= 1
        return max(0.0, self._heap[0][0] - self.now()) if self._heap else math.inf
