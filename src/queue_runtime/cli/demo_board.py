"""What the demo knows while it runs: read from the files its workers write, never from what it hopes for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, final

import attrs
import trio

__all__ = ["Board", "SessionRow", "WorkerRow"]

_LOG: Final = 200
"""Lines of the log that are kept."""


@final
@attrs.define
class WorkerRow:
    """One worker process.

    Args:
        name: Its name.
        history: The file it writes.
        pid: Its process id.
        state: ``starting``, ``working``, ``killed`` or ``stopped``.
        handled: Messages it completed.
        current: Session and message of the handlers that are running in it, by session.
    """

    name: str
    history: Path
    pid: int = 0
    state: str = "starting"
    handled: int = 0
    current: dict[str | None, str] = attrs.field(factory=dict)
    _offset: int = 0

    def read(self) -> Iterator[Mapping[str, Any]]:
        """Records written since the last call; a line that is not finished waits."""
        try:
            with self.history.open("rb") as file:
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return
        self._offset += len(whole) + len(newline)
        for line in whole.splitlines():
            yield json.loads(line)


@final
@attrs.define
class SessionRow:
    """One session: how many of its messages there are and are done, and who had it last."""

    name: str
    total: int = 0
    done: int = 0
    worker: str = ""


@final
class Board:
    """The numbers, and the log of what is worth telling.

    Args:
        tell: Called with every line of the log: seconds since the start, text, style.
    """

    def __init__(self, tell: Callable[[float, str, str], object]) -> None:
        self.began = trio.current_time()
        self.total = 0
        self.completed = 0
        self.raised = 0
        self.dead_lettered = 0
        self.redriven = 0
        self.phase = "starting"
        self.workers: dict[str, WorkerRow] = {}
        self.sessions: dict[str, SessionRow] = {}
        self.log: list[tuple[float, str, str]] = []
        self._tell = tell
        self._orphans: dict[str, str] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return trio.current_time() - self.began

    @property
    def retried(self) -> int:
        """Failures that were followed by another try."""
        return self.raised - self.dead_lettered

    def say(self, text: str, style: str = "") -> None:
        """One line more in the log."""
        self.log = [*self.log[-_LOG:], (self.elapsed, text, style)]
        self._tell(self.elapsed, text, style)

    def sent(self, session: str | None) -> None:
        """A message was acknowledged."""
        self.total += 1
        if session is not None:
            self.sessions.setdefault(session, SessionRow(session)).total += 1

    def killed(self, worker: WorkerRow) -> None:
        """A worker is gone; its sessions wait for their locks to expire."""
        worker.state = "killed"
        for session, message in worker.current.items():
            if session is not None:
                self._orphans[session] = message
        worker.current.clear()

    def update(self) -> None:
        """Read what the workers wrote."""
        for worker in self.workers.values():
            for record in worker.read():
                self._take(worker, record)

    def _take(self, worker: WorkerRow, record: Mapping[str, Any]) -> None:
        session, message = record.get("session"), record.get("message", "")
        row = self.sessions.get(session or "")
        match record["record"]:
            case "handle_started":
                if worker.state == "starting":
                    worker.state = "working"
                worker.current[session] = message
                if row is not None:
                    if session in self._orphans:
                        again = (
                            " (delivered again)" if self._orphans.pop(session) == message else ""
                        )
                        self.say(f"{worker.name} took over {session} at {message}{again}", "green")
                    row.worker = worker.name
            case "handle_ended":
                worker.current.pop(session, None)
                if record["outcome"] == "raised":
                    self.raised += 1
            case "completed":
                self.completed += 1
                worker.handled += 1
                if row is not None:
                    row.done += 1
            case "dead_lettered":
                self.dead_lettered += 1
                self.say(f"{message} of {session} dead-lettered by {worker.name}", "red")
