"""Several consumer processes on one SQS queue: killed, stopped, and their connections reset, all at random.

Against the strict emulator; then the checker judges.
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

from ..sqs.emulator import Emulator, open_emulator, require_emulator
from .fleet import SHORT, Fleet, judge

pytestmark = pytest.mark.chaos

MESSAGES = 1_500 if SHORT else 20_000
SESSIONS = 50 if SHORT else 200
FAULTS = 6 if SHORT else 60
LOCK = 3
PAUSE = 0.3
"""Seconds between batches: so that there is work while the faults last."""

DEADLINE = 120.0 if SHORT else 1_500.0

QUEUE = "jobs"
ATTEMPTS = 4
"""Tries of a message that fails: SQS's own limit counts every delivery and has to be high."""

ACTIONS = (
    b"ReceiveMessage",
    b"DeleteMessageBatch",
    b"ChangeMessageVisibilityBatch",
    b"SendMessageBatch",
)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    require_emulator()
    with open_emulator() as running:
        yield running


async def break_connections(proxy: TcpFaultProxy, randomness: random.Random) -> None:
    """Requests that never arrive, replies that get lost, and all connections at once."""
    try:
        while True:
            await trio.sleep(randomness.uniform(0.05, 0.5))
            if randomness.random() < 0.3:
                proxy.reset_all()
                continue
            cut = proxy.cut_request if randomness.random() < 0.5 else proxy.cut_reply
            # Half of the cuts happen in the middle of what is said.
            cut(after=randomness.choice((0, 300)), matching=randomness.choice(ACTIONS))
    finally:
        proxy.heal()


@pytest.mark.parametrize("settlement", ["strict", "pipelined"])
async def test_kills_pauses_and_resets_lose_reorder_and_overlap_nothing(
    emulator: Emulator, tmp_path: Path, settlement: str
) -> None:
    randomness = random.Random(f"sqs-{settlement}-1")
    options = f"&lock_duration={LOCK}&max_delivery_count=1000"
    config = ClientConfig(breaker=BreakerConfig(failure_threshold=50, open_duration=0.2))
    with trio.fail_after(DEADLINE), Recorder("test", path=tmp_path / "test.jsonl") as recorder:
        async with (
            open_tcp_proxy("127.0.0.1", emulator.port) as proxy,
            open_client(emulator.url + options) as observer,
            open_client(emulator.url_through(proxy.port) + options, config=config) as client,
            trio.open_nursery() as nursery,
        ):
            await observer.provision(QUEUE)
            fleet = Fleet(
                nursery=nursery,
                url=emulator.url_through(proxy.port) + options,
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
                network=partial(break_connections, proxy, randomness),
            )
            assert proxy.statistics().resets > FAULTS
            print(proxy.statistics(), emulator.calls())
    judge(fleet)
