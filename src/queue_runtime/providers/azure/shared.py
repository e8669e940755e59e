"""Outcomes that several wait for, or nobody any more. On the bridge's loop."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

__all__ = ["look", "outcome_of"]

T = TypeVar("T")


def look(future: asyncio.Future[Any]) -> None:
    """A callback for answers that nobody may be left to look at."""
    if not future.cancelled():
        future.exception()


async def outcome_of(attempt: asyncio.Task[T]) -> T:
    """What an attempt comes to. Whoever is cancelled leaves it to the others.

    Raises:
        Exception: What it failed with; a lost connection if it was cancelled, as closing does.
    """
    if not attempt.done():
        attempt.add_done_callback(look)
    try:
        return await asyncio.shield(attempt)
    except asyncio.CancelledError:
        me = asyncio.current_task()
        if attempt.cancelled() and me is not None and not me.cancelling():
            raise ConnectionResetError("the connection was closed") from None
        raise
