"""Dead letters moved and deleted, and queues emptied: far away, by the thousand, and beside others who are at it."""

from __future__ import annotations

import pytest
import trio
from azure.servicebus import ServiceBusMessage
from azure.servicebus.amqp import AmqpAnnotatedMessage

from queue_runtime import OperationTimeout, SettlementAction, ValidationError
from queue_runtime.abc import DeadLetters, ReceiverOptions
from queue_runtime.providers.azure import dead_letters
from queue_runtime.providers.envelope import ENVELOPE

from .emulator_process import EmulatorProcess
from .linked import SOON, Link, linked, receive_all, settlements
from .test_bad_input import foreign_send

OPTIONS = {"operation_timeout": 10.0, "connect_timeout": 10.0}
CALL = 500
"""Messages sent and settled at once."""


async def bury(link: Link, count: int) -> DeadLetters:
    """So many dead letters."""
    receiver = await link.receiver()
    for first in range(0, count, CALL):
        await link.send(link.work(min(CALL, count - first), first=first))
        deliveries = await receive_all(receiver, min(CALL, count - first))
        answers = await receiver.settle(settlements(deliveries, SettlementAction.DEAD_LETTER))
        assert answers == [None] * len(deliveries)
    await receiver.aclose()
    return await link.provider.open_dead_letters(link.queue)


async def test_what_is_far_away_is_waited_for(emulator: EmulatorProcess) -> None:
    """No message comes sooner than a question and its answer take."""
    async with linked(emulator, sessions=False, options=OPTIONS) as link:
        letters = await bury(link, 10)
        await link.send(link.work(10))
        link.proxy.slow_down(latency=0.2)
        assert await letters.purge() == 10
        assert await link.provider.purge(link.queue) == 10
        link.proxy.heal()
        link.assert_empty()


@pytest.mark.parametrize("what", ["dead letters", "queue"])
async def test_who_is_not_let_in_in_time_is_told_so(emulator: EmulatorProcess, what: str) -> None:
    async with linked(emulator, sessions=False, options=OPTIONS) as link:
        letters = await bury(link, 3)
        link.fault("refuse", "ATTACH", condition="com.microsoft:timeout")
        with pytest.raises(OperationTimeout):
            if what == "queue":
                await link.provider.purge(link.queue)
            else:
                await letters.purge()


async def test_more_dead_letters_are_named_than_are_held_at_a_time(
    emulator: EmulatorProcess,
) -> None:
    async with linked(emulator, sessions=False, options=OPTIONS) as link:
        letters = await bury(link, 2_500)
        numbers = [each.sequence_number for each in await letters.peek(3_000)]
        assert await letters.redrive(numbers[:-1]) == 2_499
        assert await letters.purge(numbers) == 1
        assert link.counts()["active"] == 2_499


async def test_a_letter_too_far_behind_is_told(
    emulator: EmulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_MOST_HELD", 100)
    async with linked(emulator, sessions=False, options=OPTIONS) as link:
        letters = await bury(link, 700)
        first, *_, last = await letters.peek(700)
        with pytest.raises(ValidationError, match=f"number {last.sequence_number} first") as caught:
            await letters.redrive([first.sequence_number, last.sequence_number])
        assert "1 are done" in str(caught.value)
        assert link.counts()["active"] == 1
        assert await letters.purge() == 699


async def test_calls_side_by_side_do_not_hide_letters_from_each_other(
    emulator: EmulatorProcess,
) -> None:
    async with linked(emulator, options=OPTIONS) as link:
        letters = await bury(link, 10)
        moved: list[int] = []

        async def move(number: int) -> None:
            call = letters.redrive if number % 2 else letters.purge
            moved.append(await call([number]))

        async with trio.open_nursery() as nursery:
            for each in await letters.peek(10):
                nursery.start_soon(move, each.sequence_number)
        assert moved == [1] * 10
        assert link.counts()["active"] == 5


async def test_a_message_that_fails_again_at_once_is_redriven_once(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    async with linked(emulator, sessions=sessions, options=OPTIONS) as link:
        letters = await bury(link, 10)
        receiver = await link.direct.open_receiver(link.queue, ReceiverOptions())

        async def fail() -> None:
            while True:
                deliveries = await receiver.receive(10, 1.0)
                await receiver.settle(settlements(deliveries, SettlementAction.DEAD_LETTER))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            with trio.fail_after(SOON):
                assert await letters.redrive() == 10
                while len(await letters.peek(11)) < 10:
                    pass
            nursery.cancel_scope.cancel()
        await receiver.aclose()
        link.assert_empty(dead=10)


async def test_purging_ends_where_others_go_on_sending(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    async with linked(emulator, sessions=sessions, options=OPTIONS) as link:
        sender = await link.direct.open_sender(link.queue)
        count = 0

        async def send() -> None:
            nonlocal count
            while True:
                await sender.send(link.work(1, first=count))
                count += 1

        await link.send(link.work(20, sessions=4))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with trio.fail_after(SOON):
                purged = await link.provider.purge(link.queue)
            nursery.cancel_scope.cancel()
        assert 20 <= purged <= 20 + count
        rest = await link.direct.peek(link.queue, 10_000)
        assert all(each.sequence_number > 20 for each in rest)


async def test_purging_does_not_wait_at_each_session(emulator: EmulatorProcess) -> None:
    """The broker is asked whether there is more: to wait and see would take a minute here."""
    async with linked(emulator, options=OPTIONS) as link:
        await link.send(link.work(300, sessions=100))
        with trio.fail_after(SOON):
            assert await link.provider.purge(link.queue) == 300
        link.assert_empty()


async def test_a_letter_that_cannot_be_sent_back_holds_up_no_other(
    emulator: EmulatorProcess,
) -> None:
    """What a foreign sender writes may be larger in our words, or have an envelope that is none."""
    async with linked(emulator, sessions=False, options=OPTIONS) as link:
        await foreign_send(
            emulator,
            str(link.queue),
            [
                ServiceBusMessage(b"first"),
                AmqpAnnotatedMessage(value_body={"a": "\x01" * 60_000}),
                ServiceBusMessage(b"x", application_properties={ENVELOPE: "ü" * 15_000}),
                ServiceBusMessage(b"last"),
            ],
        )
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 3)  # the fourth becomes a dead letter by itself
        answers = await receiver.settle(settlements(deliveries, SettlementAction.DEAD_LETTER))
        assert answers == [None] * 3
        await receiver.aclose()
        letters = await link.provider.open_dead_letters(link.queue)
        with pytest.raises(ValidationError) as caught:
            await letters.redrive()
        stuck = {each.sequence_number for each in await letters.peek(10)}
        assert len(stuck) == 2
        for number in stuck:
            assert str(number) in str(caught.value)
        assert "2 were" in str(caught.value)
        found = await link.provider.peek(link.queue, 10)
        assert {each.message.body for each in found} == {b"first", b"last"}
        assert await letters.purge(stuck) == 2
