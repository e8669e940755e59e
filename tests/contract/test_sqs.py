"""SQS keeps the contract: FIFO queues with sessions, standard queues without.

Against the emulator, or the account that ``QUEUE_RUNTIME_TEST_SQS_URL`` names (there ``provision`` rights are needed,
and the queues stay).
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Iterator
from typing import Any

import attrs
import pytest

from queue_runtime.abc import Provider
from queue_runtime.messages import QueueName
from queue_runtime.providers.sqs import FACTORY
from queue_runtime.testing import Case, CaseResult, ContractEnvironment, contract_cases

from ..sqs.emulator import sqs_for_tests
from .pool import pool_of_queues
from .waiting import check, run_waiting

LOCK = 6
"""Seconds: long enough for a busy machine to renew in time."""

DELIVERIES = 5

POOL = 40
"""Queues made in advance: a case must not wait for one while others count on the time."""


def waits(case: Case) -> bool:
    """All but those that keep a processor busy: a long poll waits for a second at least, and most cases end one."""
    return not case.name.startswith("load.")


async def provisioned(provider: Provider) -> QueueName:
    name = QueueName(f"contract-{uuid.uuid4().hex[:16]}")
    await provider.provision(name)
    return name


@pytest.fixture(scope="module", params=["fifo", "standard"])
def environment(request: pytest.FixtureRequest) -> Iterator[ContractEnvironment]:
    with sqs_for_tests() as sqs:
        short = f"&lock_duration={LOCK}&wait_time=1&max_message_bytes=262144"
        url = f"{sqs.url}&queue_type={request.param}&max_delivery_count={DELIVERIES}{short}"
        config = FACTORY.config_from_url(url)

        def connect(**options: Any) -> Awaitable[Provider]:
            return FACTORY.open(attrs.evolve(config, **options))

        with pool_of_queues(connect, provisioned, POOL) as queue_name:
            yield ContractEnvironment(
                open_provider=connect,
                queue_name=queue_name,
                open_unhurried=lambda: connect(lock_duration=60),
                child_url=url,
                longest_wait=5 * LOCK,
                tolerance=1.5,
                empty_tolerance=1.0,  # a look is a round trip, beside child processes that start
                resolution=1.0,
                delay=1.0,
                reports_duplicates=False,
                load_messages=1_000,
                load_consumers=20,
            )


@pytest.fixture(scope="module")
def waited(
    request: pytest.FixtureRequest, environment: ContractEnvironment
) -> dict[Case, CaseResult]:
    return run_waiting(request, environment, concurrency=6, which=waits)


@pytest.mark.parametrize("case", contract_cases(), ids=str)
def test_contract(
    case: Case, environment: ContractEnvironment, request: pytest.FixtureRequest
) -> None:
    check(case, environment, request, which=waits)
