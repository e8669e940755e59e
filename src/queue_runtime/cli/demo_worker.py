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

from queue_runtime import RetryPolicy, SupervisorConfig, open_supervisor
from queue_runtime.testing import Recorder, record_handlers, record_settlements

from .demo_handler import StoryTeller

__all__ = ["Plan", "main"]


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


async def _serve(plan: Plan) -> None:
    config = SupervisorConfig(
        # Fewer sessions than there are, so that the workers share them.
        max_sessions=8,
        idle_timeout=0.2,
        retry=RetryPolicy(initial=0.03, max_delay=0.2, max_attempts=5),
    )
    with Recorder(plan.name, path=Path(plan.history)) as recorder:
        make_handler = record_handlers(lambda: StoryTeller(reads_forms=plan.reads_forms), recorder)
        async with open_supervisor(
            plan.url,
            plan.queue,
            make_handler,
            config=config,
            instruments=[record_settlements(recorder)],
        ):
            await trio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)


def main() -> None:
    """Serve until standard input ends."""
    # Ctrl-C reaches every process of the terminal; the demo decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trio.run(_serve, Plan.load(sys.stdin.buffer.readline()))


if __name__ == "__main__":
    main()
