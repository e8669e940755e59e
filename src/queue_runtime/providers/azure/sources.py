"""Where messages of a queue come from: what the two kinds of source share. On the bridge's loop.

Nothing here polls: messages, losses and answers come as callbacks of the shared connection.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, Protocol, final

from azure.servicebus._common.constants import REQUEST_RESPONSE_UPDATE_DISPOSTION_OPERATION

from queue_runtime.errors import LockLost, OperationTimeout, QueueError
from queue_runtime.messages import SettlementAction

from .api import AzureApi
from .errors import Call, from_azure
from .inlet import Arrival, Inlet, settled_before
from .settling import Work, is_settled

__all__ = ["LockClock", "Owner", "Source"]

_SHORTEST_LOCK: Final = 5.0
"""Seconds of the shortest lock that a queue can have (``PT5S``)."""

_RENEW_FRACTION: Final = 1 / 3
"""Part of a lock's duration after which one that is kept for a delay is renewed."""


@final
class LockClock:
    """How long the queue's locks last, as far as the broker says.

    It says when a lock ends, by its own clock. That shows a queue whose locks are shorter than was assumed, and a
    message that came late; as the clocks may differ, it never makes a lock longer or shorter than any can be.

    Attributes:
        duration: Seconds to count on.
    """

    def __init__(self, assumed: float) -> None:
        self.duration = assumed
        self._assumed = assumed
        self._longest: float | None = None
        # Not the wall clock itself: set right meanwhile, it would make all that comes from then on seem late.
        self._wall = time.time() - time.monotonic()

    def saw(self, locked_until: float | None) -> float:
        """A lock was just granted; return by how many seconds the news came later than the best did."""
        if locked_until is None:
            return 0.0
        left = locked_until - (self._wall + time.monotonic())
        if self._longest is None or left > self._longest:
            self._longest = left
            self.duration = min(self._assumed, max(left, _SHORTEST_LOCK))
        return self._longest - left


class Owner(Protocol):
    """What a source needs of the intake that it belongs to.

    Attributes:
        api: The namespace.
        entity: The queue's path.
        patience: Seconds to wait for the broker to confirm settlements.
        locks: How long locks last.
    """

    api: AzureApi
    entity: str
    patience: float
    locks: LockClock

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something on the side, to be waited for when the intake is closed."""
        ...

    def arrived(self, source: Source) -> None:
        """Something came that can be taken."""
        ...


class Source(ABC):
    """A buffer of messages that came, and settling; :class:`.SessionSource` or :class:`.PlainSource`.

    Attributes:
        buffer: Messages nobody took yet, in the order they came.
    """

    def __init__(self, owner: Owner) -> None:
        self.buffer: deque[Arrival] = deque()
        self._owner = owner
        self._open_ends: dict[bytes, tuple[SettlementAction, asyncio.Future[None]]] = {}
        self._delayed: dict[Arrival, tuple[Work, asyncio.Task[None]]] = {}

    @property
    def is_ready(self) -> bool:
        """Whether there is something to take."""
        return bool(self.buffer)

    def take(self, most: int) -> list[Arrival]:
        """Hand out up to ``most`` messages."""
        return [self.buffer.popleft() for _ in range(min(most, len(self.buffer)))]

    @abstractmethod
    async def settle(self, works: Sequence[Work]) -> list[QueueError | None]:
        """Settle messages; for each ``None`` when the broker has confirmed, or why not."""

    async def _told(
        self, works: Sequence[Work], futures: Sequence[asyncio.Future[None]]
    ) -> list[QueueError | None]:
        """What became of settlements; what the link leaves open, as it takes each once, is remembered."""
        try:
            answers = await self._answers(futures, "settle")
        except asyncio.CancelledError:
            # Who asks again waits for the same answer, unless a refusal has come meanwhile.
            for work, future in zip(works, futures, strict=True):
                future.add_done_callback(partial(self._note_refusal, work))
            raise
        for work, future, answer in zip(works, futures, answers, strict=True):
            if not is_settled(answer):
                self._open_ends[work.arrival.tag] = work.action, future
        return answers

    def _note_refusal(self, work: Work, future: asyncio.Future[None]) -> None:
        if future.cancelled() or future.exception() is not None:
            self._open_ends[work.arrival.tag] = work.action, future

    async def _settle_by_token(
        self, work: Work, inlet: Inlet | None = None, session: str | None = None
    ) -> QueueError | None:
        """Settle a message whose link is gone, kept silent or refused to: its lock is a matter of its own."""
        before = self._open_ends.get(work.arrival.tag)
        if before is not None and before[1].done():
            action, future = before
            answer = self._answer(future, "settle")
            if is_settled(answer):  # it came after all
                return settled_before() if answer is None and action != work.action else answer
        body = work.request if session is None else {**work.request, "session-id": session}
        asked = self._owner.api.manage(
            self._owner.entity, REQUEST_RESPONSE_UPDATE_DISPOSTION_OPERATION, body, link=inlet
        )
        return await self._try("settle", asked)

    async def _answers(
        self, futures: Sequence[asyncio.Future[None]], operation: str
    ) -> list[QueueError | None]:
        """What became of settlements, in order; the broker's word for each."""
        if futures:
            await asyncio.wait(futures, timeout=self._owner.patience)
        return [self._answer(future, operation) for future in futures]

    def _answer(self, future: asyncio.Future[None], operation: str) -> QueueError | None:
        if not future.done() or future.cancelled():
            return OperationTimeout(
                f"{operation} on {self._owner.entity}: not confirmed within {self._owner.patience:g} s"
            )
        error = future.exception()
        return None if error is None else self._mapped(error, operation)

    async def _try(self, operation: str, call: Awaitable[Any]) -> QueueError | None:
        """Await ``call``; ``None``, or why it failed."""
        try:
            await call
        except Exception as error:
            return self._mapped(error, operation)
        return None

    def _mapped(self, error: BaseException, operation: str) -> QueueError:
        return from_azure(error, Call(operation=operation, queue=self._owner.entity))

    def _recall(self, works: Sequence[Work]) -> None:
        """Who did not hear that a message waits for its delay may ask for something else: that counts."""
        for work in works:
            if work.arrival in self._delayed:
                _, task = self._delayed.pop(work.arrival)
                task.cancel()

    async def _keep(
        self, seconds: float, renew: Callable[[], Awaitable[QueueError | None]]
    ) -> bool:
        """Keep a lock, which was just renewed, for a delay; whether it still holds."""
        due = time.monotonic() + seconds
        while (left := due - time.monotonic()) > 0:
            await asyncio.sleep(min(left, self._owner.locks.duration * _RENEW_FRACTION))
            if time.monotonic() < due and isinstance(await renew(), LockLost):
                return False
        return True
