"""What ``queue-runtime bench`` measures: one function per scenario, each a report of rows."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias, final

import attrs
import trio

from queue_runtime import Message, QueueClient, ReceiverOptions, SettlementMode
from queue_runtime.messages import QueueName

from . import bare
from .place import Place, open_place
from .raw import RawBroker
from .runtime import Arrivals, drained, offer, percentile, supervised
from .workload import SessionOrder, Tally, Workload, peak_memory, publish

__all__ = ["SCENARIOS", "Report", "Row", "Scale", "run_scenario"]


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
        rounds: How often programs that stand beside each other take turns; the median counts.
        cancellations: Receive calls that are cancelled.
    """

    rate: float = 500.0
    duration: float = 5.0
    depth: int = 1_000_000
    idle_sessions: int = 10_000
    hot_messages: int = 100_000
    cold_sessions: int = 1_000
    rounds: int = 5
    cancellations: int = 20


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


async def _throughput(place: Place, workload: Workload, scale: Scale) -> Report:
    """Publish a workload and drain it, beside programs that do the same work without the runtime."""
    workload = place.fit(workload)
    rounds = _Rounds(place, workload)
    for _ in range(scale.rounds):
        if place.raw is not None:
            await rounds.raw(_RAW, place.raw, ordered=True)
            await rounds.raw(_RAW_UNORDERED, place.raw, ordered=False)
        elif place.in_process:
            await rounds.without_broker()
        for name, consume in _RUNTIME.items():
            if place.raw is None:
                await rounds.program(*_BARE[name])
            await rounds.program(name, consume)
    if place.raw is not None:
        pairs = [(rounds.publishing, _RAW_PUBLISH), (_STRICT, _RAW), (_PIPELINED, _RAW)]
    else:
        pairs = [(name, bare_name) for name, (bare_name, _) in _BARE.items()]
        if place.in_process:
            pairs = [(_STRICT, _BARE_CHANNELS), *pairs, (_PIPELINED, _BARE_DEQUES)]
    rows = [*rounds.rows(), *(rounds.ratio(name, beside) for name, beside in pairs)]
    return _report("throughput", rows, rounds.violations)


class _Rounds:
    """Figures of several programs that take turns, so that a slow moment of the machine weighs on all."""

    def __init__(self, place: Place, workload: Workload) -> None:
        self.violations = 0
        self._place = place
        self._workload = workload
        self._figures: dict[str, list[float]] = {}
        self._lanes = 1 if place.raw is None else place.raw.in_flight
        self.publishing = _PUBLISH if self._lanes == 1 else f"{_PUBLISH}, {self._lanes} tasks"

    def _note(self, name: str, figure: float) -> None:
        self._figures.setdefault(name, []).append(figure)

    async def without_broker(self) -> None:
        """The bare programs that need none."""
        messages = list(self._workload.generate())
        for name, program in ((_BARE_CHANNELS, bare.channels), (_BARE_DEQUES, bare.deques)):
            gc.collect()
            self._note(name, await program(messages))

    async def program(self, name: str, consume: _Consumer) -> None:
        """Publish through the client, and drain."""
        place, client = self._place, self._place.client
        queue = await place.new_queue()
        calls = place.calls()
        self._note(self.publishing, await publish(client, queue, self._workload, lanes=self._lanes))
        self._note_calls(self.publishing, calls)
        tally = Tally(self._workload.messages)
        # What one program left behind must not be collected on the time of the next.
        gc.collect()
        calls = place.calls()
        self._note(name, await consume(client, queue, tally))
        self._note_calls(name, calls)
        self.violations += tally.order_violations

    def _note_calls(self, name: str, before: int) -> None:
        if self._place.raw is not None:
            calls = self._place.calls() - before
            self._note(f"{_CALLS}{name}", calls / self._workload.messages)

    async def raw(self, name: str, raw: RawBroker, *, ordered: bool) -> None:
        """Publish and drain through the SDK alone."""
        queue = await self._place.new_queue()
        gc.collect()
        published = _RAW_PUBLISH if ordered else _RAW_PUBLISH_UNORDERED
        self._note(published, await raw.publish(queue, self._workload, ordered=ordered))
        order = SessionOrder()
        gc.collect()
        self._note(name, await raw.drain(queue, self._workload.messages, order, ordered=ordered))
        if ordered:
            self.violations += order.violations

    def rows(self) -> list[Row]:
        """The median of every figure."""
        return [
            Row(
                name,
                statistics.median(values),
                "calls/msg" if name.startswith(_CALLS) else "msg/s",
                aim="at most 0.25" if name.startswith(_CALLS) else "",
            )
            for name, values in self._figures.items()
        ]

    def ratio(self, name: str, beside: str) -> Row:
        """Of two programs, round by round, so that a slow moment of the machine weighs on both sides."""
        own, others = self._figures[name], self._figures[beside]
        per_round = len(own) // len(others)  # the client publishes for several programs
        ratio = statistics.median(
            statistics.median(own[start * per_round : (start + 1) * per_round]) / other
            for start, other in enumerate(others)
        )
        return Row(name, statistics.median(own), "msg/s", beside, ratio, self._aim(beside))

    def _aim(self, beside: str) -> str:
        if self._place.raw is not None:
            return "at least 0.9"
        judged = self._place.in_process and beside in (_BARE_CHANNELS, _BARE_PIPELINED)
        return "at least 0.8" if judged else ""


_Consumer: TypeAlias = Callable[[QueueClient, str, Tally], Awaitable[float]]

_PUBLISH: Final = "publish, batches of 500"
_STRICT: Final = "runtime, strict"
_PIPELINED: Final = "runtime, pipelined"
_CALLS: Final = "calls: "
_BARE_CHANNELS: Final = "bare: memory channels, no broker"
_BARE_DEQUES: Final = "bare: deques and parked tasks, no broker"
_BARE_PIPELINED: Final = "bare: deques over the broker's port, pipelined"
_RAW_PUBLISH: Final = "raw SDK: publish, sessions in order"
_RAW_PUBLISH_UNORDERED: Final = "raw SDK: publish, in any order"
_RAW: Final = "raw SDK: drain, sessions in order"
_RAW_UNORDERED: Final = "raw SDK: drain, as messages come"
_RUNTIME: Final[Mapping[str, _Consumer]] = {
    _STRICT: lambda client, queue, tally: drained(client, queue, tally, SettlementMode.STRICT),
    _PIPELINED: lambda client, queue, tally: drained(
        client, queue, tally, SettlementMode.PIPELINED
    ),
}
_BARE: Final[Mapping[str, tuple[str, _Consumer]]] = {
    _STRICT: (
        "bare: a channel per session over the broker's port, strict",
        lambda client, queue, tally: bare.broker_channels(client.provider, queue, tally),
    ),
    _PIPELINED: (
        _BARE_PIPELINED,
        lambda client, queue, tally: bare.broker_deques(client.provider, queue, tally),
    ),
}
"""What each of the runtime's modes stands beside where there is no program of the SDK alone."""


async def _latency(place: Place, workload: Workload, scale: Scale) -> Report:
    """Time from when a message was due to be sent to the start of its handler, at a fixed offered rate."""
    body = b"x" * workload.size
    arrivals = Arrivals(int(scale.rate * scale.duration))

    def make(number: int) -> Message:
        session_id = place.session(f"session-{number % workload.sessions}")
        return Message(body, session_id=session_id, message_id=f"m{number}")

    client = place.client
    queue = await place.new_queue()
    async with supervised(client, queue, arrivals, SettlementMode.STRICT):  # type: ignore[arg-type]
        await offer(client, queue, arrivals, rate=scale.rate, make=make)
        await arrivals.done.wait()
    return _report("latency", _latency_rows(f"at {scale.rate:g} msg/s", arrivals.latencies), 0)


async def _depth(place: Place, workload: Workload, scale: Scale) -> Report:
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
    return _report("depth", rows, violations)


async def _idle(place: Place, workload: Workload, scale: Scale) -> Report:
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
    return _report("idle", rows, violations)


async def _hot(place: Place, workload: Workload, scale: Scale) -> Report:
    """Latency of cold sessions, without and beside one hot session."""
    body = b"x" * workload.size
    measured: dict[bool, Arrivals] = {}
    client = place.client
    for heated in (False, True):
        queue = await place.new_queue()
        arrivals = measured[heated] = Arrivals(int(scale.rate * scale.duration))

        def make(number: int) -> Message:
            session_id = place.session(f"cold-{number % scale.cold_sessions}")
            return Message(body, session_id=session_id, message_id=f"m{number}")

        if heated:
            await publish(client, queue, place.fit(Workload(scale.hot_messages, 1, workload.size)))
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


def _latency_rows(what: str, latencies: list[float]) -> list[Row]:
    return [
        Row(f"latency {name} {what}", 1_000 * percentile(latencies, share), "ms")
        for name, share in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))
    ]


def _report(scenario: str, rows: list[Row], violations: int) -> Report:
    return Report(scenario, tuple(rows), violations, peak_memory())


async def _waiting(place: Place, workload: Workload, scale: Scale) -> Report:
    """What it costs to wait: requests of an idle queue, and how long a receive takes to let go of it."""
    queue = QueueName(await place.new_queue())
    rows = []
    if place.raw is not None:
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
    return _report("waiting", rows, 0)


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


SCENARIOS: Final[Mapping[str, Callable[[Place, Workload, Scale], Awaitable[Report]]]] = {
    "throughput": _throughput,
    "latency": _latency,
    "depth": _depth,
    "idle": _idle,
    "hot": _hot,
    "waiting": _waiting,
}
"""Every scenario by its name."""


def run_scenario(
    name: str, url: str, workload: Workload, scale: Scale, *, may_create: bool = False
) -> Report:
    """Run one scenario in this process, in a trio run of its own.

    Args:
        name: One of :data:`SCENARIOS`.
        url: Of the provider.
        workload: What is sent.
        scale: The large numbers.
        may_create: Provision queues also where the broker is not on this machine; they are deleted afterwards.
    """

    async def main() -> Report:
        async with open_place(url, may_create=may_create) as place:
            return await SCENARIOS[name](place, workload, scale)

    return trio.run(main)
