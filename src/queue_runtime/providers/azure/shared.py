"""Outcomes that several wait for, or nobody any more. On the bridge's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar, final

__all__ = ["Attempt", "look", "outcome_of"]

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


@final
class Attempt(Generic[T]):
    """What is tried once for all who wait for it, and anew for who comes after.

    Args:
        make: Tries it.
    """

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._make = make
        self._task: asyncio.Task[T] | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether somebody waits for it, or did."""
        return self._task is not None and not self._task.done()

    async def join(self) -> T:
        """As :func:`outcome_of`, of the attempt under way; begun if there is none."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._make())
        return await outcome_of(self._task)

    async def aclose(self) -> None:
        """Cancel it and wait for it; never fails."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
