"""What the consumer processes of the chaos tests run: ``queue-runtime run --handler worker:handler --instrument …``.

The environment names the process in ``CHAOS_NAME`` and the file of its history in ``CHAOS_HISTORY``.
"""

from __future__ import annotations

import os
import random

import trio

from queue_runtime import Delivery, Retry
from queue_runtime.instrumentation import Event, SupervisorStarted
from queue_runtime.testing import Recorder, record_handlers, record_settlements

recorder = Recorder(os.environ["CHAOS_NAME"], path=os.environ["CHAOS_HISTORY"])


async def handle(delivery: Delivery) -> Retry | None:
    """Take a moment; fail now and then; always fail what is poison."""
    await trio.sleep(random.uniform(0.0, 0.004))
    if delivery.headers.get("poison"):
        raise ValueError("this message never works")
    if random.random() < 0.02:
        return Retry(delay=random.choice((0.01, 0.3)))
    return None


handler = record_handlers(handle, recorder)
settlements = record_settlements(recorder)


def readiness(event: Event) -> None:
    """Say so when there is a supervisor: from then on SIGTERM drains it."""
    if isinstance(event, SupervisorStarted):
        print("ready", flush=True)
