"""What only the administration endpoint tells, over HTTP. On the bridge's loop."""

from __future__ import annotations

from typing import Any

from azure.servicebus.aio.management import ServiceBusAdministrationClient

from queue_runtime.messages import QueueStats

from .api import AzureApi, mapped

__all__ = ["stats"]


async def stats(api: AzureApi, entity: str) -> QueueStats:
    """How the queue stands. Messages in flight count as waiting: the broker does not tell them apart.

    Raises:
        PermissionDenied: The credential has no right to manage the queue.
        QueueError: The queue is not there; the endpoint cannot be reached.
    """
    config = api.config
    client: Any
    with mapped("statistics", entity):
        if config.connection_string is not None:
            text = config.connection_string.reveal()
            client = ServiceBusAdministrationClient.from_connection_string(text)
        else:
            credential: Any = api.credential
            client = ServiceBusAdministrationClient(config.fully_qualified_namespace, credential)
        async with client:
            counts = await client.get_queue_runtime_properties(entity)
    return QueueStats(
        depth=counts.active_message_count or 0,
        in_flight=0,
        scheduled=counts.scheduled_message_count or 0,
        dead_lettered=counts.dead_letter_message_count or 0,
    )
