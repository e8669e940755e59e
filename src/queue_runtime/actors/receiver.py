"""The receiver actor: asks the provider for batches, as many as there is demand for."""

from __future__ import annotations

from random import random
from typing import final

import trio

from ..abc import Receiver
from ..errors import CircuitOpen, QueueError
from ..messages import Delivery
from ..policies.backoff import RetryPolicy
from ..policies.batching import AdaptiveBatch, ReceiveConcurrency
from ..policies.breaker import BreakerState
from .breaker import Breaker
from .dispatcher import Dispatcher

__all__ = ["ReceiverActor"]

_TOP_UP_DELAY = 0.002
"""Seconds a small demand may wait to grow; a batch costs as much as some ten messages."""
_OVERDUE = 10.0
"""Seconds beyond its timeout after which a call counts as stuck."""
_PROBE_DELAY = 0.01
"""Seconds to wait while somebody else's call is the breaker's probe."""


@final
class ReceiverActor:
    """Keeps receive calls under way while there is room, and feeds the dispatcher.

    How much one call asks for follows how fast messages are handled, within what a call returns at most; how
    many calls are under way follows how full they come back: one more after a full one, one less after an
    empty one, so that an idle queue is asked by one call at a time.

    Args:
        receiver: The provider's receiver.
        dispatcher: Where batches go, and whose demand is served.
        breaker: Gates the calls.
        handler_breaker: While it is open nothing is received; half-open, one message at a time.
        retry: Spaces calls that fail with a transient error; the last delay repeats for ever.
        timeout: Seconds one call waits for messages.
        batch: How many messages one call asks for; its maximum is at most what the broker's calls return, or
            no call would ever count as full.
        max_concurrency: Most calls under way at once.
    """

    def __init__(
        self,
        receiver: Receiver,
        dispatcher: Dispatcher,
        breaker: Breaker,
        handler_breaker: Breaker | None,
        retry: RetryPolicy,
        *,
        timeout: float,
        batch: AdaptiveBatch,
        max_concurrency: int,
    ) -> None:
        self._receiver = receiver
        self._dispatcher = dispatcher
        self._breaker = breaker
        self._handler_breaker = handler_breaker
        self._retry = retry
        self._timeout = timeout
        self._batch = batch
        self._several = max_concurrency > 1
        self._concurrency = ReceiveConcurrency(max_concurrency)
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()
        self._calls = 0
        self._under_way: dict[object, float] = {}  # when each call began, the oldest first
        self._failures = 0
        self._fatal: QueueError | None = None
        self._settled_before = 0
        self._observed_at = 0.0

    def wedged(self, now: float) -> bool:
        """Whether a call is overdue: it neither answered nor failed long after its timeout."""
        began = next(iter(self._under_way.values()), now)
        return now - began > self._timeout + _OVERDUE

    async def stop(self) -> None:
        """Cancel what is under way and return when nothing more will be received."""
        self._scope.cancel()
        await self._stopped.wait()

    async def run(self) -> None:
        """Receive until stopped.

        Raises:
            QueueError: A permanent one: the queue is gone, the credentials are refused …
        """
        try:
            with self._scope:
                self._observed_at = trio.current_time()
                async with trio.open_nursery() as nursery:
                    while not self._scope.cancel_called:
                        count = await self._wait_for_demand()
                        self._calls += 1
                        if not self._several:
                            await self._receive(count)
                        else:
                            nursery.start_soon(self._receive, count)
                            await self._wait_for_call()
        finally:
            self._stopped.set()
        if self._fatal is not None:
            raise self._fatal

    async def _wait_for_call(self) -> None:
        while self._calls >= self._concurrency.size:
            await self._dispatcher.demand_rose.wait()

    async def _wait_for_demand(self) -> int:
        """Take as much of the demand as one call should ask for; wait until there is some."""
        dispatcher = self._dispatcher
        demand = dispatcher.demand
        while True:
            if self._breaker.state.value is BreakerState.OPEN:
                await self._breaker.wait_admitting()
            probing = False
            if self._handler_breaker is not None:
                if self._handler_breaker.state.value is BreakerState.OPEN:
                    await self._handler_breaker.wait_admitting()
                probing = self._handler_breaker.state.value is BreakerState.HALF_OPEN
            if not demand.available or (probing and dispatcher.in_flight):
                await dispatcher.demand_rose.wait()
                continue
            if demand.nearly_full and not probing:
                with trio.move_on_after(_TOP_UP_DELAY):
                    while demand.nearly_full:
                        await dispatcher.demand_rose.wait()
            count = 1 if probing else min(demand.available, self._batch.size)
            demand.taken(count)
            return count

    async def _receive(self, count: int) -> None:
        dispatcher = self._dispatcher
        received = 0
        # A probe looks once: while it is under way no lease could be renewed and nothing be settled.
        is_probe = self._breaker.state.value is not BreakerState.CLOSED
        timeout = 0.0 if is_probe else self._timeout
        try:
            batch = await self._breaker.call(self._timed, count, timeout)
            received = len(batch)
            if batch:
                dispatcher.dispatch(batch)
                self._observe()
            self._concurrency.observe(count, received)
            self._failures = 0
        except CircuitOpen as error:
            await trio.sleep(max(error.retry_after or 0.0, _PROBE_DELAY))
        except QueueError as error:
            if not error.is_transient:
                # Kept out of the nursery, which would wrap it.
                self._fatal = error
                self._scope.cancel()
                return
            self._failures += 1
            delay = self._retry.delay(self._failures, retry_after=error.retry_after, random=random)
            if delay is None:
                delay = max(self._retry.max_delay, error.retry_after or 0.0)
            await trio.sleep(delay)
        finally:
            self._calls -= 1
            dispatcher.demand.settled(count - received)
            dispatcher.demand_rose.wake()

    async def _timed(self, count: int, timeout: float) -> list[Delivery]:
        call = object()
        self._under_way[call] = trio.current_time()
        try:
            return await self._receiver.receive(count, timeout)
        finally:
            del self._under_way[call]

    def _observe(self) -> None:
        """Tell the adaptive batch how long messages took since it was last told."""
        now = trio.current_time()
        counters = self._dispatcher.counters
        settled = counters.completed + counters.abandoned + counters.dead_lettered
        if settled > self._settled_before:
            self._batch.observe(settled - self._settled_before, now - self._observed_at)
            self._settled_before = settled
        self._observed_at = now
