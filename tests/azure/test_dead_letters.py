"""Dead letters moved and deleted, and queues emptied: far away, by the thousand, and beside others who are at it."""

from __future__ import annotations

import pytest

from queue_runtime import OperationTimeout, SettlementAction
from queue_runtime.abc import DeadLetters

from .emulator_process import EmulatorProcess
from .linked import Link, linked, receive_all, settlements

OPTIONS = {"operation_timeout": 10.0, "connect_timeout": 10.0}
CALL = 500
"""Messages sent and settled at once."""


async def bury(link: Link, count: int) -> DeadLetters:
    """So many dead letters."""
    receiver = await link.receiver()
    for first in range(0, count, CALL):
        await link.send(link.work(min(CALL, count - first), first=first))
        deliveries = await receive_all(receiver, min(CALL, count - first))
        answers = await receiver.settle(settlements(deliveries, SettlementAction.DEAD_LETTER))
        assert answers == [None] * len(deliveries)
    await receiver.aclose()
    return await link.provider.open_dead_letters(link.queue)


async def test_what_is_far_away_is_waited_for(emulator: EmulatorProcess) -> None:
    """No message comes sooner than a question and its answer take."""
    async with linked(emulator, sessions=False, options=OPTIONS) as link:
        letters = await bury(link, 10)
        await link.send(link.work(10))
        link.proxy.slow_down(latency=0.2)
        assert await letters.purge() == 10
        assert await link.provider.purge(link.queue) == 10
        link.proxy.heal()
        link.assert_empty()


@pytest.mark.parametrize("what", ["dead letters", "queue"])
async def test_who_is_not_let_in_in_time_is_told_so(emulator: EmulatorProcess, what: str) -> None:
    async with linked(emulator, sessions=False, options=OPTIONS) as link:
        letters = await bury(link, 3)
        link.fault("refuse", "ATTACH", condition="com.microsoft:timeout")
        with pytest.raises(OperationTimeout):
            if what == "queue":
                await link.provider.purge(link.queue)
            else:
                await letters.purge()
