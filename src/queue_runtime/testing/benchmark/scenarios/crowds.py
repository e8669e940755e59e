"""What many messages, or many sessions with nothing to do, cost those that are handled."""

from __future__ import annotations

import statistics
import time

import attrs
import trio

from queue_runtime import SettlementMode

from ..place import Place
from ..runtime import supervised
from ..workload import Tally, Workload, publish
from .report import Report, Row, Scale, report

__all__ = ["depth", "idle"]


async def depth(place: Place, workload: Workload, scale: Scale) -> Report:
    """Cost per message of a shallow queue and of a deep one."""
    rates = {}
    violations = 0
    client = place.client
    for deep in (1_000, scale.depth):
        # The same number of messages handled both times: in many shallow fills, or off a deep one.
        measured = min(20_000, scale.depth)
        fills = max(1, measured // deep)
        spent = 0.0
        for _ in range(fills):
            queue = await place.new_queue()
            await publish(client, queue, place.fit(attrs.evolve(workload, messages=deep)))
            tally = Tally(measured // fills)
            began = time.perf_counter()
            async with supervised(client, queue, tally, SettlementMode.STRICT):
                await tally.done.wait()
                spent += time.perf_counter() - began
            violations += tally.order_violations
            await client.purge(queue)
        rates[deep] = measured / spent
    shallow, deep_rate = rates[1_000], rates[scale.depth]
    rows = [
        Row("cost per message at depth 1,000", 1e6 / shallow, "µs"),
        Row(
            f"cost per message at depth {scale.depth:,}",
            1e6 / deep_rate,
            "µs",
            "depth 1,000",
            shallow / deep_rate,
            "at most 1.2",
        ),
    ]
    return report("depth", rows, violations)


async def idle(place: Place, workload: Workload, scale: Scale) -> Report:
    """Throughput of busy sessions alone, and beside idle sessions that all hold their lock."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    violations = 0
    client = place.client
    for _ in range(scale.rounds):
        for crowded in (False, True):
            queue = await place.new_queue()
            idlers = scale.idle_sessions if crowded else 0
            await publish(
                client, queue, place.fit(Workload(idlers, max(1, idlers), 16)), batch=1_000
            )
            tally = Tally(idlers + workload.messages)
            async with supervised(
                client, queue, tally, SettlementMode.STRICT, idle_timeout=600.0
            ) as supervisor:
                await supervisor.wait_empty()
                await publish(client, queue, place.fit(workload))
                began = trio.current_time()
                before = tally.handled
                await tally.done.wait()
                rates[crowded].append((tally.handled - before) / (trio.current_time() - began))
            violations += tally.order_violations
    alone, beside = statistics.median(rates[False]), statistics.median(rates[True])
    rows = [
        Row(f"{workload.sessions} busy sessions", alone, "msg/s"),
        Row(
            f"{workload.sessions} busy sessions beside {scale.idle_sessions:,} idle ones",
            beside,
            "msg/s",
            "without idle sessions",
            beside / alone,
            "at least 0.8",
        ),
    ]
    return report("idle", rows, violations)
