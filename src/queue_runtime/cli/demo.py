"""``queue-runtime demo``: worker processes, sessions, failures, a kill and a redrive, live."""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

import click
import trio

from queue_runtime import (
    DeadLetterClient,
    Message,
    QueueClient,
    Unsupported,
    open_client,
)
from queue_runtime.secret import SecretUrl
from queue_runtime.testing.history import Completed, HandleStarted, History, Recorder, Report, check

from .demo_board import Board, WorkerRow
from .demo_events import load
from .demo_handler import Story
from .demo_view import View, open_view
from .demo_worker import Plan
from .options import run_async
from .output import Failure, plural, print_json

__all__ = ["demo"]

_POLL: Final = 0.02
"""Seconds between two looks at what the workers wrote."""
_LOCK: Final = 2.0
"""Seconds a session stays locked after its worker was killed."""
_KILL_AT: Final = 0.4
"""Part of the messages after which a worker is killed."""
_BATCH: Final = 50
_STALL: Final = 30.0
"""Seconds without progress after which the demo gives up."""
_STORIES: Final = 8
"""Sessions whose stories are told at the end."""


@click.command(
    epilog="""\b
The last line of output is a JSON object: messages, sessions, completed, dead_lettered, redriven,
order_violations, overlaps, lost, messages_per_second and more - judged by the checker of
queue_runtime.testing.history from what the workers recorded. The exit code is 0 only when
nothing was lost, out of order or handled twice at once.

\b
Examples:
  queue-runtime demo
  queue-runtime demo --events my-webhooks.jsonl.gz --json
"""
)
@click.option(
    "--events",
    metavar="FILE",
    help='JSON lines {"event": …, "payload": {…}}, possibly gzipped; default: 329 payloads of GitHub.',
)
@click.option(
    "--url",
    metavar="URL",
    help="A broker that processes can share; default: a temporary SQLite file.",
)
@click.option("--json", "as_json", is_flag=True, help="Only the last line.")
def demo(*, events: str | None, url: str | None, as_json: bool) -> None:
    """Watch real GitHub webhooks flow through session actors.

    Two worker processes share a durable queue. One actor per pull request keeps its story, in order.
    Some messages fail at first and are retried, one cannot be read and is dead-lettered, a worker is
    killed in the middle and its sessions are taken over. Then a fixed handler is deployed, and the
    dead letter redriven.
    """
    messages = load(None if events is None else Path(events))
    with tempfile.TemporaryDirectory(prefix="queue-runtime-demo-") as folder:
        source = SecretUrl(
            f"sqlite:///{folder}/demo.db?lock_duration={_LOCK:g}" if url is None else url
        )
        with open_view(as_json=as_json) as view:
            director = _Director(source, Path(folder), messages, view)
            result = run_async(director.run)
        view.summarize(director.board, director.stories, director.report)
    print_json(result)
    if not director.report.ok or result["completed"] != result["messages"]:
        sys.exit(1)


@final
class _Director:
    """Runs the show; see :meth:`run` for the play.

    Attributes:
        board: What is known so far.
        report: What the checker says; there once :meth:`run` has returned.
        stories: What the longest sessions' handlers kept, by session.
    """

    board: Board
    report: Report

    def __init__(
        self, source: SecretUrl, folder: Path, messages: Sequence[Message], view: View
    ) -> None:
        self._source = source
        self._folder = folder
        self._messages = messages
        self._view = view
        self._queue = f"demo-{secrets.token_hex(4)}"
        self._processes: dict[str, trio.Process] = {}
        self.stories: dict[str, Story] = {}

    async def run(self) -> dict[str, Any]:
        """The play: publish, work, kill, take over, fix, redrive, judge."""
        board = self.board = Board(self._view.tell)
        async with (
            open_client(self._source) as client,
            trio.open_nursery() as nursery,
        ):
            if not client.capabilities.multi_process:
                raise Unsupported(
                    "multi_process", client.provider.name, "use sqlite:///… or a broker"
                )
            with Recorder("director", path=self._folder / "director.jsonl") as recorder:
                nursery.start_soon(self._refresh)
                try:
                    await self._start("worker-1", reads_forms=False)
                    await self._start("worker-2", reads_forms=False)
                    await self._publish(client, recorder)
                    board.phase = "working"
                    await self._kill_one(client, recorder)
                    await self._until_empty(client)
                    await self._redrive(client, recorder)
                    await self._until_empty(client)
                    await self._stop_all()
                    board.phase = "done"
                    await self._read_stories(client)
                    letters = await client.dead_letters(self._queue)
                    async for letter in letters.find():
                        recorder.found_dead(letter)
                finally:
                    await self._kill_all()
            nursery.cancel_scope.cancel()
        board.update()
        self._view.refresh(board)
        history = History.load(self._folder.glob("*.jsonl"))
        self.report = check(history)
        return self._result(history)

    async def _refresh(self) -> None:
        """Keep board and screen up to date, and notice a worker that ends by itself."""
        while True:
            self.board.update()
            self._view.refresh(self.board)
            for name, process in self._processes.items():
                if process.poll() and self.board.workers[name].state in ("starting", "working"):
                    errors = (self._folder / f"{name}.err").read_text(errors="replace")
                    raise Failure(
                        f"{name} ended with {process.returncode}",
                        kind="WorkerFailed",
                        problems=errors.splitlines()[-20:],
                    )
            await trio.sleep(_POLL)

    # The workers.

    async def _start(self, name: str, *, reads_forms: bool) -> None:
        plan = Plan(
            name=name,
            url=self._source.reveal(),
            queue=self._queue,
            history=str(self._folder / f"{name}.jsonl"),
            reads_forms=reads_forms,
        )
        with (self._folder / f"{name}.err").open("wb") as errors:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "queue_runtime.cli.demo_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        self._processes[name] = process
        self.board.workers[name] = WorkerRow(name, Path(plan.history), process.pid)
        assert process.stdin is not None
        await process.stdin.send_all(plan.dump())
        self.board.say(f"{name} started (process {process.pid})")

    async def _kill_one(self, client: QueueClient, recorder: Recorder) -> None:
        """SIGKILL a worker in the middle of a message, and start another."""
        board = self.board
        mark = len(self._messages) * _KILL_AT
        while board.completed < mark or (victim := self._busiest()) is None:
            if await self._is_empty(client):
                return
            await trio.sleep(_POLL)
            board.update()
        process = self._processes[victim.name]
        victim.state = "killed"  # or its end would count as a failure
        process.kill()
        await process.wait()
        recorder.process_ended(victim.name)
        board.update()
        held = plural(len(victim.current), "session")
        board.killed(victim)
        board.say(f"{victim.name} killed (SIGKILL) in the middle of {held}", "bold red")
        await self._start("worker-3", reads_forms=False)

    def _busiest(self) -> WorkerRow | None:
        """The worker that is in the middle of something, in the longest session if possible."""
        sessions = self.board.sessions

        def weight(worker: WorkerRow) -> int:
            return max(
                (sessions[session].total for session in worker.current if session in sessions),
                default=0,
            )

        working = [worker for worker in self.board.workers.values() if worker.current]
        return max(working, key=weight, default=None)

    async def _stop_all(self) -> None:
        """Close the workers' standard input, which drains them, and wait."""
        running = [
            worker
            for worker in self.board.workers.values()
            if worker.state in ("starting", "working")
        ]
        for worker in running:
            worker.state = "stopped"
            pipe = self._processes[worker.name].stdin
            assert pipe is not None
            await pipe.aclose()
        with trio.fail_after(_STALL):
            for worker in running:
                code = await self._processes[worker.name].wait()
                self.board.say(
                    f"{worker.name} drained" if not code else f"{worker.name} ended with {code}"
                )

    async def _kill_all(self) -> None:
        for worker in self.board.workers.values():
            if worker.state in ("starting", "working"):
                worker.state = "stopped"  # or its end would count as a failure
        with trio.CancelScope(shield=True):
            for process in self._processes.values():
                if process.stdin is not None:
                    await process.stdin.aclose()
                process.kill()
                await process.wait()

    # The queue.

    async def _publish(self, client: QueueClient, recorder: Recorder) -> None:
        self.board.phase = "publishing"
        for start in range(0, len(self._messages), _BATCH):
            batch = self._messages[start : start + _BATCH]
            for number, message in enumerate(batch, start):
                recorder.sending(message.session_id, message.message_id or "", number)
            results = await client.send_batch(self._queue, batch)
            for number, (message, result) in enumerate(zip(batch, results, strict=True), start):
                if result.error is not None:
                    raise result.error
                recorder.sent(message.session_id, message.message_id or "", number)
                self.board.sent(message.session_id)
        self.board.say(
            f"{plural(self.board.total, 'webhook')} published for "
            f"{plural(len(self.board.sessions), 'session')}"
        )

    async def _redrive(self, client: QueueClient, recorder: Recorder) -> None:
        """Deploy the handler that can read what the first one could not, and give it the dead letters."""
        letters: DeadLetterClient = await client.dead_letters(self._queue)
        dead = [letter async for letter in letters.find()]
        if not dead:
            return
        board = self.board
        board.phase = "fixing"
        for letter in dead:
            recorder.found_dead(letter)
        await self._stop_all()
        board.say("deploying the fixed handler", "cyan")
        await self._start("worker-4", reads_forms=True)
        await self._start("worker-5", reads_forms=True)
        for letter in dead:
            recorder.redriven(letter)
        board.redriven = await letters.redrive([letter.sequence_number for letter in dead])
        board.say(f"{plural(board.redriven, 'dead letter')} redriven", "cyan")

    async def _is_empty(self, client: QueueClient) -> bool:
        stats = await client.queue_stats(self._queue)
        return not stats.depth and not stats.in_flight

    async def _until_empty(self, client: QueueClient) -> None:
        board = self.board
        seen = (-1, -1)
        deadline = 0.0
        while not await self._is_empty(client):
            now = (board.completed, board.retried)
            if now != seen:
                seen, deadline = now, trio.current_time() + _STALL
            elif trio.current_time() > deadline:
                raise Failure(f"nothing was handled for {_STALL:g} s", kind="Stalled")
            await trio.sleep(0.05)
        board.update()

    async def _read_stories(self, client: QueueClient) -> None:
        rows = sorted(self.board.sessions.values(), key=lambda row: -row.total)
        for row in rows[:_STORIES]:
            async with client.accept_session(self._queue, row.name) as session:
                assert session is not None
                self.stories[row.name] = Story.load(await session.state.get())

    def _result(self, history: History) -> dict[str, Any]:
        report, board = self.report, self.board
        starts = [record.at for record in history if isinstance(record, HandleStarted)]
        ends = [record.at for record in history if isinstance(record, Completed)]
        seconds = max(ends) - min(starts) if starts and ends else 0.0
        return {
            "messages": report.acknowledged,
            "sessions": report.sessions,
            "completed": report.done,
            "dead_lettered": report.dead_lettered,
            "redriven": report.redriven,
            "order_violations": report.order_violations + report.gaps,
            "overlaps": report.overlaps,
            "lost": report.lost,
            "never_sent": report.never_sent,
            "redeliveries": report.redeliveries,
            "retries": board.retried,
            "workers_killed": sum(worker.state == "killed" for worker in board.workers.values()),
            "seconds": round(board.elapsed, 2),
            "messages_per_second": round(report.done / seconds, 1) if seconds else 0.0,
        }
