"""The broker in a file keeps the contract: real time, real processes, short locks."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest

from queue_runtime.abc import Provider
from queue_runtime.providers.memory import SQLITE_FACTORY, SqliteConfig
from queue_runtime.testing import Case, CaseResult, ContractEnvironment, contract_cases

from .waiting import check, run_waiting

LOCK = 2.0
DELIVERIES = 3
WINDOW = 2.0


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> ContractEnvironment:
    path = tmp_path_factory.mktemp("contract") / "broker.db"

    def connect(**options: Any) -> Awaitable[Provider]:
        short = {
            "lock_duration": LOCK,
            "max_delivery_count": DELIVERIES,
            "deduplication_window": WINDOW,
        }
        return SQLITE_FACTORY.open(SqliteConfig(path=str(path), **short | options))

    return ContractEnvironment(
        open_provider=connect,
        open_unhurried=lambda: connect(lock_duration=60.0),
        open_undeclared=lambda: connect(declare=False, lock_duration=60.0),
        open_bounded=lambda size: connect(max_queue_size=size, lock_duration=60.0),
        child_url=f"sqlite:///{path}?lock_duration={LOCK}&max_delivery_count={DELIVERIES}",
        exact=True,
        deduplication_window=WINDOW,
        delay=0.3,
    )


@pytest.fixture(scope="module")
def waited(
    request: pytest.FixtureRequest, environment: ContractEnvironment
) -> dict[Case, CaseResult]:
    return run_waiting(request, environment)


@pytest.mark.parametrize("case", contract_cases(), ids=str)
def test_contract(
    case: Case, environment: ContractEnvironment, request: pytest.FixtureRequest
) -> None:
    check(case, environment, request)
