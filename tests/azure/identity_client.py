"""A program that signs in by what its environment and URL say; run as a child, as azure-identity reads both once.

``identity_client.py URL QUEUE``: sends a message to a session, receives and completes it, and counts what is left;
prints what happened as JSON. With a third argument, seconds, it goes on for so long with the session it holds.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from typing import Any

import trio

from queue_runtime.abc import ReceiverOptions
from queue_runtime.errors import QueueError
from queue_runtime.messages import Message, QueueName, SessionId, Settlement, SettlementAction
from queue_runtime.providers.azure import FACTORY, rights

SESSION = SessionId("identity")


rights._MARGIN = 0.5
"""Part of a token's life that is left when the next is asked for: lives are short here, and a machine may be busy."""


async def main(url: str, queue: QueueName, seconds: float) -> dict[str, Any]:
    provider = await FACTORY.open(FACTORY.config_from_url(url))
    try:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        until = time.monotonic() + seconds
        bodies: list[str] = []
        counts: list[int] = []
        leases: set[object] = set()
        while not bodies or time.monotonic() < until:
            await sender.send([Message(b"%d" % len(bodies), session_id=SESSION)])
            with trio.fail_after(20.0):
                deliveries = []
                while not deliveries:
                    deliveries = await receiver.receive(1, 5.0)
            [delivery] = deliveries
            bodies.append(delivery.body.decode())
            counts.append(delivery.delivery_count)
            leases.add(delivery.lease)
            [answer] = await receiver.renew([delivery.lease])
            [settled] = await receiver.settle([Settlement(delivery, SettlementAction.COMPLETE)])
            if answer is not None or settled is not None:
                raise answer or settled  # type: ignore[misc]
            if seconds:
                await trio.sleep(0.2)
        try:
            depth: object = (await provider.stats(queue)).depth
        except QueueError as error:
            depth = f"{type(error).__name__}: {error}"
        return {
            "depth": depth,
            "bodies": bodies,
            "counts": counts,
            "leases": len(leases),
            "connections": provider.connections_opened,
        }
    finally:
        await provider.aclose()


if __name__ == "__main__":
    try:
        said = trio.run(
            main, sys.argv[1], QueueName(sys.argv[2]), float((sys.argv[3:] or ["0"])[0])
        )
    except QueueError as error:
        said = {
            "error": type(error).__name__,
            "text": str(error),
            "traceback": "".join(traceback.format_exception(error)),
        }
    print(json.dumps(said))
