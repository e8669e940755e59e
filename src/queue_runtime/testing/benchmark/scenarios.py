"""What ``queue-runtime bench`` measures: one function per scenario, each a report of rows."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Final, final

import attrs
import trio

from queue_runtime import Message, QueueClient, SettlementMode, open_client

from . import bare
from .runtime import Arrivals, drained, offer, percentile, supervised
from .workload import Tally, Workload, peak_memory, publish

__all__ = ["SCENARIOS", "Report", "Row", "Scale", "run_scenario"]

_ROUNDS: Final = 5
_queues: Final = count(1)


@final
@attrs.frozen
class Scale:
    """The large numbers of the scenarios, so that a short form can shrink them.

    Args:
        rate: Messages per second offered where latency is measured.
        duration: Seconds for which they are offered.
        depth: Messages in the deep queue.
        idle_sessions: Sessions that hold their lock and have nothing to do.
        hot_messages: Messages of the one hot session.
        cold_sessions: Sessions beside it.
    """

    rate: float = 500.0
    duration: float = 5.0
    depth: int = 1_000_000
    idle_sessions: int = 10_000
    hot_messages: int = 100_000
    cold_sessions: int = 1_000


@final
@attrs.frozen
class Row:
    """One measured figure.

    Args:
        what: What was measured.
        value: The figure: the median of the rounds where there were several.
        unit: ``msg/s``, ``ms``, ``MiB`` …
        beside: What it is compared with; empty when it stands alone.
        ratio: This figure divided by that one.
        aim: What the ratio or figure should be, for people.
    """

    what: str
    value: float
    unit: str
    beside: str = ""
    ratio: float | None = None
    aim: str = ""


@final
@attrs.frozen
class Report:
    """The outcome of one scenario.

    Args:
        scenario: Its name.
        rows: What was measured, in order.
        order_violations: Messages handled out of their session's order, over all runs.
        peak_memory_mib: Largest resident set of the process, MiB.
    """

    scenario: str
    rows: tuple[Row, ...]
    order_violations: int
    peak_memory_mib: float


async def _throughput(url: str, workload: Workload, _scale: Scale) -> Report:
    """Publish a workload and drain it, beside bare programs that do the same work."""
    figures: dict[str, list[float]] = {}
    violations = 0
    in_process = url.startswith("memory:")
    async with open_client(url) as client:
        for _ in range(_ROUNDS):
            if in_process:
                messages = list(workload.generate())
                for name, program in (
                    (_BARE_CHANNELS, bare.channels),
                    (_BARE_DEQUES, bare.deques),
                ):
                    gc.collect()
                    figures.setdefault(name, []).append(await program(messages))
            for name, consume in _CONSUMERS.items():
                queue = _new_queue()
                figures.setdefault("publish, batches of 500", []).append(
                    await publish(client, queue, workload)
                )
                tally = Tally(workload.messages)
                # What one program left behind must not be collected on the time of the next.
                gc.collect()
                figures.setdefault(name, []).append(await consume(client, queue, tally))
                violations += tally.order_violations
    pairs = [(_STRICT, _BARE_STRICT), (_PIPELINED, _BARE_PIPELINED)]
    if in_process:
        pairs = [(_STRICT, _BARE_CHANNELS), *pairs, (_PIPELINED, _BARE_DEQUES)]
    rows = [Row(name, statistics.median(values), "msg/s") for name, values in figures.items()]
    for name, beside in pairs:
        # Round by round, so that a slow moment of the machine weighs on both sides.
        ratio = statistics.median(
            own / other for own, other in zip(figures[name], figures[beside], strict=True)
        )
        aim = "at least 0.8" if in_process and beside in (_BARE_CHANNELS, _BARE_PIPELINED) else ""
        rows.append(Row(name, statistics.median(figures[name]), "msg/s", beside, ratio, aim))
    return _report("throughput", rows, violations)


_STRICT: Final = "runtime, strict"
_PIPELINED: Final = "runtime, pipelined"
_BARE_CHANNELS: Final = "bare: memory channels, no broker"
_BARE_DEQUES: Final = "bare: deques and parked tasks, no broker"
_BARE_STRICT: Final = "bare: a channel per session over the broker's port, strict"
_BARE_PIPELINED: Final = "bare: deques over the broker's port, pipelined"
_CONSUMERS: Final[Mapping[str, Callable[[QueueClient, str, Tally], Awaitable[float]]]] = {
    _BARE_STRICT: lambda client, queue, tally: bare.broker_channels(client.provider, queue, tally),
    _STRICT: lambda client, queue, tally: drained(client, queue, tally, SettlementMode.STRICT),
    _BARE_PIPELINED: lambda client, queue, tally: bare.broker_deques(client.provider, queue, tally),
    _PIPELINED: lambda client, queue, tally: drained(
        client, queue, tally, SettlementMode.PIPELINED
    ),
}


async def _latency(url: str, workload: Workload, scale: Scale) -> Report:
    """Time from when a message was due to be sent to the start of its handler, at a fixed offered rate."""
    body = b"x" * workload.size
    arrivals = Arrivals(int(scale.rate * scale.duration))

    def make(number: int) -> Message:
        session_id = f"session-{number % workload.sessions}"
        return Message(body, session_id=session_id, message_id=f"m{number}")

    async with open_client(url) as client:
        queue = _new_queue()
        async with supervised(client, queue, arrivals, SettlementMode.STRICT):  # type: ignore[arg-type]
            await offer(client, queue, arrivals, rate=scale.rate, make=make)
            await arrivals.done.wait()
    return _report("latency", _latency_rows(f"at {scale.rate:g} msg/s", arrivals.latencies), 0)


async def _depth(url: str, workload: Workload, scale: Scale) -> Report:
    """Cost per message of a shallow queue and of a deep one."""
    rates = {}
    violations = 0
    async with open_client(url) as client:
        for deep in (1_000, scale.depth):
            # The same number of messages handled both times: in many shallow fills, or off a deep one.
            measured = min(20_000, scale.depth)
            fills = max(1, measured // deep)
            spent = 0.0
            for _ in range(fills):
                queue = _new_queue()
                await publish(client, queue, attrs.evolve(workload, messages=deep))
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
    return _report("depth", rows, violations)


async def _idle(url: str, workload: Workload, scale: Scale) -> Report:
    """Throughput of busy sessions alone, and beside idle sessions that all hold their lock."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    violations = 0
    async with open_client(url) as client:
        for _ in range(_ROUNDS):
            for crowded in (False, True):
                queue = _new_queue()
                idlers = scale.idle_sessions if crowded else 0
                await publish(client, queue, Workload(idlers, max(1, idlers), 16), batch=1_000)
                tally = Tally(idlers + workload.messages)
                async with supervised(
                    client, queue, tally, SettlementMode.STRICT, idle_timeout=600.0
                ) as supervisor:
                    await supervisor.wait_empty()
                    await publish(client, queue, workload)
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
    return _report("idle", rows, violations)


async def _hot(url: str, workload: Workload, scale: Scale) -> Report:
    """Latency of cold sessions, without and beside one hot session."""
    body = b"x" * workload.size
    measured: dict[bool, Arrivals] = {}
    async with open_client(url) as client:
        for heated in (False, True):
            queue = _new_queue()
            arrivals = measured[heated] = Arrivals(int(scale.rate * scale.duration))

            def make(number: int) -> Message:
                session_id = f"cold-{number % scale.cold_sessions}"
                return Message(body, session_id=session_id, message_id=f"m{number}")

            if heated:
                await publish(client, queue, Workload(scale.hot_messages, 1, workload.size))
            async with supervised(client, queue, arrivals, SettlementMode.STRICT):  # type: ignore[arg-type]
                await offer(client, queue, arrivals, rate=scale.rate, make=make)
                await arrivals.done.wait()
            await client.purge(queue)
    cold, heated_rows = (
        _latency_rows(f"of {scale.cold_sessions:,} cold sessions{beside}", measured[key].latencies)
        for key, beside in ((False, ""), (True, f", {scale.hot_messages:,} messages hot beside"))
    )
    ratio = heated_rows[-1].value / cold[-1].value
    heated_rows[-1] = attrs.evolve(
        heated_rows[-1], beside="without the hot session", ratio=ratio, aim="at most 2"
    )
    return _report("hot", [*cold, *heated_rows], 0)


def _new_queue() -> str:
    """A queue of its own for every fill, also in a file that an earlier run left."""
    return f"bench-{os.getpid()}-{next(_queues)}"


def _latency_rows(what: str, latencies: list[float]) -> list[Row]:
    return [
        Row(f"latency {name} {what}", 1_000 * percentile(latencies, share), "ms")
        for name, share in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))
    ]


def _report(scenario: str, rows: list[Row], violations: int) -> Report:
    return Report(scenario, tuple(rows), violations, peak_memory())


SCENARIOS: Final[Mapping[str, Callable[[str, Workload, Scale], Awaitable[Report]]]] = {
    "throughput": _throughput,
    "latency": _latency,
    "depth": _depth,
    "idle": _idle,
    "hot": _hot,
}
"""Every scenario by its name."""


def run_scenario(name: str, url: str, workload: Workload, scale: Scale) -> Report:
    """Run one scenario in this process, in a trio run of its own."""
    return trio.run(SCENARIOS[name], url, workload, scale)
