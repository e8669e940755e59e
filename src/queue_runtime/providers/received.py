"""What a received message says, whatever carried it. Plain values."""

from __future__ import annotations

from datetime import datetime

import attrs

from queue_runtime.abc import Lease
from queue_runtime.messages import DeadLetterInfo, Delivery, Message, MessageId

from .envelope import Extras

__all__ = ["ReceivedMessage"]


@attrs.frozen(kw_only=True)
class ReceivedMessage:
    """The parts of a delivery, for a codec to add what it reads besides.

    Args:
        message: What was sent.
        message_id: Its identity: the sender's id, else the one it had in an earlier queue, else that of the broker.
        delivery_count: 1 for the first delivery, as far as the broker counts.
        enqueued_at: When the broker accepted it; when it was due, if that was later.
        sequence_number: The broker's, if it has any.
        dead_letter: What a redriven or dead-lettered message carries about that.
        earlier: All that it carries from an earlier queue.
        malformed: Why what travels in fields of ours cannot be what we sent; ``None`` if all is well.
    """

    message: Message
    message_id: MessageId
    delivery_count: int
    enqueued_at: datetime
    sequence_number: int | None
    dead_letter: DeadLetterInfo | None
    earlier: Extras
    malformed: str | None

    def delivery(self, receipt: str, lease: Lease) -> Delivery:
        """As users see it, held under ``lease``."""
        return Delivery(
            self.message,
            self.message_id,
            receipt,
            lease,
            self.delivery_count,
            self.enqueued_at,
            self.sequence_number,
            self.dead_letter,
        )
