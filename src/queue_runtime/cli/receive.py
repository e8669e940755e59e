"""``queue-runtime receive``: take messages, show them, and settle them."""

from __future__ import annotations

from typing import Any

import click
import trio

from queue_runtime import Delivery, QueueClient, QueueName, Settlement, SettlementAction
from queue_runtime.text import escape

from .messages import body_fields, message_fields, shown_body, since
from .options import Settings, run_async, shared_options
from .output import Failure, moment, plural, print_json, size

__all__ = ["receive"]


@click.command(
    epilog="""\b
Examples:
  queue-runtime receive --url sqlite:///jobs.db --queue jobs
  queue-runtime receive --url sqlite:///jobs.db --queue jobs --max 10 --complete --show-body
"""
)
@shared_options
@click.option(
    "--max", "most", type=click.IntRange(1, 100_000), default=1, show_default=True,
    metavar="N", help="Most messages to take.",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(0, 86_400), default=5.0, show_default=True,
    metavar="SECONDS", help="How long to wait for the first one.",
)  # fmt: skip
@click.option(
    "--complete/--release", default=False, show_default="release",
    help="Remove the messages, or give them back untried and uncounted.",
)  # fmt: skip
@click.option("--show-body", is_flag=True, help="Show the bodies, which are hidden otherwise.")
def receive(
    *, settings: Settings, most: int, timeout: float, complete: bool, show_body: bool
) -> None:
    """Take messages and show them; then give them back, or complete them."""
    shown: list[dict[str, Any]] = []
    action = SettlementAction.COMPLETE if complete else SettlementAction.RELEASE
    run_async(_receive, settings, most, timeout, action, show_body, shown)
    if settings.json:
        print_json({"messages": shown, "action": action.value})
    else:
        done = "completed" if complete else "given back"
        click.echo(f"{plural(len(shown), 'message')} {done}" if shown else "no message came")


async def _receive(
    settings: Settings,
    most: int,
    timeout: float,
    action: SettlementAction,
    show_body: bool,
    shown: list[dict[str, Any]],
) -> None:
    held: list[Delivery] = []
    async with settings.connect() as (client, queue):
        try:
            while len(shown) < most:
                batch = await client.receive_batch(
                    queue, max_messages=most - len(shown), timeout=0 if shown else timeout
                )
                if not batch:
                    break
                for delivery in batch:
                    shown.append(_fields(delivery, show_body))
                    if not settings.json:
                        _print(delivery, show_body)
                if action is SettlementAction.COMPLETE:
                    await _settle(client, queue, batch, action)
                else:
                    # Held until the end: given back at once, the same ones would come again.
                    held += batch
        finally:
            with trio.CancelScope(shield=True):
                await _settle(client, queue, held, SettlementAction.RELEASE)


async def _settle(
    client: QueueClient, queue: QueueName, batch: list[Delivery], action: SettlementAction
) -> None:
    if not batch:
        return
    errors = await client.settle([Settlement(delivery, action) for delivery in batch])
    refused = [error for error in errors if error is not None]
    if refused:
        raise Failure(
            f"{plural(len(refused), 'message')} of {queue} could not be settled: {refused[0]}",
            kind=type(refused[0]).__name__,
        )


def _fields(delivery: Delivery, show_body: bool) -> dict[str, Any]:
    message = delivery.message
    return {
        **message_fields(message, delivery.message_id, delivery.sequence_number),
        "delivery_count": delivery.delivery_count,
        "enqueued_at": moment(delivery.enqueued_at),
        **(body_fields(message.body) if show_body else {}),
    }


def _print(delivery: Delivery, show_body: bool) -> None:
    message = delivery.message
    session = f"session {escape(message.session_id)}" if message.session_id else "no session"
    click.echo(
        f"{click.style(escape(delivery.message_id), bold=True)}  {session}  "
        f"{size(message.size)}  delivery {delivery.delivery_count}  sent {since(delivery.enqueued_at)}"
    )
    for name, text in message.headers.items():
        click.echo(f"  {escape(name)}: {escape(text)}")
    if show_body:
        click.echo(f"  {shown_body(message, 100_000)}")
