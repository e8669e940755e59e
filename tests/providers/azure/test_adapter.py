"""What the contract does not reach: shared connections, the SDK's traps, lost links, wrong queues and keys."""

from __future__ import annotations

import gc
import hashlib
import hmac
import time
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import quote_plus, urlencode
from uuid import uuid4

import pytest
import trio
import trio.testing

from queue_runtime.abc import Lease, Receiver, ReceiverOptions
from queue_runtime.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionFailed,
    InvalidReceipt,
    LockLost,
    OperationTimeout,
    PermissionDenied,
    QueueError,
    QueueNotFound,
    Throttled,
    Unsupported,
    ValidationError,
)
from queue_runtime.messages import (
    Delivery,
    Message,
    QueueName,
    SessionId,
    Settlement,
    SettlementAction,
)
from queue_runtime.providers.azure import FACTORY, AzureConfig
from queue_runtime.secret import Secret

pytest.importorskip("azure.servicebus", reason="the extra azure is not installed")
pytest.importorskip("proton", reason="the emulator needs python-qpid-proton")

from tests.azure.emulator_process import EmulatorProcess, emulator_process
from tests.azure.linked import PATIENCE, SLACK, SOON, eventually, promptly

from queue_runtime.providers.azure import intake
from queue_runtime.providers.azure.provider import AzureProvider
from queue_runtime.providers.azure.receiver import AzureReceiver
from queue_runtime.providers.azure.settling import Work

SESSION = SessionId("session")
DUE = 8.0
"""Seconds ahead that a message is scheduled for a time to come; less than who waits for a session asks anew."""


@pytest.fixture(scope="module")
def emulator() -> Iterator[EmulatorProcess]:
    with emulator_process() as running:
        yield running


@pytest.fixture(autouse=True)
def no_fault_remains(emulator: EmulatorProcess) -> Iterator[None]:
    yield
    emulator.lift_faults()


def new_queue(emulator: EmulatorProcess, *, sessions: bool, **settings: Any) -> QueueName:
    name = f"adapter-{uuid4().hex[:12]}"
    emulator.create_queue(name, requires_session=sessions, **settings)
    return QueueName(name)


@asynccontextmanager
async def connected(emulator: EmulatorProcess, **options: Any) -> AsyncIterator[AzureProvider]:
    config = AzureConfig(connection_string=Secret(emulator.connection_string), **options)
    provider = await FACTORY.open(config)
    try:
        yield provider
    finally:
        await provider.aclose()


async def take(receiver: Receiver, count: int, within: float = SOON) -> list[Delivery]:
    taken: list[Delivery] = []
    with trio.fail_after(within):
        while len(taken) < count:
            taken += await receiver.receive(count - len(taken), within)
    return taken


def stand_still_until(done: Callable[[], bool], within: float = SOON) -> None:
    """Keep trio's thread waiting, so that nothing happens in it meanwhile."""
    give_up_at = time.monotonic() + within
    while not done():
        assert time.monotonic() < give_up_at
        time.sleep(0.001)


async def complete(receiver: Receiver, deliveries: list[Delivery]) -> list[QueueError | None]:
    return await receiver.settle([Settlement(d, SettlementAction.COMPLETE) for d in deliveries])


# --- connections -------------------------------------------------------------------------------------------


async def test_sessions_share_a_connection(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        before = provider.connections_opened
        await sender.send([Message(b"", session_id=SessionId(f"s{n}")) for n in range(100)])
        deliveries = await take(receiver, 100)
        assert len({delivery.lease for delivery in deliveries}) == 100
        assert emulator.counts(queue)["locked_sessions"] == 100
        assert provider.connections_opened == before
        assert await complete(receiver, deliveries) == [None] * 100


async def test_a_thousand_sessions_leave_nothing_behind(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())

        async def go_round(tag: str, count: int) -> Counter[str]:
            await sender.send(
                [Message(b"", session_id=SessionId(f"{tag}-{n}")) for n in range(count)]
            )
            left = count
            while left:
                deliveries = await receiver.receive(50, SOON)
                assert deliveries
                assert await complete(receiver, deliveries) == [None] * len(deliveries)
                await receiver.release([delivery.lease for delivery in deliveries])
                left -= len(deliveries)
            assert await receiver.receive(1, 0.3) == []
            del deliveries
            gc.collect()
            return Counter(type(each).__name__ for each in gc.get_objects())

        before = await go_round("warm", 100)
        after = await go_round("many", 1_000)
        grown = {name: n - before[name] for name, n in after.items() if n - before[name] > 50}
        assert grown == {}
        assert emulator.counts(queue)["locked_sessions"] == 0


async def test_a_lost_connection_costs_its_leases_and_no_more(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        await sender.send([Message(b"1", session_id=SESSION), Message(b"2", session_id=SESSION)])
        [first] = await take(receiver, 1)
        lost = trio.Event()
        first.lease.on_lost(lambda _: lost.set())
        emulator.fault("drop", queue=str(queue))
        with trio.fail_after(SOON):
            await lost.wait()
        assert isinstance(first.lease.lost, LockLost)
        [error] = await complete(receiver, [first])
        assert isinstance(error, LockLost)
        again: list[Delivery] = []
        with trio.fail_after(SOON):
            while len(again) < 2:
                try:
                    again += await receiver.receive(2, SOON)
                except ConnectionFailed:
                    continue
        assert [delivery.body for delivery in again] == [b"1", b"2"]
        assert again[0].lease.token > first.lease.token
        assert await complete(receiver, again) == [None, None]
        await sender.send([Message(b"3", session_id=SESSION)])
        assert [delivery.body for delivery in await take(receiver, 1)] == [b"3"]


async def test_a_detached_session_is_lost_by_event_and_comes_again(
    emulator: EmulatorProcess,
) -> None:
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        await sender.send([Message(b"1", session_id=SESSION)])
        [first] = await take(receiver, 1)
        lost = trio.Event()
        first.lease.on_lost(lambda _: lost.set())
        # Its own acceptors are next in line, and lose it as well.
        assert emulator.fault("detach", queue=str(queue), session_id="session") >= 1
        with trio.fail_after(SOON):
            await lost.wait()
        [again] = await take(receiver, 1)
        assert again.lease is not first.lease
        assert await complete(receiver, [again]) == [None]


@pytest.mark.parametrize("accepted", [False, True], ids=["receive", "accept"])
async def test_a_session_lost_on_its_way_to_the_receiver_is_overtaken_by_nobody(
    accepted: bool,
) -> None:
    """Its link goes after its messages were handed over by the loop's thread, and before trio's thread got them.

    Here trio's thread stands still in between, so that both lie in wait for it, in that order.
    """
    with emulator_process() as emulator:  # its own, as time moves there
        await lose_a_session_on_its_way(emulator, accepted=accepted)


async def lose_a_session_on_its_way(emulator: EmulatorProcess, *, accepted: bool) -> None:
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator, acceptors=1) as provider:
        sender = await provider.open_sender(queue)
        options = ReceiverOptions(auto_accept=not accepted)
        receiver = await provider.open_receiver(queue, options)
        due = datetime.now(UTC) + timedelta(seconds=DUE)
        await sender.send(
            [Message(body, session_id=SESSION, scheduled_at=due) for body in (b"1", b"2")]
        )
        quiet = emulator.statistics()["open_links"]
        first: list[Delivery] = []
        leases: list[Lease | None] = []

        async def get() -> None:
            if accepted:
                leases.append(await receiver.accept(None, SOON))
            else:
                first.extend(await receiver.receive(2, SOON))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get)
            with trio.fail_after(SOON):
                while emulator.statistics()["open_links"] < quiet + 1:
                    await trio.lowlevel.checkpoint()
            # No checkpoint from here on: what the loop's thread hands over waits for trio's.
            emulator.fault("move_time", seconds=DUE)
            handed_over = provider._bridge._to_trio
            stand_still_until(lambda: len(handed_over._work) == 1)  # the call's result
            assert emulator.fault("detach", queue=str(queue), session_id="session") == 1
            stand_still_until(lambda: len(handed_over._work) == 2)  # the loss
        if accepted:
            [lease] = leases
            assert lease is not None
            assert isinstance(lease.lost, LockLost)
            with trio.fail_after(SOON):
                again = await receiver.accept(SESSION, SOON)
            assert again is not None
            assert again.token > lease.token
        rest = await take(receiver, 2 - len(first))
        # What a dead lease brought would be handled beside what the new one brings.
        assert len({delivery.lease for delivery in (*first, *rest)}) == 1
        assert [delivery.body for delivery in (*first, *rest)] == [b"1", b"2"]
        assert await complete(receiver, [*first, *rest]) == [None, None]
        assert emulator.counts(queue)["active"] == 0


async def test_what_comes_while_its_session_is_given_back_comes_under_a_lease_that_holds(
    emulator: EmulatorProcess,
) -> None:
    """A message that was taken by the loop's thread, and not yet by trio's when the lease was released."""
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        due = datetime.now(UTC) + timedelta(seconds=1.0)
        await sender.send([Message(b"1", session_id=SESSION)])
        await sender.send([Message(b"2", session_id=SESSION, scheduled_at=due)])
        [first] = await take(receiver, 1)
        assert await complete(receiver, [first]) == [None]
        second: list[Delivery] = []

        async def get() -> None:
            second.extend(await take(receiver, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get)
            await trio.testing.wait_all_tasks_blocked()
            # No checkpoint from here on: what the loop's thread hands over waits for trio's.
            handed_over = provider._bridge._to_trio
            stand_still_until(lambda: len(handed_over._work) == 1)  # the call's result
            await receiver.release([first.lease])
        assert second[0].lease.token > first.lease.token
        assert await receiver.renew([second[0].lease]) == [None]
        assert await complete(receiver, second) == [None]
        assert [delivery.body for delivery in second] == [b"2"]
        assert emulator.counts(queue)["active"] == 0


async def test_a_stolen_session_settles_nothing(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        await sender.send([Message(b"1", session_id=SESSION)])
        [first] = await take(receiver, 1)
        assert emulator.fault("steal_session", queue=str(queue), session_id="session")
        [error] = await complete(receiver, [first])
        assert isinstance(error, LockLost)
        assert first.lease.lost is not None


@pytest.mark.parametrize("how", ["settle", "renew", "state"])
async def test_a_stolen_session_leaves_its_place_to_the_next(
    emulator: EmulatorProcess, how: str
) -> None:
    """Also where the broker says so only when it is asked, and leaves the link as it is."""
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions(max_sessions=1))
        await sender.send([Message(b"1", session_id=SESSION)])
        [first] = await take(receiver, 1)
        assert emulator.fault("steal_session", queue=str(queue), session_id="session")
        error: object
        if how == "settle":
            [error] = await complete(receiver, [first])
        elif how == "renew":
            [error] = await receiver.renew([first.lease])
        else:
            with pytest.raises(LockLost) as caught:
                await receiver.get_state(first.lease)
            error = caught.value
        assert isinstance(error, LockLost)
        [second] = await take(receiver, 1)
        assert second.lease.token > first.lease.token
        assert await complete(receiver, [second]) == [None]
        assert emulator.counts(queue)["active"] == 0


async def test_a_message_outlives_its_link(emulator: EmulatorProcess) -> None:
    """The lock on a message without a session is not the link's: it is settled by its token."""
    queue = new_queue(emulator, sessions=False)
    async with connected(emulator, sessions=False) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        await sender.send([Message(b"1")])
        [delivery] = await take(receiver, 1)
        emulator.fault("detach", queue=str(queue))
        with trio.fail_after(SOON):
            while await receiver.renew([delivery.lease]) != [None]:
                await receiver.receive(1, 0.01)
        assert await complete(receiver, [delivery]) == [None]
        assert emulator.counts(queue)["active"] == 0


@pytest.mark.parametrize("part", [0.6, 1.0], ids=["old", "over"])
@pytest.mark.parametrize("taken", [True, False], ids=["taken", "left"])
async def test_messages_that_waited_for_too_long_come_again(
    emulator: EmulatorProcess, monkeypatch: pytest.MonkeyPatch, part: float, taken: bool
) -> None:
    """They were asked for ahead, and whoever receives takes few at a time: what little is left of a lock is no use."""
    monkeypatch.setattr(intake, "_KEPT", 10 * SOON)
    lock, count = 30.0, 5
    queue = new_queue(emulator, sessions=False, lock_duration=lock)
    async with connected(emulator, sessions=False, lock_duration=lock) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        assert isinstance(receiver, AzureReceiver)
        plain = receiver._intake._plain
        assert plain is not None
        await sender.send([Message(b"%d" % number) for number in range(count)])
        deliveries = await take(receiver, 1)
        await eventually(lambda: len(plain.buffer) == count - 1)
        before = list(plain.buffer)
        for arrival in before:
            held = plain._held[arrival.tag]
            held.came_at -= part * lock
            held.locked_at -= part * lock
        if not taken:
            await eventually(
                lambda: len(plain.buffer) == count - 1 and not {*before} & {*plain.buffer}
            )
        deliveries += await take(receiver, count - 1)
        for delivery in deliveries:
            assert delivery.lease.deadline > trio.current_time() + lock / 2
            assert delivery.delivery_count == 1
        assert await complete(receiver, deliveries) == [None] * count
        assert emulator.counts(queue)["active"] == 0


@pytest.mark.parametrize("sessions", [True, False], ids=["sessions", "plain"])
async def test_an_answer_that_nobody_heard_is_not_taken_for_a_lost_lock(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    """A cancelled call may have had its answer already; asked again, nothing counts twice."""
    queue = new_queue(emulator, sessions=sessions)
    most, sent = 4, 12
    async with connected(emulator, sessions=sessions) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions(max_per_session=most))
        assert isinstance(receiver, AzureReceiver)
        session_id = SESSION if sessions else None
        await sender.send([Message(b"%d" % n, session_id=session_id) for n in range(sent)])
        deliveries = await take(receiver, most)
        for _ in range(1, sent // most):
            works = []
            for delivery in deliveries:
                hold = delivery.lease.provider_data
                arrival = hold.flights[delivery.receipt].arrival
                works.append((hold.source, Work(arrival, SettlementAction.COMPLETE)))
            unheard = await receiver._bridge.run(receiver._intake.settle, works)
            assert unheard == [None] * most
            following = await take(receiver, most)
            for answer in await complete(receiver, deliveries):
                assert type(answer) is InvalidReceipt
            assert await receiver.renew([following[0].lease]) == [None]  # answered after all before
            if sessions:
                assert emulator.counts(queue)["locked"] == most
            deliveries = following
        assert await complete(receiver, deliveries) == [None] * most
        assert await receiver.receive(1, 0.2) == []
        assert emulator.counts(queue)["active"] == 0


async def settle_unheard(
    receiver: Receiver, delivery: Delivery, action: SettlementAction, delay: float = 0.0
) -> None:
    """Settle a message as a call does that has its answer when it is cancelled."""
    assert isinstance(receiver, AzureReceiver)
    hold = delivery.lease.provider_data
    work = Work(hold.flights[delivery.receipt].arrival, action, delay)
    assert await receiver._bridge.run(receiver._intake.settle, [(hold.source, work)]) == [None]


@pytest.mark.parametrize("sessions", [True, False], ids=["sessions", "plain"])
@pytest.mark.parametrize(
    "action",
    [SettlementAction.COMPLETE, SettlementAction.DEAD_LETTER, SettlementAction.ABANDON],
    ids=lambda action: action.value,
)
async def test_a_delay_that_nobody_heard_of_is_over_with_what_is_asked_for_instead(
    emulator: EmulatorProcess, sessions: bool, action: SettlementAction
) -> None:
    queue = new_queue(emulator, sessions=sessions)
    async with connected(emulator, sessions=sessions) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        session_id = SESSION if sessions else None
        await sender.send([Message(b"1", session_id=session_id)])
        [first] = await take(receiver, 1)
        await settle_unheard(receiver, first, SettlementAction.ABANDON, delay=10 * SOON)
        assert await receiver.settle([Settlement(first, action, reason="Test")]) == [None]
        await sender.send([Message(b"2", session_id=session_id)])
        comes_back = action is SettlementAction.ABANDON
        rest = await take(receiver, 1 + comes_back)
        assert sorted(delivery.body for delivery in rest) == [b"1", b"2"][not comes_back :]
        assert await complete(receiver, rest) == [None] * len(rest)
        counts = emulator.counts(queue)
        dead = action is SettlementAction.DEAD_LETTER
        assert (counts["active"], counts["dead_letters"]) == (0, dead)


@pytest.mark.parametrize("sessions", [True, False], ids=["sessions", "plain"])
async def test_a_delay_that_nobody_heard_of_and_that_is_over_does_not_begin_again(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    queue = new_queue(emulator, sessions=sessions)
    async with connected(emulator, sessions=sessions) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        session_id = SESSION if sessions else None
        await sender.send([Message(b"1", session_id=session_id)])
        [first] = await take(receiver, 1)
        await settle_unheard(receiver, first, SettlementAction.ABANDON, delay=0.1)
        [again] = await take(receiver, 1)
        late = Settlement(first, SettlementAction.ABANDON, delay=10 * SOON)
        [answer] = await receiver.settle([late])
        assert type(answer) is InvalidReceipt
        assert await complete(receiver, [again]) == [None]
        await sender.send([Message(b"2", session_id=session_id)])
        [second] = await take(receiver, 1)
        assert await complete(receiver, [second]) == [None]
        assert emulator.counts(queue)["active"] == 0


# --- the SDK's traps ---------------------------------------------------------------------------------------


async def test_cancelled_receives_leave_nothing_locked(emulator: EmulatorProcess) -> None:
    """Trap 1: a receive for several that is cancelled drops what it already holds."""
    queue = new_queue(emulator, sessions=False)
    async with connected(emulator, sessions=False) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        other = await provider.open_receiver(queue, ReceiverOptions())
        await sender.send([Message(b"%d" % n) for n in range(300)])
        got: list[Delivery] = []
        for turn in range(30):
            with trio.move_on_after(0.0005 * turn):
                got += await receiver.receive(10, 5.0)
        rest = await take(other, 300 - len(got))
        assert len({delivery.body for delivery in (*got, *rest)}) == 300
        assert await complete(receiver, got) == [None] * len(got)
        assert await complete(other, rest) == [None] * len(rest)


@pytest.mark.parametrize("sessions", [True, False])
async def test_what_follows_each_other_is_settled_by_one_frame(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    queue = new_queue(emulator, sessions=sessions)
    async with connected(emulator, sessions=sessions) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        name = SESSION if sessions else None
        await sender.send([Message(b"%d" % n, session_id=name) for n in range(40)])
        held = await take(receiver, 40)
        before = emulator.statistics()

        # One is left out, and another had its turn before.
        assert await complete(receiver, [held[20]]) == [None]
        rest = [each for number, each in enumerate(held) if number not in {10, 20}]
        assert await complete(receiver, rest) == [None] * 38
        [again] = await complete(receiver, [held[20]])

        after = emulator.statistics()
        assert isinstance(again, InvalidReceipt)
        assert after["dispositions"] - before["dispositions"] == 39
        # Up to 9, to 19, and the rest; and the one before.
        assert after["disposition_frames"] - before["disposition_frames"] == 4
        assert await complete(receiver, [held[10]]) == [None]


@pytest.mark.parametrize("sessions", [True, False])
async def test_settling_does_not_wait_for_a_pending_receive(
    emulator: EmulatorProcess, sessions: bool
) -> None:
    """Trap 2: reads and writes share a lock that a read holds up to 0.2 s."""
    queue = new_queue(emulator, sessions=sessions)
    async with connected(emulator, sessions=sessions) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        name = SESSION if sessions else None
        await sender.send([Message(b"", session_id=name) for _ in range(10)])
        deliveries = await take(receiver, 10)
        took: list[float] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.receive, 1, 60.0)
            for delivery in deliveries:
                await trio.sleep(0.02)
                began = trio.current_time()
                assert await receiver.renew([delivery.lease]) == [None]
                assert await complete(receiver, [delivery]) == [None]
                took.append(trio.current_time() - began)
            nursery.cancel_scope.cancel()
        assert sorted(took)[5] < 0.1


async def test_accepting_ends_in_time_and_leaves_no_ghost(emulator: EmulatorProcess) -> None:
    """Trap 3: the next available session was waited for ten times as long as asked."""
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions(auto_accept=False))

        async def accept_in_vain() -> float:
            began = trio.current_time()
            assert await receiver.accept(None, 1.0) is None
            took = trio.current_time() - began
            assert took >= 1.0
            return took - 1.0

        async def cancelled(call: Callable[[], Awaitable[object]]) -> float:
            with trio.move_on_after(0.1) as scope:
                await call()
            assert scope.cancelled_caught
            return trio.current_time() - scope.deadline

        await promptly(accept_in_vain)
        for call in (partial(receiver.accept, None, 60.0), partial(receiver.receive, 1, 60.0)):
            await promptly(partial(cancelled, call))
        other = await provider.open_receiver(queue, ReceiverOptions())
        for number in range(10):
            with trio.move_on_after(0.003 * number):
                await receiver.accept(None, 60.0)
            await sender.send([Message(b"", session_id=SessionId(f"s{number}"))])
            [delivery] = await take(other, 1)
            assert await complete(other, [delivery]) == [None]
            await other.release([delivery.lease])
        assert emulator.counts(queue)["locked_sessions"] == 0


async def test_sessions_that_nobody_accepted_are_given_back_although_somebody_receives(
    emulator: EmulatorProcess,
) -> None:
    """Several are asked for at once, and whoever only reads what is held takes none of them."""
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator, acceptors=4) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions(auto_accept=False))
        other = await provider.open_receiver(queue, ReceiverOptions())
        await sender.send([Message(b"", session_id=SessionId(f"s{n}")) for n in range(5)])
        received: list[Delivery] = []
        has_received = trio.Event()

        async def receive() -> None:
            while True:
                received.extend(await receiver.receive(5, 60.0))
                has_received.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            lease = await receiver.accept(None, 5.0)
            assert lease is not None
            rest = await take(other, 4, within=10.0)
            assert await complete(other, rest) == [None] * 4
            with trio.fail_after(5.0):
                await has_received.wait()
            nursery.cancel_scope.cancel()
        assert {delivery.session_id for delivery in received} == {lease.session_id}
        assert await complete(receiver, received) == [None]
        assert emulator.counts(queue)["active"] == 0


async def test_what_came_before_its_session_was_accepted_is_received(
    emulator: EmulatorProcess,
) -> None:
    """Whoever receives was told of it when it was not yet to be had."""
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator, acceptors=1) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions(auto_accept=False))
        loop = provider._bridge._loop

        def dawdle() -> None:
            """Each round of the loop lasts longer than it takes the broker to send a message."""
            if is_slow:
                time.sleep(0.003)
                loop.call_soon(dawdle)

        for number in range(8):
            await sender.send([Message(b"", session_id=SessionId(f"s{number}"))])
            deliveries: list[Delivery] = []

            async def receive(deliveries: list[Delivery]) -> None:
                deliveries += await take(receiver, 1)

            is_slow = True
            loop.call_soon_threadsafe(dawdle)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive, deliveries)
                    lease = await receiver.accept(None, 5.0)
                    assert lease is not None
            finally:
                is_slow = False
            assert await complete(receiver, deliveries) == [None]
            await receiver.release([lease])


async def test_acceptors_that_never_began_are_not_waited_for(emulator: EmulatorProcess) -> None:
    """Who is cancelled in the very round of the loop in which another asks takes nobody's place for ever."""
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator, acceptors=1) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        assert isinstance(receiver, AzureReceiver)
        intake = receiver._intake

        async def start_and_stop() -> None:
            intake._start_acceptors()
            await intake._stop_accepting()

        await receiver._bridge.run(start_and_stop)
        await sender.send([Message(b"", session_id=SESSION)])
        assert await complete(receiver, await take(receiver, 1)) == [None]


async def test_a_session_that_is_given_up_while_the_receiver_closes_is_given_back(
    emulator: EmulatorProcess,
) -> None:
    """In the same round of the loop: closing stops what runs on the side, but not saying goodbye."""
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions(auto_accept=False))
        assert isinstance(receiver, AzureReceiver)
        lease = await receiver.accept(SESSION, 0.0)
        assert lease is not None
        source, intake = lease.provider_data.source, receiver._intake

        async def give_up_and_close() -> None:
            source.give_up("as the test has it")
            await intake.aclose()

        await receiver._bridge.run(give_up_and_close)
        assert emulator.counts(queue)["locked_sessions"] == 0
        await sender.send([Message(b"", session_id=SESSION)])
        other = await provider.open_receiver(queue, ReceiverOptions())
        assert await complete(other, await take(other, 1)) == [None]


async def test_a_stalled_broker_is_a_timeout() -> None:
    """Trap 4: a send without a timeout hangs when the broker says nothing."""
    with emulator_process() as emulator:
        queue = new_queue(emulator, sessions=True)
        options = {"operation_timeout": PATIENCE, "connect_timeout": PATIENCE}
        async with connected(emulator, **options) as provider:
            sender = await provider.open_sender(queue)
            receiver = await provider.open_receiver(queue, ReceiverOptions())
            await sender.send([Message(b"", session_id=SESSION)])
            [delivery] = await take(receiver, 1)
            emulator.fault("stall", queue=str(queue))
            with trio.fail_after(2 * PATIENCE + SLACK):
                with pytest.raises(OperationTimeout):
                    await sender.send([Message(b"", session_id=SESSION)])
                [error] = await complete(receiver, [delivery])
            assert isinstance(error, OperationTimeout)


async def test_refusals_are_typed(emulator: EmulatorProcess) -> None:
    """Trap 4 as well: a send refused without details hung for ever."""
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        emulator.fault("throttle", "SEND", queue=str(queue))
        with trio.fail_after(SOON), pytest.raises(Throttled):
            await sender.send([Message(b"", session_id=SESSION)])
        [result] = await sender.send([Message(b"", session_id=SESSION)])
        assert result.error is None


async def test_senders_may_be_used_by_many_at_once(emulator: EmulatorProcess) -> None:
    """Trap 5: the SDK's sender opens its link when first used, by whoever comes first, and twice."""
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())

        async def send(name: str) -> None:
            for number in range(10):
                await sender.send([Message(b"%d" % number, session_id=SessionId(name))])

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(send, f"s{number}")
        order: dict[str | None, list[bytes]] = {}
        for delivery in await take(receiver, 200):
            order.setdefault(delivery.session_id, []).append(delivery.body)
        assert list(order.values()) == [[b"%d" % n for n in range(10)]] * 20


async def test_a_life_of_less_than_a_second_is_refused(emulator: EmulatorProcess) -> None:
    """Trap 6: it became 0, which is for ever."""
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        with pytest.raises(ValidationError, match="whole ones"):
            await sender.send([Message(b"", session_id=SESSION, time_to_live=0.5)])


async def test_more_answers_than_the_sdk_gives_credit_for(emulator: EmulatorProcess) -> None:
    """The SDK lets a management node answer ten thousand times, and then waits for ever."""
    queue = new_queue(emulator, sessions=True)
    async with connected(emulator) as provider:
        receiver = await provider.open_receiver(queue, ReceiverOptions(auto_accept=False))
        lease = await receiver.accept(SESSION, SOON)
        assert lease is not None

        async def ask() -> None:
            for _ in range(550):
                assert await receiver.get_state(lease) is None

        with trio.fail_after(60.0):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(ask)


# --- bad input ---------------------------------------------------------------------------------------------


async def test_a_queue_of_the_other_kind_is_found_out_at_once(emulator: EmulatorProcess) -> None:
    plain, sessions = new_queue(emulator, sessions=False), new_queue(emulator, sessions=True)
    async with connected(emulator, sessions=True) as provider:
        with pytest.raises(ConfigurationError, match="has no sessions"):
            await provider.open_receiver(plain, ReceiverOptions())
    async with connected(emulator, sessions=False) as provider:
        with pytest.raises((ConfigurationError, Unsupported), match="session"):
            await provider.open_receiver(sessions, ReceiverOptions())
        sender = await provider.open_sender(sessions)
        with pytest.raises(QueueError, match="session"):
            await sender.send([Message(b"")])


async def test_a_queue_that_is_not_there(emulator: EmulatorProcess) -> None:
    async with connected(emulator) as provider:
        with pytest.raises(QueueNotFound, match="nowhere"):
            await provider.open_sender(QueueName("nowhere"))
        with pytest.raises(QueueNotFound, match="nowhere"):
            await provider.open_receiver(QueueName("nowhere"), ReceiverOptions())
        with pytest.raises(QueueNotFound, match="nowhere"):
            await provider.open_dead_letters(QueueName("nowhere"))


async def test_a_wrong_key_is_refused_and_not_shown(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator, sessions=True)
    parts = dict(part.partition("=")[::2] for part in emulator.connection_string.split(";"))
    parts["SharedAccessKey"] = "c2VjcmV0LWNhbmFyeS12YWx1ZQ=="
    text = ";".join(f"{name}={value}" for name, value in parts.items())
    provider = await FACTORY.open(AzureConfig(connection_string=Secret(text)))
    try:
        with pytest.raises((AuthenticationFailed, PermissionDenied)) as caught:
            await provider.open_sender(queue)
        assert parts["SharedAccessKey"] not in str(caught.value)
    finally:
        await provider.aclose()


def over_tls(emulator: EmulatorProcess, **options: Any) -> AzureConfig:
    parts = emulator.connection_string.split(";", 1)[1]
    text = f"Endpoint=sb://orders.servicebus.windows.net/;{parts}"
    endpoint = emulator.endpoint
    return AzureConfig(connection_string=Secret(text), custom_endpoint=endpoint, **options)


async def test_tls_is_verified() -> None:
    with emulator_process(tls=True) as emulator:
        queue = new_queue(emulator, sessions=True)
        assert emulator.ca_file is not None
        trusting = await FACTORY.open(over_tls(emulator, verify=emulator.ca_file))
        try:
            sender = await trusting.open_sender(queue)
            receiver = await trusting.open_receiver(queue, ReceiverOptions())
            await sender.send([Message(b"1", session_id=SESSION)])
            assert await complete(receiver, await take(receiver, 1)) == [None]
        finally:
            await trusting.aclose()
        doubtful = await FACTORY.open(over_tls(emulator))
        try:
            with trio.fail_after(SOON), pytest.raises(QueueError, match="certificate"):
                await doubtful.open_sender(queue)
        finally:
            await doubtful.aclose()


async def test_a_signature_made_beforehand_will_do(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator, sessions=True)
    parts = dict(part.partition("=")[::2] for part in emulator.connection_string.split(";"))
    place = emulator.endpoint.removeprefix("sb://")
    audience = f"sb://{place}/{queue}"
    expiry = int(time.time()) + 600
    payload = f"{quote_plus(audience)}\n{expiry}".encode()
    signed = hmac.new(parts["SharedAccessKey"].encode(), payload, hashlib.sha256).digest()
    fields = {"sr": audience, "sig": b64encode(signed), "se": expiry}
    fields["skn"] = parts["SharedAccessKeyName"]
    text = (
        f"Endpoint={emulator.endpoint};UseDevelopmentEmulator=true;"
        f"SharedAccessSignature=SharedAccessSignature {urlencode(fields)}"
    )
    provider = await FACTORY.open(AzureConfig(connection_string=Secret(text)))
    try:
        sender = await provider.open_sender(queue)
        [result] = await sender.send([Message(b"1", session_id=SESSION)])
        assert result.error is None
    finally:
        await provider.aclose()


async def test_a_host_that_does_not_answer() -> None:
    text = (
        "Endpoint=sb://127.0.0.1:9;SharedAccessKeyName=k;SharedAccessKey=a2V5;"
        "UseDevelopmentEmulator=true"
    )
    provider = await FACTORY.open(AzureConfig(connection_string=Secret(text)))
    try:
        with trio.fail_after(SOON), pytest.raises(ConnectionFailed):
            await provider.open_sender(QueueName("orders"))
    finally:
        await provider.aclose()
