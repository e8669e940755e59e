"""What becomes of messages whose envelope does not hold together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from queue_runtime.errors import QueueError
from queue_runtime.messages import Delivery, Settlement, SettlementAction

__all__ = ["MALFORMED", "bury_malformed"]

MALFORMED: Final = "MalformedEnvelope"
"""The reason of their dead letters."""


async def bury_malformed(
    settle: Callable[[Sequence[Settlement]], Awaitable[Sequence[QueueError | None]]],
    broken: Sequence[tuple[Delivery, str]],
    deliveries: list[Delivery],
) -> list[Delivery]:
    """Dead-letter what cannot be read; where that is impossible it is delivered as far as it can be.

    Args:
        settle: The receiver's.
        broken: What cannot be read, and why.
        deliveries: All deliveries, ``broken`` ones included.

    Returns:
        Those of ``deliveries`` that are to be handed out.
    """
    settlements = [
        Settlement(
            delivery, SettlementAction.DEAD_LETTER, reason=MALFORMED, description=description
        )
        for delivery, description in broken
    ]
    answers: Sequence[QueueError | None]
    with trio.CancelScope(shield=True):
        try:
            answers = await settle(settlements)
        except QueueError as error:
            answers = [error] * len(settlements)
    buried = {
        id(settlement.delivery)
        for settlement, answer in zip(settlements, answers, strict=True)
        if answer is None
    }
    return [delivery for delivery in deliveries if id(delivery) not in buried]
