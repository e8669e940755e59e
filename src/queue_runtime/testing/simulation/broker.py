"""The broker of a simulated world: the real one in memory, watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, cast, final

import trio

from ...abc import Lease, Provider
from ...messages import QueueName, SessionId, Settlement
from ...providers.memory.connection import Hubs
from ...providers.memory.engine import Engine, QueueOptions, Refusal
from ...providers.memory.heap_engine import HeapEngine, HeapStore
from ...providers.memory.heap_queue import HeapQueue
from ...providers.memory.provider import MemoryProvider

__all__ = ["EPOCH", "QUEUE", "SimulatedBroker"]

EPOCH: Final = 1_700_000_000.0
"""Wall-clock seconds at the start of every run: a real one would round differently each time."""

QUEUE: Final = QueueName("work")


@final
class SimulatedBroker:
    """One store that any number of nodes connect to, each through a provider of its own.

    Args:
        options: The broker's rules.
        violated: Told when the fence let something through that it must not.
    """

    def __init__(self, options: QueueOptions, violated: Callable[[str], None]) -> None:
        self._store = HeapStore()
        self._hubs: Hubs = {}
        self._options = options
        self._violated = violated
        self._start = trio.current_time()

    def now(self) -> float:
        """The broker's wall clock."""
        return EPOCH + trio.current_time() - self._start

    def connect(self) -> Provider:
        """A connection for one node."""
        engine = _WatchedEngine(HeapEngine(self._store, self._options), self._store, self._violated)
        return MemoryProvider(cast(Engine, engine), self.now, self._hubs)

    @property
    def queue(self) -> HeapQueue:
        """The state of the queue, with everything due moved."""
        queue = self._store.queues[QUEUE]
        queue.advance(self.now(), self._options)
        return queue


@final
class _WatchedEngine:
    """An engine whose fence is checked from outside: whose lock is current is asked of the store, not of it."""

    is_blocking: ClassVar[bool] = HeapEngine.is_blocking
    poll_interval: ClassVar[float | None] = HeapEngine.poll_interval

    def __init__(
        self, engine: HeapEngine, store: HeapStore, violated: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._store = store
        self._violated = violated

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _holds(self, queue: QueueName, holder: str, lease: Lease, now: float) -> bool:
        lock = self._store.queues[queue].locks.get(lease.token)
        return lock is not None and lock.until > now and lock.holder.id == holder

    def settle(
        self, queue: QueueName, holder: str, settlements: Sequence[Settlement], now: float
    ) -> list[Refusal | None]:
        held = [self._holds(queue, holder, each.delivery.lease, now) for each in settlements]
        answers = self._engine.settle(queue, holder, settlements, now)
        for settlement, is_held, answer in zip(settlements, held, answers, strict=True):
            if answer is None and not is_held:
                lease = settlement.delivery.lease
                self._violated(
                    f"{settlement.action.value} of {settlement.delivery.message_id!a} was accepted under "
                    f"token {lease.token}, which is not current"
                )
        return answers

    def release(self, queue: QueueName, holder: str, leases: Sequence[Lease], now: float) -> None:
        before = {
            lease.session_id: self._token(queue, lease.session_id, now)
            for lease in leases
            if lease.session_id is not None
        }
        self._engine.release(queue, holder, leases, now)
        named = {lease.token for lease in leases}
        for session_id, current in before.items():
            if current not in (None, *named) and current != self._token(queue, session_id, now):
                self._violated(f"releasing {named} freed token {current} of session {session_id!r}")

    def _token(self, queue: QueueName, session_id: SessionId | None, now: float) -> int | None:
        lane = None if session_id is None else self._store.queues[queue].lanes.get(session_id)
        lock = None if lane is None else lane.lock
        return lock.token if lock is not None and lock.until > now else None
