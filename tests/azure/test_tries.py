"""Tries in place, which Service Bus does not count, still count: what goes back carries them along."""

from __future__ import annotations

from functools import partial

import attrs
import pytest

from queue_runtime import (
    Delivery,
    Message,
    Retry,
    RetryPolicy,
    Settlement,
    SettlementAction,
    SupervisorConfig,
    open_client,
    open_supervisor,
)

from .emulator_process import EmulatorProcess
from .linked import linked, receive_all

PARKED = 0.3
"""Seconds that a try is put off for: more than is waited in place."""

CONFIG = SupervisorConfig(
    retry=RetryPolicy.fixed(PARKED, max_attempts=6), park_threshold=0.1, idle_timeout=0.0
)


@pytest.mark.parametrize("delay", [0.0, 0.2], ids=["at once", "later"])
@pytest.mark.parametrize(
    ("sessions", "detached"),
    # Without its link a session is lost, and nothing of it can be settled.
    [(True, False), (False, False), (False, True)],
    ids=["sessions", "plain", "plain, by token"],
)
async def test_the_count_goes_on_from_what_was_tried(
    emulator: EmulatorProcess, sessions: bool, detached: bool, delay: float
) -> None:
    async with linked(emulator, sessions=sessions) as link:
        sent = Message(b"0", session_id="session-0" if sessions else None, headers={"a": "b"})
        await link.send([sent])
        receiver = await link.receiver()
        for count, tried in ((1, 4), (5, 5), (6, 6), (7, 9), (10, 10)):
            [delivery] = await receive_all(receiver, 1)
            assert delivery.delivery_count == count
            assert delivery.headers == sent.headers
            if detached:
                link.fault("detach")
            tried_often = attrs.evolve(delivery, delivery_count=tried)
            back = Settlement(tried_often, SettlementAction.ABANDON, delay=delay)
            while (answer := (await receiver.settle([back]))[0]) is not None:
                assert detached
                assert answer.is_transient
        [delivery] = await receive_all(receiver, 1)
        assert delivery.delivery_count == 11
        assert await receiver.settle([Settlement(delivery, SettlementAction.COMPLETE)]) == [None]


async def test_closing_keeps_what_was_tried_of_what_waits(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    async with linked(emulator, sessions=sessions) as link:
        await link.send(link.work(1))
        receiver = await link.receiver()
        [delivery] = await receive_all(receiver, 1)
        tried_often = attrs.evolve(delivery, delivery_count=4)
        back = Settlement(tried_often, SettlementAction.ABANDON, delay=60.0)
        assert await receiver.settle([back]) == [None]
        await receiver.aclose()
        receiver = await link.receiver()
        [again] = await receive_all(receiver, 1)
        assert again.delivery_count == 5
        assert await receiver.settle([Settlement(again, SettlementAction.COMPLETE)]) == [None]


@pytest.mark.parametrize("said", [-1, "many", 1.5, True], ids=str)
async def test_what_others_say_of_tries_is_a_header(said: object) -> None:
    from azure.servicebus import ServiceBusMessage

    from queue_runtime.providers.azure.codec import TRIES, decode

    message = ServiceBusMessage(b"", application_properties={TRIES: said})
    received = decode(message.raw_amqp_message)
    assert received.delivery_count == 1
    assert set(received.message.headers) == {TRIES}


async def test_no_message_is_tried_more_often_than_allowed(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    """Some tries are in place and some after the session was parked."""
    counts: list[int] = []

    async def fail(delivery: Delivery) -> Retry:
        counts.append(delivery.delivery_count)
        return Retry(delay=PARKED if len(counts) % 3 == 0 else 0.01)

    async with linked(emulator, sessions=sessions) as link:
        await link.send(link.work(1))
        async with open_client(link.url) as client:
            open_it = partial(open_supervisor, client, link.queue, fail, config=CONFIG)
            async with open_it() as supervisor:
                await supervisor.wait_empty()
            assert counts == [1, 2, 3, 4, 5, 6]
            [letter] = await (await client.dead_letters(link.queue)).list()
            assert letter.dead_letter is not None
            assert letter.dead_letter.delivery_count == 6
