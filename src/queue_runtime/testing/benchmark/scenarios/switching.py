"""How fast the runtime goes from session to session."""

from __future__ import annotations

import time
from typing import Final

from queue_runtime import SettlementMode

from ..place import Place
from ..runtime import supervised
from ..workload import Tally, Workload, publish
from .figures import Figures
from .report import Report, Row, Scale, report

__all__ = ["switching"]

_OPENING: Final = "raw SDK: open, read and close one session receiver"


async def switching(place: Place, workload: Workload, scale: Scale) -> Report:
    """Sessions of one message each, beside what as many session receivers of the SDK would take in turn.

    That is the time of one, measured in the same round, times the sessions, divided by how many the runtime may ask
    for at a time. Nothing is measured where there are no sessions.
    """
    if not place.client.capabilities.sessions:
        return report("switching", [], 0)
    figures, violations = Figures(), 0
    sessions, raw = scale.switches, place.raw
    name = f"{sessions:,} sessions of one message"
    beside = ""
    for _ in range(scale.rounds):
        if raw is not None and raw.acceptors:
            queue = await place.new_queue()
            await publish(
                place.client, queue, Workload(scale.openings, scale.openings, workload.size)
            )
            one = await raw.switch(queue, scale.openings)
            figures.note(_OPENING, 1_000 * one)
            beside = f"{sessions:,} times the raw SDK's, by {raw.acceptors} acceptors"
            figures.note(beside, one * sessions / raw.acceptors)
        queue = await place.new_queue()
        await publish(place.client, queue, Workload(sessions, sessions, workload.size))
        tally = Tally(sessions)
        began = time.perf_counter()
        async with supervised(place.client, queue, tally, SettlementMode.STRICT) as supervisor:
            await tally.done.wait()
            await supervisor.wait_settled()
            figures.note(name, time.perf_counter() - began)
        violations += tally.order_violations
    if not beside:
        return report("switching", [figures.row(name, "s")], violations)
    rows = [
        figures.row(_OPENING, "ms"),
        figures.row(beside, "s"),
        figures.ratio(name, beside, "s", aim="at most 1.3"),
    ]
    if raw is not None and (opened := raw.connections(place.client.provider)):
        rows.append(Row("connections the runtime opened in all", opened, "connections"))
    return report("switching", rows, violations)
