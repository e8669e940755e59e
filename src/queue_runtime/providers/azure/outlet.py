"""The link that messages go out by. On the bridge's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, final

from azure.servicebus._pyamqp.aio import _sender_async
from azure.servicebus._pyamqp.constants import (
    OUTGOING_WINDOW,
    LinkDeliverySettleReason,
    ReceiverSettleMode,
    SenderSettleMode,
)
from azure.servicebus._pyamqp.error import ErrorCondition, MessageException

from .links import EngineLink, Link
from .shared import look
from .wire import Wire

__all__ = ["Outlet"]

_BATCH_SIZE: Final = b"com.microsoft:max-message-batch-size"

_MAX_BATCH: Final = 1_048_576
"""Bytes that a batch of the Premium tier may have, however large its messages may be alone.

https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas
"""


@final
class Outlet(Link):
    """Messages go out by it.

    Attributes:
        max_message_size: Largest message the peer takes, in bytes; 0 if it did not say.
        max_batch_size: Most bytes of a batch; queues for large messages take no larger ones than others.
    """

    @classmethod
    async def open(
        cls, wire: Wire, entity: str, on_lost: Callable[[BaseException], None]
    ) -> Outlet:
        """Attach to a queue. Raises as :meth:`.inlet.Inlet.open`."""
        await wire.authorize(entity)
        outlet = cls(wire, entity, on_lost)
        await wire.within(
            outlet._attach(
                _SenderLink,
                target_address=wire.place.address(entity),
                send_settle_mode=SenderSettleMode.Unsettled,
                rcv_settle_mode=ReceiverSettleMode.Second,
            )
        )
        outlet.max_message_size = int(outlet._link.remote_max_message_size or 0)
        said = (outlet._link.remote_properties or {}).get(_BATCH_SIZE)
        outlet.max_batch_size = int(said or min(outlet.max_message_size or _MAX_BATCH, _MAX_BATCH))
        return outlet

    def __init__(self, wire: Wire, entity: str, on_lost: Callable[[BaseException], None]) -> None:
        super().__init__(wire, entity, on_lost)
        self.max_message_size = 0
        self.max_batch_size = _MAX_BATCH
        self._sending: set[asyncio.Future[None]] = set()
        self._turn = asyncio.Lock()

    async def send(self, message: Any, timeout: float) -> asyncio.Future[None]:
        """Put one message, or one batch of them, on the wire.

        Returns:
            A future that is done when the broker has stored it, or fails with the SDK's error.

        Raises:
            Exception: The link is gone; nothing was sent.
        """
        async with self._turn:
            await self._wire.room()
        if self.error is not None:
            raise self.error
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sending.add(stored)
        stored.add_done_callback(self._sending.discard)
        stored.add_done_callback(look)  # when writing fails nobody gets to wait for it

        async def done(reason: Any, state: Any) -> None:
            if stored.done():
                return
            if (
                reason == LinkDeliverySettleReason.DISPOSITION_RECEIVED
                and state
                and "accepted" in state
            ):
                stored.set_result(None)
            else:
                stored.set_exception(_rejection(reason, state))

        # The engine counts down what it may still send and nothing ever counts up.
        self._session.outgoing_window = OUTGOING_WINDOW
        await self._link.send_transfer(message, on_send_complete=done, timeout=timeout)
        return stored

    def _fail_waiting(self, error: BaseException) -> None:
        for stored in list(self._sending):
            if not stored.done():
                stored.set_exception(error)


def _rejection(reason: Any, state: Any) -> Exception:
    """Why a message was not stored; the peer may leave out all but the condition."""
    try:
        details = state["rejected"][0]
    except (KeyError, IndexError, TypeError):
        details = None
    if reason == LinkDeliverySettleReason.TIMEOUT:
        return TimeoutError()
    if not details:
        return MessageException(
            ErrorCondition.UnknownError, description=f"The message was not stored: {state!r}"
        )
    condition, description, info = (*details, None, None, None)[:3]
    return MessageException(condition, description=description, info=info)


_SenderBase: Any = _sender_async.SenderLink


@final
class _SenderLink(EngineLink, _SenderBase):  # type: ignore[misc]  # the SDK's is not annotated
    pass
