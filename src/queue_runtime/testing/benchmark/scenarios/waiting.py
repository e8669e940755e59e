"""What it costs to wait, and how fast waiting ends."""

from __future__ import annotations

import statistics

import attrs
import trio

from queue_runtime import ReceiverOptions, SettlementMode
from queue_runtime.messages import QueueName

from ..place import Place
from ..raw import RawBroker
from ..runtime import supervised
from ..workload import Tally, Workload, publish
from .report import Report, Row, Scale, report

__all__ = ["waiting"]


async def waiting(place: Place, workload: Workload, scale: Scale) -> Report:
    """What it costs to wait: requests of an idle queue, and how long a receive takes to let go of it."""
    queue = QueueName(await place.new_queue())
    rows = []
    if place.raw is not None and place.raw.most_calls is not None:
        rows.append(await _idle_calls(place, place.raw, queue, workload))
    times = []
    receiver = await place.client.provider.open_receiver(queue, ReceiverOptions())
    try:
        for _ in range(scale.cancellations):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receiver.receive, 10, 60.0)
                # Long enough that the request is under way.
                await trio.sleep(0.05)
                began = trio.current_time()
                nursery.cancel_scope.cancel()
            times.append(1_000 * (trio.current_time() - began))
    finally:
        await receiver.aclose()
    rows.append(Row("cancelling a receive, median", statistics.median(times), "ms"))
    rows.append(Row("cancelling a receive, longest", max(times), "ms", aim="at most 100"))
    return report("waiting", rows, 0)


async def _idle_calls(place: Place, raw: RawBroker, queue: QueueName, workload: Workload) -> Row:
    """Requests per long poll of a supervisor that has had work and has none any more."""
    polls, longest = 3, raw.longest_poll
    workload = place.fit(attrs.evolve(workload, messages=min(workload.messages, 500)))
    await publish(place.client, queue, workload)
    tally = Tally(workload.messages)
    async with supervised(
        place.client, queue, tally, SettlementMode.STRICT, receive_timeout=longest
    ) as supervisor:
        await tally.done.wait()
        await supervisor.wait_settled()
        # The polls of busier times end first.
        await trio.sleep(longest + 1)
        calls = place.calls()
        await trio.sleep(polls * longest)
        calls = place.calls() - calls
    return Row(f"calls in {longest:g} s, idle", calls / polls, "calls", aim=raw.idle_aim)
