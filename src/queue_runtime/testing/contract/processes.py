"""Several processes on one queue, some of them killed or paused."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import final

import trio

from ..history import History, Recorder, check
from .bench import Bench, bodies, expect, expect_equal
from .child import Child, consume, start_child
from .core import case


@case("multi_process", child=True, waits=True)
async def woken_by_another_process(bench: Bench) -> None:
    """A waiting receiver gets what another process sends, soon."""
    receiver = await bench.receiver()
    async with start_child(bench) as child:
        for number in ("1", "2", "3"):
            async with trio.open_nursery() as nursery:

                async def send(body: str) -> None:
                    await trio.sleep(0.1)
                    answer = await child.call("send", session=bench.session, bodies=[body])
                    expect_equal(answer, [True], "the other process's acknowledgement")

                nursery.start_soon(send, number)
                began = trio.current_time()
                [delivery] = await bench.receive(receiver, 1)
                took = trio.current_time() - began - 0.1
            expect_equal(bodies([delivery]), [number], "what the other process sent")
            limit = bench.environment.tolerance
            expect(took <= limit, f"it came after {took:.3f} s, allowed are {limit} s")
            await bench.complete(receiver, delivery)


@case("multi_process", "sessions", child=True, waits=True)
async def one_process_at_a_time(bench: Bench) -> None:
    """A session held by one process is not delivered in another, until it is released there."""
    receiver = await bench.receiver()
    await bench.send(*bench.messages(4, "session"))
    async with start_child(bench) as child:
        held = await child.call("receive", count=2, timeout=bench.environment.patience)
        expect_equal([body for body, *_ in held], ["1", "2"], "what the other process got")
        await bench.expect_nothing(receiver, 0.3, "the other process holds the session")
        answer = await child.call("settle", positions=[0], action="complete")
        expect_equal(answer, [None], "the other process's completion")
        await child.call("release", position=0)
        deliveries = await bench.receive(receiver, 3, within=bench.environment.tolerance)
        expect_equal(bodies(deliveries), ["2", "3", "4"], "what came after the release")
        expect(deliveries[0].lease.token > held[0][2], "the next holder's token is not higher")
        expect_equal(
            await child.call("receive", count=1, timeout=0.3), [], "what the other process gets now"
        )
        await bench.complete(receiver, deliveries)
        await child.finish()


@case("multi_process", "sessions", child=True)
async def an_orderly_end_gives_back(bench: Bench) -> None:
    """A process that ends in good order gives its sessions back at once."""
    receiver = await bench.receiver()
    await bench.send(*bench.messages(3, "session"))
    async with start_child(bench) as child:
        await child.call("receive", count=2, timeout=bench.environment.patience)
        await child.finish()
        deliveries = await bench.receive(receiver, 3, within=bench.environment.tolerance)
        expect_equal(bodies(deliveries), ["1", "2", "3"], "what came after the other's end")
        await bench.complete(receiver, deliveries)


@case("multi_process", "sessions", child=True, waits=True)
async def a_killed_holder(bench: Bench) -> None:
    """When a process is killed, its session goes on elsewhere after the lock's time, at the lowest unsettled one."""
    receiver = await bench.receiver()
    lock = bench.lock_duration(receiver)
    await bench.send(*bench.messages(5, "session"))
    async with start_child(bench) as child:
        await child.call("receive", count=3, timeout=bench.environment.patience)
        await child.call("settle", positions=[0], action="complete")
        await child.kill()
        limit = lock + bench.environment.tolerance
        deliveries = await bench.receive(receiver, 4, within=limit)
    expect_equal(bodies(deliveries), ["2", "3", "4", "5"], "what came after the kill")
    # A broker that frees a session with its connection may not count what it gets back so.
    if bench.environment.exact or not bench.capabilities.keeps_empty_sessions:
        expect_equal(deliveries[0].delivery_count, 2, "the count of what may have been started")
    if bench.environment.exact:
        counts = [delivery.delivery_count for delivery in deliveries[1:]]
        expect_equal(counts, [1, 1, 1], "the counts of what cannot have been started")
    await bench.complete(receiver, deliveries)


@case("multi_process", "sessions", child=True, waits=True)
async def a_paused_holder(bench: Bench) -> None:
    """A process paused for longer than its lock finds, when it goes on, that it may settle nothing any more."""
    receiver = await bench.receiver()
    lock = bench.lock_duration(receiver, times=2)
    await bench.send(*bench.messages(2, "session"))
    async with start_child(bench) as child:
        await child.call("receive", count=2, timeout=bench.environment.patience)
        child.pause()
        limit = lock + bench.environment.tolerance
        deliveries = await bench.receive(receiver, 2, within=limit)
        await bench.complete(receiver, deliveries[0])
        child.resume()
        for action in ("complete", "abandon", "release"):
            answers = await child.call("settle", positions=[0, 1], action=action)
            refused = {"LockLost"} if bench.environment.exact else {"LockLost", "InvalidReceipt"}
            expect(set(answers) <= refused, f"{action} by a process that was paused: got {answers}")
        if bench.capabilities.lock_renewal:
            answers = await child.call("renew", position=0)
            expect_equal(answers, ["LockLost"], "a renewal by a process that was paused")
        await bench.complete(receiver, deliveries[1])


@case("multi_process", child=True, waits=True)
async def a_killed_producer(bench: Bench) -> None:
    """What a killed process had been told is stored, is stored, and in order."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "producer.jsonl"
        async with start_child(bench) as child:
            sessions = ["a", "b"] if bench.capabilities.sessions else [None]
            await child.call("produce", name="p", path=str(path), sessions=sessions, pause=0.0)
            while path.stat().st_size < 5_000:  # noqa: ASYNC110  # files have no events
                await trio.sleep(0.01)
            await child.kill()
        consumer = Recorder("consumer")
        receiver = await bench.receiver()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume, receiver, consumer)
            await until_quiet([path], consumer, bench.environment.tolerance)
            nursery.cancel_scope.cancel()
        report = check(History.merge([History.load([path]), consumer.history()]))
    expect(report.acknowledged >= 10, f"only {report.acknowledged} messages were sent")
    report.raise_for_violations()


async def until_quiet(files: list[Path], recorder: Recorder, quiet: float) -> None:
    """Wait until for so many seconds nothing was written to the files, nor by the recorder."""
    before, since = -1, trio.current_time()
    while trio.current_time() < since + quiet:
        now = sum(path.stat().st_size for path in files) + len(recorder)
        if now != before:
            before, since = now, trio.current_time()
        await trio.sleep(quiet / 20)


@final
class _Fleet:
    """Child processes that produce and consume, each writing down what it does."""

    def __init__(self, bench: Bench, directory: str, stack: AsyncExitStack) -> None:
        self.bench = bench
        self.directory = Path(directory)
        self.stack = stack
        self.children: dict[str, Child] = {}
        self.witness = Recorder("witness")

    @property
    def files(self) -> list[Path]:
        return [self.directory / f"{name}.jsonl" for name in self.children]

    async def produce(self, name: str, sessions: list[str]) -> None:
        await self._recruit("produce", name, sessions=sessions, pause=0.02)

    async def consume(self, name: str) -> None:
        await self._recruit("consume", name, longest=0.02)

    async def _recruit(self, task: str, name: str, **arguments: object) -> None:
        child = await self.stack.enter_async_context(start_child(self.bench, max_sessions=3))
        path = self.directory / f"{name}.jsonl"
        path.touch()
        self.children[name] = child
        await child.call(task, name=name, path=str(path), **arguments)

    async def kill(self, name: str) -> None:
        await self.children[name].kill()
        self.witness.process_ended(name)

    def pause(self, name: str) -> None:
        self.witness.process_paused(name)
        self.children[name].pause()


@case("multi_process", "sessions", child=True, waits=True)
async def a_fleet_with_losses(bench: Bench) -> None:
    """Producers and consumers in several processes, killed, paused, replaced: I1, I2 and I3 hold over all of them."""
    receiver = await bench.receiver()
    lock = bench.lock_duration(receiver, times=4)
    sessions = [f"session-{number}" for number in range(6)]
    consumer = Recorder("parent")
    with tempfile.TemporaryDirectory() as directory:
        async with AsyncExitStack() as stack:
            fleet = _Fleet(bench, directory, stack)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fleet.produce, "producer-0", sessions[0::2])
                nursery.start_soon(fleet.produce, "producer-1", sessions[1::2])
                nursery.start_soon(fleet.consume, "victim")
                nursery.start_soon(fleet.consume, "sleeper")
            await trio.sleep(lock / 2)
            fleet.pause("sleeper")
            await fleet.kill("victim")
            await fleet.consume("substitute")
            await fleet.kill("producer-0")
            await fleet.kill("producer-1")
            await trio.sleep(1.5 * lock)
            fleet.children["sleeper"].resume()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(consume, receiver, consumer)
                # For longer than a lock lasts: what a killed process held has come again then.
                await until_quiet(fleet.files, consumer, lock + bench.environment.tolerance)
                nursery.cancel_scope.cancel()
            loaded = History.load(fleet.files)
        report = check(History.merge([loaded, fleet.witness.history(), consumer.history()]))
    expect(report.acknowledged >= 30, f"only {report.acknowledged} messages were sent")
    report.raise_for_violations()
