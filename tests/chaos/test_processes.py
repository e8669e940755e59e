"""Several consumer processes on one SQLite file, killed and stopped at random; then the checker judges."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
import trio

from queue_runtime import open_client
from queue_runtime.testing import Recorder

from .fleet import PROCESSES, SHORT, Fleet, drained, judge, send

pytestmark = pytest.mark.chaos

MESSAGES = 2_000 if SHORT else 20_000
SESSIONS = 50 if SHORT else 200
FAULTS = 8 if SHORT else 60
LOCK = 1.0
DEADLINE = 120.0 if SHORT else 900.0


@pytest.mark.parametrize("settlement", ["strict", "pipelined"])
async def test_kills_and_pauses_lose_reorder_and_overlap_nothing(
    tmp_path: Path, settlement: str
) -> None:
    randomness = random.Random(f"{settlement}-1")
    url = f"sqlite:///{tmp_path}/jobs.db?lock_duration={LOCK}&max_delivery_count=12"
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
            )
            await client.queue_stats("jobs")
            for _ in range(PROCESSES):
                await fleet.start()
            async with trio.open_nursery() as working:
                working.start_soon(
                    partial(send, client, "jobs", recorder, messages=MESSAGES, sessions=SESSIONS)
                )
                for _ in range(FAULTS):
                    await trio.sleep(randomness.uniform(0.2, 0.6))
                    await fleet.strike(randomness)
            await drained(client, "jobs")
            await fleet.drain()
            letters = await client.dead_letters("jobs")
            async for letter in letters.find():
                recorder.found_dead(letter)
            assert (await client.queue_stats("jobs")).locked_sessions == 0
    judge(fleet)
