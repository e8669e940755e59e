"""Sending as a program does whose broker refuses at times."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from queue_runtime import Message, QueueClient

__all__ = ["send_all"]


async def send_all(client: QueueClient, queue: str, messages: Sequence[Message]) -> None:
    """Send what is not stored yet again and again, each time after as long as the broker asks to wait."""
    unsent = list(messages)
    while unsent:
        results = await client.send_batch(queue, unsent)
        errors = [result.error for result in results]
        unsent = [
            message for message, error in zip(unsent, errors, strict=True) if error is not None
        ]
        waits = [error.retry_after or 0.1 for error in errors if error is not None]
        await trio.sleep(max(waits, default=0.0))
