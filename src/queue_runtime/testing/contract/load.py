"""Many messages, many consumers: none missing, none out of order."""

from __future__ import annotations

import trio

from ...messages import Message, Settlement, SettlementAction
from ..history import Recorder, check
from .bench import Bench, expect_equal
from .core import case


async def work_through(bench: Bench, sessions: list[str] | None) -> None:
    """Send the environment's load and consume it with its consumers over five connections; judge the history."""
    total, consumers = bench.environment.load_messages, bench.environment.load_consumers
    providers = [bench.provider, *[await bench.connect() for _ in range(min(4, consumers - 1))]]
    producer = Recorder("producer")
    left = total
    done = trio.Event()

    async def produce() -> None:
        sender = await bench.sender()
        size = min(100, bench.capabilities.max_batch_messages)
        for start in range(0, total, size):
            batch: list[tuple[str | None, str, int, Message]] = []
            for number in range(start, min(start + size, total)):
                session = None if sessions is None else sessions[number % len(sessions)]
                name = f"m{number}"
                message = Message(b"x" * 100, session_id=session, message_id=name)
                batch.append((session, name, number, message))
                producer.sending(session, name, number)
            results = await sender.send([message for *_, message in batch])
            for (session, name, number, _), result in zip(batch, results, strict=True):
                expect_equal(result.error, None, "the error of a send under load")
                producer.sent(session, name, number)

    async def consume(number: int) -> None:
        nonlocal left
        receiver = await bench.receiver(providers[number % len(providers)], max_sessions=4)
        recorder = producer.named(f"consumer-{number}")
        while True:
            received = await receiver.receive(20, bench.environment.patience)
            if not received:
                done.set()  # something is missing: the history tells what
            # Where locks are short and the machine is busy one may run out: its messages come again.
            deliveries = [d for d in received if trio.current_time() < d.lease.deadline]
            for delivery in deliveries:
                recorder.started(delivery)
                recorder.ended(delivery)
            settlements = [Settlement(d, SettlementAction.COMPLETE) for d in deliveries]
            for delivery, error in zip(deliveries, await receiver.settle(settlements), strict=True):
                if error is None:
                    recorder.settled(delivery, SettlementAction.COMPLETE)
                    left -= 1
            await receiver.release([delivery.lease for delivery in received])
            if left <= 0:
                done.set()

    with trio.fail_after(bench.environment.case_timeout):
        async with trio.open_nursery() as nursery:
            for number in range(consumers):
                nursery.start_soon(consume, number)
            await produce()
            await done.wait()
            nursery.cancel_scope.cancel()
    report = check(producer.history(), mode="pipelined")  # settled by the batch
    report.raise_for_violations()
    expect_equal((report.acknowledged, report.completed), (total, total), "the load")


@case("sessions")
async def many_sessions(bench: Bench) -> None:
    """Thousands of messages in 100 sessions, 50 consumers on five connections: none missing, each session in order."""
    await work_through(bench, [f"session-{number}" for number in range(100)])


@case()
async def no_sessions(bench: Bench) -> None:
    """Thousands of messages without a session, 50 consumers on five connections: none missing, none twice."""
    await work_through(bench, None)
