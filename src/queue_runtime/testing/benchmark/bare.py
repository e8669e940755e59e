"""Hand-written programs that do the same work without the runtime: what its speed is measured against.

They receive from the same broker through its port, keep each session in order, handle, and acknowledge.
They do nothing else: no lock is renewed, nothing is retried, nobody watches them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import trio

from queue_runtime import (
    Delivery,
    Message,
    Provider,
    QueueName,
    ReceiverOptions,
    Settlement,
    SettlementAction,
)

from .workload import Tally

__all__ = ["broker_channels", "broker_deques", "channels", "deques"]

_IN_FLIGHT = 1_024
_PER_SESSION = 64


async def channels(messages: Sequence[Message]) -> float:
    """No broker at all: one memory channel and one task per session; messages per second."""
    unacknowledged: dict[int, Message] = {}

    async def handle(_message: Message) -> None:
        pass

    async def serve(inbox: trio.MemoryReceiveChannel[tuple[int, Message]]) -> None:
        async for number, message in inbox:
            await handle(message)
            del unacknowledged[number]

    outboxes: dict[str | None, trio.MemorySendChannel[tuple[int, Message]]] = {}
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number, message in enumerate(messages):
            unacknowledged[number] = message
            outbox = outboxes.get(message.session_id)
            if outbox is None:
                outbox, inbox = trio.open_memory_channel[tuple[int, Message]](0)
                outboxes[message.session_id] = outbox
                nursery.start_soon(serve, inbox)
            await outbox.send((number, message))
        for outbox in outboxes.values():
            outbox.close()
    return len(messages) / (time.perf_counter() - began)


class _Parked:
    """A deque and the task that waits for it."""

    __slots__ = ("items", "task")

    def __init__(self) -> None:
        self.items: deque[tuple[int, Message]] = deque()
        self.task: trio.lowlevel.Task | None = None

    def wake(self) -> None:
        if self.task is not None:
            trio.lowlevel.reschedule(self.task)
            self.task = None

    async def park(self) -> None:
        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self.task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)


async def deques(messages: Sequence[Message], *, batch: int = 100) -> float:
    """No broker at all: a deque and a parked task per session, woken per batch; messages per second."""
    unacknowledged: dict[int, Message] = {}

    async def handle(_message: Message) -> None:
        pass

    async def serve(parked: _Parked) -> None:
        while True:
            while parked.items:
                number, message = parked.items.popleft()
                await handle(message)
                del unacknowledged[number]
            await parked.park()

    sessions: dict[str | None, _Parked] = {}
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for start in range(0, len(messages), batch):
            for number in range(start, min(start + batch, len(messages))):
                message = messages[number]
                unacknowledged[number] = message
                parked = sessions.get(message.session_id)
                if parked is None:
                    parked = sessions[message.session_id] = _Parked()
                    nursery.start_soon(serve, parked)
                parked.items.append((number, message))
                parked.wake()
            await trio.lowlevel.checkpoint()
        while unacknowledged:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    return len(messages) / (time.perf_counter() - began)


async def broker_channels(provider: Provider, queue: str, tally: Tally) -> float:
    """Over the broker's port: a memory channel and a task per session; messages per second.

    Strict: a session goes on when its acknowledgement, batched with those of others, is confirmed.
    """
    receiver = await provider.open_receiver(
        QueueName(queue), ReceiverOptions(max_per_session=_PER_SESSION)
    )
    to_settle, settling = trio.open_memory_channel[tuple[Delivery, trio.Event]](_IN_FLIGHT)
    room = trio.Semaphore(_IN_FLIGHT)

    async def settle() -> None:
        async for first in settling:
            batch = [first]
            while len(batch) < _IN_FLIGHT:
                try:
                    batch.append(settling.receive_nowait())
                except trio.WouldBlock:
                    break
            for error in await receiver.settle(
                [Settlement(delivery, SettlementAction.COMPLETE) for delivery, _ in batch]
            ):
                if error is not None:
                    raise error
            for _, confirmed in batch:
                confirmed.set()
                room.release()

    async def serve(inbox: trio.MemoryReceiveChannel[Delivery]) -> None:
        async for delivery in inbox:
            await tally.handle(delivery)
            confirmed = trio.Event()
            to_settle.send_nowait((delivery, confirmed))
            await confirmed.wait()

    outboxes: dict[str | None, trio.MemorySendChannel[Delivery]] = {}
    began = time.perf_counter()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(settle)
            received = 0
            while received < tally.expected:
                await room.acquire()
                room.release()
                for delivery in await receiver.receive(room.value, 1.0):
                    received += 1
                    await room.acquire()
                    outbox = outboxes.get(delivery.session_id)
                    if outbox is None:
                        outbox, inbox = trio.open_memory_channel[Delivery](_PER_SESSION)
                        outboxes[delivery.session_id] = outbox
                        nursery.start_soon(serve, inbox)
                    await outbox.send(delivery)
            for _ in range(_IN_FLIGHT):
                await room.acquire()
            duration = time.perf_counter() - began
            nursery.cancel_scope.cancel()
    finally:
        await receiver.aclose()
    return tally.handled / duration


async def broker_deques(provider: Provider, queue: str, tally: Tally) -> float:
    """Over the broker's port: a deque and a parked task per session; messages per second.

    Pipelined: acknowledgements are batched and sessions do not wait for them.
    """
    receiver = await provider.open_receiver(
        QueueName(queue), ReceiverOptions(max_per_session=_PER_SESSION)
    )
    finished: list[Settlement] = []

    class Lane:
        __slots__ = ("items", "task")

        def __init__(self) -> None:
            self.items: deque[Delivery] = deque()
            self.task: trio.lowlevel.Task | None = None

    def aborting(lane: Lane) -> object:
        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            lane.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        return abort

    async def serve(lane: Lane) -> None:
        abort = aborting(lane)
        while True:
            while lane.items:
                delivery = lane.items.popleft()
                await tally.handle(delivery)
                finished.append(Settlement(delivery, SettlementAction.COMPLETE))
            lane.task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)  # type: ignore[arg-type]

    lanes: dict[str | None, Lane] = {}
    in_flight = received = 0
    began = time.perf_counter()
    try:
        async with trio.open_nursery() as nursery:
            while not tally.done.is_set() or finished:
                if finished:
                    batch, finished = finished, []
                    for error in await receiver.settle(batch):
                        if error is not None:
                            raise error
                    in_flight -= len(batch)
                if in_flight == _IN_FLIGHT or received == tally.expected:
                    await trio.lowlevel.checkpoint()
                    continue
                for delivery in await receiver.receive(_IN_FLIGHT - in_flight, 1.0):
                    in_flight += 1
                    received += 1
                    lane = lanes.get(delivery.session_id)
                    if lane is None:
                        lane = lanes[delivery.session_id] = Lane()
                        nursery.start_soon(serve, lane)
                    lane.items.append(delivery)
                    if lane.task is not None:
                        trio.lowlevel.reschedule(lane.task)
                        lane.task = None
            duration = time.perf_counter() - began
            nursery.cancel_scope.cancel()
    finally:
        await receiver.aclose()
    return tally.handled / duration
