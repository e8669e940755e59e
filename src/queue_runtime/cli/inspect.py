"""``queue-runtime peek``, ``stats`` and ``purge``: a queue from outside."""

from __future__ import annotations

import attrs
import click

from queue_runtime import PeekedMessage, QueueStats
from queue_runtime.text import escape

from .messages import body_fields, message_fields, shown_body, since, table
from .options import Settings, run_async, shared_options, yes_option
from .output import ask, console, moment, plural, print_json, size

__all__ = ["peek", "purge", "stats"]


@click.command(
    epilog="""\b
Examples:
  queue-runtime peek --url sqlite:///jobs.db --queue jobs --max 50
  queue-runtime peek --url sqlite:///jobs.db --queue jobs --after 120 --show-body --json
"""
)
@shared_options
@click.option(
    "--max", "most", type=click.IntRange(1, 100_000), default=10, show_default=True,
    metavar="N", help="Most messages to show.",
)  # fmt: skip
@click.option(
    "--after", type=click.IntRange(0), default=0, metavar="NUMBER",
    help="Go on behind this sequence number.",
)  # fmt: skip
@click.option("--show-body", is_flag=True, help="Show the bodies, which are hidden otherwise.")
def peek(*, settings: Settings, most: int, after: int, show_body: bool) -> None:
    """Look at stored messages, in order, without taking them."""
    found: list[PeekedMessage] = run_async(_peek, settings, most, after)
    if settings.json:
        print_json(
            {
                "messages": [
                    {
                        **message_fields(m.message, m.message_id, m.sequence_number),
                        "state": m.state.value,
                        "delivery_count": m.delivery_count,
                        "enqueued_at": moment(m.enqueued_at),
                        **(body_fields(m.message.body) if show_body else {}),
                    }
                    for m in found
                ]
            }
        )
        return
    if not found:
        click.echo("nothing there" if not after else f"nothing behind {after}")
        return
    columns = ("number", "id", "session", "state", "tries", "size", "sent")
    extra = ("body",) if show_body else ()
    rows = table(*columns, *extra, right=("number", "tries", "size"), fold=("body",))
    for m in found:
        rows.add_row(
            str(m.sequence_number),
            escape(m.message_id),
            escape(m.message.session_id or "-"),
            m.state.value,
            str(m.delivery_count),
            size(m.message.size),
            since(m.enqueued_at),
            *((shown_body(m.message),) if show_body else ()),
        )
    console().print(rows)
    if len(found) == most:
        click.echo(f"there may be more: --after {found[-1].sequence_number}")


async def _peek(settings: Settings, most: int, after: int) -> list[PeekedMessage]:
    async with settings.connect() as (client, queue):
        return await client.peek(queue, max_messages=most, after=after)


@click.command(
    epilog="""\b
With --json: depth, in_flight, scheduled, dead_lettered, oldest_age (seconds), sessions and
locked_sessions; null where the broker cannot tell.

\b
Example:
  queue-runtime stats --url sqlite:///jobs.db --queue jobs --json
"""
)
@shared_options
def stats(*, settings: Settings) -> None:
    """Show how a queue stands: what waits, what is being handled, what failed."""
    queue, found = run_async(_stats, settings)
    if settings.json:
        print_json(attrs.asdict(found))
        return
    from rich.text import Text

    rows = table(queue, "", right=("",))
    red = "bold red" if found.dead_lettered else ""
    age = found.oldest_age
    for name, value, style in (
        ("waiting", found.depth, "bold"),
        ("in flight", found.in_flight, ""),
        ("scheduled", found.scheduled, ""),
        ("dead-lettered", found.dead_lettered, red),
        ("oldest waiting", None if age is None else f"{age:,.1f} s", ""),
        ("sessions", found.sessions, ""),
        ("locked sessions", found.locked_sessions, ""),
    ):
        text = "-" if value is None else value if isinstance(value, str) else f"{value:,}"
        rows.add_row(Text(name, style), Text(text, style))
    console().print(rows)


async def _stats(settings: Settings) -> tuple[str, QueueStats]:
    async with settings.connect() as (client, queue):
        return queue, await client.queue_stats(queue)


@click.command(
    epilog="""\b
Messages in flight and dead letters stay; for those see 'queue-runtime dlq purge'.

\b
Example:
  queue-runtime purge --url sqlite:///jobs.db --queue jobs --yes
"""
)
@shared_options
@yes_option
def purge(*, settings: Settings, yes: bool) -> None:
    """Delete every waiting and scheduled message for good."""
    ask(
        f"Delete every waiting message of {settings.queue_of(settings.load())} for good?",
        yes=yes,
        as_json=settings.json,
    )
    count = run_async(_purge, settings)
    if settings.json:
        print_json({"purged": count})
    else:
        click.echo(f"purged {plural(count, 'message')}")


async def _purge(settings: Settings) -> int:
    async with settings.connect() as (client, queue):
        return await client.purge(queue)
