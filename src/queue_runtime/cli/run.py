"""``queue-runtime run``: serve a queue with a handler until told to stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Final, Protocol, final

import attrs
import click
import trio

from queue_runtime import (
    HandlerFactory,
    QueueName,
    RuntimeConfig,
    Supervisor,
    SupervisorStatistics,
    open_client,
    open_supervisor,
)
from queue_runtime.instrumentation import Instrument

from .loading import load_handler, load_instrument
from .options import Settings, run_async, shared_options
from .output import console, plural, print_json

__all__ = ["run"]

_REFRESH: Final = 0.25
"""Seconds between two looks at the status line."""


@click.command(
    epilog="""\b
The handler is a class with 'async def handle(self, delivery)', an async function that takes
a delivery, or a function that makes such objects. An instrument is a function that takes an
event of queue_runtime.instrumentation. The current directory is importable.

\b
SIGTERM or Ctrl-C drains: running handlers finish, their messages are settled, locks are given
back. A second one cancels the handlers at once; what they were at is delivered again.
The exit code is 0 after a clean drain, 1 if handlers had to be cancelled.

\b
Examples:
  queue-runtime run --url sqlite:///jobs.db --queue jobs --handler bot:PullRequest
  queue-runtime run --url sqlite:///jobs.db --queue jobs --handler bot:PullRequest --until-empty
"""
)
@shared_options
@click.option(
    "--handler",
    "reference",
    required=True,
    metavar="MODULE:NAME",
    help="What handles the messages.",
)
@click.option(
    "--instrument", "listeners", multiple=True, metavar="MODULE:NAME",
    help="Is told what happens; may be given again.",
)  # fmt: skip
@click.option(
    "--until-empty", is_flag=True,
    help="Stop when nothing waits, is delayed or in flight; what is scheduled for later stays.",
)  # fmt: skip
@click.option("--max-sessions", type=int, metavar="N", help="Most sessions handled at once.")
@click.option("--max-in-flight", type=int, metavar="N", help="Most messages held at once.")
@click.option(
    "--settlement", type=click.Choice(["strict", "pipelined"]),
    help="When a session goes on: after the broker's confirmation, or at once.",
)  # fmt: skip
@click.option("--handler-timeout", type=float, metavar="SECONDS", help="Most time for one message.")
@click.option(
    "--drain-timeout", type=float, metavar="SECONDS",
    help="How long a drain lets handlers finish before it cancels them.",
)  # fmt: skip
@click.option(
    "--idle-timeout", type=float, metavar="SECONDS", help="When an idle session is closed."
)
def run(
    *,
    settings: Settings,
    reference: str,
    listeners: tuple[str, ...],
    until_empty: bool,
    **supervisor: Any,
) -> None:
    """Handle a queue's messages, each session in order, until told to stop."""
    given = {name: value for name, value in supervisor.items() if value is not None}
    config = settings.load({"supervisor": given} if given else None)
    queue = settings.queue_of(config)
    config.provider_source()  # before anything of the user's is imported
    handler = load_handler(reference)
    instruments = [load_instrument(each) for each in listeners]
    result = run_async(_Run(settings, config, queue, handler, instruments, until_empty).run)
    _summarize(result, queue, as_json=settings.json)
    if not result.clean:
        sys.exit(1)


@final
@attrs.frozen
class _Result:
    statistics: SupervisorStatistics
    clean: bool
    seconds: float


class _Status(Protocol):
    def update(self, text: str) -> object: ...


@final
class _Run:
    """One run of the supervisor, from the connection to the end of the drain."""

    def __init__(
        self,
        settings: Settings,
        config: RuntimeConfig,
        queue: QueueName,
        handler: HandlerFactory,
        instruments: Sequence[Instrument],
        until_empty: bool,
    ) -> None:
        self._settings = settings
        self._config = config
        self._queue = queue
        self._handler = handler
        self._instruments = instruments
        self._until_empty = until_empty
        self._stop = trio.Event()

    async def run(self) -> _Result:
        live = sys.stderr.isatty() and not self._settings.json
        with ExitStack() as stack:
            status = stack.enter_context(_status() if live else nullcontext())
            # After the status line has taken stderr over, so that log lines go above it.
            log = self._settings.instruments(
                self._config, quiet_level="warning" if live else "info"
            )
            began = trio.current_time()
            client = open_client(self._config.provider_source(), config=self._config.client)
            cancel = trio.CancelScope()
            clean = False
            async with client as connection, trio.open_nursery() as nursery:
                await nursery.start(self._listen, cancel)
                with cancel:
                    async with open_supervisor(
                        connection,
                        self._queue,
                        self._handler,
                        config=self._config.supervisor,
                        instruments=[*log, *self._instruments],
                    ) as supervisor:
                        if status is not None:
                            nursery.start_soon(self._show, supervisor, status)
                        await self._wait(supervisor)
                        self._stop.set()
                        clean = await supervisor.drain()
                statistics = supervisor.statistics()
                nursery.cancel_scope.cancel()
            return _Result(statistics, clean, trio.current_time() - began)

    async def _wait(self, supervisor: Supervisor) -> None:
        """Return when it is time to drain."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_stop, nursery.cancel_scope)
            if self._until_empty:
                await supervisor.wait_empty()
            else:
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()

    async def _wait_stop(self, scope: trio.CancelScope) -> None:
        await self._stop.wait()
        scope.cancel()

    async def _listen(
        self,
        cancel: trio.CancelScope,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """The first signal drains, the second cancels."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if self._stop.is_set():
                    click.echo("cancelling the handlers", err=True)
                    cancel.cancel()
                else:
                    grace = self._config.supervisor.drain_timeout
                    click.echo(
                        f"draining: handlers may finish for {grace:g} s; once more cancels them",
                        err=True,
                    )
                    self._stop.set()

    async def _show(self, supervisor: Supervisor, status: _Status) -> None:
        while True:
            status.update(_line(self._queue, supervisor.statistics()))
            await trio.sleep(_REFRESH)


def _status() -> AbstractContextManager[_Status]:
    return console(stderr=True).status("starting")


def _line(queue: str, now: SupervisorStatistics) -> str:
    parts = [
        f"{queue}: {'draining' if now.draining else 'serving'}",
        plural(now.active_sessions, "session"),
        f"{now.in_flight:,} in flight",
        f"{now.completed:,} completed ({now.completed_per_second:,.0f}/s)",
    ]
    parts += [f"{now.retried:,} retried"] if now.retried else []
    parts += [f"{now.dead_lettered:,} dead-lettered"] if now.dead_lettered else []
    if now.breaker.state.value != "closed":
        parts.append(f"breaker {now.breaker.state.value}")
    return " · ".join(parts)


def _summarize(result: _Result, queue: str, *, as_json: bool) -> None:
    now = result.statistics
    counts = {
        "received": now.received,
        "completed": now.completed,
        "retried": now.retried,
        "abandoned": now.abandoned,
        "dead_lettered": now.dead_lettered,
        "given_back": now.given_back,
        "sessions_opened": now.sessions_opened,
        "locks_lost": now.locks_lost,
    }
    if as_json:
        rate = now.completed / result.seconds if result.seconds else 0.0
        print_json(
            {
                **counts,
                "seconds": round(result.seconds, 3),
                "messages_per_second": round(rate, 1),
                "clean": result.clean,
            }
        )
        return
    parts = [f"{counts.pop('completed'):,} completed"]
    del counts["received"], counts["sessions_opened"]
    parts += [f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    ending = "" if result.clean else "; handlers had to be cancelled"
    click.echo(f"{queue}: {', '.join(parts)} in {result.seconds:.1f} s{ending}")
