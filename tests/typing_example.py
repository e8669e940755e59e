"""How a user's program is typed. Checked by mypy and pyright, never run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import trio

from queue_runtime import (
    Abandon,
    CloseReason,
    Complete,
    DeadLetter,
    Delivery,
    Message,
    Outcome,
    QueueClient,
    QueueName,
    QueueStats,
    Retry,
    RetryPolicy,
    SendResult,
    Session,
    SessionHandler,
    SessionId,
    SettlementMode,
    Supervisor,
    SupervisorConfig,
    open_client,
    open_supervisor,
)


@attrs.frozen
class Order:
    number: int


class Inherited(SessionHandler):
    session: Session

    async def opened(self, session: Session) -> None:
        self.session = session

    async def handle(self, delivery: Delivery) -> Outcome | None:
        order = delivery.json(Order)
        if order.number < 0:
            return DeadLetter("NegativeNumber")
        await self.session.state.set(b"seen")
        return Retry(delay=1.0) if delivery.delivery_count == 1 else Complete()

    async def closed(self, reason: CloseReason) -> None:
        print(reason.value)


class Plain:
    async def handle(self, delivery: Delivery) -> None:
        print(delivery.body.decode(), delivery.session_id, delivery.headers.get("kind", ""))


class WithDependencies:
    def __init__(self, database: dict[str, bytes]) -> None:
        self._database = database

    async def handle(self, delivery: Delivery) -> Abandon | None:
        self._database[delivery.message_id] = delivery.body
        return None


async def function(delivery: Delivery) -> Retry | None:
    return None


async def client_calls(client: QueueClient) -> None:
    queue = QueueName("orders").with_prefix("prod")
    session_id = SessionId.from_parts("owner", "repo", "pull_request", 7)
    result: SendResult = await client.send(queue, Message(b"1", session_id=session_id))
    results: list[SendResult] = await client.send_batch(queue, [Message.json(Order(1))])
    await client.schedule(queue, Message(b"2"), datetime.now(UTC) + timedelta(hours=1))
    delivery: Delivery | None = await client.receive(queue, timeout=1.0)
    if delivery is not None:
        await client.complete(delivery)
    async with client.stream(queue) as deliveries:
        async for each in deliveries:
            await client.abandon(each, delay=0.5)
    async with client.accept_session(queue, session_id) as session:
        if session is not None:
            state: bytes | None = await session.state.get()
            print(state)
    stats: QueueStats = await client.queue_stats(queue)
    letters = await client.dead_letters(queue)
    async for letter in letters.find(reason="HandlerFailed"):
        print(letter.dead_letter)
    print(result, results, stats.depth, await letters.redrive())


async def supervisors(client: QueueClient) -> None:
    database: dict[str, bytes] = {}
    config = SupervisorConfig(
        settlement=SettlementMode.PIPELINED, retry=RetryPolicy.exponential(initial=0.1)
    )
    async with open_supervisor(client, "orders", Inherited, config=config) as supervisor:
        print(supervisor.statistics().in_flight)
        await supervisor.drain(timeout=5.0)
    async with open_supervisor("memory://", "orders", Plain):
        pass
    async with open_supervisor("memory://", "orders", lambda: WithDependencies(database)):
        pass
    async with open_supervisor("memory://", "orders", function):
        pass
    async with trio.open_nursery() as nursery:
        started: Supervisor = await nursery.start(client.supervise, "orders", Plain)
        await started.wait_empty()


async def main() -> None:
    async with open_client("sqlite:///orders.db") as client:
        await client_calls(client)
        await supervisors(client)


def annotated(payload: Any) -> Message:
    return Message.json(payload, session_id="a", headers={"kind": "order"}, time_to_live=60.0)
