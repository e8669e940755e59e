"""A thousand sessions locked, read and given back leave nothing behind in the client."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from queue_runtime.abc import Receiver, ReceiverOptions, Sender
from queue_runtime.messages import (
    Message,
    QueueName,
    SessionId,
    Settlement,
    SettlementAction,
)
from queue_runtime.providers.azure import FACTORY, AzureConfig
from queue_runtime.secret import Secret

from .emulator_process import emulator_process

ROUNDS, SESSIONS = 5, 200

MOST_KEPT = 100.0
"""Bytes per session that may stay allocated: noise. What is made for a session takes some thousand."""


@contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def allocated() -> int:
    """Bytes in objects that somebody still holds."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def work_off(sender: Sender, receiver: Receiver, *, by_name: bool) -> None:
    """Many sessions of one message each, locked by name or as they come."""
    names = [SessionId(f"session-{number}") for number in range(SESSIONS // 2)]
    for result in await sender.send([Message(b"x", session_id=name) for name in names]):
        assert result.error is None
    for name in names:
        if by_name:
            assert await receiver.accept(name, 30.0) is not None
        [delivery] = await receiver.receive(1, 30.0)
        assert await receiver.settle([Settlement(delivery, SettlementAction.COMPLETE)]) == [None]
        await receiver.release([delivery.lease])


async def test_a_thousand_sessions_opened_and_closed_leave_memory_flat() -> None:
    # The emulator is another process: only the client's memory is looked at.
    with emulator_process() as emulator, trio.fail_after(240), traced():
        config = AzureConfig(connection_string=Secret(emulator.connection_string))
        provider = await FACTORY.open(config)
        try:
            ends = []
            for by_name in (True, False):
                queue = QueueName("by-name" if by_name else "as-they-come")
                emulator.create_queue(str(queue), requires_session=True)
                options = ReceiverOptions(auto_accept=not by_name)
                receiver = await provider.open_receiver(queue, options)
                ends.append((await provider.open_sender(queue), receiver, by_name))
            kept = []
            for _ in range(1 + ROUNDS):  # what the first leaves is made once
                for sender, receiver, by_name in ends:
                    await work_off(sender, receiver, by_name=by_name)
                kept.append(allocated())
            seen = emulator.statistics()
        finally:
            await provider.aclose()
    assert seen["links"] > ROUNDS * SESSIONS
    assert seen["open_links"] < 20
    assert (kept[-1] - kept[0]) / (ROUNDS * SESSIONS) < MOST_KEPT, kept
