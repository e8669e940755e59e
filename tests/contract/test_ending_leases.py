"""The contract of brokers whose leases end with their last delivery, kept by the broker in memory dressed up as one."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from queue_runtime.abc import Provider
from queue_runtime.providers.memory import MEMORY_FACTORY, MemoryConfig
from queue_runtime.testing import Case, ContractEnvironment, contract_cases, run_case
from queue_runtime.testing.simulation.ending_leases import EndingLeases

from .test_memory import wall_clock


async def connect(**options: Any) -> Provider:
    short = {"lock_duration": 4.0, "max_delivery_count": 3}
    inner = await MEMORY_FACTORY.open(MemoryConfig(**short | options))
    return EndingLeases(inner, max_receive_messages=10)


async def run(case: Case) -> None:
    environment = ContractEnvironment(
        open_provider=connect,
        open_undeclared=lambda: connect(declare=False),
        open_bounded=lambda size: connect(max_queue_size=size),
        now=await wall_clock(),
        tolerance=0.2,
        delay=1.0,
        real_clock=False,
    )
    await run_case(case, environment)


@pytest.mark.parametrize("case", contract_cases(), ids=str)
def test_contract(case: Case) -> None:
    trio.run(run, case, clock=MockClock(autojump_threshold=0))
