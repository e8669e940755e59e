"""How trio's tasks call an engine: inline or in a worker thread, signals applied, clocks translated."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeAlias, TypeVar, final

import trio

from queue_runtime.messages import QueueName

from .engine import Engine, Signals
from .waiting import Hub

__all__ = ["Clock", "Connection", "Hubs", "moment", "wall_clock"]

T = TypeVar("T")
Clock: TypeAlias = Callable[[], float]
Hubs: TypeAlias = dict[QueueName, Hub]


def wall_clock() -> Clock:
    """Wall-clock time that follows trio's clock, so that a mock clock drives it and nothing sets it back."""
    offset = time.time() - trio.current_time()
    return lambda: trio.current_time() + offset


def moment(seconds: float) -> datetime:
    """Wall-clock seconds as a datetime."""
    return datetime.fromtimestamp(seconds, UTC)


@final
class Connection:
    """One engine, and the hubs of its queues.

    Args:
        engine: The engine; its calls are made one at a time.
        clock: Wall-clock seconds. Asked in the worker thread if the engine blocks.
        hubs: Shared by the connections of one store in memory.
    """

    def __init__(self, engine: Engine, clock: Clock, hubs: Hubs) -> None:
        self.engine = engine
        self.clock = clock
        self._hubs = hubs
        self._closed = False
        self._one_at_a_time = trio.CapacityLimiter(1)

    def hub(self, queue: QueueName) -> Hub:
        """Where those wait who wait on the queue."""
        hub = self._hubs.get(queue)
        if hub is None:
            hub = self._hubs[queue] = Hub(
                self.clock, self.engine.poll_interval, lambda: self._poll(queue)
            )
        return hub

    async def _poll(self, queue: QueueName) -> None:
        signals, _ = await self.cross(queue, lambda now: self.engine.poll(queue, now))
        if signals is not None:
            self.hub(queue).apply(signals)

    async def cross(self, queue: QueueName, call: Callable[[float], T]) -> tuple[T, Signals]:
        """Make one call of the engine about ``queue``; its answer, and the signals to be applied.

        A checkpoint, before anything is done. Once the call has begun, the answer is returned also when the
        task is cancelled: what was claimed or changed is never lost sight of.

        Args:
            queue: The queue.
            call: Is given the time, and calls the engine.

        Raises:
            trio.ClosedResourceError: The connection is closed.
        """
        if self.engine.is_blocking:
            return await trio.to_thread.run_sync(
                self._call, queue, call, limiter=self._one_at_a_time
            )
        await trio.lowlevel.checkpoint()
        return self._call(queue, call)

    def _call(self, queue: QueueName, call: Callable[[float], T]) -> tuple[T, Signals]:
        if self._closed:
            raise trio.ClosedResourceError("the provider is closed")
        answer = call(self.clock())
        return answer, self.engine.take_signals(queue)

    async def call(self, queue: QueueName, call: Callable[[float], T]) -> T:
        """As :meth:`cross`, with the signals applied."""
        answer, signals = await self.cross(queue, call)
        self.hub(queue).apply(signals)
        return answer

    async def aclose(self) -> None:
        """Close the engine once no call is under way; to be called shielded. Idempotent."""
        if not self._closed:
            self._closed = True
            if self.engine.is_blocking:
                await trio.to_thread.run_sync(self.engine.close, limiter=self._one_at_a_time)
            else:
                self.engine.close()
