"""Several consumer processes on one SQLite file, killed and stopped at random; then the checker judges."""

from __future__ import annotations

import os
import random
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from queue_runtime import Message, QueueClient, open_client
from queue_runtime.testing import History, Recorder, check

pytestmark = pytest.mark.chaos

WORKER = Path(__file__).with_name("worker.py")
SHORT = os.environ.get("QUEUE_RUNTIME_SHORT", "1") != "0"
MESSAGES = 2_000 if SHORT else 20_000
SESSIONS = 50 if SHORT else 200
FAULTS = 8 if SHORT else 60
PROCESSES = 4
LOCK = 1.0
DEADLINE = 120.0 if SHORT else 900.0


class Fleet:
    """The consumer processes; a killed one is followed by a new one with a new name."""

    def __init__(
        self, nursery: trio.Nursery, url: str, folder: Path, settlement: str, recorder: Recorder
    ) -> None:
        self._nursery = nursery
        self._arguments = (url, "jobs")
        self._folder = folder
        self._settlement = settlement
        self._recorder = recorder
        self._count = 0
        self.running: dict[str, trio.Process] = {}
        self.histories = [folder / "test.jsonl"]

    async def start(self) -> None:
        self._count += 1
        name = f"worker-{self._count}"
        history = self._folder / f"{name}.jsonl"
        self.histories.append(history)
        # A process killed before it began leaves an empty one.
        await trio.Path(history).touch()
        command = [
            sys.executable, str(WORKER), name, *self._arguments, str(history), self._settlement,
        ]  # fmt: skip
        self.running[name] = await self._nursery.start(
            partial(trio.run_process, command, check=False)
        )

    async def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        await process.wait()
        self._recorder.process_ended(name)
        await self.start()

    async def pause(self, name: str) -> None:
        """Stop a process for longer than its locks last."""
        process = self.running[name]
        process.send_signal(signal.SIGSTOP)
        self._recorder.process_paused(name)
        await trio.sleep(1.5 * LOCK)
        process.send_signal(signal.SIGCONT)

    async def drain(self) -> None:
        for process in self.running.values():
            process.terminate()
        for name, process in self.running.items():
            assert await process.wait() == 0, f"{name} did not drain cleanly"
        self.running.clear()


async def send(client: QueueClient, recorder: Recorder) -> None:
    numbers = dict.fromkeys(range(SESSIONS), 0)
    for start in range(0, MESSAGES, 50):
        batch = []
        for number in range(start, start + 50):
            session = number % SESSIONS
            numbers[session] += 1
            headers = {"poison": "yes"} if number % 400 == 399 else {}
            batch.append(
                Message(
                    b"work",
                    session_id=f"session-{session}",
                    message_id=f"m{number}",
                    headers=headers,
                )
            )
            recorder.sending(f"session-{session}", f"m{number}", numbers[session])
        for message, result in zip(batch, await client.send_batch("jobs", batch), strict=True):
            assert result.error is None
            number = int(str(message.message_id)[1:])
            recorder.sent(str(message.session_id), f"m{number}", number // SESSIONS + 1)
        await trio.sleep(0.01)


@pytest.mark.parametrize("settlement", ["strict", "pipelined"])
async def test_kills_and_pauses_lose_reorder_and_overlap_nothing(
    tmp_path: Path, settlement: str
) -> None:
    randomness = random.Random(f"{settlement}-1")
    url = f"sqlite:///{tmp_path}/jobs.db?lock_duration={LOCK}&max_delivery_count=12"
    with trio.fail_after(DEADLINE), Recorder("test", path=tmp_path / "test.jsonl") as recorder:
        async with open_client(url) as client, trio.open_nursery() as nursery:
            fleet = Fleet(nursery, url, tmp_path, settlement, recorder)
            await client.queue_stats("jobs")
            for _ in range(PROCESSES):
                await fleet.start()
            nursery.start_soon(send, client, recorder)
            for _ in range(FAULTS):
                await trio.sleep(randomness.uniform(0.2, 0.6))
                name = randomness.choice(sorted(fleet.running))
                await (fleet.kill if randomness.random() < 0.6 else fleet.pause)(name)
            while True:
                stats = await client.queue_stats("jobs")
                if not stats.depth and not stats.in_flight:
                    break
                await trio.sleep(0.1)
            await fleet.drain()
            letters = await client.dead_letters("jobs")
            async for letter in letters.find():
                recorder.found_dead(letter)
            assert (await client.queue_stats("jobs")).locked_sessions == 0
    report = check(
        History.load(fleet.histories),
        mode="pipelined" if settlement == "pipelined" else "strict",
    )
    print(report)
    report.raise_for_violations()
    assert report.lost == report.order_violations == report.overlaps == 0
