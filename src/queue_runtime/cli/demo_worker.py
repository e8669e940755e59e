"""A worker process of the demo: ``python -m queue_runtime.cli.demo_worker``, told its plan on standard input.

It is ``queue-runtime run`` with a recorder: everything it does is written to a file that the checker of
:mod:`queue_runtime.testing.history` reads. It drains when its standard input is closed, so it never outlives
the demo.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Self, final

import attrs
import trio

from queue_runtime import (
    Abandon,
    Complete,
    DeadLetter,
    Delivery,
    Outcome,
    Retry,
    RetryPolicy,
    Session,
    SessionHandler,
    SupervisorConfig,
    open_supervisor,
)
from queue_runtime.instrumentation import Event, MessagesSettled
from queue_runtime.testing.history import Ended, Recorder

from .demo_handler import StoryTeller

__all__ = ["Plan", "main"]

_ENDED = {
    Complete: Ended.COMPLETE,
    Retry: Ended.RETRY,
    DeadLetter: Ended.DEAD_LETTER,
    Abandon: Ended.ABANDON,
}


@final
@attrs.frozen
class Plan:
    """What a worker is to do. It travels by pipe: a URL may hold a secret, which has no place in arguments.

    Args:
        name: The worker's name.
        url: The provider.
        queue: The queue.
        history: File of the records.
        reads_forms: Which version of the handler runs.
    """

    name: str
    url: str = attrs.field(repr=False)
    queue: str
    history: str
    reads_forms: bool

    @classmethod
    def load(cls, line: bytes) -> Self:
        """From what :meth:`dump` made."""
        return cls(**json.loads(line))

    def dump(self) -> bytes:
        """As a line."""
        return json.dumps(attrs.asdict(self)).encode() + b"\n"


@final
class _Recorded(SessionHandler):
    """A handler whose every turn is written down."""

    def __init__(self, handler: SessionHandler, recorder: Recorder) -> None:
        self._handler = handler
        self._recorder = recorder

    async def opened(self, session: Session) -> None:
        await self._handler.opened(session)

    async def handle(self, delivery: Delivery) -> Outcome | None:
        self._recorder.started(delivery)
        try:
            outcome = await self._handler.handle(delivery)
        except trio.Cancelled:
            self._recorder.ended(delivery, Ended.CANCELLED)
            raise
        except BaseException:
            self._recorder.ended(delivery, Ended.RAISED)
            raise
        self._recorder.ended(delivery, Ended.COMPLETE if outcome is None else _ENDED[type(outcome)])
        return outcome


async def _serve(plan: Plan) -> None:
    config = SupervisorConfig(
        # Fewer sessions than there are, so that the workers share them.
        max_sessions=8,
        idle_timeout=0.2,
        retry=RetryPolicy(initial=0.03, max_delay=0.2, max_attempts=5),
    )
    with Recorder(plan.name, path=Path(plan.history)) as recorder:

        def note(event: Event) -> None:
            if isinstance(event, MessagesSettled):
                for settlement, error in zip(event.settlements, event.errors, strict=True):
                    if error is None:
                        recorder.settled(settlement.delivery, settlement.action)

        def make_handler() -> SessionHandler:
            return _Recorded(StoryTeller(reads_forms=plan.reads_forms), recorder)

        async with open_supervisor(
            plan.url, plan.queue, make_handler, config=config, instruments=[note]
        ):
            await trio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)


def main() -> None:
    """Serve until standard input ends."""
    # Ctrl-C reaches every process of the terminal; the demo decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trio.run(_serve, Plan.load(sys.stdin.buffer.readline()))


if __name__ == "__main__":
    main()
