"""Service Bus over a bad network and in trouble: nothing is lost, nothing overtakes, everything recovers by itself.

The real adapter with the real SDK, through a TCP proxy that cuts, swallows and slows, to the emulator, which
detaches, drops, stalls, throttles, keeps its echoes and takes locks away. Locks are long unless said otherwise:
what is received again in time was given back, not waited for. At the end of each test the broker has no link, no
connection and no lock of the adapter's left; see :func:`.linked.linked`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import attrs
import pytest
import trio

from queue_runtime import (
    ConnectionFailed,
    Delivery,
    InvalidReceipt,
    LockLost,
    Message,
    OperationTimeout,
    QueueError,
    SessionId,
    Settlement,
    SettlementAction,
    open_client,
)
from queue_runtime.abc import Receiver, ReceiverOptions, Sender
from queue_runtime.providers.azure.codec import encode
from queue_runtime.providers.azure.sender import AzureSender
from queue_runtime.testing.tcp_proxy import TcpCut, TcpFaultProxy

from .emulator_process import EmulatorProcess
from .linked import (
    IN_HASTE,
    LOCK,
    PATIENCE,
    SLACK,
    SOON,
    Ledger,
    again,
    complete,
    eventually,
    in_order,
    leases,
    linked,
    promptly,
    receive_all,
    settle_until_told,
    settlements,
    timed,
    work_off,
)

SESSION = SessionId("session-0")
STANDSTILL = 3.0
"""Seconds; the time itself is what is tested."""

FAR = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture(autouse=True)
def nothing_to_complain(
    emulator: EmulatorProcess, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """asyncio logs what nobody looked at: tasks that were forgotten, errors that were not retrieved."""
    yield
    emulator.lift_faults()
    complaints = [
        record
        for when in ("setup", "call")
        for record in caplog.get_records(when)  # type: ignore[arg-type]
        if record.name == "asyncio" and record.levelno >= logging.WARNING
    ]
    assert complaints == []


# --- one connection, at every step ---------------------------------------------------------------------

Cut = Callable[[TcpFaultProxy], TcpCut]

CUTS: dict[str, Cut] = {
    "request": lambda proxy: proxy.cut_request(),
    "half_a_request": lambda proxy: proxy.cut_request(after=20),
    "reply": lambda proxy: proxy.cut_reply(),
    "half_a_reply": lambda proxy: proxy.cut_reply(after=10),
}


@pytest.fixture(params=list(CUTS))
def cut(request: pytest.FixtureRequest) -> Cut:
    return CUTS[request.param]


async def attempted(
    receiver: Receiver, deliveries: list[Delivery], action: SettlementAction
) -> list[QueueError | None]:
    """What became of settlements over a connection that breaks; the call may fail as a whole."""
    try:
        answers = await receiver.settle(settlements(deliveries, action))
    except ConnectionFailed as error:
        return [error] * len(deliveries)
    assert all(
        answer is None or isinstance(answer, (ConnectionFailed, LockLost)) for answer in answers
    )
    return answers


async def test_a_reset_while_sending(emulator: EmulatorProcess, cut: Cut, sessions: bool) -> None:
    async with linked(emulator, sessions=sessions) as link:
        sender = await link.sender()
        messages = link.work(10)
        fault = cut(link.proxy)
        with pytest.raises(ConnectionFailed):
            await sender.send(messages)
        assert fault.has_fired
        # What may have been stored has the same id again.
        assert [result.error for result in await again(sender.send, messages)] == [None] * 10
        assert link.counts()["active"] == 10
        ledger = await work_off(link, await link.receiver())
        assert ledger.confirmed == set(range(10))
        if sessions:
            assert ledger.firsts() == in_order(10)
        link.assert_empty()


async def test_a_reset_while_receiving(emulator: EmulatorProcess, cut: Cut, sessions: bool) -> None:
    async with linked(emulator, sessions=sessions) as link:
        await link.send(link.work(10))
        receiver = await link.receiver()
        fault = cut(link.proxy)
        # The lock on a message without session outlives the connection that it was sent to.
        ledger = await work_off(link, receiver, ends_locks=not sessions)
        assert fault.has_fired
        assert ledger.confirmed == set(range(10))
        if sessions:
            assert ledger.firsts() == in_order(10)
        link.assert_empty()


@pytest.mark.parametrize("action", list(SettlementAction), ids=lambda action: action.value)
async def test_a_reset_while_settling(
    emulator: EmulatorProcess, cut: Cut, sessions: bool, action: SettlementAction
) -> None:
    """A session is lost with its connection; a message without one can still be settled by its lock.

    What was given back may be on its way here anew when the connection breaks, and then is locked in vain.
    """
    async with linked(emulator, sessions=sessions) as link:
        await link.send(link.work(10))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 10)
        fault = cut(link.proxy)
        answers = await attempted(receiver, deliveries, action)
        assert fault.has_fired
        assert any(answers)
        for answer in await settle_until_told(receiver, deliveries, action):
            assert answer is None or isinstance(answer, (InvalidReceipt, LockLost))
        ends = action in (SettlementAction.COMPLETE, SettlementAction.DEAD_LETTER)
        ledger = Ledger(
            [int(d.body) for d, a in zip(deliveries, answers, strict=True) if ends and a is None]
        )
        await work_off(link, receiver, ledger, ends_locks=not sessions)
        dead = link.counts()["dead_letters"]
        letters = await (await link.direct.open_dead_letters(link.queue)).peek(20)
        numbers = [int(letter.message.body) for letter in letters]
        assert len(numbers) == len(set(numbers)) == dead
        if action is SettlementAction.COMPLETE:
            assert not dead
        else:
            assert ledger.confirmed | set(numbers) == set(range(10))
        link.assert_empty(dead)


async def test_a_reset_while_renewing(emulator: EmulatorProcess, cut: Cut, sessions: bool) -> None:
    async with linked(emulator, sessions=sessions) as link:
        await link.send(link.work(10))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 10)
        held = leases(deliveries)
        before = [lease.deadline for lease in held]
        fault = cut(link.proxy)
        answers = await receiver.renew(held)
        assert fault.has_fired
        assert len({type(answer) for answer in answers}) == 1
        for lease, answer, deadline in zip(held, answers, before, strict=True):
            assert isinstance(answer, (ConnectionFailed, LockLost))
            assert lease.deadline == deadline
        if sessions:
            # The locks went with the connection, and come anew.
            assert all(lease.lost is not None for lease in held)
            ledger = await work_off(link, receiver)
            assert ledger.firsts() == in_order(10)
        else:
            with trio.fail_after(SOON):
                while any(await receiver.renew(held)):
                    pass
            assert all(lease.deadline > first for lease, first in zip(held, before, strict=True))
            await complete(receiver, deliveries)
        link.assert_empty()


async def test_a_reset_while_releasing(emulator: EmulatorProcess, cut: Cut, sessions: bool) -> None:
    async with linked(emulator, sessions=sessions) as link:
        await link.send(link.work(10))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 10)
        fault = cut(link.proxy)
        with suppress(ConnectionFailed):
            await receiver.release(leases(deliveries))
        await receiver.release(leases(deliveries))
        assert fault.has_fired
        for answer in await receiver.settle(settlements(deliveries)):
            assert isinstance(answer, (InvalidReceipt, LockLost))
        # What could not be told is known when the lock ends.
        ledger = await work_off(link, receiver, ends_locks=not sessions)
        assert ledger.confirmed == set(range(10))
        if sessions:
            assert ledger.firsts() == in_order(10)
        link.assert_empty()


@pytest.mark.parametrize("named", [True, False], ids=["named", "next"])
async def test_a_reset_while_accepting(emulator: EmulatorProcess, cut: Cut, named: bool) -> None:
    """Nobody is left who holds the session without knowing."""
    async with linked(emulator) as link:
        await link.send([Message(b"0", session_id=SESSION)])
        receiver = await link.receiver(auto_accept=False)
        fault = cut(link.proxy)
        with suppress(ConnectionFailed):
            # Several ask for the next one: it may come to who did so over a new connection.
            lease = await receiver.accept(SESSION if named else None, SOON)
            await receiver.release([lease] if lease is not None else [])
        assert fault.has_fired
        await eventually(lambda: link.counts()["locked_sessions"] == 0)
        with trio.fail_after(SOON):
            lease = await again(receiver.accept, SESSION if named else None, SOON)
        assert lease is not None
        assert lease.session_id == SESSION
        assert link.counts()["locked_sessions"] == 1
        [delivery] = await receive_all(receiver, 1)
        assert delivery.lease is lease
        await complete(receiver, [delivery])
        await receiver.release([lease])


@pytest.mark.parametrize("writing", [True, False], ids=["set", "get"])
async def test_a_reset_while_at_a_sessions_state(
    emulator: EmulatorProcess, cut: Cut, writing: bool
) -> None:
    async with linked(emulator) as link:
        receiver = await link.receiver(auto_accept=False)
        lease = await receiver.accept(SESSION, SOON)
        assert lease is not None
        await receiver.set_state(lease, b"old")
        fault = cut(link.proxy)
        with pytest.raises((ConnectionFailed, LockLost)):
            await (receiver.set_state(lease, b"new") if writing else receiver.get_state(lease))
        assert fault.has_fired
        with trio.fail_after(SOON):
            lease = await again(receiver.accept, SESSION, SOON)
        assert lease is not None
        assert await receiver.get_state(lease) in ((b"old", b"new") if writing else (b"old",))
        await receiver.set_state(lease, None)


async def test_a_reset_while_scheduling_and_cancelling(emulator: EmulatorProcess, cut: Cut) -> None:
    async with linked(emulator) as link:
        sender = await link.sender()
        later = [attrs.evolve(message, scheduled_at=FAR) for message in link.work(10)]
        await again(sender.cancel_scheduled, [1])  # the links are there
        fault = cut(link.proxy)
        with pytest.raises(ConnectionFailed):
            await sender.send(later)
        assert fault.has_fired
        results = await again(sender.send, later)
        assert [result.error for result in results] == [None] * 10
        assert link.counts()["scheduled"] == 10
        numbers = [result.sequence_number for result in results if result.sequence_number]
        fault = cut(link.proxy)
        with pytest.raises(ConnectionFailed):
            await sender.cancel_scheduled(numbers)
        assert fault.has_fired
        await again(sender.cancel_scheduled, numbers)
        assert link.counts()["scheduled"] == 0


async def test_every_connection_is_reset_again_and_again(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    async with linked(emulator, sessions=sessions) as link:
        receiver, sender = await link.receiver(), await link.sender()
        ledger = Ledger()
        sent = 0
        async with trio.open_nursery() as nursery:

            async def reset() -> None:
                # Then no more: a slow machine may not get through in between.
                while link.proxy.statistics().resets < 30:
                    await trio.sleep(0.03)
                    link.proxy.reset_all()

            nursery.start_soon(reset)
            while link.proxy.statistics().resets < 30:
                results = await again(sender.send, link.work(20, first=sent))
                assert [result.error for result in results] == [None] * 20
                sent += 20
                with trio.move_on_after(0.2):
                    await work_off(link, receiver, ledger)
            nursery.cancel_scope.cancel()
        await work_off(link, receiver, ledger, ends_locks=not sessions)
        assert {int(delivery.body) for delivery in ledger.deliveries} == set(range(sent))
        if sessions:
            assert ledger.firsts() == in_order(sent)
        link.assert_empty()


# --- black holes, slow links, dead endpoints -----------------------------------------------------------


async def test_calls_into_a_black_hole_end_in_time_and_recover(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    """Half-open: both sides believe in the connection, and nothing gets through."""
    async with linked(emulator, sessions=sessions, options=IN_HASTE) as link:
        await link.send(link.work(10))
        sender, receiver = await link.sender(), await link.receiver()
        deliveries = await receive_all(receiver, 10)
        messages = link.work(10, first=10)
        link.proxy.silence()
        took = await timed(
            {
                "send": partial(sender.send, messages),
                "receive": partial(receiver.receive, 10, PATIENCE),
                "settle": partial(receiver.settle, settlements(deliveries[:1])),
                "renew": partial(receiver.renew, leases(deliveries)),
                "peek": partial(link.provider.peek, link.queue, 10),
                "dead letters": partial(link.provider.open_dead_letters, link.queue),
            }
        )
        assert max(took.values()) <= 2 * PATIENCE + SLACK, took
        link.proxy.heal()
        results = await again(sender.send, messages)
        assert [result.error for result in results] == [None] * 10
        ledger = Ledger()
        ledger.received(deliveries)
        await work_off(link, receiver, ledger, ends_locks=not sessions)
        assert {int(delivery.body) for delivery in ledger.deliveries} == set(range(20))
        if sessions:
            assert ledger.firsts() == in_order(20)
        link.assert_empty()


@pytest.mark.parametrize("hole", ["network", "broker"])
async def test_waiting_side_by_side_takes_no_longer_than_waiting_alone(
    emulator: EmulatorProcess, hole: str
) -> None:
    """Many messages outlive their link: for each a request is made, and all need one connection and one token."""
    async with linked(emulator, sessions=False, options=IN_HASTE) as link:
        await link.send(link.work(10))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 10)
        if hole == "network":
            link.proxy.silence()
        else:
            emulator.fault("stall")
        link.proxy.reset_all()
        for call in (
            partial(receiver.settle, settlements(deliveries)),
            partial(receiver.renew, leases(deliveries)),
            receiver.aclose,
        ):
            took = await timed({"call": call})
            assert took["call"] <= 2 * PATIENCE + SLACK
        emulator.lift_faults()
        link.proxy.heal()
        emulator.fault("move_time", seconds=LOCK)
        receiver = await link.direct.open_receiver(link.queue, ReceiverOptions())
        await work_off(link, receiver)
        link.assert_empty()


async def test_what_cannot_be_scheduled_says_so_for_each(emulator: EmulatorProcess) -> None:
    """Beside it, in the same call, others may have been stored."""
    async with linked(emulator, options=IN_HASTE) as link:
        sender = await link.sender()
        assert isinstance(sender, AzureSender)
        exit_ = sender._exit
        entries = [encode(message, f"token-{n}") for n, message in enumerate(link.work(3))]
        prepared = await sender._bridge.run(exit_.prepare, entries)
        link.proxy.silence()
        link.proxy.reset_all()
        answers = await sender._bridge.run(exit_.schedule, prepared)
        assert len(answers) == 3
        for answer in answers:
            assert isinstance(answer, (ConnectionFailed, OperationTimeout))


async def test_a_slow_link_delays_and_loses_nothing(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    async with linked(emulator, sessions=sessions) as link:
        sender, receiver = await link.sender(), await link.receiver()
        link.proxy.slow_down(latency=0.01, bandwidth=200_000)
        for first in range(0, 30, 10):
            results = await sender.send(link.work(10, first=first))
            assert [result.error for result in results] == [None] * 10
        ledger = Ledger()
        while len(ledger.confirmed) < 30:
            deliveries = await receiver.receive(10, 2.0)
            ledger.received(deliveries)
            held = leases(deliveries)
            assert await receiver.renew(held) == [None] * len(held)
            answers = await receiver.settle(settlements(deliveries))
            assert answers == [None] * len(deliveries)
            ledger.settled(deliveries, answers)
        if sessions:
            assert ledger.firsts() == in_order(30)
        link.proxy.heal()
        link.assert_empty()


async def test_who_sends_side_by_side_does_not_queue_up_for_a_black_hole(
    emulator: EmulatorProcess,
) -> None:
    async with linked(emulator, options=IN_HASTE) as link:
        sender = await link.sender()
        link.proxy.silence()
        link.proxy.reset_all()
        with pytest.raises((ConnectionFailed, OperationTimeout)):
            await sender.send(link.work(1))
        took = await timed(
            {
                f"send {number}": partial(sender.send, [message])
                for number, message in enumerate(link.work(20))
            }
        )
        assert max(took.values()) <= 2 * PATIENCE + SLACK, took


@pytest.mark.parametrize("later", [False, True], ids=["sent", "scheduled"])
@pytest.mark.parametrize("leave", [False, True], ids=["stay", "leave"])
async def test_large_messages_stay_whole_where_sending_has_to_wait(
    emulator: EmulatorProcess, later: bool, leave: bool
) -> None:
    """More than the network holds, from many tasks: frames do not mix, and who is cancelled leaves no half message."""
    due = FAR if later else None
    messages = [
        Message(b"%c" % number * 200_000, session_id=f"session-{number}", scheduled_at=due)
        for number in range(40)
    ]
    async with linked(emulator, options={"operation_timeout": SOON}) as link:
        sender = await link.sender()
        link.proxy.slow_down(bandwidth=5_000_000)
        with trio.move_on_after(0.3 if leave else SOON) as scope:
            async with trio.open_nursery() as nursery:
                for message in messages:
                    nursery.start_soon(sender.send, [message])
        assert scope.cancelled_caught is leave
        link.proxy.heal()
        last = Message(b"last", session_id="session-0", scheduled_at=due)
        [result] = await sender.send([last])
        assert result.error is None
        found = [each.message for each in await link.direct.peek(link.queue, 100)]
        assert last in found
        found.remove(last)
        assert leave or len(found) == len(messages)
        for message in found:
            messages.remove(attrs.evolve(message, message_id=None))


async def test_a_network_that_stands_still_for_seconds_costs_no_connection(
    emulator: EmulatorProcess,
) -> None:
    """Nor the sessions on it. The SDK would have the system close it after one second."""
    async with linked(emulator) as link:
        await link.send(link.work(2))
        sender, receiver = await link.sender(), await link.receiver()
        deliveries = await receive_all(receiver, 2)
        opened = link.provider.connections_opened
        large = [Message(b"x" * 200_000, session_id=f"large-{number}") for number in range(40)]
        link.proxy.pause()
        async with trio.open_nursery() as nursery:
            for message in large:  # more than the system holds
                nursery.start_soon(complete_send, sender, message)
            nursery.start_soon(complete, receiver, deliveries)
            await trio.sleep(STANDSTILL)
            link.proxy.resume()
        assert [lease.lost for lease in leases(deliveries)] == [None, None]
        assert link.provider.connections_opened == opened
        assert link.counts()["active"] == len(large)
        await link.provider.purge(link.queue)


async def complete_send(sender: Sender, message: Message) -> None:
    [result] = await sender.send([message])
    assert result.error is None


async def test_an_endpoint_that_is_down_fails_at_once_and_works_when_it_comes_back(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    async with linked(emulator, sessions=sessions, options=IN_HASTE) as link:
        link.proxy.refuse()
        for opening in (link.sender, link.receiver):
            with trio.fail_after(SLACK), pytest.raises(ConnectionFailed) as caught:
                await opening()
            assert "check the namespace" in str(caught.value)
        link.proxy.heal()
        sender, receiver = await link.sender(), await link.receiver()
        await sender.send(link.work(10))
        link.proxy.refuse()
        link.proxy.reset_all()
        messages = link.work(10, first=10)
        for call in (
            partial(sender.send, messages),
            partial(receiver.receive, 10, PATIENCE),
            partial(link.provider.peek, link.queue, 10),
        ):
            with trio.fail_after(PATIENCE + SLACK), pytest.raises(ConnectionFailed):
                await call()
        link.proxy.heal()
        results = await again(sender.send, messages)
        assert [result.error for result in results] == [None] * 10
        ledger = await work_off(link, receiver)
        assert {int(delivery.body) for delivery in ledger.deliveries} == set(range(20))
        if sessions:
            assert ledger.firsts() == in_order(20)
        link.assert_empty()


async def test_a_client_outlasts_an_endpoint_that_comes_back(emulator: EmulatorProcess) -> None:
    async with linked(emulator) as link, trio.open_nursery() as nursery:
        link.proxy.refuse()

        async def come_back() -> None:
            await trio.sleep(0.3)
            link.proxy.heal()

        nursery.start_soon(come_back)
        async with open_client(link.url) as client:
            with trio.fail_after(SOON):
                await client.send(link.queue, Message(b"0", session_id=SESSION))
                delivery = await client.receive(link.queue)
            assert delivery is not None
            assert delivery.body == b"0"
            await client.complete(delivery)
        link.assert_empty()


@pytest.mark.parametrize(
    "call",
    ["receive", "accept", "accept_named", "send", "settle", "give_back", "delay", "renew"],
)
async def test_a_call_is_cancelled_within_250_ms_over_a_dead_link(
    emulator: EmulatorProcess, call: str
) -> None:
    await promptly(partial(cancelled_over_a_dead_link, emulator, call))


async def cancelled_over_a_dead_link(emulator: EmulatorProcess, call: str) -> float:
    """How many seconds a call took to return; what it was about is there afterwards."""
    async with linked(emulator, options=IN_HASTE) as link:
        await link.send([Message(b"0", session_id="held")])
        sender, receiver = await link.sender(), await link.receiver()
        deliveries = await receive_all(receiver, 1)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "receive": partial(receiver.receive, 10, 20.0),
            "accept": partial(receiver.accept, None, 20.0),
            "accept_named": partial(receiver.accept, SESSION, 20.0),
            "send": partial(sender.send, link.work(10)),
            "settle": partial(receiver.settle, settlements(deliveries)),
            "give_back": partial(
                receiver.settle, settlements(deliveries, SettlementAction.ABANDON)
            ),
            "delay": partial(
                receiver.settle,
                [Settlement(each, SettlementAction.ABANDON, delay=0.1) for each in deliveries],
            ),
            "renew": partial(receiver.renew, leases(deliveries)),
        }
        link.proxy.silence()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(calls[call])
                await trio.sleep(0.1)
                cancelled_at = trio.current_time()
                scope.cancel()
        took = trio.current_time() - cancelled_at
        assert scope.cancelled_caught
        link.proxy.heal()
        await again(sender.send, link.work(10))
        with trio.fail_after(SOON):
            while link.counts()["active"]:
                more = await again(receiver.receive, 10, 0.2)
                await receiver.settle(settlements([*deliveries, *more]))
        link.assert_empty()
    return took


async def test_closing_into_a_black_hole_ends_and_the_messages_come_again(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    async with linked(emulator, sessions=sessions, options=IN_HASTE) as link:
        await link.send(link.work(10))
        receiver = await link.receiver()
        assert len(await receive_all(receiver, 10)) == 10
        errors: list[Exception] = []

        async def wait() -> None:
            try:
                assert await receiver.receive(10, 20.0) == []
            except (trio.ClosedResourceError, QueueError) as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.1)
            link.proxy.silence()
            with trio.fail_after(5 * PATIENCE + SLACK):
                await link.provider.aclose()
        assert errors
        link.proxy.heal()
        receiver = await link.direct.open_receiver(link.queue, ReceiverOptions())
        ledger = await work_off(link, receiver, ends_locks=True)
        assert ledger.confirmed == set(range(10))
        if sessions:
            assert ledger.firsts() == in_order(10)
        link.assert_empty()
