"""What cannot be read is buried, and handed out where that is impossible."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from queue_runtime.abc import Lease
from queue_runtime.errors import ConnectionFailed, QueueError
from queue_runtime.messages import Delivery, Message, MessageId, Settlement, SettlementAction
from queue_runtime.providers.malformed import MALFORMED, bury_malformed

NOW = datetime(2026, 5, 4, tzinfo=UTC)


@pytest.fixture
def deliveries() -> list[Delivery]:
    lease = Lease(None, 1, 1.0, NOW, None)
    # Equal in every respect: only the objects tell them apart.
    return [Delivery(Message(b""), MessageId("m"), "r", lease, 1, NOW, 1, None) for _ in range(3)]


async def test_what_was_buried_is_not_handed_out(deliveries: list[Delivery]) -> None:
    asked: list[Settlement] = []

    async def settle(settlements: Sequence[Settlement]) -> list[QueueError | None]:
        asked.extend(settlements)
        return [None, ConnectionFailed("lost")]

    first, second, third = deliveries
    left = await bury_malformed(settle, [(first, "why"), (third, "how")], deliveries)
    assert [id(delivery) for delivery in left] == [id(second), id(third)]
    assert [settlement.description for settlement in asked] == ["why", "how"]
    assert {(one.action, one.reason) for one in asked} == {
        (SettlementAction.DEAD_LETTER, MALFORMED)
    }


async def test_without_a_place_for_dead_letters_all_are_handed_out(
    deliveries: list[Delivery],
) -> None:
    async def settle(_: Sequence[Settlement]) -> list[QueueError | None]:
        raise ConnectionFailed("lost")

    assert await bury_malformed(settle, [(deliveries[0], "why")], deliveries) == deliveries
