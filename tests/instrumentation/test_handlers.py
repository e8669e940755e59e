from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import trio
from trio.testing import MockClock

from queue_runtime.abc import Lease
from queue_runtime.handlers import CloseReason, Complete, Outcome, Retry, Session
from queue_runtime.instrumentation import (
    Event,
    HandlerFinished,
    Instruments,
    instrument_handlers,
)
from queue_runtime.messages import Delivery, Message, MessageId, QueueName

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
LEASE = Lease(None, 1, math.inf, NOON)
DELIVERY = Delivery(Message(b""), MessageId("m-1"), "r", LEASE, 3, NOON)


class Handler:
    """Takes a quarter of a second and does as it is told."""

    def __init__(self, result: Outcome | BaseException | None = None) -> None:
        self.result = result
        self.seen: list[object] = []

    async def opened(self, session: Session) -> None:
        self.seen.append(session)

    async def handle(self, delivery: Delivery) -> Outcome | None:
        self.seen.append(delivery)
        await trio.sleep(0.25)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    async def closed(self, reason: CloseReason) -> None:
        self.seen.append(reason)


class OnlyHandle:
    async def handle(self, delivery: Delivery) -> Outcome | None:
        return None


def wrap(make_handler: Callable[[], object]) -> tuple[Handler, list[Event]]:
    events: list[Event] = []
    instruments = Instruments([events.append])
    made = instrument_handlers(make_handler, instruments, QueueName("orders"), "memory")()
    return made, events


def test_nothing_is_wrapped_when_nobody_listens() -> None:
    assert instrument_handlers(Handler, Instruments(), QueueName("orders"), "memory") is Handler


@pytest.mark.parametrize(
    ("returned", "outcome"),
    [(None, Complete()), (Complete(), Complete()), (Retry(2.0), Retry(2.0))],
)
async def test_what_is_returned(
    autojump_clock: MockClock, returned: Outcome | None, outcome: Outcome
) -> None:
    inner = Handler(returned)
    handler, events = wrap(lambda: inner)
    assert await handler.handle(DELIVERY) is returned
    (event,) = events
    assert isinstance(event, HandlerFinished)
    assert (event.queue, event.provider) == ("orders", "memory")
    assert event.delivery is DELIVERY
    assert (event.outcome, event.error_type) == (outcome, None)
    assert (event.attempt, event.duration) == (3, 0.25)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1)])
async def test_what_is_raised(autojump_clock: MockClock, error: BaseException) -> None:
    handler, events = wrap(lambda: Handler(error))
    with pytest.raises(type(error)) as caught:
        await handler.handle(DELIVERY)
    assert caught.value is error
    (event,) = events
    assert isinstance(event, HandlerFinished)
    assert (event.outcome, event.error_type, event.duration) == (None, type(error), 0.25)


async def test_cancellation(autojump_clock: MockClock) -> None:
    handler, events = wrap(Handler)
    with trio.move_on_after(0.125) as scope:
        await handler.handle(DELIVERY)
    assert scope.cancelled_caught
    (event,) = events
    assert isinstance(event, HandlerFinished)
    assert (event.outcome, event.error_type, event.duration) == (None, trio.Cancelled, 0.125)


async def test_opened_and_closed_pass() -> None:
    inner = Handler()
    handler, events = wrap(lambda: inner)
    session = Session.__new__(Session)
    await handler.opened(session)
    await handler.closed(CloseReason.IDLE)
    assert inner.seen == [session, CloseReason.IDLE]
    assert events == []


async def test_opened_and_closed_may_be_missing() -> None:
    handler, events = wrap(OnlyHandle)
    await handler.opened(Session.__new__(Session))
    assert await handler.handle(DELIVERY) is None
    await handler.closed(CloseReason.DRAINED)
    assert [type(event) for event in events] == [HandlerFinished]
