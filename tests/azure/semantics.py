"""What the tests of the emulator's semantics share: a clock to set, a client that remembers, a queue of both."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from queue_runtime.testing.servicebus.entities import (
    Consumer,
    Content,
    Outcome,
    QueueSettings,
    Stored,
)
from queue_runtime.testing.servicebus.namespace import Namespace
from queue_runtime.testing.servicebus.queue import Queue
from queue_runtime.testing.servicebus.refusals import Refused


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


class Client:
    """A receiver that keeps all it is told."""

    def __init__(self, queue: Queue, *, settles: bool = True) -> None:
        self.queue = queue
        self.consumer = Consumer(self, settles=settles)
        self.got: list[tuple[Stored, UUID | None]] = []
        self.session: str | None = None
        self.until = 0.0
        self.refusal: Refused | None = None

    def deliver(self, message: Stored, token: UUID | None) -> None:
        self.got.append((message, token))

    def granted(self, session_id: str, until: float) -> None:
        self.session, self.until = session_id, until

    def lost(self, refusal: Refused) -> None:
        self.session, self.refusal = None, refusal

    def attach(self, credit: int = 0) -> Client:
        self.queue.attach(self.consumer)
        self.queue.flow(self.consumer, credit)
        return self

    def accept(self, session_id: str | None = None, timeout: float = 10.0) -> Client:
        self.queue.accept(self.consumer, session_id, timeout)
        return self

    def take(self, credit: int = 1) -> list[tuple[Stored, UUID]]:
        """What comes at once for so much credit, which is then withdrawn."""
        before = len(self.got)
        self.queue.flow(self.consumer, credit)
        self.queue.flow(self.consumer, 0)
        return [(message, token) for message, token in self.got[before:] if token is not None]

    def take_bodies(self, credit: int = 100) -> list[Any]:
        return bodies(message for message, _ in self.take(credit))

    def settle(self, token: UUID, outcome: Outcome, **words: Any) -> None:
        self.queue.settle([token], outcome, self.consumer, **words)

    def detach(self, *, closed: bool = True) -> None:
        self.queue.detach(self.consumer, closed=closed)


def bodies(messages: Any) -> list[Any]:
    return [message.content.payload for message in messages]


def new_queue(clock: Clock, **settings: Any) -> Queue:
    return Namespace(clock).create("q", QueueSettings(**settings))


def put(queue: Queue, *payloads: Any, **fields: Any) -> list[int]:
    return queue.send([Content(payload=payload, size=1, **fields) for payload in payloads])
