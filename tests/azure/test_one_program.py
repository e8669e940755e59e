"""One program on Service Bus and on SQS, by configuration alone: each session has the same history on both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TypeAlias, final

import attrs
import pytest
import trio

from queue_runtime import (
    DeadLetter,
    Delivery,
    Message,
    RetryPolicy,
    Session,
    SessionHandler,
    load_config,
    open_client,
    open_supervisor,
)

from ..sqs.emulator import open_emulator, require_emulator
from .emulator_process import emulator_process
from .given import require

require("azure.servicebus", "proton")

QUEUE = "orders"
SESSIONS = tuple(f"customer/{number}" for number in range(12))
EVENTS = 8
BUSY, BROKEN = 2, 5
"""The event that fails twice before it can be handled, and the one that never can."""

History: TypeAlias = dict[str, list[str]]


@final
@attrs.define(eq=False)
class Shop:
    """What the handlers do, by session, in the order in which it happens; ``done`` when nothing is left to come."""

    history: History = attrs.field(factory=lambda: defaultdict(list))
    missing: int = len(SESSIONS) * EVENTS
    done: trio.Event = attrs.field(factory=trio.Event)

    def finished(self) -> None:
        self.missing -= 1
        if not self.missing:
            self.done.set()


@final
class Customer(SessionHandler):
    session: Session

    def __init__(self, shop: Shop) -> None:
        self.shop = shop

    async def opened(self, session: Session) -> None:
        self.session = session

    async def handle(self, delivery: Delivery) -> DeadLetter | None:
        event = int(delivery.body)
        history = self.shop.history[str(self.session.id)]
        if event == BUSY and len(history) < BUSY + 2:
            history.append(f"{event} failed, headers {dict(delivery.headers)}")
            raise ConnectionError("busy")
        if event == BROKEN:
            history.append(f"{event} dead-lettered")
            self.shop.finished()
            return DeadLetter("Broken", "cannot be handled")
        history.append(f"{event} done, headers {dict(delivery.headers)}")
        self.shop.finished()
        return None


async def program(url: str) -> tuple[History, History]:
    """What each session's handler did, and its dead letters. Only the configuration says which broker it is."""
    config = load_config(
        environ={"QUEUE_URL": url, "QUEUE_NAME": QUEUE},
        overrides={"supervisor": {"retry": attrs.asdict(RetryPolicy.fixed(0.05))}},
    )
    shop = Shop()
    async with open_client(config.provider_source(), config=config.client) as client:
        for event in range(EVENTS):
            batch = [
                Message(str(event).encode(), session_id=session, headers={"event": f"no {event}"})
                for session in SESSIONS
            ]
            assert all(result.error is None for result in await client.send_batch(QUEUE, batch))
        async with open_supervisor(
            client, QUEUE, lambda: Customer(shop), config=config.supervisor
        ) as supervisor:
            await shop.done.wait()
            await supervisor.wait_settled()
        dead: History = defaultdict(list)
        for letter in await (await client.dead_letters(QUEUE)).list():
            assert letter.dead_letter is not None
            dead[str(letter.message.session_id)].append(
                f"{letter.message.body.decode()}: {letter.dead_letter.reason}"
            )
    return dict(shop.history), dict(dead)


EXPECTED = [
    line
    for event in range(EVENTS)
    for line in (
        [f"{event} failed, headers {{'event': 'no {event}'}}"] * 2 * (event == BUSY)
        + [
            f"{event} dead-lettered"
            if event == BROKEN
            else f"{event} done, headers {{'event': 'no {event}'}}"
        ]
    )
]


@pytest.fixture
def azure_url() -> Iterator[str]:
    with emulator_process() as emulator:
        emulator.create_queue(QUEUE, requires_session=True)
        yield emulator.url_with()


@pytest.fixture
def sqs_url() -> Iterator[str]:
    require_emulator()
    with open_emulator() as emulator:

        async def provision() -> None:
            async with open_client(emulator.url) as client:
                await client.provision(QUEUE)

        trio.run(provision)
        yield emulator.url


def test_the_same_history_on_both(azure_url: str, sqs_url: str) -> None:
    on_azure, azure_dead = trio.run(program, azure_url)
    on_sqs, sqs_dead = trio.run(program, sqs_url)

    assert on_azure == dict.fromkeys(SESSIONS, EXPECTED)
    assert on_azure == on_sqs
    assert azure_dead == {session: [f"{BROKEN}: Broken"] for session in SESSIONS}
    assert azure_dead == sqs_dead
