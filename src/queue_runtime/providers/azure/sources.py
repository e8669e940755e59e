"""Where messages of a queue come from: one link for each session, or one for a queue without sessions.

On the bridge's loop. Nothing here polls: messages, losses and answers come as callbacks of the shared connection.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Final, final
from uuid import UUID

import attrs
from azure.servicebus._common.constants import (
    REQUEST_RESPONSE_GET_SESSION_STATE_OPERATION,
    REQUEST_RESPONSE_RENEW_SESSION_LOCK_OPERATION,
    REQUEST_RESPONSE_RENEWLOCK_OPERATION,
    REQUEST_RESPONSE_SET_SESSION_STATE_OPERATION,
    REQUEST_RESPONSE_UPDATE_DISPOSTION_OPERATION,
)

from queue_runtime.errors import InvalidReceipt, LockLost, OperationTimeout, QueueError
from queue_runtime.messages import SettlementAction

from .amqp import array
from .errors import Call, from_azure
from .links import ABANDONED, COMPLETED, RELEASED, Arrival, Inlet, dead_lettered

if TYPE_CHECKING:
    from .intake import Intake

__all__ = ["LockClock", "PlainSource", "SessionSource", "Source", "Work", "is_settled"]

_SHORTEST_LOCK: Final = 5.0
"""Seconds of the shortest lock that a queue can have (``PT5S``)."""

_RENEW_FRACTION: Final = 1 / 3
"""Part of a lock's duration after which one that is kept for a delay is renewed."""


@final
@attrs.frozen(eq=False)
class Work:
    """What is to become of a message that came in.

    Args:
        arrival: The message.
        action: What to do.
        delay: Seconds to keep it locked before it is given back (``ABANDON``).
        reason: Why it is dead-lettered.
        description: For people.
    """

    arrival: Arrival
    action: SettlementAction
    delay: float = 0.0
    reason: str = ""
    description: str = ""

    @property
    def outcome(self) -> Any:
        """As AMQP says it."""
        match self.action:
            case SettlementAction.COMPLETE:
                return COMPLETED
            case SettlementAction.ABANDON:
                return ABANDONED
            case SettlementAction.RELEASE:
                return RELEASED
            case SettlementAction.DEAD_LETTER:
                return dead_lettered(self.reason, self.description)

    @property
    def goes_back(self) -> bool:
        """Whether the message returns to its place in the queue."""
        return self.action in (SettlementAction.ABANDON, SettlementAction.RELEASE)


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

    def saw(self, locked_until: float | None) -> float:
        """A lock was just granted; return by how many seconds the news came later than the best did."""
        if locked_until is None:
            return 0.0
        left = locked_until - time.time()
        if self._longest is None or left > self._longest:
            self._longest = left
            self.duration = min(self._assumed, max(left, _SHORTEST_LOCK))
        return self._longest - left


class Source:
    """What both kinds share: a buffer of messages that came, and settling.

    Attributes:
        buffer: Messages nobody took yet, in the order they came.
        unsettled: Messages taken and not settled.
    """

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.buffer: deque[Arrival] = deque()
        self.unsettled = 0

    @property
    def is_ready(self) -> bool:
        """Whether there is something to take."""
        return bool(self.buffer)

    def take(self, most: int) -> list[Arrival]:
        """Hand out up to ``most`` messages."""
        taken = [self.buffer.popleft() for _ in range(min(most, len(self.buffer)))]
        self.unsettled += len(taken)
        return taken

    def _mapped(self, error: BaseException, operation: str) -> QueueError:
        return from_azure(error, Call(operation=operation, queue=self.intake.entity))

    async def _answers(
        self, futures: Sequence[asyncio.Future[None]], operation: str
    ) -> list[QueueError | None]:
        """What became of settlements, in order; the broker's word for each."""
        if futures:
            await asyncio.wait(futures, timeout=self.intake.patience)
        answers: list[QueueError | None] = []
        for future in futures:
            if not future.done():
                answers.append(
                    OperationTimeout(
                        f"{operation} on {self.intake.entity}: not confirmed within {self.intake.patience:g} s"
                    )
                )
            elif (error := future.exception()) is not None:
                answers.append(self._mapped(error, operation))
            else:
                answers.append(None)
        return answers


@final
class SessionSource(Source):
    """One locked session. Made by :meth:`open`.

    Attributes:
        session_id: As it is on the wire.
        asked_at: ``time.monotonic()`` before its lock was asked for or last renewed.
        is_leased: Somebody above holds it; otherwise it may be given up.
        is_disowned: Whoever held it takes the lock for lost: nothing more is handed out. Set from trio's thread.
        granted_at: ``time.monotonic()`` when the lock was granted.
    """

    @classmethod
    async def open(cls, intake: Intake, session: object, wait: float) -> SessionSource:
        """Lock a session.

        Raises:
            Exception: What the SDK raises.
        """
        source = cls(intake)
        source.asked_at = time.monotonic()
        inlet = await intake.api.inlet(
            intake.entity,
            source._arrived,
            source._lost,
            credit=intake.max_per_session,
            session=session,
            wait=wait,
        )
        source.inlet = inlet
        source.session_id = inlet.session_id or ""
        source.granted_at = time.monotonic()
        source._is_open = True  # messages may have come before
        intake.locks.saw(inlet.locked_until)
        return source

    def __init__(self, intake: Intake) -> None:
        super().__init__(intake)
        self.inlet: Inlet
        self.session_id = ""
        self.asked_at = 0.0
        self.granted_at = 0.0
        self.is_leased = False
        self.is_disowned = False
        self.is_over = False
        self._is_open = False
        self._is_released = False
        self._returning = 0
        self._returned: list[asyncio.Future[None]] = []
        self._parked: dict[Arrival, asyncio.Task[None]] = {}

    @property
    def is_ready(self) -> bool:
        """Whether there is something to take now: what was given back comes before what is here."""
        held = self._is_open and not self.is_disowned
        return held and bool(self.buffer) and not self._returning and not self._parked

    @property
    def is_parked(self) -> bool:
        """Whether it is only kept until a delay is over."""
        return self._is_released

    @property
    def expires(self) -> float:
        """``time.monotonic()`` when the lock ends unless it is renewed."""
        return self.asked_at + self.intake.locks.duration

    # --- messages ----------------------------------------------------------------------------------

    def _arrived(self, _: Inlet, arrival: Arrival) -> None:
        if self.is_over:
            return  # it returns with the link
        self.buffer.append(arrival)
        if self._returning or self._parked:
            self.intake.spawn(self._return_buffered())
        else:
            self.intake.arrived(self)

    async def settle(self, works: Sequence[Work]) -> list[QueueError | None]:
        """Settle messages in the given order; for each ``None`` when the broker has confirmed, or why not.

        What goes back goes to its place in the queue, so all that came after it goes back too, before more
        may come: the link has no credit meanwhile.
        """
        now = [work for work in works if not work.delay]
        late = [work for work in works if work.delay]
        goes_back = late or any(work.goes_back for work in now)
        answers: dict[Work, QueueError | None] = {}
        if goes_back:
            await self._hold_back()
        try:
            futures = await self.inlet.settle([(work.arrival, work.outcome) for work in now])
            if goes_back:
                await self._return_buffered()
            answers.update(zip(now, await self._answers(futures, "settle"), strict=True))
            if late:
                answers.update(await self._park(late))
        finally:
            self.unsettled -= sum(1 for work in now if is_settled(answers.get(work, _UNSAID)))
            if goes_back:
                await self._go_on()
            else:
                await self.refill()
        return [answers[work] for work in works]

    async def refill(self) -> None:
        """Let as many more messages come as may be unsettled."""
        if self.is_over or self._returning or self._parked:
            return
        most = self.intake.max_per_session
        room = most - self.unsettled - len(self.buffer)
        if room > self.inlet.credit and self.inlet.credit <= most // 2:
            await self.inlet.set_credit(room)

    async def _hold_back(self) -> None:
        self._returning += 1
        await self.inlet.set_credit(0)

    async def _return_buffered(self) -> None:
        """Give back what came meanwhile and nobody took."""
        arrivals = [(arrival, RELEASED) for arrival in self.buffer]
        self.buffer.clear()
        self._returned += await self.inlet.settle(arrivals)

    async def _go_on(self) -> None:
        """Everything was given back: let messages come again, from the lowest."""
        while self._returned:
            returned, self._returned = self._returned, []
            await self._answers(returned, "release")
        self._returning -= 1
        await self.refill()

    # --- delays ------------------------------------------------------------------------------------

    async def _park(self, works: Sequence[Work]) -> dict[Work, QueueError | None]:
        """Keep failed messages, and with them the session, for their delay: Service Bus has none of its own.

        That the lock was just renewed is what there is to confirm.
        """
        error = await self.renew()
        if error is None:
            for work in works:
                due = time.monotonic() + work.delay
                task = self.intake.spawn(self._give_back_at(due, work.arrival))
                self._parked[work.arrival] = task
        return dict.fromkeys(works, error)

    async def _give_back_at(self, due: float, arrival: Arrival) -> None:
        while (left := due - time.monotonic()) > 0:
            await asyncio.sleep(min(left, self.intake.locks.duration * _RENEW_FRACTION))
            if time.monotonic() < due and isinstance(await self.renew(), LockLost):
                return
        await self._give_back([arrival])
        if self._is_released and not self._parked:
            await self.close()

    async def _give_back(self, arrivals: Sequence[Arrival]) -> None:
        await self._hold_back()
        try:
            futures = await self.inlet.settle([(arrival, ABANDONED) for arrival in arrivals])
            await self._answers(futures, "abandon")
        finally:
            for arrival in arrivals:
                self._parked.pop(arrival, None)
                self.unsettled -= 1
            await self._go_on()

    # --- the lock ----------------------------------------------------------------------------------

    async def renew(self) -> QueueError | None:
        """Make the lock last anew; ``None``, or why it could not be."""
        asked_at = time.monotonic()
        try:
            answer = await self._ask(REQUEST_RESPONSE_RENEW_SESSION_LOCK_OPERATION)
        except Exception as error:
            return self._mapped(error, "renew session lock")
        self.asked_at = asked_at
        self.intake.locks.saw(answer[b"expiration"] / 1_000)
        return None

    async def get_state(self) -> bytes | None:
        """What is kept with the session. Raises what the SDK raises."""
        state = (await self._ask(REQUEST_RESPONSE_GET_SESSION_STATE_OPERATION)).get(
            b"session-state"
        )
        return None if state is None else bytes(state)

    async def set_state(self, state: bytes | None) -> None:
        """Keep something with the session. Raises what the SDK raises."""
        value = None if state is None else bytearray(state)
        await self._ask(REQUEST_RESPONSE_SET_SESSION_STATE_OPERATION, {"session-state": value})

    async def _ask(self, operation: bytes, more: dict[str, Any] | None = None) -> Any:
        if self.inlet.error is not None:
            raise self.inlet.error
        body = {"session-id": self.session_id, **(more or {})}
        return await self.intake.api.manage(self.intake.entity, operation, body, link=self.inlet)

    def _lost(self, error: BaseException) -> None:
        if not self.is_over:
            self._over()
            self.intake.lost(self, error)

    def give_up(self) -> None:
        """Its lock should have ended long ago and nobody said so."""
        self._lost(LockLost(f"the lock on session {self.session_id!a} was not renewed in time"))
        self.intake.spawn(self.inlet.aclose())

    def _over(self) -> None:
        self.is_over = True
        self.buffer.clear()
        current = asyncio.current_task()
        for task in self._parked.values():
            if task is not current:
                task.cancel()

    async def release(self) -> None:
        """Its holder has done with it; a delay still under way is kept."""
        if self._parked and not self.is_over:
            self._is_released = True
            self.intake.changed()
        else:
            await self.close()

    def withdraw(self) -> asyncio.Task[Any]:
        """Give the session back, as nobody holds it; from now on nobody gets it."""
        self._over()
        self.intake.forget(self)
        return self.intake.spawn(self.inlet.aclose())

    async def close(self, *, at_once: bool = False) -> None:
        """Give the session back; what is unsettled returns to its place, uncounted but for what had failed."""
        if self.is_over:
            return
        parked = list(self._parked) if at_once else []
        self._over()
        self.intake.forget(self)
        if parked:
            await self.inlet.set_credit(0)
            await self._answers(
                await self.inlet.settle([(arrival, ABANDONED) for arrival in parked]), "abandon"
            )
        await self.inlet.aclose()


@final
class PlainSource(Source):
    """A queue without sessions: each message has a lock of its own, which outlives the link."""

    def __init__(self, intake: Intake) -> None:
        super().__init__(intake)
        self.held: dict[bytes, tuple[Inlet, Arrival]] = {}
        self.locked_at: dict[bytes, float] = {}
        self._inlet: Inlet | None = None
        self._opening: asyncio.Task[None] | None = None
        self._parked: dict[bytes, asyncio.Task[None]] = {}
        self._is_idle = True

    # --- messages ----------------------------------------------------------------------------------

    def want(self, window: int) -> None:
        """Let up to ``window`` messages be here, untaken."""
        self._is_idle = False
        inlet = self._inlet
        if inlet is None or inlet.error is not None:
            if self._opening is None:
                self._opening = self.intake.spawn(self._open(window))
            return
        room = window - len(self.buffer)
        if room > inlet.credit and inlet.credit <= window // 2:
            self.intake.spawn(inlet.set_credit(room))

    async def _open(self, window: int) -> None:
        try:
            # Messages that come while it is closed again would stay locked.
            self._inlet = await self.intake.api.inlet(
                self.intake.entity, self._arrived, self._lost, credit=0
            )
            if not self._is_idle:
                await self._inlet.set_credit(window)
        except Exception as error:
            self.intake.failed(error)
        finally:
            self._opening = None

    def _arrived(self, inlet: Inlet, arrival: Arrival) -> None:
        annotations = arrival.message.message_annotations or {}
        until = annotations.get(b"x-opt-locked-until")
        late = self.intake.locks.saw(until / 1_000 if until is not None else None)
        self.held[arrival.tag] = inlet, arrival
        self.locked_at[arrival.tag] = time.monotonic() - late
        if self._is_idle:
            self.intake.spawn(self._release([arrival]))
        else:
            self.buffer.append(arrival)
            self.intake.arrived(self)

    def _lost(self, error: BaseException) -> None:
        """The link is gone; locks are not, and what was taken can still be settled. What was not comes again."""
        self._inlet = None
        for arrival in self.buffer:
            self._drop(arrival)
        self.buffer.clear()
        self.intake.failed(error)

    def _drop(self, arrival: Arrival) -> None:
        self.held.pop(arrival.tag, None)
        self.locked_at.pop(arrival.tag, None)

    async def idle(self) -> None:
        """Nobody receives: ask for nothing, and let others have what nobody took."""
        self._is_idle = True
        if self._inlet is not None:
            await self._inlet.set_credit(0)
        arrivals = list(self.buffer)
        self.buffer.clear()
        await self._release(arrivals)

    async def _release(self, arrivals: Sequence[Arrival]) -> None:
        works = [Work(arrival, SettlementAction.RELEASE) for arrival in arrivals]
        await self.settle(works, taken=False)

    async def settle(self, works: Sequence[Work], *, taken: bool = True) -> list[QueueError | None]:
        """Settle messages; for each ``None`` when the broker has confirmed, or why not."""
        groups: dict[Inlet | None, list[Work]] = {}
        answers: dict[Work, QueueError | None] = {}
        late: list[Work] = []
        for work in works:
            inlet, _ = self.held.get(work.arrival.tag, (None, None))
            if work.delay:
                late.append(work)
            else:
                alive = inlet if inlet is not None and inlet.error is None else None
                groups.setdefault(alive, []).append(work)
        asked = [self._settle_on(inlet, group) for inlet, group in groups.items()]
        for said in await asyncio.gather(*asked, self._park(late)):
            answers.update(said)
        for work in works:
            if work not in late and is_settled(answers[work]):
                self._drop(work.arrival)
                if taken:
                    self.unsettled -= 1
        return [answers[work] for work in works]

    async def _settle_on(
        self, inlet: Inlet | None, works: Sequence[Work]
    ) -> dict[Work, QueueError | None]:
        if inlet is None:
            return {work: await self._settle_by_token(work) for work in works}
        futures = await inlet.settle([(work.arrival, work.outcome) for work in works])
        return dict(zip(works, await self._answers(futures, "settle"), strict=True))

    async def _settle_by_token(self, work: Work) -> QueueError | None:
        """Settle a message whose link is gone: its lock is not."""
        body: dict[str, Any] = {
            "disposition-status": _DISPOSITIONS[work.action],
            "lock-tokens": _tokens([work.arrival]),
        }
        if work.action is SettlementAction.DEAD_LETTER:
            body["deadletter-reason"] = work.reason
            body["deadletter-description"] = work.description
        return await self._try(
            "settle",
            self.intake.api.manage(
                self.intake.entity, REQUEST_RESPONSE_UPDATE_DISPOSTION_OPERATION, body
            ),
        )

    async def _try(self, operation: str, call: Awaitable[Any]) -> QueueError | None:
        try:
            await call
        except Exception as error:
            return self._mapped(error, operation)
        return None

    # --- locks -------------------------------------------------------------------------------------

    async def renew(self, arrivals: Sequence[Arrival]) -> list[QueueError | None]:
        """Make the locks on messages last anew; for each ``None``, or why not."""
        if not arrivals:
            return []
        asked_at = time.monotonic()
        error = await self._try("renew lock", self._renew(arrivals))
        if error is None:
            for arrival in arrivals:
                self.locked_at[arrival.tag] = asked_at
            return [None] * len(arrivals)
        if len(arrivals) == 1 or error.is_transient:
            return [error] * len(arrivals)
        # One that is over spoils the request for all.
        each = await asyncio.gather(*(self.renew([arrival]) for arrival in arrivals))
        return [answer for [answer] in each]

    async def _renew(self, arrivals: Sequence[Arrival]) -> None:
        await self.intake.api.manage(
            self.intake.entity,
            REQUEST_RESPONSE_RENEWLOCK_OPERATION,
            {"lock-tokens": _tokens(arrivals)},
            link=self._inlet,
        )

    async def _park(self, works: Sequence[Work]) -> dict[Work, QueueError | None]:
        """Keep failed messages locked for their delay; see :meth:`SessionSource._park`."""
        errors = await self.renew([work.arrival for work in works])
        for work, error in zip(works, errors, strict=True):
            if error is None:
                due = time.monotonic() + work.delay
                task = self.intake.spawn(self._give_back_at(due, work.arrival))
                self._parked[work.arrival.tag] = task
        return dict(zip(works, errors, strict=True))

    async def _give_back_at(self, due: float, arrival: Arrival) -> None:
        try:
            while (left := due - time.monotonic()) > 0:
                await asyncio.sleep(min(left, self.intake.locks.duration * _RENEW_FRACTION))
                if time.monotonic() < due:
                    [error] = await self.renew([arrival])
                    if isinstance(error, LockLost):
                        return
        finally:
            self._parked.pop(arrival.tag, None)
        await self.settle([Work(arrival, SettlementAction.ABANDON)])

    def sweep(self) -> None:
        """Forget messages whose locks are long over."""
        over = time.monotonic() - 2 * self.intake.locks.duration
        for tag in [tag for tag, since in self.locked_at.items() if since < over]:
            _, arrival = self.held[tag]
            if arrival in self.buffer:
                self.buffer.remove(arrival)
            else:
                self.unsettled -= 1
            self._drop(arrival)

    async def close(self) -> None:
        """Give everything back, and close the link."""
        self._is_idle = True
        for task in list(self._parked.values()):
            task.cancel()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))
        if self._inlet is not None:
            await self._inlet.drain()
        parked = set(self._parked)
        self.buffer.clear()
        works = [
            Work(
                arrival,
                SettlementAction.ABANDON if tag in parked else SettlementAction.RELEASE,
            )
            for tag, (_, arrival) in self.held.items()
        ]
        await self.settle(works)
        if self._inlet is not None:
            await self._inlet.aclose()


_UNSAID: Final = OperationTimeout("nothing was said")

_DISPOSITIONS: Final = {
    SettlementAction.COMPLETE: "completed",
    SettlementAction.ABANDON: "abandoned",
    SettlementAction.RELEASE: "abandoned",  # there is no gentler word for it
    SettlementAction.DEAD_LETTER: "suspended",
}


def is_settled(answer: QueueError | None) -> bool:
    """Whether nothing is left to settle: it was settled, or its lock is over."""
    return answer is None or isinstance(answer, (InvalidReceipt, LockLost))


def _tokens(arrivals: Sequence[Arrival]) -> Any:
    return array([UUID(bytes_le=arrival.tag) for arrival in arrivals])
