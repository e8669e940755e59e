"""How the client calls a broker: gated, bounded in time, retried while the error is transient."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from random import random
from typing import Any, TypeVar, final

import trio

from ..abc import Receiver, Sender
from ..actors.bounded import bounded
from ..actors.breaker import Breaker
from ..config import ClientConfig
from ..errors import CircuitOpen, QueueError

__all__ = ["Calls"]

T = TypeVar("T")


@final
class Calls:
    """Every call of one client goes through here.

    Args:
        provider_name: Whose calls, for errors.
        config: Retries, times, breaker.

    Attributes:
        breaker: Gates the calls.
        config: As given.
        closed: Whether calls are refused with ``trio.ClosedResourceError``.
    """

    def __init__(self, provider_name: str, config: ClientConfig) -> None:
        self.breaker = Breaker(f"provider {provider_name}", config.breaker)
        self.config = config
        self.closed = False
        self._provider_name = provider_name

    def check_open(self) -> None:
        """Raise ``trio.ClosedResourceError`` when the client is closed."""
        if self.closed:
            raise trio.ClosedResourceError("the client is closed")

    async def __call__(
        self, operation: Callable[..., Awaitable[T]], *args: Any, allowance: float = 0.0
    ) -> T:
        """``await operation(*args)``, again while its error is transient.

        Args:
            operation: What to call.
            *args: Its arguments.
            allowance: Seconds one try may take beyond the configured ``operation_timeout``.

        Raises:
            CircuitOpen: At once while the breaker is open. Half-open, refusals are retried as other errors are.
            OperationTimeout: The last try was not answered in time.
        """
        self.check_open()
        attempt = 0
        limit = self.config.operation_timeout + allowance
        while True:
            try:
                return await self.breaker.call(
                    bounded, limit, self._provider_name, operation, *args
                )
            except QueueError as error:
                attempt += 1
                if not error.is_transient or (isinstance(error, CircuitOpen) and error.retry_after):
                    raise
                delay = self.config.retry.delay(
                    attempt, retry_after=error.retry_after, random=random
                )
                if delay is None:
                    raise
            await trio.sleep(delay)

    async def close(self, ports: Iterable[Sender | Receiver]) -> None:
        """Close every one of ``ports``, even when cancelled or when others fail; each in bounded time."""
        async with AsyncExitStack() as stack:
            for port in ports:
                stack.push_async_callback(self._close, port)

    async def _close(self, port: Sender | Receiver) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(self.config.operation_timeout):
            await port.aclose()
