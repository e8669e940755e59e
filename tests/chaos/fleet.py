"""What the chaos tests share: consumer processes that are killed and stopped, and who sends to them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import attrs
import trio

from queue_runtime import Message, QueueClient
from queue_runtime.testing import History, Recorder, Report, check

__all__ = ["PROCESSES", "SHORT", "Fleet", "drained", "judge", "send"]

WORKER = Path(__file__).with_name("worker.py")
SHORT = os.environ.get("QUEUE_RUNTIME_SHORT", "1") != "0"
PROCESSES = 4
POISON = 400
"""One of so many messages never works."""

_BATCH = 50
_RUN = 5
"""So many messages of a session come one after the other."""


@attrs.frozen(kw_only=True)
class Fleet:
    """The consumer processes; a killed one is followed by a new one with a new name.

    Args:
        nursery: Where the processes are waited for.
        url: The provider.
        queue: What they consume.
        folder: Where the histories are written.
        settlement: ``strict`` or ``pipelined``.
        lock: Seconds a lock lasts.
        recorder: Told who was killed and stopped, and what was sent; it writes ``test.jsonl`` in the folder.
        attempts: Tries of a message before it is dead; 0: as many as the queue allows.
    """

    nursery: trio.Nursery
    url: str
    queue: str
    folder: Path
    settlement: str
    lock: float
    recorder: Recorder
    attempts: int = 0
    running: dict[str, trio.Process] = attrs.field(factory=dict, init=False)
    histories: list[Path] = attrs.field(factory=list, init=False)

    async def start(self) -> None:
        """One more process."""
        name = f"worker-{len(self.histories) + 1}"
        history = self.folder / f"{name}.jsonl"
        self.histories.append(history)
        # A process killed before it began leaves an empty one.
        await trio.Path(history).touch()
        arguments = (name, self.url, self.queue, str(history), self.settlement, str(self.attempts))
        command = [sys.executable, str(WORKER), *arguments]
        self.running[name] = await self.nursery.start(
            partial(trio.run_process, command, check=False, stdout=subprocess.PIPE)
        )

    async def kill(self, name: str) -> None:
        """Kill a process and start another."""
        process = self.running.pop(name)
        process.kill()
        await process.wait()
        await output(process).aclose()
        self.recorder.process_ended(name)
        await self.start()

    async def pause(self, name: str) -> None:
        """Stop a process for longer than its locks last."""
        process = self.running[name]
        process.send_signal(signal.SIGSTOP)
        # It goes on until the signal reaches it; a handler that begins meanwhile begins before the pause.
        stopped = os.WSTOPPED | os.WEXITED | os.WNOWAIT
        await trio.to_thread.run_sync(os.waitid, os.P_PID, process.pid, stopped)
        seconds = 1.5 * self.lock
        self.recorder.process_paused(name, seconds)
        await trio.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    async def strike(self, randomness: random.Random) -> None:
        """Kill or stop one of them."""
        name = randomness.choice(sorted(self.running))
        assert self.running[name].poll() is None, f"{name} ended by itself"
        await (self.kill if randomness.random() < 0.6 else self.pause)(name)

    async def drain(self) -> None:
        """Ask all to end, as an orchestrator does."""
        for process in self.running.values():
            # Before it says so, it does not listen to signals.
            said = await output(process).receive_some()
            assert said.startswith(b"ready"), said
            process.terminate()
        for name, process in self.running.items():
            assert await process.wait() == 0, f"{name} did not drain cleanly"
            await output(process).aclose()
        self.running.clear()


def output(process: trio.Process) -> trio.abc.ReceiveStream:
    """What it prints."""
    assert process.stdout is not None
    return process.stdout


async def send(
    client: QueueClient,
    queue: str,
    recorder: Recorder,
    *,
    messages: int,
    sessions: int,
    pause: float = 0.01,
) -> None:
    """Send to all sessions by turns, and again what was not acknowledged; ``pause`` seconds between batches."""
    sent = [0] * sessions
    for start in range(0, messages, _BATCH):
        batch = []
        numbers = {}
        for number in range(start, min(start + _BATCH, messages)):
            session = number // _RUN % sessions
            sent[session] += 1
            numbers[f"m{number}"] = sent[session]
            message = Message(
                b"work",
                session_id=f"session-{session}",
                message_id=f"m{number}",
                headers={"poison": "yes"} if number % POISON == POISON - 1 else {},
            )
            batch.append(message)
            recorder.sending(message.session_id, f"m{number}", sent[session])
        while batch:
            batch = await _try_to_send(client, queue, recorder, batch, numbers)
        await trio.sleep(pause)


async def _try_to_send(
    client: QueueClient,
    queue: str,
    recorder: Recorder,
    batch: Sequence[Message],
    numbers: dict[str, int],
) -> list[Message]:
    """What has to be sent again."""
    left = []
    wait = 0.0
    for message, result in zip(batch, await client.send_batch(queue, batch), strict=True):
        if result.error is None:
            name = str(message.message_id)
            recorder.sent(message.session_id, name, numbers[name])
        else:
            assert result.error.is_transient, result.error
            wait = max(wait, 0.05, result.error.retry_after or 0.0)
            left.append(message)
    await trio.sleep(wait)
    return left


async def drained(client: QueueClient, queue: str) -> None:
    """Return once there is nothing left to deliver."""
    while True:
        stats = await client.queue_stats(queue)
        if not stats.depth and not stats.in_flight:
            break
        await trio.sleep(0.1)


def judge(fleet: Fleet) -> Report:
    """The checker's report on everything the test and its processes wrote down; no violation passes."""
    report = check(
        History.load([fleet.folder / "test.jsonl", *fleet.histories]),
        mode="pipelined" if fleet.settlement == "pipelined" else "strict",
    )
    print(report)
    report.raise_for_violations()
    assert report.lost == report.order_violations == report.overlaps == 0
    return report
