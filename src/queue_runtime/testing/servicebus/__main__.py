"""``python -m queue_runtime.testing.servicebus``: run the emulator from the command line."""

from __future__ import annotations

import argparse
import os
import signal
import sys

import trio

from ...errors import ValidationError
from .authority import AccessPolicy
from .certificate import Certificate
from .emulator import open_emulator
from .entities import QueueSettings

__all__: list[str] = []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m queue_runtime.testing.servicebus",
        description="Run an emulator of Azure Service Bus at 127.0.0.1; prints its connection string.",
    )
    parser.add_argument("--port", type=int, default=5672, help="0 takes a free one; default: 5672")
    parser.add_argument("--queues", nargs="+", default=[], metavar="NAME", help="without sessions")
    parser.add_argument(
        "--session-queues", nargs="+", default=[], metavar="NAME", help="that require sessions"
    )
    parser.add_argument("--lock-duration", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--max-delivery-count", type=int, default=10, metavar="N")
    parser.add_argument(
        "--duplicate-window", type=float, default=0.0, metavar="SECONDS", help="default: 0, off"
    )
    parser.add_argument(
        "--key", help="the access key that clients sign with; default: a random one"
    )
    parser.add_argument("--tls", action="store_true", help="also prints the file to trust")
    parser.add_argument(
        "--until-stdin-ends",
        action="store_true",
        help="stop with the process that started this one",
    )
    return parser.parse_args()


async def _main(arguments: argparse.Namespace) -> None:
    queues = {
        name: QueueSettings(
            requires_session=requires_session,
            lock_duration=arguments.lock_duration,
            max_delivery_count=arguments.max_delivery_count,
            duplicate_window=arguments.duplicate_window,
        )
        for requires_session, names in (
            (False, arguments.queues),
            (True, arguments.session_queues),
        )
        for name in names
    }
    policy = AccessPolicy(key=arguments.key) if arguments.key else AccessPolicy()
    async with open_emulator(
        queues,
        port=arguments.port,
        policy=policy,
        certificate=Certificate() if arguments.tls else None,
    ) as emulator:
        sys.stdout.write(f"{emulator.connection_string}\n")
        if emulator.ca_file is not None:
            sys.stdout.write(f"{emulator.ca_file}\n")
        sys.stdout.flush()
        await _wait_for_the_end(until_stdin_ends=arguments.until_stdin_ends)


async def _wait_for_the_end(*, until_stdin_ends: bool) -> None:
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            # Not sys.stdin: a buffer that a thread still reads from cannot be closed at exit.
            while await trio.to_thread.run_sync(os.read, 0, 1_024, abandon_on_cancel=True):
                pass
            nursery.cancel_scope.cancel()

        if until_stdin_ends:
            nursery.start_soon(read)
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                nursery.cancel_scope.cancel()


if __name__ == "__main__":
    try:
        trio.run(_main, _arguments())
    except* (ImportError, ValidationError, OSError) as problems:
        sys.exit(f"error: {problems.exceptions[0]}")
