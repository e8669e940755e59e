"""Sessions with state on Azure Service Bus: every cart is a session, and its content is the session's state.

Run it with ``python examples/azure_sessions.py``. Without arguments it starts an emulator on a free port of this
machine (``pip install "queue-runtime[servicebus-emulator]"``). To use a namespace, name it, and a queue that was
created with sessions::

    python examples/azure_sessions.py azure://shop-dev carts

``azure://`` alone takes the connection string of ``AZURE_SERVICEBUS_CONNECTION_STRING``.
"""

import json
import math
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from urllib.parse import quote

import attrs
import trio

from queue_runtime import (
    Delivery,
    Message,
    RetryPolicy,
    Session,
    SessionHandler,
    SupervisorConfig,
    load_config,
    open_client,
    open_supervisor,
)


@attrs.frozen
class Change:
    item: str
    count: int


class Cart(SessionHandler):
    session: Session
    items: dict[str, int]
    last: str

    def __init__(self, done: trio.MemorySendChannel[str]) -> None:
        self.done = done

    async def opened(self, session: Session) -> None:
        """Called once, with the session locked, before the first message: in any process, at any time."""
        self.session = session
        stored = json.loads(await session.state.get() or b'{"items": {}, "last": ""}')
        self.items, self.last = stored["items"], stored["last"]
        print(f"{session.id}: opened with {self.items}")

    async def handle(self, delivery: Delivery) -> None:
        if delivery.message_id == self.last:
            return  # it comes again after a crash between setting the state and completing the message
        change = delivery.json(Change)
        if change.count > 100 and delivery.delivery_count == 1:
            # The cart's later changes wait for this one. Other carts do not.
            print(f"{self.session.id}: the warehouse is busy, {change.item} once more")
            raise ConnectionError("the warehouse is busy")
        self.items[change.item] = self.items.get(change.item, 0) + change.count
        self.last = delivery.message_id
        # Service Bus takes it only from the consumer that has the session locked.
        state = {"items": self.items, "last": self.last}
        await self.session.state.set(json.dumps(state).encode())
        print(f"{self.session.id}: {self.items}")
        self.done.send_nowait(delivery.message_id)


async def shop(url: str, queue: str, changes: list[tuple[str, str, int]]) -> None:
    """One run of a process: it sends what customers do, and handles it."""
    # With what the environment says: a connection string, an application's secret.
    config = load_config(overrides={"provider": url})
    async with open_client(config.provider_source(), config=config.client) as client:
        for cart, item, count in changes:
            message = Message.json({"item": item, "count": count}, session_id=cart)
            await client.send(queue, message)
        send, done = trio.open_memory_channel[str](math.inf)
        # Tried again in place, with the session kept locked.
        retrying = SupervisorConfig(retry=RetryPolicy.fixed(0.2))
        async with open_supervisor(
            client, queue, lambda: Cart(send), config=retrying
        ) as supervisor:
            # supervisor.wait_empty() would do, where the identity may read the queue's statistics.
            for _ in changes:
                await done.receive()
            await supervisor.wait_settled()
        print(f"{supervisor.statistics().completed} changes")


async def main(url: str, queue: str) -> None:
    print("first process")
    await shop(
        url,
        queue,
        [("ann", "tea", 2), ("bob", "nails", 500), ("ann", "cups", 6), ("bob", "saw", 1)],
    )
    print("second process")
    await shop(url, queue, [("ann", "tea", -1), ("bob", "glue", 1)])


@asynccontextmanager
async def emulator(queue: str) -> AsyncIterator[str]:
    """The URL of a Service Bus on this machine with one queue, for the length of the block."""
    command = [sys.executable, "-m", "queue_runtime.testing.servicebus", "--port", "0"]
    start = partial(
        trio.run_process,
        [*command, "--session-queues", queue, "--until-stdin-ends"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        check=False,
    )
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(start)
        assert process.stdout is not None
        line = b""
        with trio.fail_after(30):
            while not line.endswith(b"\n"):
                part = await process.stdout.receive_some()
                if not part:
                    sys.exit("the emulator did not start")
                line += part
        yield f"azure://?connection_string={quote(line.decode().strip(), safe='')}"
        nursery.cancel_scope.cancel()


async def run() -> None:
    if len(sys.argv) == 3:
        await main(sys.argv[1], sys.argv[2])
        return
    if len(sys.argv) != 1:
        sys.exit("usage: python examples/azure_sessions.py [URL QUEUE]")
    if find_spec("proton") is None or find_spec("azure.servicebus") is None:
        sys.exit('the emulator is missing: pip install "queue-runtime[servicebus-emulator]"')
    async with emulator("carts") as url:
        await main(url, "carts")


if __name__ == "__main__":
    trio.run(run)
