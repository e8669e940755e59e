"""Several consumer processes on one session queue of Service Bus: killed, stopped, detached and reset, all at random.

Against our emulator, with the real SDK; then the checker judges.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from queue_runtime import BreakerConfig, ClientConfig, open_client
from queue_runtime.testing import Recorder
from queue_runtime.testing.tcp_proxy import TcpFaultProxy, open_tcp_proxy

from ..azure.emulator_process import EmulatorProcess, emulator_process
from ..azure.given import require
from .fleet import SHORT, Fleet, judge

pytestmark = pytest.mark.chaos

MESSAGES = 1_000 if SHORT else 10_000
SESSIONS = 50 if SHORT else 200
FAULTS = 6 if SHORT else 40
LOCK = 5
"""Seconds; Service Bus has no shorter ones."""

PAUSE = 0.4
"""Seconds between batches: so that there is work while the faults last."""

DEADLINE = 120.0 if SHORT else 600.0

QUEUE = "jobs"
ATTEMPTS = 4
"""Tries of a message that fails: the queue's own limit counts every delivery and has to be high."""

DELIVERIES = 1_000

OPTIONS = {
    "deduplication": True,
    "lock_duration": LOCK,
    "max_delivery_count": DELIVERIES,
    "connect_timeout": 5,
    "operation_timeout": 5,
}


@pytest.fixture
def emulator() -> Iterator[EmulatorProcess]:
    require("azure.servicebus", "proton")
    with emulator_process() as running:
        yield running


async def break_connections(
    emulator: EmulatorProcess, proxy: TcpFaultProxy, randomness: random.Random
) -> None:
    """Frames that never arrive, links detached by force, a session's or all, and all connections at once."""
    try:
        while True:
            await trio.sleep(randomness.uniform(0.2, 1.0))
            match randomness.choice(("reset", "request", "reply", "detach", "session")):
                case "reset":
                    proxy.reset_all()
                case "request":
                    proxy.cut_request(after=randomness.randrange(2_000))
                case "reply":
                    proxy.cut_reply(after=randomness.randrange(2_000))
                case "detach":
                    emulator.fault("detach", queue=QUEUE)
                case _:
                    for number in randomness.sample(range(SESSIONS), 5):
                        emulator.fault("detach", queue=QUEUE, session_id=f"session-{number}")
    finally:
        proxy.heal()


@pytest.mark.parametrize("settlement", ["strict", "pipelined"])
async def test_kills_pauses_detaches_and_resets_lose_reorder_and_overlap_nothing(
    emulator: EmulatorProcess, tmp_path: Path, settlement: str
) -> None:
    randomness = random.Random(f"azure-{settlement}-1")
    emulator.create_queue(
        QUEUE,
        requires_session=True,
        lock_duration=LOCK,
        max_delivery_count=DELIVERIES,
        # What is sent again as nobody knows whether it arrived is a duplicate.
        duplicate_window=3_600.0,
        # A broker that gives a session to the next before its holder can know lets them overlap, whatever
        # they do. Service Bus is documented to keep the lock of who did not close.
        locks_outlast_links=True,
        fetches_ahead=True,
    )
    config = ClientConfig(breaker=BreakerConfig(failure_threshold=50, open_duration=0.2))
    with trio.fail_after(DEADLINE), Recorder("test", path=tmp_path / "test.jsonl") as recorder:
        async with (
            open_tcp_proxy("127.0.0.1", emulator.port) as proxy,
            open_client(emulator.url_with(**OPTIONS)) as observer,
            open_client(emulator.url_with(proxy.port, **OPTIONS), config=config) as client,
            trio.open_nursery() as nursery,
        ):
            fleet = Fleet(
                nursery=nursery,
                url=emulator.url_with(proxy.port, **OPTIONS),
                queue=QUEUE,
                folder=tmp_path,
                settlement=settlement,
                lock=LOCK,
                recorder=recorder,
                attempts=ATTEMPTS,
            )
            await fleet.campaign(
                client,
                observer,
                messages=MESSAGES,
                sessions=SESSIONS,
                strikes=FAULTS,
                randomness=randomness,
                calm=(0.3, 1.5),
                pause=PAUSE,
                network=partial(break_connections, emulator, proxy, randomness),
            )
            assert proxy.statistics().resets > FAULTS
            print(proxy.statistics(), emulator.statistics())
    judge(fleet)
