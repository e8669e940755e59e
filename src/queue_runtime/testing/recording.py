"""Makes any handler and any supervisor write the history that :mod:`queue_runtime.testing.history` checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

import trio

from queue_runtime.handlers import (
    Abandon,
    CloseReason,
    Complete,
    DeadLetter,
    HandlerFactory,
    Outcome,
    Retry,
    Session,
    handler_maker,
)
from queue_runtime.instrumentation import Event, Instrument, MessagesSettled
from queue_runtime.messages import Delivery

from .records import Ended, Recorder

__all__ = ["record_handlers", "record_settlements"]

_ENDED: Final = {
    Complete: Ended.COMPLETE,
    Retry: Ended.RETRY,
    DeadLetter: Ended.DEAD_LETTER,
    Abandon: Ended.ABANDON,
}


def record_handlers(handler: HandlerFactory, recorder: Recorder) -> Callable[[], Any]:
    """``handler``, as a function that makes handlers, with the start and end of every ``handle`` recorded."""
    make_handler = handler_maker(handler)
    return lambda: _RecordedHandler(make_handler(), recorder)


def record_settlements(recorder: Recorder) -> Instrument:
    """An instrument that records every completion and dead-lettering the broker confirmed."""

    def note(event: Event, /) -> None:
        if isinstance(event, MessagesSettled):
            for settlement, error in zip(event.settlements, event.errors, strict=True):
                if error is None:
                    recorder.settled(settlement.delivery, settlement.action)

    return note


@final
class _RecordedHandler:
    def __init__(self, handler: Any, recorder: Recorder) -> None:
        self._handler = handler
        self._recorder = recorder

    async def opened(self, session: Session) -> None:
        opened = getattr(self._handler, "opened", None)
        if opened is not None:
            await opened(session)

    async def handle(self, delivery: Delivery) -> Outcome | None:
        self._recorder.started(delivery)
        try:
            outcome: Outcome | None = await self._handler.handle(delivery)
        except trio.Cancelled:
            self._recorder.ended(delivery, Ended.CANCELLED)
            raise
        except BaseException:
            self._recorder.ended(delivery, Ended.RAISED)
            raise
        self._recorder.ended(delivery, Ended.COMPLETE if outcome is None else _ENDED[type(outcome)])
        return outcome

    async def closed(self, reason: CloseReason) -> None:
        closed = getattr(self._handler, "closed", None)
        if closed is not None:
            await closed(reason)
