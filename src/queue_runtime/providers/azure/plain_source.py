"""A queue without sessions: one link, and a lock for each message. On the bridge's loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final, Protocol, final

import attrs
from azure.servicebus._common.constants import REQUEST_RESPONSE_RENEWLOCK_OPERATION

from queue_runtime.errors import QueueError
from queue_runtime.messages import SettlementAction

from .inlet import Arrival, Inlet, settled_before
from .settling import Work, is_settled, lock_tokens
from .sources import Owner, Source

__all__ = ["PlainOwner", "PlainSource"]

_STALE: Final = 0.5
"""Part of a lock's duration after which a message that nobody took is given back: whoever took it would have little
of the lock left, or none, and one that ends here counts as tried."""


class PlainOwner(Owner, Protocol):
    """What a queue without sessions needs of the intake that it belongs to."""

    def failed(self, error: BaseException) -> None:
        """Asking for messages failed: who waits for them is told."""
        ...


@final
@attrs.define(eq=False)
class _Held:
    """A message whose lock is ours.

    Args:
        arrival: The message.
        inlet: The link that it came by.
        locked_at: ``time.monotonic()`` when its lock began, or before it was last renewed.
        came_at: ``time.monotonic()`` when it came.
    """

    arrival: Arrival
    inlet: Inlet
    locked_at: float
    came_at: float = attrs.field(factory=time.monotonic)


@final
class PlainSource(Source):
    """A queue without sessions: each message has a lock of its own, which outlives the link."""

    def __init__(self, owner: PlainOwner) -> None:
        super().__init__(owner)
        self._owner: PlainOwner
        self._held: dict[bytes, _Held] = {}
        self._inlet: Inlet | None = None
        self._opening: asyncio.Task[None] | None = None
        self._is_idle = True
        self._window = 0

    # --- messages ----------------------------------------------------------------------------------

    def want(self, window: int) -> None:
        """Let up to ``window`` messages be here, untaken."""
        self._is_idle = False
        self._window = window
        inlet = self._inlet
        if inlet is None or inlet.error is not None:
            if self._opening is None:
                self._opening = self._owner.spawn(self._open(window))
            return
        room = window - len(self.buffer)
        if not inlet.is_draining and room > inlet.credit and inlet.credit <= window // 2:
            self._owner.spawn(self._let_come(inlet, room))

    async def _let_come(self, inlet: Inlet, room: int) -> None:
        if not self._is_idle:  # since it was wanted
            await inlet.set_credit(room)

    async def _open(self, window: int) -> None:
        try:
            # Messages that come while it is closed again would stay locked.
            self._inlet = await self._owner.api.inlet(
                self._owner.entity, self._arrived, self._lost, credit=0
            )
            if not self._is_idle:
                await self._inlet.set_credit(window)
        except Exception as error:
            self._owner.failed(error)
        finally:
            self._opening = None

    def _arrived(self, inlet: Inlet, arrival: Arrival) -> None:
        annotations = arrival.message.message_annotations or {}
        until = annotations.get(b"x-opt-locked-until")
        late = self._owner.locks.saw(until / 1_000 if until is not None else None)
        self._held[arrival.tag] = _Held(arrival, inlet, time.monotonic() - late)
        if self._is_idle:
            self._owner.spawn(self._release([arrival]))
        else:
            self.buffer.append(arrival)
            self._owner.arrived(self)

    def _lost(self, error: BaseException) -> None:
        """The link is gone; locks are not, and what was taken can still be settled. What was not comes again."""
        self._inlet = None
        for arrival in self.buffer:
            self._forget(arrival)
        self.buffer.clear()
        self._owner.failed(error)

    def take(self, most: int) -> list[Arrival]:
        """Hand out up to ``most`` messages that did not wait here for long."""
        self._give_back_stale()
        return super().take(most)

    def _give_back_stale(self) -> None:
        before = time.monotonic() - _STALE * self._owner.locks.duration
        stale: list[Arrival] = []
        while self.buffer and self._held[self.buffer[0].tag].came_at < before:
            stale.append(self.buffer.popleft())
        if stale:
            self._owner.spawn(self._release(stale))
            if not self._is_idle:
                self.want(self._window)

    async def idle(self) -> None:
        """Nobody receives: ask for nothing, and let others have what nobody took."""
        self._is_idle = True
        inlet = self._inlet
        arrivals = list(self.buffer)
        self.buffer.clear()
        self._owner.spawn(self._release(arrivals))
        if inlet is None:
            return
        # Were its credit only lowered, whoever closes it next would not know what is on its way, and stays locked.
        [error] = await self._answers([await inlet.take_back_credit()], "drain")
        if error is not None and self._inlet is inlet:
            self._inlet = None
            await inlet.aclose()
        if not self._is_idle:  # any more
            self.want(self._window)

    async def _release(self, arrivals: Sequence[Arrival]) -> None:
        """Give back what nobody took."""
        await self.settle([Work(arrival, SettlementAction.RELEASE) for arrival in arrivals])

    # --- settling ----------------------------------------------------------------------------------

    async def settle(self, works: Sequence[Work]) -> list[QueueError | None]:
        """Settle messages; for each ``None`` when the broker has confirmed, or why not."""
        answers: dict[Work, QueueError | None] = {}
        groups: dict[Inlet | None, list[Work]] = {}
        late: list[Work] = []
        for work in works:
            held = self._held.get(work.arrival.tag)
            if held is None:
                answers[work] = settled_before()
            elif work.delay:
                late.append(work)
            else:
                self._recall([work])
                is_told = held.inlet.error is None and work.arrival.tag not in self._open_ends
                groups.setdefault(held.inlet if is_told else None, []).append(work)
        settling = [self._settle_on(inlet, group) for inlet, group in groups.items()]
        for said in await asyncio.gather(*settling, self._delay(late)):
            answers |= said
        return [answers[work] for work in works]

    async def _settle_on(
        self, inlet: Inlet | None, works: Sequence[Work]
    ) -> dict[Work, QueueError | None]:
        if inlet is None:
            answers = await asyncio.gather(*map(self._settle_by_token, works))
        else:
            futures = await inlet.settle([(work.arrival, work.outcome) for work in works])
            answers = await self._told(works, futures)
        for work, answer in zip(works, answers, strict=True):
            if is_settled(answer):
                self._forget(work.arrival)
        return dict(zip(works, answers, strict=True))

    # --- delays ------------------------------------------------------------------------------------

    async def _delay(self, works: Sequence[Work]) -> dict[Work, QueueError | None]:
        """Keep failed messages locked for their delay: Service Bus has none of its own.

        That the lock was just renewed is what there is to confirm.
        """
        errors = await self.renew([work.arrival for work in works])
        for work, error in zip(works, errors, strict=True):
            if error is None:
                self._recall([work])
                self._delayed[work.arrival] = work, self._owner.spawn(self._abandon_late(work))
        return dict(zip(works, errors, strict=True))

    async def _abandon_late(self, work: Work) -> None:
        async def renew() -> QueueError | None:
            [error] = await self.renew([work.arrival])
            return error

        still_ours = await self._keep(work.delay, renew)
        del self._delayed[work.arrival]
        if still_ours:
            await self.settle([work.at_once])

    # --- locks -------------------------------------------------------------------------------------

    def locked_at(self, arrival: Arrival) -> float:
        """``time.monotonic()`` when the lock on a message began. May be called from trio's thread."""
        held = self._held.get(arrival.tag)
        return time.monotonic() if held is None else held.locked_at

    async def renew(self, arrivals: Sequence[Arrival]) -> list[QueueError | None]:
        """Make the locks on messages last anew; for each ``None``, or why not."""
        if not arrivals:
            return []
        error = await self._try("renew lock", self._renew(arrivals))
        if error is None or len(arrivals) == 1 or error.is_transient:
            return [error] * len(arrivals)
        # One that is over spoils the request for all.
        each = await asyncio.gather(*(self.renew([arrival]) for arrival in arrivals))
        return [answer for [answer] in each]

    async def _renew(self, arrivals: Sequence[Arrival]) -> None:
        asked_at = time.monotonic()
        await self._owner.api.manage(
            self._owner.entity,
            REQUEST_RESPONSE_RENEWLOCK_OPERATION,
            {"lock-tokens": lock_tokens(arrivals)},
            link=self._inlet,
        )
        for arrival in arrivals:
            held = self._held.get(arrival.tag)
            if held is not None:
                held.locked_at = asked_at

    def sweep(self) -> None:
        """Give back what nobody takes, and forget messages whose locks are long over."""
        self._give_back_stale()
        over = time.monotonic() - 2 * self._owner.locks.duration
        for held in [held for held in self._held.values() if held.locked_at < over]:
            if held.arrival in self.buffer:
                self.buffer.remove(held.arrival)
            self._forget(held.arrival)

    def _forget(self, arrival: Arrival) -> None:
        self._held.pop(arrival.tag, None)
        self._open_ends.pop(arrival.tag, None)

    async def close(self) -> None:
        """Give everything back, and close the link."""
        self._is_idle = True
        delayed = {arrival: work for arrival, (work, _) in self._delayed.items()}
        for _, task in self._delayed.values():
            task.cancel()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))
        if self._inlet is not None:
            await self._inlet.drain()
        self.buffer.clear()
        works = [
            delayed[held.arrival].at_once
            if held.arrival in delayed
            else Work(held.arrival, SettlementAction.RELEASE)
            for held in self._held.values()
        ]
        await self.settle(works)
        if self._inlet is not None:
            await self._inlet.aclose()
