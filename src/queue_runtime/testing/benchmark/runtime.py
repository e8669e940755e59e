"""The runtime at work: drained, and fed at a fixed rate."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from queue_runtime import (
    Delivery,
    Message,
    QueueClient,
    SettlementMode,
    Supervisor,
    SupervisorConfig,
    open_supervisor,
)

from .workload import Tally

__all__ = ["Arrivals", "drained", "offer", "percentile", "supervised"]


@asynccontextmanager
async def supervised(
    client: QueueClient,
    queue: str,
    tally: Tally,
    mode: SettlementMode,
    *,
    idle_timeout: float = 5.0,
    receive_timeout: float = 20.0,
) -> AsyncIterator[Supervisor]:
    """A supervisor whose sessions share ``tally`` as their handler."""
    config = SupervisorConfig(
        settlement=mode, idle_timeout=idle_timeout, receive_timeout=receive_timeout
    )
    async with open_supervisor(client, queue, lambda: tally, config=config) as supervisor:
        yield supervisor


async def drained(client: QueueClient, queue: str, tally: Tally, mode: SettlementMode) -> float:
    """Handle what is queued, until ``tally`` has all it expects; messages per second, settlements included."""
    began = time.perf_counter()
    async with supervised(client, queue, tally, mode) as supervisor:
        await tally.done.wait()
        await supervisor.wait_settled()
        return tally.handled / (time.perf_counter() - began)


class Arrivals:
    """Handles messages and notes how long each was under way, from when it was *due* to be sent.

    Measured from the schedule, not from the actual send, a sender that falls behind does not hide the delay
    (Gil Tene's "coordinated omission").
    """

    def __init__(self, expected: int) -> None:
        self.latencies: list[float] = []
        self.expected = expected
        self.done = trio.Event()
        self._due: dict[str, float] = {}

    def expect(self, message_id: str, due: float) -> None:
        """``message_id`` is to be sent at ``due`` (``trio.current_time()``)."""
        self._due[message_id] = due

    async def handle(self, delivery: Delivery) -> None:
        """The no-op handler of the measured messages; others pass."""
        due = self._due.pop(delivery.message_id, None)
        if due is not None:
            self.latencies.append(trio.current_time() - due)
            if len(self.latencies) == self.expected:
                self.done.set()


async def offer(
    client: QueueClient,
    queue: str,
    arrivals: Arrivals,
    *,
    rate: float,
    make: Callable[[int], Message],
) -> None:
    """Send the expected number of messages, evenly spaced, each by a task of its own."""
    begin = trio.current_time() + 0.05
    async with trio.open_nursery() as nursery:
        for number in range(arrivals.expected):
            due = begin + number / rate
            await trio.sleep_until(due)
            message = make(number)
            arrivals.expect(str(message.message_id), due)
            nursery.start_soon(client.send, queue, message)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the smallest value that at least ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
