"""Handlers, wrapped once so that every attempt is told of. Not used when nobody listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import trio

from queue_runtime.handlers import CloseReason, Complete, Outcome, Session
from queue_runtime.messages import Delivery, QueueName

from .events import HandlerFinished
from .instruments import Instruments

__all__ = ["instrument_handlers"]


def instrument_handlers(
    make_handler: Callable[[], Any], instruments: Instruments, queue: QueueName, provider: str
) -> Callable[[], Any]:
    """``make_handler`` with every ``handle`` call reported as :class:`HandlerFinished`; itself if nobody listens."""
    if not instruments:
        return make_handler
    return lambda: _InstrumentedHandler(make_handler(), instruments, queue, provider)


@final
class _InstrumentedHandler:
    __slots__ = ("_handler", "_instruments", "_provider", "_queue")

    def __init__(
        self, handler: Any, instruments: Instruments, queue: QueueName, provider: str
    ) -> None:
        self._handler = handler
        self._instruments = instruments
        self._queue = queue
        self._provider = provider

    async def opened(self, session: Session) -> None:
        opened = getattr(self._handler, "opened", None)
        if opened is not None:
            await opened(session)

    async def handle(self, delivery: Delivery) -> Outcome | None:
        began = trio.current_time()
        error_type: type[BaseException] | None = None
        outcome: Outcome | None = None
        try:
            outcome = await self._handler.handle(delivery)
            return outcome
        except BaseException as error:
            error_type = type(error)
            raise
        finally:
            self._instruments.emit(
                HandlerFinished(
                    queue=self._queue,
                    provider=self._provider,
                    delivery=delivery,
                    outcome=None if error_type is not None else outcome or Complete(),
                    error_type=error_type,
                    attempt=delivery.delivery_count,
                    duration=trio.current_time() - began,
                )
            )

    async def closed(self, reason: CloseReason) -> None:
        closed = getattr(self._handler, "closed", None)
        if closed is not None:
            await closed(reason)
