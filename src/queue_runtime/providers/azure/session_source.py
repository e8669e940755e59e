"""One locked session: its messages, its lock, and delays that are kept by holding it. On the bridge's loop."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, final

from azure.servicebus._common.constants import (
    REQUEST_RESPONSE_GET_SESSION_STATE_OPERATION,
    REQUEST_RESPONSE_RENEW_SESSION_LOCK_OPERATION,
    REQUEST_RESPONSE_SET_SESSION_STATE_OPERATION,
)

from queue_runtime.errors import LockLost, QueueError

from .inlet import Arrival, Inlet
from .settling import RELEASED, Work, is_settled
from .sources import Owner, Source

__all__ = ["SessionOwner", "SessionSource", "Stage"]


class Stage(enum.Enum):
    """The life of a session here."""

    OPENING = enum.auto()
    """Its lock is asked for; messages may come before the answer is looked at."""
    FREE = enum.auto()
    """Locked, and nobody above holds it: it may be given up."""
    LEASED = enum.auto()
    """Somebody above holds it."""
    PARKED = enum.auto()
    """Its holder has done with it; it is only kept until a delay is over."""
    OVER = enum.auto()
    """Given back or lost."""


class SessionOwner(Owner, Protocol):
    """What a session needs of the intake that it belongs to.

    Attributes:
        max_per_session: Most unsettled messages of it.
    """

    max_per_session: int

    def leave(self, goodbye: Coroutine[Any, Any, Any]) -> None:
        """Close a link on the side, to its end also when the intake is closed meanwhile."""
        ...

    def over(self, source: SessionSource) -> None:
        """A session was given back or lost."""
        ...

    def parked(self, source: SessionSource) -> None:
        """A session is only kept for a delay: it takes no room."""
        ...

    def lost(self, source: SessionSource, error: QueueError) -> None:
        """A leased session's lock or link is gone."""
        ...


@final
class SessionSource(Source):
    """One locked session. Made by :meth:`open`.

    Attributes:
        session_id: As it is on the wire.
        asked_at: ``time.monotonic()`` before its lock was asked for or last renewed.
        granted_at: ``time.monotonic()`` when the lock was granted.
        unsettled: Messages taken and not known to be settled.
        stage: Where it stands.
        is_disowned: Whoever held it has done with it, or takes the lock for lost: nothing more is handed out. Set
            from trio's thread.
    """

    @classmethod
    async def open(cls, owner: SessionOwner, session: object, wait: float) -> SessionSource:
        """Lock a session: an id, or ``ANY_SESSION`` for which the broker may ``wait`` some seconds.

        Raises:
            Exception: What the SDK raises. A lock that was lost as soon as it was there is :meth:`check`'s to tell.
        """
        source = cls(owner)
        inlet = source._inlet = await owner.api.inlet(
            owner.entity,
            source._arrived,
            source._lost,
            credit=owner.max_per_session,
            session=session,
            wait=wait,
        )
        source.session_id = inlet.session_id or ""
        source.granted_at = time.monotonic()
        if source.stage is Stage.OPENING:
            source.stage = Stage.FREE
        owner.locks.saw(inlet.locked_until)
        return source

    def __init__(self, owner: SessionOwner) -> None:
        super().__init__(owner)
        self.session_id = ""
        self.asked_at = time.monotonic()
        self.granted_at = 0.0
        self.unsettled: set[Arrival] = set()
        self.stage = Stage.OPENING
        self.is_disowned = False
        self._owner: SessionOwner
        self._inlet: Inlet
        self._returning = 0
        self._returned: list[asyncio.Future[None]] = []
        self._drained: asyncio.Future[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether there is something to take now: what was given back comes before what is here."""
        return bool(self.buffer) and self._is_open and not self.is_disowned

    @property
    def _is_open(self) -> bool:
        """Whether messages may come and be taken."""
        is_held = self.stage is Stage.FREE or self.stage is Stage.LEASED
        return is_held and not self._returning and not self._delayed

    @property
    def expires(self) -> float:
        """``time.monotonic()`` when the lock ends unless it is renewed."""
        return self.asked_at + self._owner.locks.duration

    # --- messages ----------------------------------------------------------------------------------

    def take(self, most: int) -> list[Arrival]:
        """Hand out up to ``most`` messages, which are to be settled."""
        taken = super().take(most)
        self.unsettled.update(taken)
        return taken

    def _arrived(self, _: Inlet, arrival: Arrival) -> None:
        if self.stage is Stage.OVER:
            return  # it returns with the link
        self.buffer.append(arrival)
        if self._returning or self._delayed:
            self._returned.append(self._owner.spawn(self._return_buffered()))
        else:
            self._owner.arrived(self)

    async def settle(self, works: Sequence[Work]) -> list[QueueError | None]:
        """Settle messages in the given order; for each ``None`` when the broker has confirmed, or why not.

        What goes back goes to its place in the queue, so all that came after it goes back too, before more
        may come: the link has no credit meanwhile. Service Bus keeps the order of a session only if the link was
        drained before, and what it still brought was back when more was asked for:
        https://github.com/Azure/azure-sdk-for-net/issues/35846 and https://github.com/Azure/azure-amqp/issues/252
        """
        if self.stage is Stage.OVER:
            return [LockLost(f"the lock on session {self.session_id!a} is over")] * len(works)
        # What was told already is not delayed any more: it has its answer, or comes to one.
        late = [work for work in works if work.delay and self._inlet.is_open(work.arrival)]
        waiting = set(late)
        now = [work for work in works if work not in waiting]
        goes_back = late or any(work.goes_back for work in now)
        going_on: asyncio.Task[None] | None = None
        answers: dict[Work, QueueError | None] = {}
        self._recall(now)
        try:
            if goes_back:
                await self._hold_back()
            first = [work for work in now if work.arrival.tag not in self._open_ends]
            futures = await self._inlet.settle([(work.arrival, work.outcome) for work in first])
            if goes_back:
                await self._return_buffered()
            said = await self._told(first, futures)
            answers.update(zip(first, said, strict=True))
            rest = [work for work in now if work not in answers]
            once_more = await asyncio.gather(*map(self._settle_again, rest))
            answers.update(zip(rest, once_more, strict=True))
            self.unsettled -= {work.arrival for work in now if is_settled(answers[work])}
            if any(isinstance(answer, LockLost) for answer in answers.values()):
                self.give_up("the broker says so")
            if late:
                answers.update(await self._delay(late))
        finally:
            if goes_back:
                # On the side: who is cancelled waits no longer, but messages have to come again.
                going_on = self._owner.spawn(self._go_on())
            else:
                await self._refill()
        if going_on is not None:
            await asyncio.wait((going_on,))
        return [answers[work] for work in works]

    async def _settle_again(self, work: Work) -> QueueError | None:
        error = await self._settle_by_token(work, self._inlet, self.session_id)
        if isinstance(error, LockLost):
            # Done the first time, or the session is gone: nobody can tell, and messages behind it wait.
            self.give_up("what became of a settlement is not known")
        return error

    async def _refill(self) -> None:
        """Let as many more messages come as may be unsettled."""
        if self._is_open:
            most = self._owner.max_per_session
            room = most - len(self.unsettled) - len(self.buffer)
            if room > self._inlet.credit and self._inlet.credit <= most // 2:
                await self._inlet.set_credit(room)

    async def _hold_back(self) -> None:
        self._returning += 1
        self._drained = await self._inlet.take_back_credit()

    async def _return_buffered(self) -> None:
        """Give back what came meanwhile and nobody took."""
        arrivals = [(arrival, RELEASED) for arrival in self.buffer]
        self.buffer.clear()
        futures = await self._inlet.settle(arrivals)
        self._returned += futures

    async def _go_on(self) -> None:
        """When everything was given back: let messages come again, from the lowest."""
        if self._drained is not None:
            self._check_returned(await self._answers([self._drained], "drain"))
        while self._returned:
            returned, self._returned = self._returned, []
            self._check_returned(await self._answers(returned, "release"))
        self._returning -= 1
        await self._refill()

    def _check_returned(self, answers: Sequence[QueueError | None]) -> None:
        """What did not go back, or may still come, returns with the link, before anything can overtake it."""
        if not all(map(is_settled, answers)):
            self.give_up("messages could not be given back")

    # --- delays ------------------------------------------------------------------------------------

    async def _delay(self, works: Sequence[Work]) -> dict[Work, QueueError | None]:
        """Keep failed messages, and with them the session, for their delay: Service Bus has none of its own.

        That the lock was just renewed is what there is to confirm.
        """
        error = await self.renew()
        for work in works:
            # But for what was given back meanwhile, as was asked for before.
            if error is None and self._inlet.is_open(work.arrival):
                self._recall([work])
                self._delayed[work.arrival] = work, self._owner.spawn(self._abandon_late(work))
        return dict.fromkeys(works, error)

    async def _abandon_late(self, work: Work) -> None:
        if not await self._keep(work.delay, self.renew):
            return
        # It cannot be recalled any more; that it is held back keeps the session closed from here on.
        del self._delayed[work.arrival]
        self.unsettled.discard(work.arrival)
        try:
            await self._hold_back()
            futures = await self._inlet.settle([(work.arrival, work.outcome)])
            self._check_returned(await self._answers(futures, "abandon"))
        finally:
            await self._go_on()
        if self.stage is Stage.PARKED and not self._delayed:
            await self.close()

    # --- the lock ----------------------------------------------------------------------------------

    async def renew(self) -> QueueError | None:
        """Make the lock last anew; ``None``, or why it could not be."""
        return await self._try("renew session lock", self._renew())

    async def _renew(self) -> None:
        asked_at = time.monotonic()
        answer = await self._ask(REQUEST_RESPONSE_RENEW_SESSION_LOCK_OPERATION)
        self.asked_at = asked_at
        self._owner.locks.saw(answer[b"expiration"] / 1_000)

    async def get_state(self) -> bytes | None:
        """What is kept with the session. Raises what the SDK raises."""
        answer = await self._ask(REQUEST_RESPONSE_GET_SESSION_STATE_OPERATION)
        state = answer.get(b"session-state")
        return None if state is None else bytes(state)

    async def set_state(self, state: bytes | None) -> None:
        """Keep something with the session. Raises what the SDK raises."""
        value = None if state is None else bytearray(state)
        await self._ask(REQUEST_RESPONSE_SET_SESSION_STATE_OPERATION, {"session-state": value})

    async def _ask(self, operation: bytes, more: dict[str, Any] | None = None) -> Any:
        self.check()
        body = {"session-id": self.session_id, **(more or {})}
        asked = self._owner.api.manage(self._owner.entity, operation, body, link=self._inlet)
        try:
            return await asked
        except Exception as error:
            if isinstance(self._mapped(error, "hold session"), LockLost):
                # Not every broker ends the link as well, and until it is closed the session takes up room.
                self.give_up("the broker says so")
            raise

    def check(self) -> None:
        """Raise what its link was lost with, if it was."""
        if self._inlet.error is not None:
            raise self._inlet.error

    # --- the end -----------------------------------------------------------------------------------

    def _lost(self, error: BaseException) -> None:
        if self.stage is Stage.OVER:
            return
        was_leased = self.stage is Stage.LEASED
        self._over()
        if was_leased:
            self._owner.lost(self, self._mapped(error, "hold session"))

    def _over(self) -> None:
        self.stage = Stage.OVER
        self.buffer.clear()
        current = asyncio.current_task()
        for _, task in self._delayed.values():
            if task is not current:
                task.cancel()
        self._owner.over(self)

    def give_up(self, why: str) -> None:
        """Take its lock for lost, as something shows that it is, or that it is of no use."""
        if self.stage is Stage.OVER:
            return
        lost = LockLost(f"the lock on session {self.session_id!a} is over: {why}")
        self._lost(lost)
        self._owner.leave(self._inlet.aclose(lost))

    def withdraw(self) -> None:
        """Give the session back, as nobody holds it; from now on nobody gets it."""
        self._over()
        self._owner.leave(self._inlet.aclose())

    async def release(self) -> None:
        """Its holder has done with it; a delay still under way is kept."""
        if self._delayed and self.stage is not Stage.OVER:
            self.stage = Stage.PARKED
            self._owner.parked(self)
        else:
            await self.close()

    async def close(self) -> None:
        """Give the session back; what is unsettled returns to its place, uncounted but for what had failed."""
        if self.stage is Stage.OVER:
            return
        delayed = [(work.arrival, work.outcome) for work, _ in self._delayed.values()]
        self._over()
        if delayed:
            await self._inlet.set_credit(0)
            await self._answers(await self._inlet.settle(delayed), "abandon")
        await self._inlet.aclose()
