"""The long polls of one receiver, which outlive the calls that started them. On the bridge's loop.

A poll that is cut off may still claim messages: SQS goes on with it although nobody listens, and what it claims
stays invisible until the lock runs out. So a receive that is cancelled leaves at once and leaves its poll behind:
the next receive takes it over; what it brings meanwhile is kept for a moment and then given back.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, final
from uuid import uuid4

import attrs
import trio

from queue_runtime.errors import ConnectionFailed, OperationTimeout, QueueError, ValidationError

from .api import never_arrived
from .claims import Claims, Raw

__all__ = ["Claimed", "Poller"]

_KEPT: Final = 0.2
"""Seconds that what nobody waits for is kept before it is given back."""

_GLANCE: Final = 0.2
"""Seconds between looks within less than a second, the shortest long poll."""

_LATE: Final = 0.1
"""Seconds by which an empty answer may come late: for the round trips of the polls before the last one."""

_LAST_POLLS: Final = 2.0
"""Seconds that closing waits for polls; longer ones are cut off."""


@final
@attrs.frozen(eq=False)
class Claimed:
    """What one poll brought.

    Args:
        messages: At least one, as SQS answered them.
        asked_at: ``time.monotonic()`` before the poll was sent: the lock is counted from there.
    """

    messages: Sequence[Raw]
    asked_at: float


class _Poll:
    """One ``ReceiveMessage`` under way.

    Args:
        count: Most messages.
        lost: A poll whose answer was lost, to be asked again: what it claimed was claimed then.

    Attributes:
        awaited: Somebody waits for what it brings.
    """

    def __init__(self, count: int, lost: _Poll | None = None) -> None:
        self.count = count
        self.attempt: str = uuid4().hex if lost is None else lost.attempt
        self.asked_at: float = time.monotonic() if lost is None else lost.asked_at
        self.awaited = True
        self.task: asyncio.Task[Claimed | None]


@final
class Poller:
    """Polls one queue. :meth:`receive` may be called by several at once, each with a poll of its own.

    Args:
        claims: The queue.
        lock_duration: Seconds asked for what is received.
        wait_time: Longest long poll, in seconds.
    """

    def __init__(self, claims: Claims, lock_duration: int, wait_time: int) -> None:
        self._claims = claims
        self._lock_duration = lock_duration
        # What is claimed at the end of a poll is counted from its beginning: half of the lock must be left.
        self._longest = min(wait_time, lock_duration // 2)
        self._running: set[_Poll] = set()
        self._kept: deque[Claimed] = deque()
        self._unanswered: deque[_Poll] = deque()
        self._behind: set[asyncio.Task[None]] = set()
        self._closing = asyncio.get_running_loop().create_future()

    async def receive(self, count: int, timeout: float) -> Claimed | None:
        """At most ``count`` messages as soon as there are any; ``None`` at the timeout.

        Raises:
            trio.ClosedResourceError: The poller is closed, or was closed meanwhile.
            QueueError: A poll failed.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._check_open()
            if self._kept:
                return self._first_kept(count)
            began = time.monotonic()
            claimed = await self._look(count, deadline - began)
            if claimed is not None:
                return claimed
            self._check_open()
            now = time.monotonic()
            if now >= deadline:
                return None
            # A short poll; or a long one that the endpoint answers early.
            if now - began < _GLANCE:
                await asyncio.wait((self._closing,), timeout=min(deadline - now, _GLANCE))

    async def _look(self, count: int, left: float) -> Claimed | None:
        """One poll: one that was left behind, or a new one as long as fits into the time that is left."""
        behind = (poll for poll in self._running if not poll.awaited and poll.count <= count)
        poll = next(behind, None) if left > 0 else None
        limit = left if poll is not None else None  # the timeout of the call is limit enough
        if poll is None:
            poll = self._start(count, max(0, min(int(left + _LATE), self._longest)))
        poll.awaited = True
        try:
            await asyncio.wait(
                (poll.task, self._closing), timeout=limit, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            self._leave(poll)
            raise
        if poll.task.done():
            return poll.task.result()
        self._leave(poll)
        return None

    def _start(self, count: int, wait: int) -> _Poll:
        lost = self._next_unanswered(count)
        # Not the same object: the task of the lost one may not have been seen to its end yet.
        poll = _Poll(count if lost is None else lost.count, lost)
        poll.task = asyncio.create_task(self._poll(poll, wait) if lost is None else self._ask(poll))
        poll.task.add_done_callback(lambda _: self._ended(poll))
        self._running.add(poll)
        return poll

    async def _poll(self, poll: _Poll, wait: int) -> Claimed | None:
        try:
            messages = await self._claims.receive(
                poll.count, self._lock_duration, wait, poll.attempt
            )
        except (ConnectionFailed, OperationTimeout) as error:
            # The answer may be lost and the claim made. On a FIFO queue the same question brings it back.
            if never_arrived(error) or not self._is_recoverable(poll):
                raise
            claimed = await self._ask(poll)
            if claimed is None:
                self._soon(self._ask_once_more(poll, wait))
            return claimed
        return Claimed(messages, poll.asked_at) if messages else None

    async def _ask_once_more(self, poll: _Poll, wait: int) -> None:
        """SQS goes on with a poll that was cut off: what it claims meanwhile is there when its wait is over."""
        left = poll.asked_at + wait + _GLANCE - time.monotonic()
        if left > 0:
            await asyncio.wait((self._closing,), timeout=left)
        with suppress(QueueError):
            claimed = await self._ask(poll)
            if claimed is not None:
                self._keep(claimed)

    async def _ask(self, poll: _Poll) -> Claimed | None:
        """Look once, with the attempt of a poll whose answer was lost."""
        try:
            messages = await self._claims.receive(poll.count, self._lock_duration, 0, poll.attempt)
        except ValidationError:  # the attempt cannot be retried: what it brought was touched since
            return None
        except QueueError:
            self._unanswered.append(poll)
            raise
        return Claimed(messages, poll.asked_at) if messages else None

    def _is_recoverable(self, poll: _Poll) -> bool:
        age = time.monotonic() - poll.asked_at
        return self._claims.queue.fifo and age < self._lock_duration / 2

    def _next_unanswered(self, count: int) -> _Poll | None:
        """A poll to ask again. One that asked for more would bring more: it waits for a call that takes as much."""
        recoverable = [poll for poll in self._unanswered if self._is_recoverable(poll)]
        chosen = next((poll for poll in recoverable if poll.count <= count), None)
        self._unanswered = deque(poll for poll in recoverable if poll is not chosen)
        return chosen

    def _check_open(self) -> None:
        if self._closing.done():
            raise trio.ClosedResourceError(
                f"the receiver of queue {self._claims.queue.name} is closed"
            )

    # What nobody waits for

    def _ended(self, poll: _Poll) -> None:
        self._running.discard(poll)
        if not poll.awaited:
            self._inherit(poll)

    def _leave(self, poll: _Poll) -> None:
        poll.awaited = False
        if poll not in self._running:
            self._inherit(poll)

    def _inherit(self, poll: _Poll) -> None:
        """Keep what a poll has brought that nobody waited for."""
        if poll.task.cancelled() or poll.task.exception() is not None:
            return
        claimed = poll.task.result()
        if claimed is not None:
            self._keep(claimed)

    def _keep(self, claimed: Claimed) -> None:
        self._kept.append(claimed)
        asyncio.get_running_loop().call_later(_KEPT, self._expire, claimed)

    def _expire(self, claimed: Claimed) -> None:
        if claimed in self._kept:
            self._kept.remove(claimed)
            self._soon(self.give_back(claimed.messages))

    def _first_kept(self, count: int) -> Claimed:
        claimed = self._kept.popleft()
        if len(claimed.messages) <= count:
            return claimed
        self._soon(self.give_back(claimed.messages[count:]))
        return Claimed(claimed.messages[:count], claimed.asked_at)

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    async def give_back(self, messages: Sequence[Raw]) -> None:
        """Make messages available to everybody again; what cannot be given back is when its lock expires."""
        with suppress(QueueError):
            await self._claims.give_back([message["ReceiptHandle"] for message in messages])

    async def aclose(self) -> None:
        """End the polls and give back what they bring. ``receive`` calls under way raise."""
        if self._closing.done():
            return
        self._closing.set_result(None)
        polls = list(self._running)
        if polls:
            await asyncio.wait([poll.task for poll in polls], timeout=_LAST_POLLS)
        cut = [poll for poll in polls if not poll.task.done()]
        for poll in cut:
            poll.task.cancel()
        lost = [poll for poll in (*cut, *self._unanswered) if self._is_recoverable(poll)]
        await asyncio.gather(*(poll.task for poll in cut), return_exceptions=True)
        await asyncio.gather(*(self._recover(poll) for poll in lost))
        while self._behind or self._kept:
            if self._behind:
                await asyncio.wait(set(self._behind))
            while self._kept:
                await self.give_back(self._kept.popleft().messages)

    async def _recover(self, poll: _Poll) -> None:
        """Give back what a poll that was cut off has claimed, if it has."""
        with suppress(QueueError):
            claimed = await self._ask(poll)
            if claimed is not None:
                await self.give_back(claimed.messages)
