"""Publishing a workload and draining it, beside programs that do the same work without the runtime."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

from queue_runtime import QueueClient, SettlementMode

from .. import bare
from ..place import Place
from ..raw import RawBroker
from ..runtime import drained
from ..workload import SessionOrder, Tally, Workload, publish
from .figures import Figures
from .report import Report, Row, Scale, report

__all__ = ["throughput"]


async def throughput(place: Place, workload: Workload, scale: Scale) -> Report:
    """Publish a workload and drain it, beside programs that do the same work without the runtime."""
    workload = place.fit(workload)
    rounds = _Rounds(place, workload)
    for _ in range(scale.rounds):
        if place.raw is not None:
            await rounds.raw(place.raw, ordered=True)
            if place.raw.in_any_order and workload.sessions:
                await rounds.raw(place.raw, ordered=False)
        elif place.in_process:
            await rounds.without_broker()
        for name, consume in _RUNTIME.items():
            if place.raw is None:
                await rounds.program(*_BARE[name])
            await rounds.program(name, consume)
    if place.raw is not None:
        raw_publish, raw_drain = _raw_names(workload, ordered=True)
        pairs = [
            (rounds.publishing, raw_publish),
            (_STRICT, raw_drain),
            (_PIPELINED, raw_drain),
        ]
    else:
        pairs = [(name, bare_name) for name, (bare_name, _) in _BARE.items()]
        if place.in_process:
            pairs = [(_STRICT, _BARE_CHANNELS), *pairs, (_PIPELINED, _BARE_DEQUES)]
    rows = [*rounds.rows(), *(rounds.ratio(name, beside) for name, beside in pairs)]
    return report("throughput", rows, rounds.violations)


class _Rounds:
    """Programs that take turns."""

    def __init__(self, place: Place, workload: Workload) -> None:
        self.violations = 0
        self._place = place
        self._workload = workload
        self._figures = Figures()
        most_calls = None if place.raw is None else place.raw.most_calls
        self._calls_aim = "" if most_calls is None else f"at most {most_calls:g}"
        self._lanes = 1 if place.raw is None else place.raw.in_flight
        self.publishing = _PUBLISH if self._lanes == 1 else f"{_PUBLISH}, {self._lanes} tasks"

    async def without_broker(self) -> None:
        """The bare programs that need none."""
        messages = list(self._workload.generate())
        for name, program in ((_BARE_CHANNELS, bare.channels), (_BARE_DEQUES, bare.deques)):
            gc.collect()
            self._figures.note(name, await program(messages))

    async def program(self, name: str, consume: _Consumer) -> None:
        """Publish through the client, and drain."""
        place, client = self._place, self._place.client
        queue = await place.new_queue()
        calls = place.calls()
        self._figures.note(
            self.publishing, await publish(client, queue, self._workload, lanes=self._lanes)
        )
        self._note_calls(self.publishing, calls)
        tally = Tally(self._workload.messages)
        # What one program left behind must not be collected on the time of the next.
        gc.collect()
        calls = place.calls()
        self._figures.note(name, await consume(client, queue, tally))
        self._note_calls(name, calls)
        self.violations += tally.order_violations

    def _note_calls(self, name: str, before: int) -> None:
        if self._calls_aim:
            calls = self._place.calls() - before
            self._figures.note(f"{_CALLS}{name}", calls / self._workload.messages)

    async def raw(self, raw: RawBroker, *, ordered: bool) -> None:
        """Publish and drain through the SDK alone."""
        workload = self._workload
        published, taken = _raw_names(workload, ordered=ordered)
        queue = await self._place.new_queue()
        gc.collect()
        self._figures.note(published, await raw.publish(queue, workload, ordered=ordered))
        order = SessionOrder()
        gc.collect()
        self._figures.note(taken, await raw.drain(queue, workload.messages, order, ordered=ordered))
        if ordered:
            self.violations += order.violations

    def rows(self) -> list[Row]:
        """The median of every figure."""
        return [
            self._figures.row(name, "calls/msg", aim=self._calls_aim)
            if name.startswith(_CALLS)
            else self._figures.row(name, "msg/s")
            for name in self._figures
        ]

    def ratio(self, name: str, beside: str) -> Row:
        """Of two programs. The client publishes for several in a round."""
        return self._figures.ratio(name, beside, "msg/s", aim=self._aim(beside))

    def _aim(self, beside: str) -> str:
        if self._place.raw is not None:
            return f"at least {self._place.raw.least_ratio:g}"
        judged = self._place.in_process and beside in (_BARE_CHANNELS, _BARE_PIPELINED)
        return "at least 0.8" if judged else ""


def _raw_names(workload: Workload, *, ordered: bool) -> tuple[str, str]:
    """Of the SDK's programs that publish and drain."""
    if not workload.sessions:
        return "raw SDK: publish", "raw SDK: drain"
    if ordered:
        return "raw SDK: publish, sessions in order", "raw SDK: drain, sessions in order"
    return "raw SDK: publish, in any order", "raw SDK: drain, as messages come"


_Consumer: TypeAlias = Callable[[QueueClient, str, Tally], Awaitable[float]]

_PUBLISH: Final = "publish, batches of 500"
_STRICT: Final = "runtime, strict"
_PIPELINED: Final = "runtime, pipelined"
_CALLS: Final = "calls: "
_BARE_CHANNELS: Final = "bare: memory channels, no broker"
_BARE_DEQUES: Final = "bare: deques and parked tasks, no broker"
_BARE_PIPELINED: Final = "bare: deques over the broker's port, pipelined"
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
