"""``queue-runtime provision``: queues where the broker wants them created beforehand."""

from __future__ import annotations

import click

from .options import Settings, run_async, shared_options
from .output import print_json

__all__ = ["provision"]


@click.command(
    epilog="""\b
For development. What exists is kept as it is; where it differs from what would be created, that is said.
Where infrastructure is kept as code, create queues there: the settings are described with the provider.

\b
Examples:
  queue-runtime provision --url sqs://eu-central-1 --queue orders
  queue-runtime provision --url "sqs://eu-central-1?max_delivery_count=50" --queue orders --json
  queue-runtime provision --url "azure://orders-prod?max_delivery_count=100" --queue orders
"""
)
@shared_options
def provision(*, settings: Settings) -> None:
    """Create a queue, with its dead-letter queue, where sending and receiving do not."""
    queue, report = run_async(_provision, settings)
    if settings.json:
        print_json({"queue": queue, "report": report})
        return
    for line in report:
        click.echo(line)


async def _provision(settings: Settings) -> tuple[str, list[str]]:
    async with settings.connect() as (client, queue):
        return queue, await client.provision(queue)
