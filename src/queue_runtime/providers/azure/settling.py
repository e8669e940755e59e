"""What settlements become at Service Bus: outcomes of AMQP, or requests that name lock tokens. Plain values."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, final
from uuid import UUID

import attrs
from azure.servicebus._common.constants import (
    DEADLETTERNAME,
    RECEIVER_LINK_DEAD_LETTER_ERROR_DESCRIPTION,
    RECEIVER_LINK_DEAD_LETTER_REASON,
)
from azure.servicebus._pyamqp.error import AMQPError
from azure.servicebus._pyamqp.outcomes import Accepted, Modified, Rejected, Released

from queue_runtime.errors import InvalidReceipt, LockLost, QueueError
from queue_runtime.messages import Settlement, SettlementAction

from .amqp import array
from .broker_letters import dead_letter_words
from .codec import TRIES, deliveries
from .inlet import Arrival

__all__ = ["COMPLETED", "RELEASED", "Work", "is_settled", "lock_tokens", "work_of"]

COMPLETED: Final = Accepted()
_ABANDONED: Final = Modified(
    delivery_failed=True, undeliverable_here=False, message_annotations=None
)
RELEASED: Final = Released()

_DISPOSITIONS: Final = {
    SettlementAction.COMPLETE: "completed",
    SettlementAction.ABANDON: "abandoned",
    SettlementAction.RELEASE: "abandoned",  # there is no gentler word for it
    SettlementAction.DEAD_LETTER: "suspended",
}


@final
@attrs.frozen(eq=False)
class Work:
    """What is to become of a message that came in.

    Args:
        arrival: The message.
        action: What to do.
        delay: Seconds to keep it locked before it is given back (``ABANDON``).
        reason: Why it is dead-lettered.
        description: For people.
        tries: Tries that the broker does not count, for whoever gets it next to go on from (``ABANDON``).
    """

    arrival: Arrival
    action: SettlementAction
    delay: float = 0.0
    reason: str = ""
    description: str = ""
    tries: int = 0

    @property
    def outcome(self) -> Any:
        """As a link says it."""
        match self.action:
            case SettlementAction.COMPLETE:
                return COMPLETED
            case SettlementAction.ABANDON if self.tries:
                return _ABANDONED._replace(message_annotations={TRIES: self.tries})
            case SettlementAction.ABANDON:
                return _ABANDONED
            case SettlementAction.RELEASE:
                return RELEASED
            case SettlementAction.DEAD_LETTER:
                info = {
                    RECEIVER_LINK_DEAD_LETTER_REASON: self.reason,
                    RECEIVER_LINK_DEAD_LETTER_ERROR_DESCRIPTION: self.description,
                }
                return Rejected(
                    error=AMQPError(
                        condition=DEADLETTERNAME, description=self.description, info=info
                    )
                )

    @property
    def request(self) -> dict[str, Any]:
        """As the management node is asked for it, which needs no link."""
        body: dict[str, Any] = {
            "disposition-status": _DISPOSITIONS[self.action],
            "lock-tokens": lock_tokens([self.arrival]),
        }
        if self.tries:
            body["properties-to-modify"] = {TRIES: self.tries}
        if self.action is SettlementAction.DEAD_LETTER:
            body["deadletter-reason"] = self.reason
            body["deadletter-description"] = self.description
        return body

    @property
    def at_once(self) -> Work:
        """The same without its delay."""
        return attrs.evolve(self, delay=0.0)

    @property
    def goes_back(self) -> bool:
        """Whether the message returns to its place in the queue."""
        return self.action in (SettlementAction.ABANDON, SettlementAction.RELEASE)


def work_of(settlement: Settlement, arrival: Arrival) -> Work:
    """What a settlement means for the message that it is about."""
    delivery = settlement.delivery
    if settlement.action is SettlementAction.ABANDON:
        tries = max(0, delivery.delivery_count - deliveries(arrival.message))
        return Work(arrival, settlement.action, settlement.delay, tries=tries)
    if settlement.action is not SettlementAction.DEAD_LETTER:
        return Work(arrival, settlement.action)
    before = delivery.dead_letter
    reason, description = dead_letter_words(
        settlement.reason,
        settlement.description,
        at=datetime.now(UTC),
        first_failed_at=None if before is None else before.first_failed_at,
        delivery_count=delivery.delivery_count,
    )
    return Work(arrival, settlement.action, reason=reason, description=description)


def is_settled(answer: QueueError | None) -> bool:
    """Whether nothing is left to settle: it was settled, or its lock is over."""
    return answer is None or isinstance(answer, (InvalidReceipt, LockLost))


def lock_tokens(arrivals: Sequence[Arrival]) -> Any:
    """The locks on messages, as the management node names them."""
    return array([UUID(bytes_le=arrival.tag) for arrival in arrivals])
