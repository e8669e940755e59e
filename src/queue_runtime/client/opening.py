"""The blocks a client and a supervisor live in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import Any

import trio

from ..abc import Provider
from ..actors.supervisor import Supervisor
from ..config import ClientConfig, SupervisorConfig
from ..handlers import HandlerFactory
from ..instrumentation import Instrument, instrument_provider
from ..providers import open_provider
from .blocks import Block
from .calls import Calls
from .queue_client import QueueClient

__all__ = ["open_client", "open_supervisor"]


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
    block = Block()
    with block.outside():
        async with opened as raw_provider, trio.open_nursery() as nursery:
            provider = instrument_provider(raw_provider, instruments)
            calls = Calls(provider.name, config or ClientConfig())
            client = QueueClient(provider, calls, nursery)
            nursery.start_soon(calls.breaker.run)
            try:
                with block.inside():
                    yield client
            finally:
                await client._aclose()
            nursery.cancel_scope.cancel()


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
    block = Block()
    async with AsyncExitStack() as stack:
        client = source
        if not isinstance(source, QueueClient):
            client = await stack.enter_async_context(open_client(source))
        stack.enter_context(block.outside())
        async with trio.open_nursery() as nursery:
            start = partial(client.supervise, config=config, instruments=instruments)
            supervisor: Supervisor = await nursery.start(start, queue, handler)
            with block.inside():
                yield supervisor
            await supervisor.drain()
