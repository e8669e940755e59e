"""Turns many small requests into few broker calls: settlements and single sends go through this."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from typing import Final, Generic, TypeAlias, TypeVar, final

import outcome
import trio

from ..errors import QueueError
from .signal import Signal

__all__ = ["Answered", "Coalescer"]

_CLOSED: Final = "closed; whether it took effect is unknown"

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Answered: TypeAlias = Callable[[Sequence[Item], "Sequence[Answer] | QueueError"], None]
"""Gets items and, in the same order, their answers; or the error that answers all of them."""


@final
class Coalescer(Generic[Item, Answer]):
    """Collects items while a call is under way and sends them together with the next one.

    Nothing waits for company unless ``linger`` says so, and then at most that long after the *oldest* item
    arrived (a maximum age, not a debounce).

    Args:
        flush: Called with at most ``max_batch`` items, in order; returns one answer per item. A
            ``QueueError`` it raises becomes the answer to every item of the batch.
        max_batch: Most items in one call.
        workers: Most calls under way at once.
        linger: Seconds to wait for a batch to fill.
        withdraw: Whether an item whose asker is cancelled is taken out while it is still queued.
        lets_call: Whether an asker may make a call itself, which is cancelled with it: after a call for one item,
            if no other is under way. Whoever asks alone is not served by turns of another task, which cost more
            than a call in memory. With one worker and without ``linger`` only.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        *,
        max_batch: int,
        workers: int = 1,
        linger: float = 0.0,
        withdraw: bool = True,
        lets_call: bool = False,
    ) -> None:
        self._flush = flush
        self._max_batch = max_batch
        self._workers = workers
        self._linger = linger
        self._withdraws = withdraw
        self._lets_call = lets_call
        self._is_lonely = False  # the last call was for one item, and nobody came meanwhile
        self._own_call: trio.CancelScope | None = None  # made by an asker
        self._groups: deque[_Group[Item, Answer]] = deque()
        self._last: _Group[Item, Answer] | None = None  # the last of them, while it may grow
        self._oldest = 0.0
        self._arrived = Signal()
        self._calls = 0
        self._hurry = False
        self._ended = False
        self._closed = False
        self._waiting: dict[
            trio.lowlevel.Task, Callable[[Sequence[Item], Sequence[Answer] | Exception], None]
        ] = {}
        self._idle = trio.Event()
        self._idle.set()

    def submit(self, item: Item, answered: Answered[Item, Answer]) -> None:
        """Queue ``item``. ``answered`` gets its answer, or the error of its call; it must not block or raise.

        Items that follow each other with the same ``answered`` get their answers in one call of it.
        """
        last = self._last
        if last is not None and last.answered is answered:
            last.items.append(item)
        else:
            if not self._groups:
                if self._linger:
                    self._oldest = trio.current_time()
                if not self._calls and not self._ended:
                    self._idle = trio.Event()
                self._arrived.wake()
            self._last = last = _Group(answered, [item])
            self._groups.append(last)
        if self._linger and self._is_full():
            self._arrived.wake()

    def _is_full(self) -> bool:
        """Whether the queue fills a call."""
        return sum(len(group.items) for group in self._groups) >= self._max_batch

    async def ask(self, item: Item) -> Answer:
        """Queue ``item`` and wait for its answer.

        Cancelled later than the call began, the call goes on and its answer is dropped, unless it is the asker's own.

        Raises:
            QueueError: What ``flush`` raised.
            trio.ClosedResourceError: :meth:`close` was called, before or meanwhile.
        """
        if self._closed:
            raise trio.ClosedResourceError("closed")
        if self._lets_call and self._is_lonely and not self._groups and not self._calls:
            return await self._call_alone(item)
        task = trio.lowlevel.current_task()
        is_waiting = True

        # No reference to itself: a cycle per item would keep the garbage collector busy.
        def answered(_items: Sequence[Item], answers: Sequence[Answer] | Exception) -> None:
            nonlocal is_waiting
            if is_waiting:
                is_waiting = False
                del self._waiting[task]
                if isinstance(answers, Exception):
                    trio.lowlevel.reschedule(task, outcome.Error(answers))
                else:
                    trio.lowlevel.reschedule(task, outcome.Value(answers[0]))

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            nonlocal is_waiting
            is_waiting = False
            del self._waiting[task]
            if self._withdraws:
                self._withdraw(answered)
            return trio.lowlevel.Abort.SUCCEEDED

        self.submit(item, answered)
        self._waiting[task] = answered
        answer: Answer = await trio.lowlevel.wait_task_rescheduled(abort)
        return answer

    async def _call_alone(self, item: Item) -> Answer:
        self._idle = trio.Event()
        self._calls += 1
        try:
            with trio.CancelScope() as self._own_call:
                [answer] = await self._flush([item])
                return answer
        finally:
            self._own_call = None
            self._calls -= 1
            self._is_lonely = not self._groups
            if self._closed:  # whoever asked behind it was told
                self._groups.clear()
                self._last = None
            elif self._groups:
                self._arrived.wake()
            self._rest()
        raise trio.ClosedResourceError(_CLOSED)

    async def wait_idle(self) -> None:
        """Hurry what is queued along; return when everything submitted so far was answered, or never will be."""
        if self._groups or self._calls:
            self._hurry = True
            self._arrived.wake()
        await self._idle.wait()

    def close(self) -> None:
        """Refuse what is asked from now on, and leave whoever waits for an answer without it."""
        self._closed = True
        if self._own_call is not None:
            self._own_call.cancel()
        for answered in list(self._waiting.values()):
            answered((), trio.ClosedResourceError(_CLOSED))

    async def run(self) -> None:
        """Flush until cancelled. What is queued then stays unanswered."""
        limiter = trio.CapacityLimiter(self._workers)
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    await self._arrived.wait()
                    if self._linger and not self._hurry:
                        with trio.move_on_at(self._oldest + self._linger):
                            while not self._is_full() and not self._hurry:
                                await self._arrived.wait()
                    while self._groups and self._own_call is None:
                        if self._workers == 1:
                            await self._flush_some()
                            continue
                        await limiter.acquire_on_behalf_of(token := object())
                        nursery.start_soon(self._flush_on_behalf_of, limiter, token)
                        await trio.lowlevel.checkpoint()
        finally:
            self._ended = True
            self._idle.set()

    async def _flush_on_behalf_of(self, limiter: trio.CapacityLimiter, token: object) -> None:
        try:
            await self._flush_some()
        finally:
            limiter.release_on_behalf_of(token)

    async def _flush_some(self) -> None:
        groups = self._take()
        if not groups:
            return
        batch = (
            groups[0].items if len(groups) == 1 else [*chain(*(group.items for group in groups))]
        )
        answers: Sequence[Answer] | QueueError
        self._calls += 1
        self._is_lonely = len(batch) == 1
        try:
            answers = await self._flush(batch)
        except QueueError as error:
            answers = error
        start = 0
        for group in groups:
            if isinstance(answers, QueueError):
                group.answered(group.items, answers)
            else:
                end = start + len(group.items)
                group.answered(group.items, answers[start:end])
                start = end
        self._calls -= 1
        self._rest()

    def _take(self) -> list[_Group[Item, Answer]]:
        """The groups of the next call, the last of them cut in two if need be."""
        taken = []
        room = self._max_batch
        self._last = None
        while self._groups and room:
            group = self._groups[0]
            if len(group.items) <= room:
                self._groups.popleft()
            else:
                group.items, rest = group.items[room:], group.items[:room]
                group = _Group(group.answered, rest)
            taken.append(group)
            room -= len(group.items)
        return taken

    def _withdraw(self, answered: Answered[Item, Answer]) -> None:
        for group in self._groups:
            if group.answered is answered:
                self._groups.remove(group)
                self._last = None
                self._rest()
                return

    def _rest(self) -> None:
        if not self._groups and not self._calls:
            self._hurry = False
            self._idle.set()


@final
class _Group(Generic[Item, Answer]):
    """Items that came in a row from one asker."""

    __slots__ = ("answered", "items")

    def __init__(self, answered: Answered[Item, Answer], items: list[Item]) -> None:
        self.answered = answered
        self.items = items
