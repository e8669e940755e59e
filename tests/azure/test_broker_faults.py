"""Service Bus in trouble: it detaches, drops, falls silent, throttles, keeps its echoes, takes locks away.

The real adapter with the real SDK on the emulator. At the end of each test the broker has no link, no connection
and no lock of the adapter's left; see :func:`.linked.linked`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from queue_runtime import (
    AuthenticationFailed,
    BreakerConfig,
    CircuitOpen,
    ClientConfig,
    ConnectionFailed,
    Delivery,
    InvalidReceipt,
    LockLost,
    Message,
    MessageTooLarge,
    OperationTimeout,
    PermissionDenied,
    QueueError,
    QueueFull,
    QueueName,
    QueueNotFound,
    SessionId,
    SessionLocked,
    Settlement,
    SettlementAction,
    SupervisorConfig,
    Throttled,
    open_client,
    open_supervisor,
)
from queue_runtime.abc import ReceiverOptions
from queue_runtime.providers.azure.receiver import AzureReceiver

from ..sending import send_all
from .emulator_process import EmulatorProcess
from .linked import (
    IN_HASTE,
    PATIENCE,
    SLACK,
    SOON,
    Ledger,
    Link,
    again,
    complete,
    eventually,
    in_order,
    leases,
    linked,
    receive_all,
    settle_until_told,
    settlements,
    timed,
    work_off,
)

SESSION = SessionId("session-0")

DELAY = 10.0
"""Seconds that the emulator asks to wait when it throttles, as Service Bus does."""


@pytest.fixture(autouse=True)
def no_fault_remains(emulator: EmulatorProcess) -> Iterator[None]:
    yield
    emulator.lift_faults()


# --- again and again -----------------------------------------------------------------------------------

STRIKES_PER_TEST = 5

Strike = Callable[[Link, int], object]


def steal(link: Link, turn: int) -> object:
    if link.sessions:
        return link.fault("steal_session", session_id=f"session-{turn % 2}")
    return [link.fault("steal_message", sequence_number=number) for number in range(1, 100)]


STRIKES: dict[str, Strike] = {
    "detach": lambda link, _: link.fault("detach"),
    "detach_a_session": lambda link, turn: link.fault("detach", session_id=f"session-{turn % 2}"),
    "drop": lambda link, _: link.fault("drop"),
    "busy": lambda link, _: link.fault("throttle", "ATTACH", "SETTLE", "SEND", count=3),
    "trouble": lambda link, _: link.fault("refuse", count=3),
    "no_echo": lambda link, _: link.fault("lose_answer", "SETTLE", "SEND"),
    "steal": steal,
    "time": lambda link, _: link.end_locks(),
}


@pytest.mark.parametrize("strike", list(STRIKES.values()), ids=list(STRIKES))
async def test_trouble_again_and_again(
    emulator: EmulatorProcess, sessions: bool, strike: Strike
) -> None:
    """While messages are sent and handled; what is sure afterwards is that all were, in order."""
    strikes = 0
    sent = 0
    options = {"operation_timeout": 1.0}
    async with linked(emulator, sessions=sessions, options=options) as link:
        receiver, sender = await again(link.receiver), await again(link.sender)
        ledger = Ledger()
        async with trio.open_nursery() as nursery:

            async def trouble() -> None:
                nonlocal strikes
                while strikes < STRIKES_PER_TEST:
                    await trio.sleep(0.05)
                    strike(link, strikes)
                    strikes += 1

            nursery.start_soon(trouble)
            while strikes < STRIKES_PER_TEST:
                results = await again(sender.send, link.work(20, first=sent))
                assert [result.error for result in results] == [None] * 20
                sent += 20
                with trio.move_on_after(0.3):
                    await work_off(link, receiver, ledger)
        emulator.lift_faults()
        await work_off(link, receiver, ledger, ends_locks=True)
        assert {int(delivery.body) for delivery in ledger.deliveries} == set(range(sent))
        if sessions:
            assert ledger.firsts() == in_order(sent)
        link.assert_empty()


# --- silence -------------------------------------------------------------------------------------------


async def test_a_silent_queue_is_waited_for_so_long_and_no_longer(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    async with linked(emulator, sessions=sessions, options=IN_HASTE) as link:
        await link.send(link.work(10))
        sender, receiver = await link.sender(), await link.receiver()
        deliveries = await receive_all(receiver, 10)
        held = leases(deliveries)
        messages = link.work(10, first=10)
        link.fault("stall")
        calls: dict[str, Callable[[], Any]] = {
            "send": partial(sender.send, messages),
            "receive": partial(receiver.receive, 10, PATIENCE),
            "settle": partial(receiver.settle, settlements(deliveries)),
            "renew": partial(receiver.renew, held),
            "cancel": partial(sender.cancel_scheduled, [1]),
            "peek": partial(link.provider.peek, link.queue, 10),
            "purge": partial(link.provider.purge, link.queue),
            "sender": link.sender,
            "receiver": link.receiver,
            "dead letters": partial(link.provider.open_dead_letters, link.queue),
        }
        if sessions:
            calls |= {
                "accept": partial(receiver.accept, None, PATIENCE),
                "accept named": partial(receiver.accept, SessionId("other"), 0.0),
                "get": partial(receiver.get_state, held[0]),
                "set": partial(receiver.set_state, held[0], b"state"),
            }
        took = await timed(calls)
        assert max(took.values()) <= 3 * PATIENCE + SLACK, took
        emulator.lift_faults()
        # What was asked for is done now; nobody knew, so it is asked for again.
        for answer in await settle_until_told(receiver, deliveries):
            assert answer is None or isinstance(answer, (InvalidReceipt, LockLost))
        results = await again(sender.send, messages)
        assert [result.error for result in results] == [None] * 10
        ledger = Ledger()
        ledger.received(deliveries)
        await work_off(link, receiver, ledger)
        assert {int(delivery.body) for delivery in ledger.deliveries} == set(range(20))
        await receiver.release(leases(ledger.deliveries))
        await eventually(lambda: link.counts()["locked_sessions"] == 0)
        link.assert_empty()


async def test_releasing_to_a_silent_queue_ends(emulator: EmulatorProcess, sessions: bool) -> None:
    async with linked(emulator, sessions=sessions, options=IN_HASTE) as link:
        await link.send(link.work(10))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 10)
        link.fault("stall")
        took = await timed({"release": partial(receiver.release, leases(deliveries))})
        assert took["release"] <= 2 * PATIENCE + SLACK
        for answer in await receiver.settle(settlements(deliveries)):
            assert isinstance(answer, (InvalidReceipt, LockLost))
        emulator.lift_faults()
        ledger = await work_off(link, receiver)
        assert ledger.confirmed == set(range(10))


async def test_a_silent_namespace_can_be_left(emulator: EmulatorProcess) -> None:
    """Nothing is answered at all, not even to who connects."""
    async with linked(emulator, options=IN_HASTE) as link:
        receiver = await link.receiver()
        emulator.fault("stall")
        with (
            trio.fail_after(3 * PATIENCE + SLACK),
            pytest.raises((OperationTimeout, ConnectionFailed)),
        ):
            await link.sender()
        with trio.fail_after(4 * PATIENCE + SLACK):
            await receiver.aclose()
            await link.provider.aclose()


# --- echoes that do not come ---------------------------------------------------------------------------


@pytest.mark.parametrize("action", list(SettlementAction), ids=lambda action: action.value)
async def test_nothing_counts_as_settled_before_the_broker_said_so(
    emulator: EmulatorProcess, sessions: bool, action: SettlementAction
) -> None:
    async with linked(emulator, sessions=sessions, options=IN_HASTE) as link:
        await link.send(link.work(3, sessions=1))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 3)
        link.fault("lose_answer", "SETTLE", count=1)
        answers = await receiver.settle(settlements(deliveries, action))
        # It was done; that two were confirmed says nothing about the first.
        assert isinstance(answers[0], OperationTimeout)
        assert answers[1:] == [None, None]
        # Asked again, the broker has a word about it, in whichever way.
        [answer] = await settle_until_told(receiver, deliveries[:1], action)
        assert answer is None or isinstance(answer, (InvalidReceipt, LockLost))


async def test_a_session_goes_on_although_an_echo_was_lost(emulator: EmulatorProcess) -> None:
    """The runtime needs no restart for it."""
    async with linked(emulator, options=IN_HASTE) as link:
        handled: list[int] = []
        done = trio.Event()

        async def handle(delivery: Delivery) -> None:
            handled.append(int(delivery.body))
            if int(delivery.body) == 9:
                done.set()

        await link.send(link.work(10, sessions=1))
        link.fault("lose_answer", "SETTLE", count=1)
        with trio.fail_after(3 * PATIENCE + SLACK):  # not until the lock ends
            async with open_supervisor(link.url, link.queue, handle):
                await done.wait()
        assert list(dict.fromkeys(handled)) == list(range(10))
        link.assert_empty()


async def test_a_send_without_an_answer_stores_each_message_once(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    async with linked(emulator, sessions=sessions, options=IN_HASTE) as link:
        sender = await link.sender()
        messages = link.work(10)
        link.fault("lose_answer", "SEND", count=1)
        with trio.fail_after(PATIENCE + SLACK), pytest.raises(OperationTimeout):
            await sender.send(messages)
        assert link.counts()["active"] == 10
        with pytest.raises(MessageTooLarge):  # they are no more certain for what is beside them
            await sender.send([*messages, Message(b"x" * 300_000)])
        assert [result.error for result in await sender.send(messages)] == [None] * 10
        assert link.counts()["active"] == 10


async def test_a_request_without_an_answer_is_a_timeout_and_the_next_is_not(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    async with linked(emulator, sessions=sessions, options=IN_HASTE) as link:
        await link.send(link.work(1))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 1)
        link.fault("lose_answer", "REQUEST", count=1)
        [error] = await receiver.renew(leases(deliveries))
        assert isinstance(error, OperationTimeout)
        assert await receiver.renew(leases(deliveries)) == [None]
        await complete(receiver, deliveries)


async def test_what_comes_while_a_message_goes_back_does_not_overtake_it(
    emulator: EmulatorProcess,
) -> None:
    """The broker fetches for credit that is not drained, and sends that first when there is credit again."""
    async with linked(emulator, fetches_ahead=True) as link:
        receiver = await link.receiver()
        first, second = link.work(2, sessions=1)
        await link.send([first])
        deliveries = await receive_all(receiver, 1)
        back = Settlement(deliveries[0], SettlementAction.ABANDON, delay=0.3)
        assert await receiver.settle([back]) == [None]
        await link.send([second])
        deliveries = await receive_all(receiver, 2)
        assert [int(delivery.body) for delivery in deliveries] == [0, 1]
        await complete(receiver, deliveries)
        await receiver.release(leases(deliveries[:1]))


async def test_a_session_comes_again_although_who_gave_back_was_cancelled(
    emulator: EmulatorProcess,
) -> None:
    """Cancelled while it waits for what was released with it, of which nothing is ever heard."""
    waits = 2 * PATIENCE
    async with linked(emulator, lock=60.0, options={"operation_timeout": waits}) as link:
        receiver = await link.receiver()
        await link.send(link.work(3, sessions=1))
        deliveries = await receive_all(receiver, 1)
        link.fault("lose_answer", "SETTLE", count=3)
        with trio.move_on_after(1.5 * waits) as scope:
            await receiver.settle(settlements(deliveries, SettlementAction.ABANDON))
        assert scope.cancelled_caught
        with trio.fail_after(SOON):
            deliveries = await receive_all(receiver, 3)
        assert [int(delivery.body) for delivery in deliveries] == [0, 1, 2]
        await complete(receiver, deliveries)
        await receiver.release(leases(deliveries[:1]))


async def test_a_refusal_after_a_settlement_was_cancelled_is_told(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    """Who waited for the first answer no longer is told of it, and that it is settled only when it is."""
    async with linked(emulator, sessions=sessions, options={"operation_timeout": 10}) as link:
        await link.send(link.work(1))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 1)
        link.fault("throttle", "SETTLE", count=1)
        link.proxy.pause()
        with trio.move_on_after(0.2) as scope:
            await receiver.settle(settlements(deliveries))
        assert scope.cancelled_caught
        link.proxy.resume()
        # Its answer comes behind the refusal.
        assert await receiver.renew(leases(deliveries)) == [None]
        assert await receiver.settle(settlements(deliveries)) == [None]
        link.assert_empty()


async def many_turns() -> None:
    """Of the bridge's loop."""
    for _ in range(20):
        await asyncio.sleep(0)


FIRST_AND_SECOND = [
    (SettlementAction.COMPLETE, SettlementAction.DEAD_LETTER),
    (SettlementAction.COMPLETE, SettlementAction.ABANDON),
    (SettlementAction.DEAD_LETTER, SettlementAction.COMPLETE),
    (SettlementAction.COMPLETE, SettlementAction.COMPLETE),
]
SETTLED_TWICE = pytest.mark.parametrize(
    ("first", "second"), FIRST_AND_SECOND, ids=lambda action: str(action.value)
)


@SETTLED_TWICE
async def test_what_happened_is_not_reported_as_what_was_asked_for_after_it(
    emulator: EmulatorProcess,
    sessions: bool,
    first: SettlementAction,
    second: SettlementAction,
) -> None:
    """Asked for otherwise while the first outcome, which nobody waits for any more, has no answer yet."""
    async with linked(emulator, sessions=sessions) as link:
        await link.send(link.work(1))
        receiver = await link.receiver()
        assert isinstance(receiver, AzureReceiver)
        deliveries = await receive_all(receiver, 1)
        link.proxy.pause()
        answers: list[QueueError | None] = []

        async def settle(action: SettlementAction) -> None:
            answers.extend(await receiver.settle(settlements(deliveries, action)))

        async def begin(nursery: trio.Nursery, action: SettlementAction) -> None:
            nursery.start_soon(settle, action)
            await trio.testing.wait_all_tasks_blocked()
            # It began before, and is past what it does without an answer when this has had its turns.
            await receiver._bridge.run(many_turns)

        async with trio.open_nursery() as nursery:
            await begin(nursery, first)
            nursery.cancel_scope.cancel()
        assert not answers
        async with trio.open_nursery() as nursery:
            await begin(nursery, second)
            link.proxy.resume()
        expected = type(None) if first is second else InvalidReceipt
        assert [type(answer) for answer in answers] == [expected]
        link.assert_empty(dead=first is SettlementAction.DEAD_LETTER)


@SETTLED_TWICE
async def test_what_happened_late_is_not_reported_as_what_was_asked_for_after_it(
    emulator: EmulatorProcess,
    sessions: bool,
    first: SettlementAction,
    second: SettlementAction,
) -> None:
    """The answer to the first outcome comes after who asked for it waited long enough."""
    async with linked(emulator, sessions=sessions, options=IN_HASTE) as link:
        await link.send(link.work(2, sessions=1))
        receiver = await link.receiver()
        *deliveries, kept = await receive_all(receiver, 2)
        link.fault("stall")
        [answer] = await receiver.settle(settlements(deliveries, first))
        assert isinstance(answer, OperationTimeout)
        emulator.lift_faults()
        # Its answer comes behind that of the settlement.
        assert await again(receiver.renew, [kept.lease]) == [None]
        [answer] = await receiver.settle(settlements(deliveries, second))
        assert type(answer) is (type(None) if first is second else InvalidReceipt)
        await complete(receiver, [kept])
        link.assert_empty(dead=first is SettlementAction.DEAD_LETTER)


async def test_what_was_settled_unheard_can_be_given_back(emulator: EmulatorProcess) -> None:
    """There is nothing left to give back, which is no error: the lease is over."""
    async with linked(emulator, sessions=False, options={"operation_timeout": 10}) as link:
        await link.send(link.work(2))
        receiver = await link.receiver()
        settled, kept = await receive_all(receiver, 2)
        link.proxy.pause()
        with trio.move_on_after(0.2) as scope:
            await receiver.settle(settlements([settled]))
        assert scope.cancelled_caught
        link.proxy.resume()
        # Its answer comes behind that of the settlement.
        assert await receiver.renew([kept.lease]) == [None]
        await receiver.release([settled.lease, kept.lease])
        counts = link.counts()
        assert (counts["active"], counts["locked"]) == (1, 0)
        await work_off(link, receiver)


async def test_what_was_not_given_back_at_first_is_when_asked_again(
    emulator: EmulatorProcess,
) -> None:
    """As the runtime does when the broker is busy."""
    async with linked(emulator, sessions=False) as link:
        await link.send(link.work(2))
        receiver = await link.receiver()
        held = leases(await receive_all(receiver, 2))
        link.fault("throttle", "SETTLE", count=1)
        with pytest.raises(Throttled):
            await receiver.release(held)
        for error in await receiver.renew(held):
            assert isinstance(error, LockLost)
        await receiver.release(held)
        await eventually(lambda: link.counts()["locked"] == 0)
        await work_off(link, receiver)


async def test_a_session_that_is_granted_to_who_closes_is_given_back(
    emulator: EmulatorProcess,
) -> None:
    async with linked(emulator, lock=60.0, options={"operation_timeout": 10.0}) as link:
        receiver = await link.receiver()
        links = emulator.statistics()["links"]
        link.proxy.slow_down(latency=0.5)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def accept() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await receiver.accept(SESSION, 0.0)

            await eventually(lambda: emulator.statistics()["links"] > links)
            await receiver.aclose()
        link.proxy.heal()
        await eventually(lambda: link.counts()["locked_sessions"] == 0)


async def test_links_of_requests_without_an_answer_are_given_up(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    """The broker forgets some without a word; what it did not forget is closed."""
    async with linked(emulator, sessions=sessions, options={"operation_timeout": 0.2}) as link:
        await link.send(link.work(1))
        receiver = await again(link.receiver)
        deliveries = await receive_all(receiver, 1)

        async def renew() -> None:
            # The time to answer is short: a busy machine may let it pass, which is one more that is given up.
            with trio.fail_after(SOON):
                while await receiver.renew(leases(deliveries)) != [None]:
                    pass

        await renew()
        before = emulator.statistics()["open_links"]
        for _ in range(3):
            link.fault("lose_answer", "REQUEST", count=1)
            [error] = await receiver.renew(leases(deliveries))
            assert isinstance(error, OperationTimeout)
            await renew()
        await eventually(lambda: emulator.statistics()["open_links"] <= before)
        await settle_until_told(receiver, deliveries)
        link.assert_empty()


# --- locks that end early ------------------------------------------------------------------------------


async def test_a_lock_that_was_taken_is_a_fence(emulator: EmulatorProcess, sessions: bool) -> None:
    """Whoever held it settles, renews and writes nothing; the next gets the messages, in order."""
    async with linked(emulator, sessions=sessions) as link:
        await link.send(link.work(3, sessions=1))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 3)
        for number in range(1, 4):
            if sessions and number > 1:
                break
            name = "steal_session" if sessions else "steal_message"
            what = {"session_id": SESSION} if sessions else {"sequence_number": number}
            assert link.fault(name, **what)
        told: list[object] = []
        for lease in leases(deliveries):
            lease.on_lost(told.append)
        for answer in await receiver.renew(leases(deliveries)):
            assert isinstance(answer, LockLost)
        assert told == leases(deliveries)
        for answer in await receiver.settle(settlements(deliveries)):
            assert isinstance(answer, LockLost)
        if sessions:
            for call in (receiver.get_state, partial(receiver.set_state, state=b"stale")):
                with pytest.raises(LockLost):
                    await call(deliveries[0].lease)
        assert link.counts()["active"] == 3
        again_ = await receive_all(receiver, 3)
        if sessions:
            assert [int(delivery.body) for delivery in again_] == [0, 1, 2]
            assert await receiver.get_state(again_[0].lease) is None
        assert {lease.token for lease in leases(again_)}.isdisjoint(
            lease.token for lease in leases(deliveries)
        )
        await complete(receiver, again_)
        link.assert_empty()


async def test_a_session_that_came_back_to_us_was_lost_before(emulator: EmulatorProcess) -> None:
    """Its lock was taken, nobody told, and our own acceptor was next: never two leases side by side."""
    async with linked(emulator) as link:
        await link.send(link.work(2, sessions=1))
        receiver = await link.receiver(max_per_session=1)
        [first] = await receive_all(receiver, 1)
        lost = trio.Event()
        first.lease.on_lost(lambda _: lost.set())
        assert link.fault("steal_session", session_id=SESSION)
        [again_] = await receive_all(receiver, 1)
        assert lost.is_set()
        assert again_.body == first.body
        assert again_.lease.token > first.lease.token
        [answer] = await receiver.settle(settlements([first]))
        assert isinstance(answer, LockLost)
        await complete(receiver, [again_])
        await complete(receiver, await receive_all(receiver, 1))
        link.assert_empty()


async def test_a_lock_that_ended_early_by_the_brokers_clock(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    lock = 20.0
    async with linked(emulator, sessions=sessions, lock=lock) as link:
        await link.send(link.work(3, sessions=1))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 3)
        emulator.fault("move_time", seconds=lock + 1)
        for answer in await receiver.settle(settlements(deliveries)):
            assert isinstance(answer, LockLost)
        returned = await receive_all(receiver, 3)
        if sessions:
            assert [int(delivery.body) for delivery in returned] == [0, 1, 2]
        assert {delivery.delivery_count for delivery in returned} == {2}
        await complete(receiver, returned)
        link.assert_empty()


# --- throttling ----------------------------------------------------------------------------------------


async def test_throttling_says_how_long_and_passes(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    async with linked(emulator, sessions=sessions) as link:
        sender, receiver = await link.sender(), await link.receiver()
        messages = link.work(10)
        link.fault("throttle", "SEND")
        with pytest.raises(Throttled) as caught:
            await sender.send(messages)
        assert caught.value.is_transient
        assert caught.value.retry_after == DELAY
        assert [result.error for result in await sender.send(messages)] == [None] * 10
        if sessions:
            link.fault("throttle", "ATTACH", count=10)
            with pytest.raises(Throttled) as caught:
                await receiver.receive(10, SOON)
            assert caught.value.retry_after == DELAY
            emulator.lift_faults()
        deliveries = await receive_all(receiver, 10)
        link.fault("throttle", "SETTLE", "REQUEST", count=100)
        for answer in (
            *await receiver.settle(settlements(deliveries)),
            *await receiver.renew(leases(deliveries)),
        ):
            assert isinstance(answer, Throttled)
            assert answer.retry_after == DELAY
        emulator.lift_faults()
        held = leases(deliveries)
        assert await receiver.renew(held) == [None] * len(held)
        await complete(receiver, deliveries)
        link.assert_empty()


async def test_a_broker_that_has_no_session_at_once_is_not_asked_on_and_on(
    emulator: EmulatorProcess,
) -> None:
    """It is told how long to wait for one, and need not."""
    async with linked(emulator, options={"acceptors": 1}) as link:
        receiver = await link.receiver()
        before = emulator.statistics()["links"]
        link.fault(
            "refuse", "ATTACH", count=1_000_000, condition="com.microsoft:timeout", status=408
        )
        assert await receiver.receive(1, 2.0) == []
        assert emulator.statistics()["links"] - before <= 5
        emulator.lift_faults()
        await link.send(link.work(1))
        await work_off(link, receiver)


async def test_a_throttled_renewal_is_one_request(emulator: EmulatorProcess) -> None:
    """Ten locks are renewed together; when that is refused for its cost, it is not asked for one by one."""
    async with linked(emulator, sessions=False) as link:
        await link.send(link.work(10))
        receiver = await link.receiver()
        held = leases(await receive_all(receiver, 10))
        assert await receiver.renew(held) == [None] * 10
        with link.count_requests() as made:
            link.fault("throttle", "REQUEST", count=1)
            for answer in await receiver.renew(held):
                assert isinstance(answer, Throttled)
            assert await receiver.renew(held) == [None] * 10
        assert made() == 1  # the refused one is not counted
        await receiver.release(held)


async def test_a_breaker_opens_when_service_bus_is_busy(emulator: EmulatorProcess) -> None:
    """From then on nothing is sent until the time it asked for is over."""
    breaker = BreakerConfig(failure_threshold=2, open_duration=60.0)
    async with linked(emulator) as link:
        async with open_client(link.url, config=ClientConfig(breaker=breaker)) as client:
            with trio.fail_after(SOON):
                await client.send(link.queue, Message(b"", session_id=SESSION))
                link.fault("throttle", "SEND", count=1_000)
                errors: list[QueueError] = []
                for _ in range(4):
                    with trio.move_on_after(0.5):
                        [result] = await client.send_batch(
                            link.queue, [Message(b"", session_id=SESSION)]
                        )
                        assert result.error is not None
                        errors.append(result.error)
            assert any(isinstance(error, (Throttled, CircuitOpen)) for error in errors)
            assert link.emulator.statistics()["transfers_in"] > 0
            before = link.emulator.statistics()["transfers_in"]
            with trio.move_on_after(0.3):
                await client.send_batch(link.queue, [Message(b"", session_id=SESSION)])
            assert link.emulator.statistics()["transfers_in"] == before


JOB = 1_000
"""Messages: some seconds of work, into which the storm falls."""


async def test_a_throttling_storm_is_not_amplified(emulator: EmulatorProcess) -> None:
    """A job that meets a storm of refusals asks for at most a fifth more than one that does not."""
    needed = await run_job(emulator, None)
    for refused in ("all", "half"):
        made = await run_job(emulator, refused)
        print(f"{refused} refused: {made} operations, {needed} needed: {made / needed:.2f} x")
        assert made <= 1.2 * needed


async def run_job(emulator: EmulatorProcess, refused: str | None) -> int:
    """Send and handle; how many operations that took."""
    handled: dict[str, list[int]] = {}
    done = trio.Event()
    breaker = BreakerConfig(open_duration=0.5)

    async def handle(delivery: Delivery) -> None:
        numbers = handled.setdefault(str(delivery.session_id), [])
        numbers.append(int(delivery.body))
        if sum(map(len, handled.values())) == JOB:
            done.set()

    async with linked(emulator) as link:
        before = operations(emulator)
        async with (
            trio.open_nursery() as nursery,
            open_client(link.url, config=ClientConfig(breaker=breaker)) as client,
        ):
            config = SupervisorConfig(breaker=breaker)
            async with open_supervisor(client, link.queue, handle, config=config):
                if refused is not None:
                    nursery.start_soon(storm, link, refused)
                with trio.fail_after(90):
                    await send_all(client, link.queue, link.work(JOB, 50))
                    await done.wait()
            nursery.cancel_scope.cancel()
        made = operations(emulator) - before
        link.assert_empty()
    assert {s: list(dict.fromkeys(n)) for s, n in sorted(handled.items())} == dict(
        sorted(in_order(JOB, 50).items())
    )
    return made


def operations(emulator: EmulatorProcess) -> int:
    """What clients asked for so far: links, transfers, settlements, requests."""
    seen = emulator.statistics()
    counted = sum(seen[name] for name in ("links", "transfers_in", "dispositions"))
    return int(counted + sum(seen["requests"].values()))


async def storm(link: Link, refused: str) -> None:
    """Refuse everything, or everything in half of the time, for two seconds; a short wait is asked for."""
    words = {
        "condition": "com.microsoft:server-busy",
        "description": "The namespace is being throttled. Please wait 1 seconds and try again.",
    }
    try:
        for _ in range(10):
            link.fault("refuse", "ATTACH", "SEND", "SETTLE", "REQUEST", count=1_000_000, **words)
            await trio.sleep(0.1)
            if refused == "half":
                link.emulator.lift_faults()
            await trio.sleep(0.1)
            link.emulator.lift_faults()
    finally:
        link.emulator.lift_faults()


# --- the table of errors, told by the broker -----------------------------------------------------------


async def test_every_condition_has_its_error(emulator: EmulatorProcess) -> None:
    """Each of the issue's conditions where the broker says it itself, not a fault that was planted."""
    async with linked(
        emulator, lock=20.0, max_message_bytes=20_000, max_queue_bytes=10_000
    ) as link:
        sender, receiver = await link.sender(), await link.receiver(auto_accept=False)
        with pytest.raises(QueueNotFound):
            await link.provider.open_sender(QueueName("nowhere"))
        with pytest.raises(MessageTooLarge) as large:
            await sender.send([Message(b"x" * 20_001, session_id=SESSION)])
        assert large.value.limit == 20_000
        await sender.send([Message(b"x" * 15_000, session_id=SESSION)])
        with pytest.raises(QueueFull) as full:
            await sender.send([Message(b"x", session_id=SESSION)])
        assert full.value.is_transient
        lease = await receiver.accept(SESSION, SOON)
        assert lease is not None
        other = await link.direct.open_receiver(link.queue, ReceiverOptions(auto_accept=False))
        with pytest.raises(SessionLocked):
            await other.accept(SESSION, SOON)
        deliveries = await receive_all(receiver, 1)
        emulator.fault("move_time", seconds=21.0)
        [lost] = await receiver.settle(settlements(deliveries))
        assert isinstance(lost, LockLost)
    async with linked(emulator, sessions=False, lock=20.0) as link:
        await link.send(link.work(1))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 1)
        emulator.fault("move_time", seconds=21.0)
        [lost] = await receiver.renew(leases(deliveries))
        assert isinstance(lost, LockLost)


CONDITIONS: dict[str, type[QueueError]] = {
    "amqp:not-found": QueueNotFound,
    "amqp:unauthorized-access": PermissionDenied,
    "com.microsoft:session-cannot-be-locked": SessionLocked,
    "com.microsoft:session-lock-lost": LockLost,
    "com.microsoft:message-lock-lost": LockLost,
    "com.microsoft:server-busy": Throttled,
    "amqp:resource-limit-exceeded": QueueFull,
    "com.microsoft:timeout": OperationTimeout,
    "amqp:connection:forced": ConnectionFailed,
    "amqp:link:detach-forced": ConnectionFailed,
    "amqp:internal-error": ConnectionFailed,
}


@pytest.mark.parametrize("condition", list(CONDITIONS))
async def test_a_condition_means_the_same_wherever_it_is_said(
    emulator: EmulatorProcess, condition: str
) -> None:
    """In answer to a send, a settlement, a request, an attach: one table."""
    expected = CONDITIONS[condition]
    async with linked(emulator, sessions=False) as link:
        sender, receiver = await link.sender(), await link.receiver()
        await link.send(link.work(2))
        deliveries = await receive_all(receiver, 2)
        words = {"condition": condition, "description": "As the test has it.", "status": 400}
        link.fault("refuse", "SEND", **words)
        with pytest.raises(expected):
            await sender.send(link.work(1))
        link.fault("refuse", "REQUEST", **words)
        with pytest.raises(expected):
            await link.provider.peek(link.queue, 1)
        link.fault("refuse", "ATTACH", **words)
        with pytest.raises(expected):
            await link.sender()
        link.fault("refuse", "SETTLE", **words)
        [answer] = await receiver.settle(settlements(deliveries[:1]))
        assert isinstance(answer, expected)
        await complete(receiver, deliveries[1:])


STATUSES: dict[int, type[QueueError]] = {
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: QueueNotFound,
    503: ConnectionFailed,
}


@pytest.mark.parametrize("status", list(STATUSES))
async def test_a_status_without_a_condition_is_enough(
    emulator: EmulatorProcess, status: int
) -> None:
    expected = STATUSES[status]
    async with linked(emulator, sessions=False) as link:
        words = {"condition": "", "description": "As the test has it.", "status": status}
        emulator.fault("refuse", "TOKEN", **words)
        with pytest.raises(expected, match="As the test has it"):
            await link.sender()
        link.fault("refuse", "REQUEST", **words)
        with pytest.raises(expected, match="As the test has it"):
            await link.provider.peek(link.queue, 1)
