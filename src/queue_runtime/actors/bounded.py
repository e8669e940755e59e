"""Calls to the broker that end in bounded time, whether it answers or not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, final

import trio

from ..errors import OperationTimeout
from .breaker import Breaker

__all__ = ["BoundedCalls", "bounded"]

T = TypeVar("T")

_REMEMBERED: Final = 60.0
"""Seconds for which a call that was not answered counts, unless one is answered sooner.

Calls are repeated sooner than that while anything is owed; what is not called any more says nothing.
"""


async def bounded(
    seconds: float, provider_name: str, operation: Callable[..., Awaitable[T]], *args: Any
) -> T:
    """``await operation(*args)``, cancelled after ``seconds``.

    Raises:
        OperationTimeout: It took longer.
        Whatever the operation raises.
    """
    with trio.move_on_after(seconds):
        return await operation(*args)
    raise OperationTimeout(
        f"{provider_name} did not answer within {seconds:g} s; "
        "whether the operation took effect is unknown"
    )


@final
class BoundedCalls:
    """Calls of one kind: gated by the breaker, and cancelled when they take too long.

    Args:
        breaker: Gates them; a call that took too long counts as failed.
        provider_name: Whose calls, for errors.
        timeout: Seconds one call may take.
    """

    def __init__(self, breaker: Breaker, provider_name: str, timeout: float) -> None:
        self._breaker = breaker
        self._provider_name = provider_name
        self._timeout = timeout
        self._unanswered_at: float | None = None

    def stuck(self, now: float) -> bool:
        """Whether the broker did not answer the last of these calls in time, not long ago."""
        return self._unanswered_at is not None and now - self._unanswered_at < _REMEMBERED

    async def __call__(self, operation: Callable[..., Awaitable[T]], *args: Any) -> T:
        """``await operation(*args)``.

        Raises:
            CircuitOpen: The breaker is open; nothing was called.
            OperationTimeout: It took too long.
            Whatever the operation raises.
        """
        return await self._breaker.call(self._bounded, operation, *args)

    async def _bounded(self, operation: Callable[..., Awaitable[T]], *args: Any) -> T:
        try:
            answer = await bounded(self._timeout, self._provider_name, operation, *args)
        except OperationTimeout:
            self._unanswered_at = trio.current_time()
            raise
        self._unanswered_at = None
        return answer
