"""Azure Service Bus keeps the contract: queues with sessions and without, with the real SDK.

On the emulator, or on what ``QUEUE_RUNTIME_TEST_AZURE_URL`` names: a namespace, Microsoft's emulator, or one of ours
that was started elsewhere. Queues are provisioned there, and stay; where the credential may not, the queues of
``tests/azure/given.py`` have to be there. See ``tests/azure/README.md``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import cycle
from uuid import uuid4

import pytest
import trio

from queue_runtime.abc import Provider
from queue_runtime.errors import (
    ConnectionFailed,
    OperationTimeout,
    PermissionDenied,
    ValidationError,
)
from queue_runtime.messages import QueueName
from queue_runtime.providers.azure import FACTORY
from queue_runtime.testing import Case, CaseResult, ContractEnvironment, contract_cases

from ..azure.emulator_process import EmulatorProcess, emulator_process
from ..azure.given import DELIVERIES, KINDS, LONG, SHORT, given_url, require, ring_of
from .pool import pool_of_queues
from .waiting import check, run_waiting

GIVEN = given_url()

require("azure.servicebus", *(() if GIVEN else ("proton",)))

SHORT_HERE = 6.0
"""What the emulator's locks of :data:`SHORT` last: long enough for a busy machine to act in time."""

DELAY = SHORT_HERE / 3
TOLERANCE = 3.0
"""Seconds by which a busy machine may be late: much less than the locks last for whose end nobody is to wait."""

WINDOW = 6.0
READY = 8
"""Queues provisioned in advance."""

MANAGING = frozenset({"hostile.queue_names", "queues.counted", "queues.provisioned"})
"""Cases that create queues of their own, or have their statistics."""


def url_with(url: str, **options: object) -> str:
    return url + "".join(f"&{name}={str(value).lower()}" for name, value in options.items())


def fresh_name() -> QueueName:
    return QueueName(f"contract-{uuid4().hex[:16]}")


# --- on the emulator -----------------------------------------------------------------------------------


def emulated(emulator: EmulatorProcess, kind: str, lock: float) -> ContractEnvironment:
    """Queues with sessions detect duplicates, those without do not."""
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
        queue = fresh_name()
        create(queue)
        return queue

    url = url_with(
        emulator.url,
        sessions=sessions,
        deduplication=sessions,
        lock_duration=lock,
        max_delivery_count=DELIVERIES,
        operation_timeout=10.0,
    )
    return ContractEnvironment(
        open_provider=lambda: FACTORY.open(FACTORY.config_from_url(url)),
        queue_name=fresh,
        create_queue=create,
        child_url=url,
        tolerance=TOLERANCE,
        longest_wait=4 * SHORT_HERE,
        resolution=1.0,
        delay=DELAY,
        reports_duplicates=False,
        deduplication_window=WINDOW if sessions else None,
        load_messages=1_000,
        load_consumers=20,
    )


# --- on what is given ----------------------------------------------------------------------------------


async def may_provision(connect: Callable[[], Awaitable[Provider]]) -> bool:
    """Whether queues can be created; a broker that cannot be reached at all fails later, and clearer."""
    provider = await connect()
    try:
        await provider.provision(fresh_name())
    except (PermissionDenied, ConnectionFailed, OperationTimeout):
        return False
    finally:
        await provider.aclose()
    return True


async def provisioned(provider: Provider) -> QueueName:
    name = fresh_name()
    await provider.provision(name)
    return name


def emptied(names: Iterator[str]) -> Callable[[Provider], Awaitable[QueueName]]:
    """Makes the queues ready in turn: what an earlier case has left there is deleted."""

    async def prepare(provider: Provider) -> QueueName:
        name = QueueName(next(names))
        await provider.purge(name)
        await (await provider.open_dead_letters(name)).purge()
        return name

    return prepare


@contextmanager
def given(url: str, kind: str, lock: float) -> Iterator[ContractEnvironment]:
    """Duplicates are not looked for: a new queue remembers them for minutes."""
    complete = url_with(
        url, sessions=kind == "sessions", lock_duration=lock, max_delivery_count=DELIVERIES
    )

    def connect() -> Awaitable[Provider]:
        return FACTORY.open(FACTORY.config_from_url(complete))

    names: set[str] = set()

    async def provision(queue: QueueName) -> None:
        provider = await connect()
        try:
            await provider.provision(queue)
        finally:
            await provider.aclose()

    def create(queue: QueueName) -> None:
        if queue.lower() in names:
            raise ValidationError(f"{queue} is there: capital letters make no other queue")
        names.add(queue.lower())
        with ThreadPoolExecutor(1) as elsewhere:
            elsewhere.submit(trio.run, provision, queue).result()

    if trio.run(may_provision, connect):
        prepare, ready, creating = provisioned, READY, create
    else:
        prepare, ready, creating = emptied(cycle(ring_of(kind, lock))), 1, None
    with pool_of_queues(connect, prepare, ready) as queue_name:
        yield ContractEnvironment(
            open_provider=connect,
            queue_name=queue_name,
            create_queue=creating,
            child_url=complete,
            tolerance=2.0,
            empty_tolerance=1.0,
            resolution=1.0,
            delay=1.0,
            reports_duplicates=False,
            load_messages=1_000,
            load_consumers=20,
        )


# --- the cases -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def environment_of() -> Iterator[Callable[[str, float], ContractEnvironment]]:
    with ExitStack() as stack:
        if GIVEN is None:
            emulator = stack.enter_context(emulator_process())
            yield lambda kind, lock: emulated(emulator, kind, SHORT_HERE if lock == SHORT else lock)
        else:
            url = GIVEN
            yield lambda kind, lock: stack.enter_context(given(url, kind, lock))


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def unhurried(
    environment_of: Callable[[str, float], ContractEnvironment], kind: str
) -> ContractEnvironment:
    return environment_of(kind, LONG)


@pytest.fixture(scope="module")
def waited(
    request: pytest.FixtureRequest,
    environment_of: Callable[[str, float], ContractEnvironment],
    kind: str,
) -> dict[Case, CaseResult]:
    # Queues used in turn must not be needed by two cases at once.
    concurrency = 13 if GIVEN is None else 2
    return run_waiting(request, environment_of(kind, SHORT), concurrency=concurrency)


@pytest.mark.parametrize("case", contract_cases(), ids=str)
def test_contract(
    case: Case, unhurried: ContractEnvironment, request: pytest.FixtureRequest
) -> None:
    if case.name in MANAGING and unhurried.create_queue is None:
        pytest.skip("queues cannot be managed there")
    check(case, unhurried, request)
