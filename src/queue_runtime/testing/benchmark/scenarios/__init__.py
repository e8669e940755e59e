"""What ``queue-runtime bench`` measures: one function per scenario, each a report of rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import trio

from ..place import Place, open_place
from ..workload import Workload
from .crowds import depth, idle
from .latency import hot, latency
from .report import Report as Report
from .report import Row as Row
from .report import Scale as Scale
from .sending import sending
from .switching import switching
from .throughput import throughput
from .waiting import waiting

__all__ = ["SCENARIOS", "Report", "Row", "Scale", "run_scenario"]


SCENARIOS: Final[Mapping[str, Callable[[Place, Workload, Scale], Awaitable[Report]]]] = {
    "throughput": throughput,
    "latency": latency,
    "depth": depth,
    "idle": idle,
    "hot": hot,
    "waiting": waiting,
    "sending": sending,
    "switching": switching,
}
"""Every scenario by its name."""


def run_scenario(
    name: str, url: str, workload: Workload, scale: Scale, *, may_create: bool = False
) -> Report:
    """Run one scenario in this process, in a trio run of its own.

    Args:
        name: One of :data:`SCENARIOS`.
        url: Of the provider.
        workload: What is sent.
        scale: The large numbers.
        may_create: Provision queues also where the broker is not on this machine; they are deleted afterwards.
    """

    async def main() -> Report:
        async with open_place(url, may_create=may_create) as place:
            return await SCENARIOS[name](place, workload, scale)

    return trio.run(main)
