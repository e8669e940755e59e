"""Programs that use a broker through its SDK alone: what a provider's speed is measured against.

A provider that the table names has a module here, called like its URL scheme, with a class :class:`RawBroker`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import Any, Final, Protocol

from queue_runtime import Provider

from ..workload import SessionOrder, Workload

__all__ = ["RawBroker", "raw_broker"]


class RawBroker(Protocol):
    """One connection through the SDK.

    Attributes:
        in_flight: How many calls the programs have under way at a time when they send.
        is_local: Whether the broker is on this machine, so that nobody minds a queue more.
        least_ratio: What the runtime's throughput divided by the SDK's should be at least.
        most_calls: How many calls a message may cost the runtime; ``None`` where calls are not counted.
        longest_poll: Seconds an idle receive call takes at most.
        idle_aim: How many calls an idle queue may cost in that time, for people.
        longest_cancel: Milliseconds after which a cancelled call has to have returned.
        in_any_order: Whether there are programs, beside those in order, that take a session's messages as they come.
        acceptors: How many sessions the runtime asks for at a time; 0 where nobody asks for sessions.
    """

    in_flight: int
    is_local: bool
    least_ratio: float
    most_calls: float | None
    longest_poll: float
    idle_aim: str
    longest_cancel: float
    in_any_order: bool
    acceptors: int

    async def publish(self, queue: str, workload: Workload, *, ordered: bool) -> float:
        """Send a workload as fast as it can, each session in order or not; messages per second."""
        ...

    async def send_singly(self, queue: str, workload: Workload, tasks: int) -> float:
        """Send a workload message by message from so many tasks, or fewer where that is faster; messages per second."""
        ...

    async def drain(
        self, queue: str, expected: int, order: SessionOrder, *, ordered: bool
    ) -> float:
        """Receive, handle and delete so many messages, each session in order or not; messages per second."""
        ...

    async def switch(self, queue: str, times: int) -> float:
        """Open a receiver for the next session, complete one message and close; seconds, the median of ``times``.

        The queue holds as many sessions of one message. Only where ``acceptors`` is not 0.
        """
        ...

    async def remove(self, queues: Iterable[str]) -> None:
        """Delete queues with all that was provisioned with them."""
        ...

    def connections(self, provider: Provider) -> int:
        """How many connections the runtime's provider has opened so far; 0 where nobody counts."""
        ...

    def calls(self, provider: Provider) -> Mapping[str, int]:
        """How many requests the runtime's provider has sent so far, by operation; nothing where nobody counts."""
        ...


_BROKERS: Final = frozenset({"azure", "sqs"})


def raw_broker(scheme: str, config: Any) -> AbstractAsyncContextManager[RawBroker] | None:
    """A connection to the broker of a provider's configuration, to be entered; ``None`` where there is no program."""
    if scheme not in _BROKERS:
        return None
    opened: AbstractAsyncContextManager[RawBroker] = import_module(f"{__name__}.{scheme}").open_raw(
        config
    )
    return opened
