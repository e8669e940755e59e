"""Several consumer processes on one SQLite file, killed and stopped at random; then the checker judges."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from queue_runtime import open_client
from queue_runtime.testing import Recorder

from .fleet import SHORT, Fleet, judge

pytestmark = pytest.mark.chaos

MESSAGES = 2_000 if SHORT else 20_000
SESSIONS = 50 if SHORT else 200
FAULTS = 8 if SHORT else 60
LOCK = 1.0
DELIVERIES = 12
DEADLINE = 120.0 if SHORT else 900.0


@pytest.mark.parametrize("settlement", ["strict", "pipelined"])
async def test_kills_and_pauses_lose_reorder_and_overlap_nothing(
    tmp_path: Path, settlement: str
) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db?lock_duration={LOCK}&max_delivery_count={DELIVERIES}"
    with trio.fail_after(DEADLINE), Recorder("test", path=tmp_path / "test.jsonl") as recorder:
        async with open_client(url) as client, trio.open_nursery() as nursery:
            fleet = Fleet(
                nursery=nursery,
                url=url,
                queue="jobs",
                folder=tmp_path,
                settlement=settlement,
                lock=LOCK,
                recorder=recorder,
                attempts=2 * DELIVERIES,  # the queue's own limit is what counts
            )
            await client.queue_stats("jobs")
            await fleet.campaign(
                client,
                client,
                messages=MESSAGES,
                sessions=SESSIONS,
                strikes=FAULTS,
                randomness=random.Random(f"{settlement}-1"),
                calm=(0.2, 0.6),
            )
            assert (await client.queue_stats("jobs")).locked_sessions == 0
    judge(fleet)
