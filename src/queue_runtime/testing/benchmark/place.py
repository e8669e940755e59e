"""Where a benchmark runs: one broker, and queues of its own on it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Final, final
from urllib.parse import urlsplit

from queue_runtime import ConfigurationError, QueueClient, open_client
from queue_runtime.providers import resolve_provider

from .raw import RawBroker, raw_broker
from .workload import Workload

__all__ = ["Place", "open_place"]

_NUMBERS: Final = count(1)


@asynccontextmanager
async def open_place(url: str, *, may_create: bool = False) -> AsyncIterator[Place]:
    """Connect for the time of a scenario; queues that were provisioned are removed at its end.

    Args:
        url: Of the provider.
        may_create: Provision queues also where the broker is not on this machine.
    """
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_client(url))
        _, config = resolve_provider(url)
        opening = raw_broker(urlsplit(url).scheme, config)
        raw = None if opening is None else await stack.enter_async_context(opening)
        place = Place(client, raw, may_create=may_create)
        try:
            yield place
        finally:
            if raw is not None:
                await raw.remove(place.provisioned)


@final
class Place:
    """See :func:`open_place`.

    Attributes:
        client: Of the runtime.
        raw: The same broker through its SDK alone; ``None`` where there is no such program.
        provisioned: Queues that were created on purpose.
        in_process: Whether the broker is in this process, so that programs without one stand beside it.
    """

    def __init__(self, client: QueueClient, raw: RawBroker | None, *, may_create: bool) -> None:
        self.client = client
        self.raw = raw
        self.provisioned: list[str] = []
        self.in_process = client.provider.name == "memory"
        self._may_create = may_create or (raw is not None and raw.is_local)

    async def new_queue(self) -> str:
        """A queue of its own for every fill, also in a file that an earlier run left."""
        queue = f"bench-{os.getpid()}-{next(_NUMBERS)}"
        if self.client.capabilities.provisioning:
            if not self._may_create:
                raise ConfigurationError(
                    f"the benchmark needs queues of its own in the account, such as {queue}: "
                    "say --provision if it may create them and delete them afterwards"
                )
            self.provisioned.append(queue)
            await self.client.provision(queue)
        return queue

    def fit(self, workload: Workload) -> Workload:
        """The workload, without sessions where the broker has none."""
        if self.client.capabilities.sessions:
            return workload
        return Workload(workload.messages, 0, workload.size)

    def session(self, session_id: str) -> str | None:
        """The session, or ``None`` where the broker has none."""
        return session_id if self.client.capabilities.sessions else None

    def calls(self) -> int:
        """How many requests the runtime has sent so far; 0 where nobody counts."""
        return 0 if self.raw is None else sum(self.raw.calls(self.client.provider).values())
