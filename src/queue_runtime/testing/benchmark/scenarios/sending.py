"""Sending message by message, from one task and from several, beside the SDK doing the same."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import attrs
import trio

from queue_runtime import Message

from ..place import Place
from ..workload import Workload
from .figures import Figures
from .report import Report, Scale, report

__all__ = ["sending"]

_MOST: Final = 2_000
"""Messages of a round: each is a call of its own."""
_TASKS: Final = 4
"""Where there is no program of the SDK's that says how many it uses."""


async def sending(place: Place, workload: Workload, scale: Scale) -> Report:
    """One message per call; what tasks side by side send travels together."""
    workload = place.fit(attrs.evolve(workload, messages=min(workload.messages, _MOST)))
    raw = place.raw
    several = _TASKS if raw is None else raw.in_flight
    figures = Figures()
    for _ in range(scale.rounds):
        for tasks in (1, several):
            if raw is not None:
                queue = await place.new_queue()
                figures.note(_raw_name(tasks), await raw.send_singly(queue, workload, tasks))
            queue = await place.new_queue()
            figures.note(_name(tasks), await _send_singly(place, queue, workload, tasks))
    rows = [figures.row(name, "msg/s") for name in figures]
    if raw is not None:
        aim = f"at least {raw.least_ratio:g}"
        rows += [
            figures.ratio(_name(tasks), _raw_name(tasks), "msg/s", aim=aim)
            for tasks in (1, several)
        ]
    return report("sending", rows, 0)


def _name(tasks: int) -> str:
    return "send one by one, " + ("one task" if tasks == 1 else f"{tasks} tasks")


def _raw_name(tasks: int) -> str:
    return f"raw SDK: {_name(tasks)}"


async def _send_singly(place: Place, queue: str, workload: Workload, tasks: int) -> float:
    lanes: list[list[Message]] = [[] for _ in range(tasks)]
    for number, message in enumerate(workload.generate()):
        lanes[number % (workload.sessions or tasks) % tasks].append(message)

    async def send(messages: Sequence[Message]) -> None:
        for message in messages:
            await place.client.send(queue, message)

    # What opening a sender takes is no part of it, on either side.
    await place.client.send_batch(queue, [])
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for messages in lanes:
            nursery.start_soon(send, messages)
    return workload.messages / (time.perf_counter() - began)
