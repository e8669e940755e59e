"""What is sent and handled: the same for the runtime and for the programs beside it."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import final

import attrs
import trio

from queue_runtime import Delivery, Message, QueueClient

__all__ = ["SessionOrder", "Tally", "Workload", "peak_memory", "publish"]


@final
@attrs.frozen
class Workload:
    """Messages of one size over sessions in turn.

    Args:
        messages: How many.
        sessions: Over how many sessions; 0: none, for brokers without any.
        size: Bytes of a body.
    """

    messages: int = 20_000
    sessions: int = 100
    size: int = 1_024

    def generate(self, count: int | None = None, *, prefix: str = "session") -> Iterator[Message]:
        """``count`` messages (all by default), sessions taking turns."""
        body = b"x" * self.size
        for number in range(self.messages if count is None else count):
            session_id = f"{prefix}-{number % self.sessions}" if self.sessions else None
            yield Message(body, session_id=session_id)


@final
class SessionOrder:
    """Checks that each session's messages come in order.

    Attributes:
        violations: How many did not.
    """

    def __init__(self) -> None:
        self.violations = 0
        self._last: dict[str | None, int] = {}

    def note(self, session_id: str | None, position: int) -> None:
        """A message of the session came; ``position`` grows from one to the next."""
        last = self._last
        if session_id is not None and position <= last.get(session_id, -1):
            self.violations += 1
        last[session_id] = position


@final
class Tally:
    """Counts what handlers get and checks each session's order; as a handler it does nothing else.

    Args:
        expected: ``done`` is set after so many messages.
    """

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.handled = 0
        self.order = SessionOrder()
        self.done = trio.Event()

    async def handle(self, delivery: Delivery) -> None:
        """The no-op handler."""
        self.order.note(delivery.session_id, delivery.sequence_number or 0)
        self.handled += 1
        if self.handled == self.expected:
            self.done.set()

    @property
    def order_violations(self) -> int:
        """Messages that came out of their session's order."""
        return self.order.violations


async def publish(
    client: QueueClient, queue: str, workload: Workload, *, batch: int = 500, lanes: int = 1
) -> float:
    """Send the workload in batches; messages per second. Raises the first refusal.

    Args:
        client: Sends.
        queue: Where to.
        workload: What.
        batch: Most messages of one ``send_batch``.
        lanes: Tasks that share the sessions among them, so that each session stays in order.
    """
    shares: list[list[Message]] = [[] for _ in range(lanes)]
    for number, message in enumerate(workload.generate()):
        shares[number % (workload.sessions or lanes) % lanes].append(message)

    async def send(messages: list[Message]) -> None:
        for start in range(0, len(messages), batch):
            for result in await client.send_batch(queue, messages[start : start + batch]):
                if result.error is not None:
                    raise result.error

    began = time.perf_counter()
    if lanes == 1:
        await send(shares[0])
    else:
        async with trio.open_nursery() as nursery:
            for messages in shares:
                nursery.start_soon(send, messages)
    return workload.messages / (time.perf_counter() - began)


def peak_memory() -> float:
    """The largest resident set this process had, in MiB (Linux counts ``ru_maxrss`` in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
