"""The cases that mostly wait, of one test module: they wait together, and each test then tells of its own."""

from __future__ import annotations

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

__all__ = ["check", "run_waiting"]


def run_waiting(
    request: pytest.FixtureRequest, environment: ContractEnvironment, *, concurrency: int = 8
) -> dict[Case, CaseResult]:
    """Run those among the module's chosen tests, ``concurrency`` at a time. For its fixture ``waited``."""
    chosen = {
        str(item.callspec.params["case"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module
    }

    async def run() -> dict[Case, CaseResult]:
        waiting = [case for case in contract_cases() if case.waits and case.name in chosen]
        report = await run_contract(environment, waiting, concurrency=concurrency)
        return {result.case: result for result in report.results}

    return trio.run(run)


def check(case: Case, environment: ContractEnvironment, request: pytest.FixtureRequest) -> None:
    """Run ``case``, or raise what came of it in the fixture ``waited``."""
    if not case.waits:
        trio.run(run_case, case, environment)
        return
    waited: dict[Case, CaseResult] = request.getfixturevalue("waited")
    error = waited[case].error
    if error is not None:
        raise error
