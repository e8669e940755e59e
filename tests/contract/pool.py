"""Queues made in advance, for brokers that create nothing by being used."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import trio

from queue_runtime.abc import Provider
from queue_runtime.messages import QueueName

__all__ = ["pool_of_queues"]


@contextmanager
def pool_of_queues(
    connect: Callable[[], Awaitable[Provider]],
    prepare: Callable[[Provider], Awaitable[QueueName]],
    size: int,
) -> Iterator[Callable[[], QueueName]]:
    """Gives names of queues that are ready: a case must not wait for one while others count on the time.

    Args:
        connect: Opens the provider that prepares them.
        prepare: Makes the next queue ready.
        size: How many are kept ready.
    """
    names: queue.Queue[QueueName] = queue.Queue(size)
    ended = threading.Event()

    async def fill() -> None:
        provider = await connect()
        try:
            while not ended.is_set():
                name = await prepare(provider)
                while not ended.is_set():
                    try:
                        names.put(name, timeout=0.1)
                    except queue.Full:
                        continue
                    break
        finally:
            await provider.aclose()

    def next_name() -> QueueName:
        if task.done():
            task.result()  # what went wrong
        return names.get(timeout=60)

    with ThreadPoolExecutor(1) as elsewhere:
        task = elsewhere.submit(trio.run, fill)
        try:
            while not names.full() and not task.done():
                time.sleep(0.01)  # nothing else runs yet
            yield next_name
        finally:
            ended.set()
            task.result()
