"""A consumer process of the chaos tests; once it says ``ready``, SIGTERM drains it.

``python worker.py NAME URL QUEUE HISTORY SETTLEMENT ATTEMPTS``
"""

from __future__ import annotations

import random
import signal
import sys

import trio

from queue_runtime import (
    BreakerConfig,
    ConnectionFailed,
    Delivery,
    Retry,
    RetryPolicy,
    SettlementMode,
    SupervisorConfig,
    open_supervisor,
)
from queue_runtime.testing import Recorder, record_handlers, record_settlements


async def handle(delivery: Delivery) -> Retry | None:
    """Take a moment; fail now and then; always fail what is poison."""
    await trio.sleep(random.uniform(0.0, 0.004))
    if delivery.headers.get("poison"):
        raise ValueError("this message never works")
    if random.random() < 0.02:
        return Retry(delay=random.choice((0.01, 0.3)))
    return None


async def main(
    name: str, url: str, queue: str, history: str, settlement: str, attempts: str
) -> None:
    config = SupervisorConfig(
        settlement=SettlementMode(settlement),
        # Fewer than there are, so that the processes share the sessions and hand them over.
        max_sessions=25,
        idle_timeout=0.2,
        park_threshold=0.1,
        retry=RetryPolicy(initial=0.01, max_delay=0.3, max_attempts=int(attempts) or None),
        drain_timeout=5.0,
        # A network as bad as the tests' fails often in a row.
        breaker=BreakerConfig(failure_threshold=10, open_duration=0.5),
    )
    with Recorder(name, path=history) as recorder:
        while True:
            try:
                async with open_supervisor(
                    url,
                    queue,
                    record_handlers(handle, recorder),
                    config=config,
                    instruments=[record_settlements(recorder)],
                ):
                    with trio.open_signal_receiver(signal.SIGTERM) as signals:
                        print("ready", flush=True)
                        async for _ in signals:
                            break
                return
            except* ConnectionFailed:
                # Opening fails at once; an orchestrator would start the process again.
                await trio.sleep(0.1)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
