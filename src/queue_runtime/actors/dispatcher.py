"""The dispatcher actor: routes deliveries to session actors, spawns and retires them, counts demand."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, final

import attrs
import trio

from ..abc import Lease
from ..handlers import CloseReason, Outcome
from ..messages import Delivery, SessionId, SettlementAction
from ..policies.assignment import Demand
from ..policies.outcomes import Settle, Wait
from .environment import SessionEnvironment
from .observer import SupervisorObserver
from .session import SessionActor
from .signal import Signal

__all__ = ["Counters", "Dispatcher"]

_SPARE: Final = 32
"""Places kept free of idle sessions, or an eighth of all where that is less: with one free place sessions would be
locked, worked off and given back one after the other, each waiting for every answer of the broker."""


@attrs.define
class Counters:
    """What happened since the supervisor started, in messages; copied into statistics."""

    received: int = 0
    completed: int = 0
    abandoned: int = 0
    dead_lettered: int = 0
    given_back: int = 0
    retried: int = 0
    sessions_opened: int = 0
    locks_lost: int = 0


@final
class Dispatcher:
    """Owns the session actors of one supervisor.

    Args:
        demand: The global in-flight cap; the receivers wait on it.
        max_sessions: Most session actors at once. Some of the places are kept free of idle ones.
        max_concurrent: Most messages without a session handled at once.
        idle_timeout: Seconds without a message after which a session's lock is given back.
        observer: Told what happens, for instrumentation.

    Attributes:
        counters: What happened so far.
        demand_rose: Woken when messages were settled.
        in_flight: Messages received and not settled; ``demand`` also counts what was only asked for.
    """

    def __init__(
        self,
        demand: Demand,
        *,
        max_sessions: int,
        max_concurrent: int,
        idle_timeout: float,
        observer: SupervisorObserver,
    ) -> None:
        self.counters = Counters()
        self.demand = demand
        self.demand_rose = Signal()
        self.in_flight = 0
        self._crowd = max_sessions - min(_SPARE, max_sessions // 8)
        self._max_concurrent = max_concurrent
        self._idle_timeout = idle_timeout
        self._observer = observer
        self._environment: SessionEnvironment | None = None
        self._batches: deque[list[Delivery]] = deque()
        self._arrived = Signal()
        self._actors: dict[Lease, SessionActor] = {}
        self._sessions: dict[SessionId, SessionActor] = {}
        self._alone: deque[tuple[Lease, Sequence[Delivery]]] = deque()
        self._alone_running = 0
        self._idle: dict[SessionActor, None] = {}  # the one that is idle longest comes first
        self._first_idle = Signal()
        self._stopping: CloseReason | None = None
        self._empty = trio.Event()
        self._empty.set()
        self._quiet = trio.Event()
        self._quiet.set()
        self._nursery: trio.Nursery | None = None

    def connect(self, environment: SessionEnvironment) -> None:
        """Hand over what the session actors share; called once, before :meth:`run`."""
        self._environment = environment

    @property
    def active_sessions(self) -> int:
        """Session actors alive, the short-lived ones of messages without a session not counted."""
        return len(self._sessions)

    def backlogs(self) -> dict[SessionId, int]:
        """Deliveries waiting in the mailbox of each active session."""
        return {session_id: actor.backlog for session_id, actor in self._sessions.items()}

    def dispatch(self, batch: list[Delivery]) -> None:
        """Take a batch from a receiver; the receiver has accounted for it in ``demand``."""
        self.counters.received += len(batch)
        if not self.in_flight:
            self._quiet = trio.Event()
        self.in_flight += len(batch)
        self._batches.append(batch)
        self._arrived.wake()

    def stop_sessions(self, reason: CloseReason) -> None:
        """Tell every session to finish its current message and give the rest back."""
        self._give_back_alone()
        for actor in list(self._actors.values()):
            actor.stop(reason)

    def drain(self) -> None:
        """Stop for good: sessions finish their current message; whatever else arrives is given back."""
        self._stopping = CloseReason.DRAINED
        self._arrived.wake()
        self.stop_sessions(CloseReason.DRAINED)

    async def wait_empty(self) -> None:
        """Return when no session actor is left and nothing waits to be dispatched."""
        while self._batches or self._actors:
            if not self._batches:
                self._empty = trio.Event()
                await self._empty.wait()
            await trio.lowlevel.checkpoint()

    async def wait_settled(self) -> None:
        """Return when nothing is in flight."""
        while self.in_flight:
            await self._quiet.wait()
        await trio.lowlevel.checkpoint()

    def cancel(self) -> None:
        """After :meth:`drain`: cancel every handler. What was not dispatched goes back when the receiver closes."""
        while self._batches:
            self.settled(None, len(self._batches.popleft()))
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def run(self) -> None:
        """Dispatch until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._retire_idle)
            while True:
                await self._arrived.wait()
                batches = self._batches
                while batches:
                    batch = batches.popleft()
                    start, count = 0, len(batch)
                    while start < count:
                        # Providers hand out several messages of a session in a row.
                        lease = batch[start].lease
                        end = start + 1
                        while end < count and batch[end].lease is lease:
                            end += 1
                        self._route(lease, batch[start:end])
                        start = end
                if not self._actors:
                    self._empty.set()

    def _route(self, lease: Lease, deliveries: Sequence[Delivery]) -> None:
        actor = self._actors.get(lease)
        if actor is None:
            if lease.released or lease.lost is not None:
                # Given back, or lost, while they were on their way here: the broker has them again.
                self.settled(None, len(deliveries))
                return
            if lease.session_id is None:
                if self._alone_running >= self._max_concurrent:
                    self._keep_waiting(lease, deliveries)
                    return
                self._alone_running += 1
            actor = self._spawn(lease)
        else:
            self._idle.pop(actor, None)
        actor.deliver(deliveries)

    def _spawn(self, lease: Lease) -> SessionActor:
        assert self._environment is not None
        assert self._nursery is not None
        predecessor = None
        session_id = lease.session_id
        if session_id is not None:
            older = self._sessions.get(session_id)
            predecessor = None if older is None else older.finished
        actor = SessionActor(lease, self._environment, predecessor)
        self._actors[lease] = actor
        if session_id is not None:
            self._sessions[session_id] = actor
            self.counters.sessions_opened += 1
            self._observer.session_opened(lease)
            if self._idle and len(self._sessions) >= self._crowd:
                self._retire(next(iter(self._idle)))
        if self._stopping is not None:
            actor.stop(self._stopping)
        self._nursery.start_soon(actor.run)
        return actor

    def _keep_waiting(self, lease: Lease, deliveries: Sequence[Delivery]) -> None:
        assert self._environment is not None
        self._environment.keeper.hold(lease, _nothing)
        self._alone.append((lease, deliveries))

    def _give_back_alone(self) -> None:
        assert self._environment is not None
        while self._alone:
            lease, deliveries = self._alone.popleft()
            self._environment.keeper.release(lease)
            self.settled(None, len(deliveries))

    # What the session actors report (environment.SessionObserver).

    def settled(self, action: SettlementAction | None, count: int) -> None:
        """``count`` messages are no longer in flight."""
        counters = self.counters
        if action is SettlementAction.COMPLETE:
            counters.completed += count
        elif action is None:
            counters.given_back += count
        elif action is SettlementAction.DEAD_LETTER:
            counters.dead_lettered += count
        else:
            counters.abandoned += count
        self.in_flight -= count
        if not self.in_flight:
            self._quiet.set()
        self.demand.settled(count)
        self.demand_rose.wake()

    def failed(
        self, delivery: Delivery, result: BaseException | Outcome, decision: Settle | Wait | object
    ) -> None:
        """A handler did not complete a message."""
        if not isinstance(decision, Settle):
            self.counters.retried += 1
        self._observer.handler_failed(delivery, result, decision)

    def idle(self, actor: SessionActor) -> None:
        """The actor has nothing to do. Near the session limit it makes room at once for one that has."""
        if not self._idle_timeout or len(self._sessions) >= self._crowd:
            actor.stop(CloseReason.IDLE)
            return
        actor.last_active = trio.current_time()
        if not self._idle:
            self._first_idle.wake()
        self._idle.pop(actor, None)
        self._idle[actor] = None

    def closed(self, actor: SessionActor, reason: CloseReason) -> None:
        """The actor is gone."""
        lease = actor.lease
        del self._actors[lease]
        if reason is CloseReason.LOCK_LOST:
            self.counters.locks_lost += 1
        session_id = lease.session_id
        if session_id is None:
            self._alone_running -= 1
            while self._alone and self._alone_running < self._max_concurrent:
                self._route(*self._alone.popleft())
        else:
            if self._sessions.get(session_id) is actor:
                del self._sessions[session_id]
            self._idle.pop(actor, None)
            self._observer.session_closed(lease, reason, actor.handled)
        if not self._actors:
            self._empty.set()

    # Idle sessions.

    def _retire(self, actor: SessionActor) -> None:
        del self._idle[actor]
        actor.stop(CloseReason.IDLE)

    async def _retire_idle(self) -> None:
        while True:
            if not self._idle:
                await self._first_idle.wait()
                continue
            longest = next(iter(self._idle))
            due = longest.last_active + self._idle_timeout
            if due > trio.current_time():
                await trio.sleep_until(due)
            else:
                self._retire(longest)


def _nothing() -> None:
    """A message that still waits for its turn has no scope to extend."""
