"""Turns many small requests into few broker calls: settlements and single sends go through this."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar, final

import outcome
import trio

from ..errors import QueueError
from .signal import Signal

__all__ = ["Coalescer"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@final
class Coalescer(Generic[Item, Answer]):
    """Collects items while a call is under way and sends them together with the next one.

    Nothing waits for company unless ``linger`` says so, and then at most that long after the *oldest* item
    arrived (a maximum age, not a debounce).

    Args:
        flush: Called with at most ``max_batch`` items, in order; returns one answer per item. A
            ``QueueError`` it raises becomes the outcome of every item of the batch.
        max_batch: Most items in one call.
        workers: Most calls under way at once.
        linger: Seconds to wait for a batch to fill.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        *,
        max_batch: int,
        workers: int = 1,
        linger: float = 0.0,
    ) -> None:
        self._flush = flush
        self._max_batch = max_batch
        self._workers = workers
        self._linger = linger
        self._items: deque[tuple[Item, Callable[[outcome.Outcome[Answer]], None]]] = deque()
        self._oldest = 0.0
        self._arrived = Signal()
        self._unanswered = 0
        self._hurry = False
        self._idle = trio.Event()
        self._idle.set()

    def submit(self, item: Item, answered: Callable[[outcome.Outcome[Answer]], None]) -> None:
        """Queue ``item``; ``answered`` is called once with its outcome. It must not block or raise."""
        if not self._items:
            self._oldest = trio.current_time() if self._linger else 0.0
            self._arrived.wake()
        elif self._linger and len(self._items) == self._max_batch - 1:
            self._arrived.wake()
        if not self._unanswered:
            self._idle = trio.Event()
        self._unanswered += 1
        self._items.append((item, answered))

    async def ask(self, item: Item, *, withdraw: bool = True) -> Answer:
        """Queue ``item`` and wait for its answer.

        Cancelled later than the call began, the call goes on and its answer is dropped.

        Args:
            item: What to send.
            withdraw: Whether a cancelled item that is still queued is taken out.

        Raises:
            QueueError: What ``flush`` raised.
        """
        task = trio.lowlevel.current_task()
        waiting = True

        def answered(result: outcome.Outcome[Answer]) -> None:
            if waiting:
                trio.lowlevel.reschedule(task, result)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            nonlocal waiting
            waiting = False
            if withdraw:
                self._withdraw(entry)
            return trio.lowlevel.Abort.SUCCEEDED

        self.submit(item, answered)
        entry = self._items[-1]
        answer: Answer = await trio.lowlevel.wait_task_rescheduled(abort)
        return answer

    async def wait_idle(self) -> None:
        """Hurry what is queued along, and return when everything submitted so far was answered."""
        if self._unanswered:
            self._hurry = True
            self._arrived.wake()
        await self._idle.wait()

    async def run(self) -> None:
        """Flush until cancelled. What is queued then stays unanswered."""
        limiter = trio.CapacityLimiter(self._workers)
        async with trio.open_nursery() as nursery:
            while True:
                await self._arrived.wait()
                if self._linger and not self._hurry:
                    with trio.move_on_at(self._oldest + self._linger):
                        while len(self._items) < self._max_batch and not self._hurry:
                            await self._arrived.wait()
                while self._items:
                    if self._workers == 1:
                        await self._flush_some()
                        continue
                    await limiter.acquire_on_behalf_of(token := object())
                    nursery.start_soon(self._flush_on_behalf_of, limiter, token)
                    await trio.lowlevel.checkpoint()

    async def _flush_on_behalf_of(self, limiter: trio.CapacityLimiter, token: object) -> None:
        try:
            await self._flush_some()
        finally:
            limiter.release_on_behalf_of(token)

    async def _flush_some(self) -> None:
        items = self._items
        batch = [items.popleft() for _ in range(min(len(items), self._max_batch))]
        if not batch:
            return
        try:
            answers = await self._flush([item for item, _ in batch])
        except QueueError as error:
            for _, answered in batch:
                answered(outcome.Error(error))
        else:
            for (_, answered), answer in zip(batch, answers, strict=True):
                answered(outcome.Value(answer))
        self._answered(len(batch))

    def _withdraw(self, entry: tuple[Item, Callable[[outcome.Outcome[Answer]], None]]) -> None:
        for index, queued in enumerate(self._items):
            if queued is entry:
                del self._items[index]
                self._answered(1)
                return

    def _answered(self, count: int) -> None:
        self._unanswered -= count
        if not self._unanswered:
            self._hurry = False
            self._idle.set()
