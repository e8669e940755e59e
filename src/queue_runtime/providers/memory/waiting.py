"""Receivers that wait for work: who is woken when, so that no wake-up is lost and nobody is woken for nothing.

* What a call changed comes back as :class:`~.engine.Signals`. Receivers whose own sessions have work are woken;
  of those that could take new work *one* is. When that one finds something, its own call's signals say whether
  there is more, and the next one is woken: as many wake up as there is work for.
* Of all who wait on a queue one is the *timekeeper*: it also wakes up when the next timer is due and, where
  other processes share the store, to look for their changes. The duty passes on when it leaves.
* Who was woken but cannot look (it is cancelled) passes the wake-up on.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, final

import trio

from .engine import Signals

__all__ = ["Hub", "Waiter"]


@final
class Waiter:
    """One call that waits.

    Args:
        holder: Whose it is.
        deadline: ``trio.current_time()`` at which it gives up.
        takes: The group of those who can take new work in the same way; ``None``: it can only go on with what
            its holder has.
    """

    __slots__ = ("deadline", "holder", "scope", "takes", "woken")

    def __init__(self, holder: str, deadline: float, takes: str | None) -> None:
        self.holder = holder
        self.deadline = deadline
        self.takes = takes
        self.woken = trio.Event()
        self.scope: trio.CancelScope | None = None


@final
class Hub:
    """Those who wait on one queue.

    Args:
        clock: The engine's clock.
        poll_interval: As :attr:`.engine.Engine.poll_interval`.
        poll: Looks for changes of other processes and applies them here.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        poll_interval: float | None,
        poll: Callable[[], Awaitable[Any]],
    ) -> None:
        self.version = 0
        """Grows with everything that could give somebody work: see :meth:`apply`."""
        self.lose: dict[str, Callable[[int], None]] = {}
        """For each holder, what to tell of the token of a lock that expired."""
        self._clock = clock
        self._poll_interval = math.inf if poll_interval is None else poll_interval
        self._poll = poll
        self._next_poll = -math.inf
        self._next_timer: float | None = None  # on the engine's clock
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()
        self._groups: dict[str, OrderedDict[Waiter, None]] = {}
        self._by_holder: dict[str, list[Waiter]] = {}
        self._timekeeper: Waiter | None = None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiters)

    def apply(self, signals: Signals, skip: str | None = None) -> None:
        """Wake those concerned.

        Args:
            signals: From the engine, right after a call.
            skip: A group whose member just looked for new work in vain.
        """
        if signals.anyone or signals.holders or signals.lost:
            self.version += 1
            for holder, token in signals.lost:
                lose = self.lose.get(holder)
                if lose is not None:
                    lose(token)
                self.wake_holder(holder)  # it has room for another session now
            for holder in signals.holders:
                self.wake_holder(holder)
            if signals.anyone:
                for name, group in self._groups.items():
                    if group and name != skip:
                        self._wake(next(iter(group)))
        if signals.next_timer != self._next_timer:
            self._next_timer = signals.next_timer
            self._set_alarm()

    def wake_holder(self, holder: str) -> None:
        """Let everybody who waits for this holder look again."""
        for waiter in self._by_holder.get(holder, ()):
            self._wake(waiter)

    def pass_on(self, group: str | None) -> None:
        """Wake another one in place of one who was woken (or due) and cannot look."""
        waiters = (self._groups.get(group) if group is not None else None) or self._waiters
        if waiters:
            self._wake(next(iter(waiters)))

    async def wait(self, waiter: Waiter) -> None:
        """Wait until it is worth looking again, or the waiter's deadline has passed.

        A caller that cannot look then, or is cancelled here, has to :meth:`pass_on` if ``waiter.woken`` is set.
        """
        self._add(waiter)
        try:
            while not waiter.woken.is_set():
                with trio.CancelScope(deadline=self._deadline(waiter)) as waiter.scope:
                    await waiter.woken.wait()
                now = trio.current_time()
                if waiter.woken.is_set() or now >= waiter.deadline:
                    break
                if waiter is self._timekeeper:
                    if now >= self._alarm():
                        # The look that follows tells the next timer. Until then nobody else need wake for it.
                        self._next_timer = None
                        waiter.woken.set()
                        break
                    if now >= self._next_poll:
                        await self._poll()
                        self._next_poll = trio.current_time() + self._poll_interval
        finally:
            self._remove(waiter)

    def _wake(self, waiter: Waiter) -> None:
        waiter.woken.set()
        if waiter.takes is not None:
            # The next wake-up is for somebody else.
            self._groups[waiter.takes].pop(waiter, None)

    def _add(self, waiter: Waiter) -> None:
        self._waiters[waiter] = None
        self._by_holder.setdefault(waiter.holder, []).append(waiter)
        if waiter.takes is not None:
            self._groups.setdefault(waiter.takes, OrderedDict())[waiter] = None
        if self._timekeeper is None:
            self._timekeeper = waiter
            self._next_poll = trio.current_time() + self._poll_interval

    def _remove(self, waiter: Waiter) -> None:
        del self._waiters[waiter]
        mine = self._by_holder[waiter.holder]
        mine.remove(waiter)
        if not mine:
            del self._by_holder[waiter.holder]
        if waiter.takes is not None:
            self._groups[waiter.takes].pop(waiter, None)
        if self._timekeeper is waiter:
            self._timekeeper = next(iter(self._waiters), None)
            self._set_alarm()

    def _alarm(self) -> float:
        """When the next timer is due, on trio's clock."""
        if self._next_timer is None:
            return math.inf
        return trio.current_time() + self._next_timer - self._clock()

    def _deadline(self, waiter: Waiter) -> float:
        if waiter is not self._timekeeper:
            return waiter.deadline
        return min(waiter.deadline, self._next_poll, self._alarm())

    def _set_alarm(self) -> None:
        keeper = self._timekeeper
        if keeper is not None and keeper.scope is not None:
            keeper.scope.deadline = self._deadline(keeper)
