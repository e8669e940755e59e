"""What it costs to wait, and how fast waiting ends."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from functools import partial

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
    """What it costs to wait: requests of an idle queue, and how long calls take to let go of it."""
    queue = QueueName(await place.new_queue())
    rows = []
    if place.raw is not None and place.raw.most_calls is not None:
        rows.append(await _idle_calls(place, place.raw, queue, workload))
    longest = 100.0 if place.raw is None else place.raw.longest_cancel
    provider = place.client.provider
    receiver = await provider.open_receiver(queue, ReceiverOptions())
    try:
        receive = partial(receiver.receive, 10, 60.0)
        rows += await _cancelled("a receive", receive, scale.cancellations, longest)
    finally:
        await receiver.aclose()
    if provider.capabilities.sessions:
        receiver = await provider.open_receiver(queue, ReceiverOptions(auto_accept=False))
        try:
            accept = partial(receiver.accept, None, 60.0)
            rows += await _cancelled("an accept", accept, scale.cancellations, longest)
        finally:
            await receiver.aclose()
    return report("waiting", rows, 0)


async def _cancelled(
    name: str, call: Callable[[], Awaitable[object]], times: int, longest: float
) -> list[Row]:
    """How long a call that waits takes to return when it is cancelled."""
    spent = []
    for _ in range(times):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            # Long enough that the request is under way.
            await trio.sleep(0.05)
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        spent.append(1_000 * (trio.current_time() - began))
    return [
        Row(f"cancelling {name}, median", statistics.median(spent), "ms"),
        Row(f"cancelling {name}, longest", max(spent), "ms", aim=f"at most {longest:g}"),
    ]


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
