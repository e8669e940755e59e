"""The cases that mostly wait, of one test module: they wait together, and each test then tells of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from queue_runtime.testing import (
    Case,
    CaseResult,
    ContractEnvironment,
    contract_cases,
    run_case,
    run_contract,
)

__all__ = ["check", "run_waiting", "waits"]


def waits(case: Case) -> bool:
    """Whether it mostly waits whatever the broker is."""
    return case.waits


def run_waiting(
    request: pytest.FixtureRequest,
    environment: ContractEnvironment,
    *,
    concurrency: int = 8,
    which: Callable[[Case], bool] = waits,
) -> dict[Case, CaseResult]:
    """Run those among the module's chosen tests, ``concurrency`` at a time. For its fixture ``waited``.

    Args:
        request: Of the fixture.
        environment: The broker.
        concurrency: How many cases run at the same time.
        which: Those that mostly wait with this broker.
    """
    chosen = {
        str(item.callspec.params["case"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module
    }
    results: dict[Case, CaseResult] = {}

    async def run_one(case: Case, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            [results[case]] = (await run_contract(environment, [case])).results

    async def run_all() -> None:
        limiter = trio.CapacityLimiter(concurrency)
        async with trio.open_nursery() as nursery:
            for case in contract_cases():
                if which(case) and case.name in chosen:
                    nursery.start_soon(run_one, case, limiter)

    trio.run(run_all)
    return results


def check(
    case: Case,
    environment: ContractEnvironment,
    request: pytest.FixtureRequest,
    *,
    which: Callable[[Case], bool] = waits,
) -> None:
    """Run ``case``, or raise what came of it in the fixture ``waited``; ``which`` as there."""
    if not which(case):
        trio.run(run_case, case, environment)
        return
    waited: dict[Case, CaseResult] = request.getfixturevalue("waited")
    error = waited[case].error
    if error is not None:
        raise error
