"""How the demo looks: live on a terminal, line by line elsewhere, silent for machines."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, final

import click

from queue_runtime.testing.history import Report
from queue_runtime.text import escape

from .demo_board import Board
from .demo_handler import Story
from .messages import table
from .output import console, plural

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

__all__ = ["TerminalView", "View", "open_view"]

_FRAME: Final = 11
"""Lines that everything but the sessions and the log takes."""
_STATES: Final = {
    "working": "green",
    "killed": "bold red",
    "stopped": "dim",
    "starting": "yellow",
}
_CHAPTERS: Final = 3
"""Chapters of a story that are shown."""


class View(ABC):
    """What the demo tells whoever looks."""

    @abstractmethod
    def tell(self, elapsed: float, text: str, style: str) -> None:
        """A line of the log."""

    @abstractmethod
    def refresh(self, board: Board) -> None:
        """The numbers may have changed."""

    @abstractmethod
    def summarize(self, board: Board, stories: Mapping[str, Story], report: Report) -> None:
        """It is over."""


@contextmanager
def open_view(*, as_json: bool) -> Iterator[View]:
    """The view that fits where the output goes."""
    if as_json:
        yield _Silent()
    elif sys.stdout.isatty():
        from rich.live import Live

        screen = console()
        with Live(console=screen, auto_refresh=False) as live:
            yield TerminalView(screen, live)
    else:
        yield _Lines()


@final
class _Silent(View):
    def tell(self, elapsed: float, text: str, style: str) -> None: ...

    def refresh(self, board: Board) -> None: ...

    def summarize(self, board: Board, stories: Mapping[str, Story], report: Report) -> None: ...


class _Summary(View):
    """The end is the same on a terminal and elsewhere."""

    def summarize(self, board: Board, stories: Mapping[str, Story], report: Report) -> None:
        from rich.text import Text

        out = console()
        rows = table("session", "events", "verdict", "last chapters", right=("events",))
        for column, width in zip(rows.columns, (30, 6, 10), strict=False):
            column.min_width = width
        for name, story in stories.items():
            rows.add_row(
                Text(escape(name), "bold"),
                str(story.events),
                Text(escape(story.verdict), "green" if story.verdict == "merged" else ""),
                Text(escape(" → ".join(story.chapters[-_CHAPTERS:])), "dim"),
            )
        out.print(rows)
        hidden = len(board.sessions) - len(stories)
        if hidden > 0:
            out.print(Text(f"and {plural(hidden, 'session')} more\n", "dim"))
        again = "redelivery" if report.redeliveries == 1 else "redeliveries"
        verdicts = (
            (
                "nothing lost",
                not report.lost,
                f"{report.done:,} of {report.acknowledged:,} completed",
            ),
            (
                "strict order",
                not report.order_violations and not report.gaps,
                f"{report.redeliveries:,} {again} after failures and the kill",
            ),
            ("one at a time", not report.overlaps, plural(report.sessions, "session")),
            (
                "dead letters",
                report.done == report.acknowledged,
                f"{report.dead_lettered:,} dead-lettered, {report.redriven:,} redriven",
            ),
        )
        for label, good, text in verdicts:
            mark = Text("✔ ", "bold green") if good else Text("✘ ", "bold red")
            out.print(Text.assemble(mark, Text(f"{label:<15}", "bold"), text))
        for violation in report.violations:
            out.print(Text(escape(str(violation), 400), "red"))


@final
class _Lines(_Summary):
    """For files and pipes."""

    def __init__(self) -> None:
        self._quarters = 0

    def tell(self, elapsed: float, text: str, style: str) -> None:
        click.echo(f"{elapsed:6.1f} s  {escape(text, 400)}")

    def refresh(self, board: Board) -> None:
        if not board.total or board.phase == "publishing":
            return
        quarters = 4 * board.completed // board.total
        if quarters > self._quarters:
            self._quarters = quarters
            self.tell(board.elapsed, f"{board.completed:,} of {board.total:,} handled", "")


@final
class TerminalView(_Summary):
    """For people who watch."""

    def __init__(self, screen: Console, live: Live) -> None:
        self._screen = screen
        self._live = live
        self._drawn = -1.0

    def tell(self, elapsed: float, text: str, style: str) -> None:
        """Nothing: the log is part of the picture."""

    def refresh(self, board: Board) -> None:
        """Draw, ten times a second at most."""
        if board.phase == "done" or board.elapsed - self._drawn >= 0.1:
            self._drawn = board.elapsed
            self._live.update(self.picture(board), refresh=True)

    def picture(self, board: Board) -> RenderableType:
        """Everything, as large as the terminal allows."""
        from rich.columns import Columns
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        wide = self._screen.width >= 100
        bar = ProgressBar(
            total=max(board.total, 1), completed=board.completed, width=30 if wide else 10
        )
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(board.phase, "bold"),
            bar,
            Text(f"{board.completed:,}/{board.total:,} handled"),
            Text(f"{board.retried:,} retried", "yellow" if board.retried else "dim"),
            Text(f"{board.dead_lettered:,} dead-lettered", "red" if board.dead_lettered else "dim"),
            Text(f"{board.elapsed:.1f} s", "dim"),
        )
        log = 9 if self._screen.height >= 30 else 5
        height = max(self._screen.height - _FRAME - log, 3)
        sessions = self._sessions(board, height, wide)
        return Group(
            Panel(head, title="queue-runtime demo", title_align="left", border_style="cyan"),
            Columns([sessions, self._workers(board)], padding=(0, 2)) if wide else sessions,
            Panel(
                self._log(board, log), title="what happens", title_align="left", border_style="dim"
            ),
        )

    def _sessions(self, board: Board, height: int, wide: bool) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        rows = table("session", "", "done", "worker", "state", right=("done",))
        width = 40 if wide else 32
        for row in sorted(board.sessions.values(), key=lambda row: -row.total)[:height]:
            name = escape(row.name)
            worker = board.workers.get(row.worker)
            over = row.done == row.total
            state = "" if worker is None or over else worker.state
            rows.add_row(
                # The end of a name tells more than its beginning.
                Text(
                    name if len(name) <= width else f"…{name[1 - width :]}",
                    "dim" if over else "bold",
                ),
                ProgressBar(total=max(row.total, 1), completed=row.done, width=12 if wide else 8),
                f"{row.done}/{row.total}",
                row.worker,
                Text(state, _STATES.get(state, "")),
            )
        return rows

    def _workers(self, board: Board) -> RenderableType:
        from rich.text import Text

        rows = table("worker", "state", "handled", right=("handled",))
        for worker in board.workers.values():
            rows.add_row(
                worker.name, Text(worker.state, _STATES[worker.state]), f"{worker.handled:,}"
            )
        return rows

    def _log(self, board: Board, height: int) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        lines = [
            Text.assemble((f"{elapsed:5.1f} s  ", "dim"), (escape(text), style))
            for elapsed, text, style in board.log[-height:]
        ]
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*lines, *[Text("")] * (height - len(lines)))
