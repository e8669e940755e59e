"""A pull-request bot on an SQS FIFO queue: every pull request is a message group, and a session.

Run it with ``python examples/sqs_fifo_bot.py``. Without arguments it starts an emulator on a free port of this
machine (``pip install "queue-runtime[sqs]" ministack``). Against an account, name a region, and a queue that may be
created::

    python examples/sqs_fifo_bot.py sqs://eu-central-1 pull-requests
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from urllib.parse import urlencode

import attrs
import trio

from queue_runtime import (
    CompositeKey,
    Constant,
    Delivery,
    Message,
    RetryPolicy,
    Session,
    SessionHandler,
    SupervisorConfig,
    open_client,
    open_supervisor,
)

# The session becomes the message group: SQS itself keeps the events of one pull request in order, and never gives
# them to two consumers at once.
session_key = CompositeKey(
    "repository.owner.login",
    "repository.name",
    Constant("pull_request"),
    "pull_request.number",
)


@attrs.frozen
class PullRequest:
    number: int
    title: str


@attrs.frozen
class Event:
    action: str
    pull_request: PullRequest


class Bot(SessionHandler):
    session: Session

    async def opened(self, session: Session) -> None:
        self.session = session

    async def handle(self, delivery: Delivery) -> None:
        event = delivery.json(Event)
        await trio.sleep(0.01)  # stands for a call of GitHub's API
        if event.action == "synchronize" and delivery.delivery_count == 1:
            # What comes behind it waits: with SQS the whole group does, and the others go on.
            print(f"{self.session.id}: {event.action}: GitHub is busy, once more")
            raise ConnectionError("GitHub is busy")
        print(f"{self.session.id}: {event.action}")


def webhook(number: int, action: str) -> dict[str, object]:
    """A webhook's payload, as short as it can be."""
    return {
        "action": action,
        "repository": {"name": "site", "owner": {"login": "octo"}},
        "pull_request": {"number": number, "title": f"Change {number}"},
    }


WEBHOOKS = [
    ("7f1c", webhook(7, "opened")),
    ("9d02", webhook(8, "opened")),
    ("a413", webhook(7, "synchronize")),
    ("a413", webhook(7, "synchronize")),  # GitHub delivers again what it thinks was lost
    ("c55e", webhook(8, "closed")),
    ("e8b7", webhook(7, "closed")),
]


async def main(url: str, queue: str) -> None:
    async with open_client(url) as client:
        # For development. In production the queues are there, and nothing here may create any.
        for line in await client.provision(queue):
            print(line)

        for guid, payload in WEBHOOKS:
            message = Message.json(
                payload,
                session_id=session_key(payload),
                # GitHub's id of the delivery: SQS drops what comes again within five minutes.
                deduplication_id=guid,
            )
            await client.send(queue, message)

        config = SupervisorConfig(retry=RetryPolicy.fixed(1.0))
        async with open_supervisor(client, queue, Bot, config=config) as supervisor:
            await supervisor.wait_empty()
        print(f"{supervisor.statistics().completed} webhooks")


@asynccontextmanager
async def emulator() -> AsyncIterator[str]:
    """The URL of an SQS on this machine, in a temporary directory, for the length of the block."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        settings = {
            "GATEWAY_PORT": str(port),
            "BIND_HOST": "127.0.0.1",
            "SERVICES": "sqs",
            "HOME": folder,
            "TMPDIR": folder,
        }
        start = partial(
            trio.run_process,
            [sys.executable, "-m", "ministack"],
            env={**os.environ, **settings},
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(start)
            with trio.fail_after(30):
                await answered(port)
            options = {
                "endpoint_url": f"http://127.0.0.1:{port}",
                "access_key_id": "test",
                "secret_access_key": "test",
                "max_message_bytes": 262_144,
            }
            yield f"sqs://eu-central-1?{urlencode(options)}"
            nursery.cancel_scope.cancel()


async def answered(port: int) -> None:
    while True:
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        except OSError:
            await trio.sleep(0.1)
        else:
            await stream.aclose()
            return


async def run() -> None:
    if len(sys.argv) > 2:
        await main(sys.argv[1], sys.argv[2])
        return
    if find_spec("ministack") is None:
        sys.exit('the emulator is missing: pip install "queue-runtime[sqs]" ministack')
    async with emulator() as url:
        await main(url, "pull-requests")


if __name__ == "__main__":
    trio.run(run)
