"""The bad network itself: each fault does what it says, and nothing else."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

from queue_runtime.abc import Provider, Receiver, ReceiverOptions
from queue_runtime.errors import (
    ConnectionFailed,
    LockLost,
    OperationTimeout,
    ProviderError,
    Throttled,
    ValidationError,
)
from queue_runtime.messages import Message, QueueName, Settlement, SettlementAction
from queue_runtime.providers.memory import MEMORY_FACTORY, MemoryConfig
from queue_runtime.testing import NO_FAULTS, Faults, FaultyProvider

QUEUE = QueueName("q")
OPTIONS = ReceiverOptions()
LOCK = 10.0


Clock = trio.testing.MockClock


@pytest.fixture
async def broker() -> AsyncIterator[Provider]:
    provider = await MEMORY_FACTORY.open(MemoryConfig(lock_duration=LOCK))
    yield provider
    await provider.aclose()


def faulty(broker: Provider, **faults: Any) -> FaultyProvider:
    return FaultyProvider(broker, Faults(**faults), random=random.Random(1))


async def send(broker: Provider, *bodies: str, session: str | None = "s") -> None:
    sender = await broker.open_sender(QUEUE)
    await sender.send([Message(body.encode(), session_id=session) for body in bodies])


async def depth(broker: Provider) -> tuple[int, int]:
    stats = await broker.stats(QUEUE)
    return stats.depth, stats.in_flight


async def bodies(receiver: Receiver, timeout: float = 0.0) -> list[str]:
    return [delivery.body.decode() for delivery in await receiver.receive(10, timeout)]


async def test_without_faults_it_is_not_there(broker: Provider, autojump_clock: Clock) -> None:
    provider = FaultyProvider(broker)
    assert provider.faults == NO_FAULTS
    assert provider.capabilities == broker.capabilities
    sender = await provider.open_sender(QUEUE)
    assert (await sender.send([Message(b"1", session_id="s")]))[0].error is None
    receiver = await provider.open_receiver(QUEUE, OPTIONS)
    (delivery,) = await receiver.receive(1, 0.0)
    assert await receiver.renew([delivery.lease]) == [None]
    await receiver.set_state(delivery.lease, b"x")
    assert await receiver.get_state(delivery.lease) == b"x"
    assert await receiver.settle([Settlement(delivery, SettlementAction.DEAD_LETTER)]) == [None]
    letters = await provider.open_dead_letters(QUEUE)
    assert len(await letters.peek(10)) == 1
    assert await letters.redrive() == 1
    assert await letters.purge() == 0
    assert len(await provider.peek(QUEUE, 10)) == 1
    assert await provider.purge(QUEUE) == 1
    assert (await provider.stats(QUEUE)).depth == 0
    assert await sender.cancel_scheduled([99]) == [False]
    await receiver.release([delivery.lease])
    lease = await receiver.accept(None, 0.0)
    assert lease is None
    await sender.aclose()
    await receiver.aclose()
    await provider.aclose()
    assert not provider.injected


async def test_latency_goes_both_ways(broker: Provider, autojump_clock: Clock) -> None:
    provider = faulty(broker, latency=1.0)
    began = trio.current_time()
    await provider.stats(QUEUE)
    assert 0.0 < trio.current_time() - began < 4.0


async def test_a_refused_call_did_nothing(broker: Provider, autojump_clock: Clock) -> None:
    provider = faulty(broker)
    sender = await provider.open_sender(QUEUE)
    provider.faults = Faults(fails=1.0)
    with pytest.raises(ConnectionFailed):
        await sender.send([Message(b"1")])
    provider.faults = Faults(throttles=1.0, retry_after=3.0)
    with pytest.raises(Throttled) as throttled:
        await sender.send([Message(b"1")])
    assert throttled.value.retry_after == 3.0
    assert await depth(broker) == (0, 0)
    assert provider.injected == {"fails": 1, "throttles": 1}


async def test_a_lost_reply_means_that_it_happened(broker: Provider, autojump_clock: Clock) -> None:
    seen: list[tuple[str, str]] = []
    provider = FaultyProvider(broker, observer=lambda *fault: seen.append(fault))
    sender = await provider.open_sender(QUEUE)
    provider.faults = Faults(drops_reply=1.0)
    with pytest.raises(OperationTimeout):
        await sender.send([Message(b"1")])
    assert await depth(broker) == (1, 0)
    assert seen == [("drops_reply", "send")]


async def test_a_message_can_arrive_twice(broker: Provider, autojump_clock: Clock) -> None:
    sender = await faulty(broker, sends_twice=1.0).open_sender(QUEUE)
    assert len(await sender.send([Message(b"1")])) == 1
    assert await depth(broker) == (2, 0)


async def test_a_stall_takes_its_time(broker: Provider, autojump_clock: Clock) -> None:
    provider = faulty(broker, stalls=1.0, stall=7.0)
    began = trio.current_time()
    await provider.stats(QUEUE)
    assert trio.current_time() - began == pytest.approx(14.0)


async def test_a_cut_holds_everything_until_it_ends(
    broker: Provider, autojump_clock: Clock
) -> None:
    provider = faulty(broker)
    provider.cut_off(5.0)
    began = trio.current_time()
    await provider.stats(QUEUE)
    assert trio.current_time() - began == pytest.approx(5.0)
    provider.cut_off(5.0)
    provider.heal()
    await provider.stats(QUEUE)
    assert trio.current_time() - began == pytest.approx(5.0)


async def test_a_renewal_whose_reply_is_lost_moves_no_deadline(
    broker: Provider, autojump_clock: Clock
) -> None:
    await send(broker, "1")
    provider = faulty(broker)
    receiver = await provider.open_receiver(QUEUE, OPTIONS)
    (delivery,) = await receiver.receive(1, 0.0)
    deadline = delivery.lease.deadline
    await trio.sleep(3.0)
    provider.faults = Faults(drops_reply=1.0)
    with pytest.raises(OperationTimeout):
        await receiver.renew([delivery.lease])
    assert delivery.lease.deadline == deadline
    provider.heal()
    assert await receiver.renew([delivery.lease]) == [None]
    assert delivery.lease.deadline == pytest.approx(deadline + 3.0)


async def test_a_deadline_counts_from_when_this_side_asked(
    broker: Provider, autojump_clock: Clock
) -> None:
    await send(broker, "1")
    provider = faulty(broker)
    receiver = await provider.open_receiver(QUEUE, OPTIONS)
    (delivery,) = await receiver.receive(1, 0.0)
    provider.faults = Faults(stalls=1.0, stall=2.0)
    asked_at = trio.current_time()
    assert await receiver.renew([delivery.lease]) == [None]
    assert delivery.lease.deadline == pytest.approx(asked_at + 0.9 * LOCK)


async def test_a_lost_reply_to_receive_costs_the_leases_it_named(
    broker: Provider, autojump_clock: Clock
) -> None:
    await send(broker, "1")
    provider = faulty(broker)
    receiver = await provider.open_receiver(QUEUE, OPTIONS)
    (first,) = await receiver.receive(1, 0.0)
    await send(broker, "2")
    provider.faults = Faults(drops_reply=1.0)
    with pytest.raises(OperationTimeout):
        await receiver.receive(1, 0.0)
    assert first.lease.lost is not None
    provider.heal()
    await send(broker, "3")
    assert await bodies(receiver) == []  # not before 1 and 2, which the broker believes to be here
    await trio.sleep(LOCK)
    assert await bodies(receiver) == ["1", "2", "3"]


async def test_a_cancelled_receive_gives_back_what_was_on_its_way(
    broker: Provider, autojump_clock: Clock
) -> None:
    await send(broker, "1")
    provider = faulty(broker)
    receiver = await provider.open_receiver(QUEUE, OPTIONS)
    (first,) = await receiver.receive(1, 0.0)
    await send(broker, "2")
    await send(broker, "x", session="other")
    provider.faults = Faults(stalls=1.0, stall=1.0)
    with trio.move_on_after(1.5) as scope:
        await receiver.receive(10, 0.0)
    assert scope.cancelled_caught
    provider.heal()
    assert first.lease.lost is None
    assert await depth(broker) == (2, 1)
    assert sorted(await bodies(receiver)) == ["2", "x"]


async def test_the_broker_takes_a_session_away_and_says_so(
    broker: Provider, autojump_clock: Clock
) -> None:
    await send(broker, "1")
    provider = faulty(broker)
    receiver = await provider.open_receiver(QUEUE, OPTIONS)
    (delivery,) = await receiver.receive(1, 0.0)
    lost: list[object] = []
    delivery.lease.on_lost(lost.append)
    provider.faults = Faults(loses_lease=1.0)
    (error,) = await receiver.settle([Settlement(delivery, SettlementAction.COMPLETE)])
    assert isinstance(error, LockLost)
    assert lost == [delivery.lease]
    other = await broker.open_receiver(QUEUE, OPTIONS)
    assert await bodies(other) == ["1"]


@pytest.mark.parametrize("announces", [False, True])
async def test_an_expired_lock_is_announced_or_found_out(
    broker: Provider, autojump_clock: Clock, announces: bool
) -> None:
    await send(broker, "1")
    provider = faulty(broker, announces_losses=announces)
    receiver = await provider.open_receiver(QUEUE, OPTIONS)
    (delivery,) = await receiver.receive(1, 0.0)
    await trio.sleep(LOCK + 1)
    await broker.stats(QUEUE)
    assert (delivery.lease.lost is not None) is announces
    (error,) = await receiver.renew([delivery.lease])
    assert isinstance(error, LockLost)
    assert delivery.lease.lost is not None
    with pytest.raises(LockLost):
        await receiver.set_state(delivery.lease, b"x")


async def test_a_crashed_client_reaches_nobody(broker: Provider, autojump_clock: Clock) -> None:
    await send(broker, "1")
    provider = faulty(broker)
    receiver = await provider.open_receiver(QUEUE, OPTIONS)
    await receiver.receive(1, 0.0)

    async def wait() -> None:
        with pytest.raises(ProviderError, match="crashed"):
            await receiver.receive(1, 1e6)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        provider.crash()
    with pytest.raises(ProviderError, match="crashed"):
        await provider.stats(QUEUE)
    await receiver.aclose()
    assert await depth(broker) == (0, 1)
    await trio.sleep(LOCK)
    assert await depth(broker) == (1, 0)


async def test_what_was_on_the_wire_may_still_arrive(
    broker: Provider, autojump_clock: Clock
) -> None:
    provider = faulty(broker)
    sender = await provider.open_sender(QUEUE)
    provider.faults = Faults(latency=1.0)
    for _ in range(30):
        with trio.move_on_after(0.0001):
            await sender.send([Message(b"1")])
    stored, _ = await depth(broker)
    assert 5 < stored < 25


async def test_an_accepted_session_goes_back_when_nobody_waits_for_it(
    broker: Provider, autojump_clock: Clock
) -> None:
    await send(broker, "1")
    provider = faulty(broker)
    receiver = await provider.open_receiver(QUEUE, OPTIONS)
    provider.faults = Faults(stalls=1.0, stall=1.0)
    with trio.move_on_after(1.5):
        await receiver.accept(None, 0.0)
    assert (await broker.stats(QUEUE)).locked_sessions == 0
    provider.heal()
    lease = await receiver.accept(None, 0.0)
    assert lease is not None
    assert lease.session_id == "s"


def test_a_share_is_a_share() -> None:
    with pytest.raises(ValidationError, match=r"fails is 1\.5: expected a share"):
        Faults(fails=1.5)
