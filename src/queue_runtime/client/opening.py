"""The blocks a client and a supervisor live in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import Any

import trio

from ..abc import Provider
from ..actors.supervisor import Supervisor
from ..config import ClientConfig, SupervisorConfig
from ..handlers import HandlerFactory
from ..instrumentation import Instrument, instrument_provider
from ..providers import open_provider
from .calls import Calls
from .queue_client import QueueClient

__all__ = ["open_client", "open_supervisor"]


@contextmanager
def _single_errors() -> Iterator[None]:
    """Raise what is alone in an exception group as itself: the group is our nursery's, not the caller's."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__


@asynccontextmanager
async def open_client(
    source: Any,
    *,
    config: ClientConfig | None = None,
    instruments: Iterable[Instrument] = (),
) -> AsyncIterator[QueueClient]:
    """Connect to a broker for the length of the block.

    Args:
        source: A URL (``memory://``, ``sqlite:///jobs.db`` …), a provider's configuration object, or an open
            provider, which stays open.
        config: Retries, timeouts, breaker.
        instruments: Told of every call.

    Raises:
        ConfigurationError: The URL or the configuration does not hold together.
        ConnectionFailed, AuthenticationFailed, …: At once; nothing stays half-open.
    """
    opened = nullcontext(source) if isinstance(source, Provider) else open_provider(source)
    async with opened as raw_provider:
        provider = instrument_provider(raw_provider, instruments)
        with _single_errors():
            async with trio.open_nursery() as nursery:
                calls = Calls(provider.name, config or ClientConfig())
                client = QueueClient(provider, calls, nursery)
                nursery.start_soon(calls.breaker.run)
                failure: Exception | None = None
                try:
                    yield client
                except Exception as error:
                    # Kept out of the nursery, which would wrap it.
                    failure = error
                finally:
                    await client._aclose()
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


@asynccontextmanager
async def open_supervisor(
    source: QueueClient | Any,
    queue: str,
    handler: HandlerFactory,
    *,
    config: SupervisorConfig | None = None,
    instruments: Iterable[Instrument] = (),
) -> AsyncIterator[Supervisor]:
    """Handle a queue's messages for the length of the block; leaving it drains.

    The block may do anything else, or wait: ``await trio.sleep_forever()``. Cancelling it cancels the
    handlers; what they were handling goes back to the queue.

    Args:
        source: An open client, or anything that :func:`open_client` takes.
        queue: The queue to serve.
        handler: A class with ``async def handle(self, delivery)`` (one instance per session), a function that
            makes such objects, or an async function.
        config: How the actors work.
        instruments: Told of every call and of what the actors do.

    Raises:
        ConfigurationError: The source or the handler is not what it should be.
        QueueError: The queue cannot be opened; or, from the block, a permanent error that ended the intake.
    """
    async with AsyncExitStack() as stack:
        client = source
        if not isinstance(source, QueueClient):
            client = await stack.enter_async_context(open_client(source))
        with _single_errors():
            async with trio.open_nursery() as nursery:
                start = partial(client.supervise, config=config, instruments=instruments)
                supervisor: Supervisor = await nursery.start(start, queue, handler)
                failure: Exception | None = None
                try:
                    yield supervisor
                except Exception as error:
                    # Kept out of the nursery, which would wrap it.
                    failure = error
                await supervisor.drain()
        if failure is not None:
            raise failure
