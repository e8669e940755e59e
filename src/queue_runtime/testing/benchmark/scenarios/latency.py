"""Time from when a message was due to be sent to the start of its handler, at a fixed offered rate."""

from __future__ import annotations

import attrs

from queue_runtime import Message, SettlementMode

from ..place import Place
from ..runtime import Arrivals, offer, percentile, supervised
from ..workload import Workload, publish
from .report import Report, Row, Scale, report

__all__ = ["hot", "latency"]


async def latency(place: Place, workload: Workload, scale: Scale) -> Report:
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
    return report("latency", _rows(f"at {scale.rate:g} msg/s", arrivals.latencies), 0)


async def hot(place: Place, workload: Workload, scale: Scale) -> Report:
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
        _rows(f"of {scale.cold_sessions:,} cold sessions{beside}", measured[key].latencies)
        for key, beside in ((False, ""), (True, f", {scale.hot_messages:,} messages hot beside"))
    )
    ratio = heated_rows[-1].value / cold[-1].value
    heated_rows[-1] = attrs.evolve(
        heated_rows[-1], beside="without the hot session", ratio=ratio, aim="at most 2"
    )
    return report("hot", [*cold, *heated_rows], 0)


def _rows(what: str, latencies: list[float]) -> list[Row]:
    return [
        Row(f"latency {name} {what}", 1_000 * percentile(latencies, share), "ms")
        for name, share in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))
    ]
