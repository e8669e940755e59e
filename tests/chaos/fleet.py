"""What the chaos tests share: consumer processes that are killed and stopped, and who sends to them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio

from queue_runtime import Message, QueueClient
from queue_runtime.testing import History, Recorder, Report, check

__all__ = ["SHORT", "Fleet", "judge"]

HERE = Path(__file__).parent
SHORT = os.environ.get("QUEUE_RUNTIME_SHORT", "1") != "0"
PROCESSES = 4
POISON = 400
"""One of so many messages never works."""

UNREACHABLE: Final = 4
"""What ``queue-runtime run`` ends with when the broker cannot be reached as it starts."""

CONFIG = """
[supervisor]
max_sessions = 25 # fewer than there are, so that the processes share the sessions and hand them over
idle_timeout = 0.2
park_threshold = 0.1
drain_timeout = 5.0

[supervisor.retry]
initial = 0.01
max_delay = 0.3
max_attempts = {attempts}

[supervisor.breaker] # a network as bad as the tests' fails often in a row
failure_threshold = 10
open_duration = 0.5
"""

_BATCH = 50
_RUN = 5
"""So many messages of a session come one after the other."""


@attrs.define(kw_only=True)
class Worker:
    """One consumer process.

    Args:
        process: What runs.
        decided: Set when it is ready, or has been replaced as it could not reach the broker.
    """

    process: trio.Process
    decided: trio.Event = attrs.field(factory=trio.Event)


@attrs.frozen(kw_only=True)
class Fleet:
    """Processes of ``queue-runtime run``; one that was killed is followed by a new one with a new name.

    Args:
        nursery: Where the processes are waited for.
        url: The provider.
        queue: What they consume.
        folder: Where the histories are written.
        settlement: ``strict`` or ``pipelined``.
        lock: Seconds a lock lasts.
        recorder: Told who was killed and stopped, and what was sent; it writes ``test.jsonl`` in the folder.
        attempts: Tries of a message before it is dead.
    """

    nursery: trio.Nursery
    url: str
    queue: str
    folder: Path
    settlement: str
    lock: float
    recorder: Recorder
    attempts: int
    running: dict[str, Worker] = attrs.field(factory=dict, init=False)
    histories: list[Path] = attrs.field(factory=list, init=False)

    async def campaign(
        self,
        client: QueueClient,
        observer: QueueClient,
        *,
        messages: int,
        sessions: int,
        strikes: int,
        randomness: random.Random,
        calm: tuple[float, float],
        pause: float = 0.01,
        network: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Kill and stop processes while messages are sent, let all be done with, and ask the processes to end.

        Args:
            client: Sends the messages.
            observer: Looks at what is left; nothing goes wrong with its connection.
            messages: How many to send.
            sessions: Of how many sessions they are.
            strikes: How often a process is killed or stopped.
            randomness: Says who and when.
            calm: The least and the most seconds from one strike to the next.
            pause: Seconds between batches.
            network: Breaks connections until it is cancelled.
        """
        config = trio.Path(self.folder / "config.toml")
        await config.write_text(CONFIG.format(attempts=self.attempts))
        for _ in range(PROCESSES):
            await self.start()
        async with trio.open_nursery() as around:
            if network is not None:
                around.start_soon(network)
            async with trio.open_nursery() as working:
                sending = partial(send, messages=messages, sessions=sessions, pause=pause)
                working.start_soon(sending, client, self.queue, self.recorder)
                for _ in range(strikes):
                    await trio.sleep(randomness.uniform(*calm))
                    await self.strike(randomness)
            await drained(observer, self.queue)
            around.cancel_scope.cancel()
        await self.drain()
        letters = await observer.dead_letters(self.queue)
        async for letter in letters.find():
            self.recorder.found_dead(letter)

    async def start(self) -> None:
        """One more process."""
        name = f"worker-{len(self.histories) + 1}"
        history = self.folder / f"{name}.jsonl"
        self.histories.append(history)
        # A process killed before it began leaves an empty one.
        await trio.Path(history).touch()
        command = [
            *(sys.executable, "-m", "queue_runtime", "run", "--queue", self.queue),
            *("--config", str(self.folder / "config.toml"), "--settlement", self.settlement),
            *("--handler", "worker:handler"),
            *("--instrument", "worker:settlements", "--instrument", "worker:readiness"),
            *("--log-level", "critical"),
        ]
        environment = {
            **os.environ,
            "QUEUE_URL": self.url,
            "CHAOS_NAME": name,
            "CHAOS_HISTORY": str(history),
        }
        run = partial(
            trio.run_process,
            command,
            check=False,
            stdout=subprocess.PIPE,
            cwd=HERE,
            env=environment,
        )
        worker = Worker(process=await self.nursery.start(run))
        self.running[name] = worker
        self.nursery.start_soon(self._follow, name, worker)

    async def _follow(self, name: str, worker: Worker) -> None:
        """Note that a process is ready, and that none ends unasked; one that reaches no broker is replaced."""
        assert worker.process.stdout is not None
        async with worker.process.stdout as output:
            said = await output.receive_some()
            if said:
                assert said.startswith(b"ready"), said
                worker.decided.set()
            code = await worker.process.wait()
        if self.running.get(name) is worker:
            assert (said, code) == (b"", UNREACHABLE), f"{name} ended by itself with {code}"
            del self.running[name]
            self.recorder.process_ended(name)
            await self.start()  # as an orchestrator would
            worker.decided.set()

    async def kill(self, name: str) -> None:
        """Kill a process and start another."""
        worker = self.running.pop(name)
        worker.process.kill()
        await worker.process.wait()
        self.recorder.process_ended(name)
        await self.start()

    async def pause(self, name: str) -> None:
        """Stop a process for longer than its locks last."""
        process = self.running[name].process
        process.send_signal(signal.SIGSTOP)
        # It goes on until the signal reaches it; a handler that begins meanwhile begins before the pause.
        stopped = os.WSTOPPED | os.WEXITED | os.WNOWAIT
        await trio.to_thread.run_sync(os.waitid, os.P_PID, process.pid, stopped)
        seconds = 1.5 * self.lock
        self.recorder.process_paused(name, seconds)
        await trio.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    async def strike(self, randomness: random.Random) -> None:
        """Kill or stop one that is at work; as long as none is, kill one that starts."""
        at_work = sorted(name for name in self.running if self.running[name].decided.is_set())
        name = randomness.choice(at_work or sorted(self.running))
        kills = randomness.random() < 0.6 or not at_work
        await (self.kill if kills else self.pause)(name)

    async def drain(self) -> None:
        """Ask all to end, as an orchestrator does."""
        while undecided := [each for each in self.running.values() if not each.decided.is_set()]:
            # Before it says so, it does not listen to signals.
            await undecided[0].decided.wait()
        ending = dict(self.running)
        self.running.clear()
        for worker in ending.values():
            worker.process.terminate()
        for name, worker in ending.items():
            assert await worker.process.wait() == 0, f"{name} did not drain cleanly"


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
