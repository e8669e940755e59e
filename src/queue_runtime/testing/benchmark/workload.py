"""What is sent and handled: the same for the runtime and for the programs beside it."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import final

import attrs
import trio

from queue_runtime import Delivery, Message, QueueClient

__all__ = ["Tally", "Workload", "peak_memory", "publish"]


@final
@attrs.frozen
class Workload:
    """Messages of one size over sessions in turn.

    Args:
        messages: How many.
        sessions: Over how many sessions.
        size: Bytes of a body.
    """

    messages: int = 20_000
    sessions: int = 100
    size: int = 1_024

    def generate(self, count: int | None = None, *, prefix: str = "session") -> Iterator[Message]:
        """``count`` messages (all by default), sessions taking turns."""
        body = b"x" * self.size
        for number in range(self.messages if count is None else count):
            yield Message(body, session_id=f"{prefix}-{number % self.sessions}")


@final
class Tally:
    """Counts what handlers get and checks each session's order; as a handler it does nothing else.

    Args:
        expected: ``done`` is set after so many messages.
    """

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.handled = 0
        self.order_violations = 0
        self.done = trio.Event()
        self._last: dict[str | None, int] = {}

    async def handle(self, delivery: Delivery) -> None:
        """The no-op handler."""
        position = delivery.sequence_number or 0
        session_id = delivery.session_id
        last = self._last
        if session_id is not None and position <= last.get(session_id, -1):
            self.order_violations += 1
        last[session_id] = position
        self.handled += 1
        if self.handled == self.expected:
            self.done.set()


async def publish(
    client: QueueClient, queue: str, workload: Workload, *, batch: int = 500
) -> float:
    """Send the workload in batches; messages per second. Raises the first refusal."""
    messages = list(workload.generate())
    began = time.perf_counter()
    for start in range(0, len(messages), batch):
        for result in await client.send_batch(queue, messages[start : start + batch]):
            if result.error is not None:
                raise result.error
    return len(messages) / (time.perf_counter() - began)


def peak_memory() -> float:
    """The largest resident set this process had, in MiB (Linux counts ``ru_maxrss`` in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
