"""``queue-runtime emulator``: brokers to try programs against, without an account."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from pathlib import Path

import click
import trio

from queue_runtime.errors import ConfigurationError, ValidationError

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
Prints a connection string, for any SDK, and below it the same as a URL, for QUEUE_URL. Runs until
interrupted (Ctrl-C); nothing outlives it. "queue-runtime provision" makes further queues meanwhile.
It needs the extra servicebus-emulator. Where it differs from Azure: docs/howto/azure.md.

\b
Examples:
  queue-runtime emulator azure --session-queues orders
  queue-runtime emulator azure --port 0 --queues mails --queues calls --session-queues orders
  queue-runtime emulator azure --tls --key dev --session-queues orders
  queue-runtime emulator azure --config Config.json
"""
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=5672,
    show_default=True,
    help="Port of 127.0.0.1; 0 takes a free one.",
)
@click.option("--queues", multiple=True, metavar="NAME", help="Queue without sessions; repeatable.")
@click.option(
    "--session-queues",
    multiple=True,
    metavar="NAME",
    help="Queue that requires sessions; repeatable.",
)
@click.option(
    "--lock-duration",
    type=click.FloatRange(min=0, max=300, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long locks last, in the queues named here; on Azure at least 5.",
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Has the queues of this Config.json of Microsoft's emulator.",
)
@click.option("--key", help="Access key that clients sign with.  [default: a random one]")
@click.option(
    "--tls",
    is_flag=True,
    help="Speak TLS and WebSockets, with a certificate made now; the URL names its file.",
)
def azure(
    *,
    port: int,
    queues: tuple[str, ...],
    session_queues: tuple[str, ...],
    lock_duration: float,
    config: Path | None,
    key: str | None,
    tls: bool,
) -> None:
    """Run an emulator of Azure Service Bus."""
    if key == "":
        raise ValidationError("--key is empty: leave it out for a random key")
    from queue_runtime.testing.servicebus import (
        AccessPolicy,
        Certificate,
        QueueSettings,
        open_emulator,
        queues_of,
    )

    settings: dict[str, QueueSettings] = {}
    if config is not None:
        try:
            settings |= queues_of(config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise ValidationError(f"--config {config}: {error}") from error
    for requires_session, names in ((False, queues), (True, session_queues)):
        for name in names:
            if name.lower() in map(str.lower, settings):
                raise ValidationError(f"the queue {name!r} is named more than once")
            settings[name] = QueueSettings(
                requires_session=requires_session, lock_duration=lock_duration
            )

    async def serve() -> None:
        policy = None if key is None else AccessPolicy(key=key)
        certificate = Certificate() if tls else None
        async with AsyncExitStack() as stack:
            try:
                running = await stack.enter_async_context(
                    open_emulator(settings, port=port, policy=policy, certificate=certificate)
                )
            except ImportError as error:
                raise ConfigurationError(str(error)) from error
            except OSError as error:
                raise ConfigurationError(
                    f"port {port} of 127.0.0.1 cannot be had ({error.strerror}): "
                    "end what listens there, or choose another --port; 0 takes a free one"
                ) from error
            # Ctrl-C is an exception. A container's end is none, and would leave the certificate behind.
            terminated = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM))
            click.echo(running.connection_string)
            click.echo(running.url)
            if running.ca_file is not None:
                click.echo(f"clients have to trust {running.ca_file}", err=True)
            named = [
                f"{name} (sessions)" if queue.requires_session else name
                for name, queue in settings.items()
            ]
            click.echo(
                f"queues at {running.endpoint}: {', '.join(named) or 'none yet'}\n"
                "in another terminal: export QUEUE_URL='the second line'\n"
                "for queues without sessions, append &sessions=false to it\n"
                "Ctrl-C ends it",
                err=True,
            )
            await anext(terminated)

    trio.run(serve)
