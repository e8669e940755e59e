"""Azure Service Bus keeps the contract: queues with sessions and without, on the emulator, with the real SDK."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from queue_runtime.abc import Provider
from queue_runtime.errors import ValidationError
from queue_runtime.messages import QueueName
from queue_runtime.providers.azure import FACTORY, AzureConfig
from queue_runtime.secret import Secret
from queue_runtime.testing import Case, CaseResult, ContractEnvironment, contract_cases

pytest.importorskip("azure.servicebus", reason="the extra azure is not installed")
pytest.importorskip("proton", reason="the emulator needs python-qpid-proton")

from ..azure.emulator_process import (
    EmulatorProcess,
    emulator_process,
)
from .waiting import check, run_waiting

SHORT, LONG = 2.0, 60.0
"""Lock durations: of the cases that wait for locks to expire, and of the others."""

DELIVERIES = 3
WINDOW = 2.0
KINDS = ("sessions", "plain")


@pytest.fixture(scope="module")
def emulator() -> Iterator[EmulatorProcess]:
    with emulator_process() as running:
        yield running


def environment_of(emulator: EmulatorProcess, kind: str, lock: float) -> ContractEnvironment:
    """One broker as the cases see it. Queues with sessions detect duplicates, those without do not."""
    sessions = kind == "sessions"
    settings = {
        "requires_session": sessions,
        "lock_duration": lock,
        "max_delivery_count": DELIVERIES,
        "dead_letter_expired": True,
        "duplicate_window": WINDOW if sessions else 0.0,
    }

    def create(queue: QueueName) -> None:
        try:
            emulator.create_queue(str(queue), **settings)
        except RuntimeError as refusal:  # capital letters make no other queue
            raise ValidationError(str(refusal)) from refusal

    def fresh() -> QueueName:
        queue = QueueName(f"contract-{uuid4().hex[:16]}")
        create(queue)
        return queue

    options = {
        "sessions": sessions,
        "deduplication": sessions,
        "lock_duration": lock,
        "max_delivery_count": DELIVERIES,
        "operation_timeout": 10.0,
    }

    def connect() -> Awaitable[Provider]:
        given: dict[str, Any] = dict(options)
        return FACTORY.open(
            AzureConfig(connection_string=Secret(emulator.connection_string), **given)
        )

    words = "&".join(f"{name}={str(value).lower()}" for name, value in options.items())
    return ContractEnvironment(
        open_provider=connect,
        queue_name=fresh,
        create_queue=create,
        child_url=f"azure://?connection_string={quote(emulator.connection_string, safe='')}&{words}",
        resolution=1.0,
        delay=1.0,
        reports_duplicates=False,
        deduplication_window=WINDOW if sessions else None,
        load_messages=1_000,
        load_consumers=20,
    )


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def waited(
    request: pytest.FixtureRequest, emulator: EmulatorProcess, kind: str
) -> dict[Case, CaseResult]:
    return run_waiting(request, environment_of(emulator, kind, SHORT))


@pytest.mark.parametrize("case", contract_cases(), ids=str)
def test_contract(
    case: Case, kind: str, emulator: EmulatorProcess, request: pytest.FixtureRequest
) -> None:
    check(case, environment_of(emulator, kind, LONG), request)
