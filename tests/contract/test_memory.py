"""The in-memory broker keeps the contract. No time passes: the clock jumps whenever everything waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from queue_runtime.abc import Provider
from queue_runtime.messages import Message, QueueName
from queue_runtime.providers.memory import MEMORY_FACTORY, MemoryConfig
from queue_runtime.testing import Case, ContractEnvironment, contract_cases, run_case

WINDOW = 5.0


def connect(**options: Any) -> Awaitable[Provider]:
    short = {"lock_duration": 1.0, "max_delivery_count": 3, "deduplication_window": WINDOW}
    return MEMORY_FACTORY.open(MemoryConfig(**short | options))


async def wall_clock() -> Callable[[], datetime]:
    """The broker's time of day, which under a mocked clock nobody else knows."""
    provider, queue = await connect(), QueueName("clock")
    await (await provider.open_sender(queue)).send([Message(b"")])
    [message] = await provider.peek(queue, 1)
    start = message.enqueued_at - timedelta(seconds=trio.current_time())
    return lambda: start + timedelta(seconds=trio.current_time())


async def run(case: Case) -> None:
    clock = await wall_clock()
    environment = ContractEnvironment(
        open_provider=connect,
        open_undeclared=lambda: connect(declare=False),
        open_bounded=lambda size: connect(max_queue_size=size),
        now=clock,
        tolerance=0.05,
        empty_tolerance=0.001,
        exact=True,
        deduplication_window=WINDOW,
        real_clock=False,
    )
    await run_case(case, environment)


@pytest.mark.parametrize("case", contract_cases(), ids=str)
def test_contract(case: Case) -> None:
    trio.run(run, case, clock=MockClock(autojump_threshold=0))
