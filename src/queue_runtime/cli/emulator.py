"""``queue-runtime emulator``: brokers to try programs against, without an account."""

from __future__ import annotations

from importlib.util import find_spec

import click
import trio

from queue_runtime.errors import ConfigurationError

__all__ = ["azure", "emulator"]


@click.group(
    epilog="""\b
Example:
  queue-runtime emulator azure --session-queues orders
"""
)
def emulator() -> None:
    """Run a broker's emulator on this machine, for development and tests."""


@emulator.command(
    epilog="""\b
Prints the connection string, and runs until interrupted. Nothing outlives it. It needs the extra
servicebus-emulator; where it differs from Azure is described under "Use Azure Service Bus".

\b
Examples:
  queue-runtime emulator azure --session-queues orders
  queue-runtime emulator azure --port 0 --queues mails --queues calls --session-queues orders
"""
)
@click.option("--port", default=5672, show_default=True, help="At 127.0.0.1; 0 takes a free one.")
@click.option("--queues", multiple=True, metavar="NAME", help="Queue without sessions; repeatable.")
@click.option(
    "--session-queues", multiple=True, metavar="NAME", help="Queue that requires them; repeatable."
)
@click.option(
    "--lock-duration", default=60.0, show_default=True, metavar="SECONDS", help="Of every queue."
)
@click.option("--key", help="Access key that clients sign with.  [default: a random one]")
def azure(
    *,
    port: int,
    queues: tuple[str, ...],
    session_queues: tuple[str, ...],
    lock_duration: float,
    key: str | None,
) -> None:
    """Run an emulator of Azure Service Bus."""
    if find_spec("proton") is None:
        raise ConfigurationError(
            'the emulator needs python-qpid-proton: pip install "queue-runtime[servicebus-emulator]"'
        )
    from queue_runtime.testing.servicebus import AccessPolicy, QueueSettings, open_emulator

    settings = {
        name: QueueSettings(requires_session=requires_session, lock_duration=lock_duration)
        for requires_session, names in ((False, queues), (True, session_queues))
        for name in names
    }

    async def serve() -> None:
        policy = None if key is None else AccessPolicy(key=key)
        async with open_emulator(settings, port=port, policy=policy) as running:
            click.echo(running.connection_string)
            await trio.sleep_forever()

    trio.run(serve)
