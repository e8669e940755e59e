"""The other process of the cases that need one: it does what it is told, line by line, as JSON.

The parent writes the broker's URL and the queue as the first line, then commands; every command is answered by
one line. At the end of its input the child closes its provider and exits.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, final

import trio

from ...abc import Provider, Receiver, ReceiverOptions, Sender
from ...messages import Delivery, Message, QueueName, Settlement, SettlementAction
from ...providers import open_provider
from ..records import Ended, Recorder
from .bench import Bench, expect

__all__ = ["Child", "consume", "main", "start_child"]

_READY: Final = "ready"


@final
class Child:
    """The parent's end."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._buffer = b""

    async def call(self, command: str, **arguments: Any) -> Any:
        """Have the child do something; its answer."""
        assert self._process.stdin is not None, "the child was started with a pipe"
        await self._process.stdin.send_all(json.dumps([command, arguments]).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> Any:
        """The next line the child writes."""
        assert self._process.stdout is not None, "the child was started with a pipe"
        while b"\n" not in self._buffer:
            received = await self._process.stdout.receive_some()
            expect(bool(received), "the child process died; its error is on stderr")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    async def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self._process.kill()
        await self._process.wait()

    def pause(self) -> None:
        """SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    async def finish(self) -> None:
        """Let the child close in good order; returns when the process is gone."""
        assert self._process.stdin is not None, "the child was started with a pipe"
        await self._process.stdin.aclose()
        await self._process.wait()


@asynccontextmanager
async def start_child(bench: Bench, **options: Any) -> AsyncIterator[Child]:
    """A child process with a receiver on the case's queue; it is killed at the end of the block.

    Args:
        bench: The case's.
        **options: Of the child's receiver, as for ``ReceiverOptions``.
    """
    import subprocess  # only for the name of the pipe

    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", f"from {__name__} import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    child = Child(process)
    try:
        # By way of the pipe: an argument could be seen by everybody, and a URL may hold a secret.
        answer = await child.call(
            str(bench.queue), url=bench.environment.child_url, options=options
        )
        expect(answer == _READY, f"the child process says {answer!r}")
        yield child
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()


async def consume(receiver: Receiver, recorder: Recorder, *, longest: float = 0.004) -> None:
    """Handle and complete messages, for ever, within the leases' deadlines; every step is recorded."""
    dice = random.Random(recorder.process)
    while True:
        deliveries = await receiver.receive(8, 1.0)
        broken: set[str | None] = set()
        for delivery in deliveries:
            lease = delivery.lease
            if lease.lost is not None or trio.current_time() >= lease.deadline:
                broken.add(delivery.session_id)
            if delivery.session_id in broken:
                continue
            recorder.started(delivery)
            with trio.move_on_at(lease.deadline):
                await trio.sleep(dice.uniform(0, longest))
            # Looked at once more: after a pause the sleep may have ended in the same moment as the lease.
            if trio.current_time() >= lease.deadline:
                recorder.ended(delivery, Ended.CANCELLED)
                broken.add(delivery.session_id)
                continue
            recorder.ended(delivery)
            [error] = await receiver.settle([Settlement(delivery, SettlementAction.COMPLETE)])
            if error is None:
                recorder.settled(delivery, SettlementAction.COMPLETE)
            else:
                broken.add(delivery.session_id)
        await receiver.release([delivery.lease for delivery in deliveries])


async def _produce(
    sender: Sender, recorder: Recorder, sessions: Sequence[str], pause: float
) -> None:
    number = 0
    while True:
        for session in sessions:
            name = f"{recorder.process}-{session}-{number}"
            recorder.sending(session, name, number)
            [result] = await sender.send([Message(b"x", session_id=session, message_id=name)])
            if result.error is None:
                recorder.sent(session, name, number)
        number += 1
        await trio.sleep(pause)


def _answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


@final
class _Obedient:
    """The child's end: one method per command."""

    def __init__(
        self, sender: Sender, receiver: Receiver, queue: QueueName, nursery: trio.Nursery
    ) -> None:
        self.sender = sender
        self.receiver = receiver
        self.queue = queue
        self.nursery = nursery
        self.deliveries: list[Delivery] = []

    async def send(self, session: str | None, bodies: list[str]) -> list[bool]:
        messages = [Message(body.encode(), session_id=session) for body in bodies]
        return [result.error is None for result in await self.sender.send(messages)]

    async def receive(self, count: int, timeout: float) -> list[list[Any]]:
        received: list[Delivery] = []
        with trio.move_on_after(timeout):
            while len(received) < count:
                received += await self.receiver.receive(count - len(received), timeout)
        self.deliveries += received
        return [[d.body.decode(), d.delivery_count, d.lease.token] for d in received]

    async def settle(self, positions: list[int], action: str) -> list[str | None]:
        settlements = [
            Settlement(self.deliveries[position], SettlementAction(action))
            for position in positions
        ]
        answers = await self.receiver.settle(settlements)
        return [None if error is None else type(error).__name__ for error in answers]

    async def renew(self, position: int) -> list[str | None]:
        answers = await self.receiver.renew([self.deliveries[position].lease])
        return [None if error is None else type(error).__name__ for error in answers]

    async def release(self, position: int) -> None:
        await self.receiver.release([self.deliveries[position].lease])

    async def consume(self, name: str, path: str, longest: float) -> None:
        recorder = Recorder(name, path=Path(path))

        async def work() -> None:
            await consume(self.receiver, recorder, longest=longest)

        self.nursery.start_soon(work)

    async def produce(self, name: str, path: str, sessions: list[str], pause: float) -> None:
        recorder = Recorder(name, path=Path(path))
        self.nursery.start_soon(_produce, self.sender, recorder, sessions, pause)


async def _lines() -> AsyncIterator[list[Any]]:
    buffer = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        async for received in stream:
            buffer += received
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                yield json.loads(line)


async def _main() -> None:
    lines = _lines()
    queue, where = await anext(lines)
    async with open_provider(where["url"]) as provider:
        await _obey(provider, QueueName(queue), where["options"], lines)


async def _obey(
    provider: Provider, queue: QueueName, options: dict[str, Any], lines: AsyncIterator[list[Any]]
) -> None:
    sender = await provider.open_sender(queue)
    receiver = await provider.open_receiver(queue, ReceiverOptions(**options))
    async with trio.open_nursery() as nursery:
        obedient = _Obedient(sender, receiver, queue, nursery)
        _answer(_READY)
        async for command, arguments in lines:
            method: Callable[..., Any] = getattr(obedient, command)
            _answer(await method(**arguments))
        nursery.cancel_scope.cancel()


def main() -> None:
    """What the child process runs."""
    trio.run(_main)
