"""Closing, in the middle of everything: nothing hangs, nothing is lost, nothing is used afterwards."""

from __future__ import annotations

from itertools import count
from typing import final

import trio

from ...abc import Receiver, ReceiverOptions, Sender
from ...errors import QueueError
from ...messages import Message, Settlement, SettlementAction
from .bench import Bench, Outcome, bodies, expect, expect_equal, raised_by, running
from .core import case


def expect_closed(error: BaseException | None, what: str) -> None:
    """Go on only if ``error`` is ``ClosedResourceError``."""
    expect(
        isinstance(error, trio.ClosedResourceError),
        f"{what}: expected trio.ClosedResourceError, got {error!r}",
    )


@case()
async def closing_twice(bench: Bench) -> None:
    """Closing is idempotent, in any order."""
    provider = await bench.connect()
    sender, receiver = await bench.sender(provider), await bench.receiver(provider)
    for resource in (sender, receiver, sender, provider, receiver, provider, sender):
        error = await raised_by(resource.aclose())
        expect(error is None, f"closing {type(resource).__name__} raised {error!r}")


@case()
async def used_after_closing(bench: Bench) -> None:
    """What is closed raises ``ClosedResourceError`` when it is used."""
    sender, receiver = await bench.sender(), await bench.receiver()
    await bench.send(*bench.messages(1, bench.session))
    [delivery] = await bench.receive(receiver, 1)
    await sender.aclose()
    await receiver.aclose()
    expect_closed(await raised_by(sender.send(bench.messages(1, bench.session))), "send")
    expect_closed(await raised_by(receiver.receive(1, 0.0)), "receive")
    settlement = Settlement(delivery, SettlementAction.COMPLETE)
    expect_closed(await raised_by(receiver.settle([settlement])), "settle")
    if bench.capabilities.lock_renewal:
        expect_closed(await raised_by(receiver.renew([delivery.lease])), "renew")
    if bench.capabilities.sessions:
        expect_closed(await raised_by(receiver.accept(None, 0.0)), "accept")
    if bench.capabilities.session_state:
        expect_closed(await raised_by(receiver.get_state(delivery.lease)), "get_state")
        expect_closed(await raised_by(receiver.set_state(delivery.lease, b"")), "set_state")


@case()
async def a_closed_provider(bench: Bench) -> None:
    """Closing a provider closes what was opened from it, and it opens nothing more."""
    provider = await bench.connect()
    sender, receiver = await bench.sender(provider), await bench.receiver(provider)
    await bench.send(*bench.messages(2, bench.session))
    await bench.receive(receiver, 1)
    await provider.aclose()
    expect_closed(await raised_by(sender.send(bench.messages(1, bench.session))), "send")
    expect_closed(await raised_by(receiver.receive(1, 0.0)), "receive")
    expect_closed(await raised_by(provider.open_sender(bench.queue)), "open_sender")
    options = ReceiverOptions()
    expect_closed(await raised_by(provider.open_receiver(bench.queue, options)), "open_receiver")
    other = await bench.receiver()
    deliveries = await bench.receive(other, 2, within=bench.environment.tolerance)
    expect_equal(sorted(bodies(deliveries)), ["1", "2"], "what another connection gets at once")
    await bench.complete(other, deliveries)


@case()
async def closed_while_receiving(bench: Bench) -> None:
    """A receive that waits when its receiver or its provider is closed ends at once."""
    for victim in ("receiver", "provider"):
        provider = await bench.connect()
        receiver = await bench.receiver(provider)
        async with running(receiver.receive, 1, bench.environment.patience) as waiting:
            await (receiver if victim == "receiver" else provider).aclose()
            with trio.move_on_after(bench.environment.tolerance):
                await waiting.done.wait()
            expect(waiting.done.is_set(), f"receive still waits after its {victim} was closed")
            expect_closed(waiting.error, f"a receive whose {victim} is closed")
    await bench.send(*bench.messages(1, bench.session))
    other = await bench.receiver()
    [delivery] = await bench.receive(other, 1, within=bench.environment.tolerance)
    await bench.complete(other, delivery)


@case("sessions")
async def closed_while_accepting(bench: Bench) -> None:
    """An accept that waits when its receiver is closed ends at once."""
    receiver = await bench.receiver(auto_accept=False)
    async with running(receiver.accept, None, bench.environment.patience) as waiting:
        await receiver.aclose()
        with trio.move_on_after(bench.environment.tolerance):
            await waiting.done.wait()
        expect(waiting.done.is_set(), "accept still waits after its receiver was closed")
        expect_closed(waiting.error, "an accept whose receiver is closed")


@case()
async def closed_although_cancelled(bench: Bench) -> None:
    """``aclose`` in a cancelled scope closes all the same: what was held is free at once."""
    receiver, other = await bench.two_receivers()
    await bench.send(*bench.messages(2, bench.session))
    await bench.receive(receiver, 2)
    with trio.CancelScope() as scope:
        scope.cancel()
        await receiver.aclose()
    expect_closed(await raised_by(receiver.receive(1, 0.0)), "receive after a cancelled close")
    deliveries = await bench.receive(other, 2, within=bench.environment.tolerance)
    await bench.complete(other, deliveries)
    provider = await bench.connect()
    holder = await bench.receiver(provider)
    await bench.send(*bench.messages(1, bench.session, first=3))
    await other.release([deliveries[0].lease])
    await bench.receive(holder, 1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await provider.aclose()
    [third] = await bench.receive(other, 1, within=bench.environment.tolerance)
    expect_equal(third.body, b"3", "what a provider closed while cancelled had held")
    await bench.complete(other, third)


@case()
async def closing_restores_counts(bench: Bench) -> None:
    """Closing gives unsettled messages back, uncounted where that is possible."""
    await bench.send(*bench.messages(1, bench.session))
    probe = await bench.receiver()
    times = 3
    if not bench.capabilities.release_restores_count and probe.max_delivery_count is not None:
        times = min(times, probe.max_delivery_count - 1)
    for closes in range(times):
        receiver = await bench.receiver()
        [delivery] = await bench.receive(receiver, 1)
        if bench.capabilities.release_restores_count:
            expect_equal(delivery.delivery_count, 1, f"the count after {closes} closes")
        await receiver.aclose()
    last = await bench.receiver()
    await bench.complete(last, await bench.receive(last, 1))


@case()
async def closed_while_settling(bench: Bench) -> None:
    """A settlement that meets a close is applied or not; afterwards the message is gone or delivered again."""
    for number in range(1, 9):
        receiver = await bench.receiver()
        await bench.send(*bench.messages(1, bench.session, first=number))
        [delivery] = await bench.receive(receiver, 1)
        settling = Outcome()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                settling.run, receiver.settle, [Settlement(delivery, SettlementAction.COMPLETE)]
            )
            await trio.sleep(0.0003 * number)
            with trio.fail_after(bench.environment.patience):
                await receiver.aclose()
                await settling.done.wait()
        confirmed = settling.error is None and settling.value == [None]
        if settling.error is not None:
            kinds = (trio.ClosedResourceError, QueueError)
            expect(isinstance(settling.error, kinds), f"settle raised {settling.error!r}")
        other = await bench.receiver()
        again = await other.receive(1, 0.15)
        # What is given back late may come in the next turn.
        is_back = delivery.message_id in {each.message_id for each in again}
        expect(not (confirmed and is_back), "a confirmed completion was delivered again")
        await bench.complete(other, again)
        await other.aclose()


@final
class _Traffic:
    """Senders and consumers that go on until their provider is closed."""

    def __init__(self) -> None:
        self.acknowledged: set[str] = set()
        self.attempted: set[str] = set()
        self.completed: set[str] = set()
        self.under_way = trio.Event()

    async def send(self, sender: Sender, name: str, session: str | None) -> None:
        for number in count():
            identity = f"{name}:{number}"
            [result] = await sender.send([Message(identity.encode(), session_id=session)])
            if result.error is None:
                self.acknowledged.add(identity)
            if len(self.acknowledged) == 40:
                self.under_way.set()

    async def consume(self, receiver: Receiver) -> None:
        while True:
            deliveries = await receiver.receive(5, 1.0)
            self.attempted.update(bodies(deliveries))
            settlements = [Settlement(d, SettlementAction.COMPLETE) for d in deliveries]
            for delivery, error in zip(deliveries, await receiver.settle(settlements), strict=True):
                if error is None:
                    self.completed.update(bodies([delivery]))


@case()
async def closed_in_the_middle_of_everything(bench: Bench) -> None:
    """A provider closed while others send, receive and settle: all calls end, nothing acknowledged is lost."""
    provider = await bench.connect()
    traffic = _Traffic()
    outcomes = [Outcome() for _ in range(7)]
    sender = await bench.sender(provider)
    receivers = [await bench.receiver(provider) for _ in range(3)]
    with trio.fail_after(bench.environment.patience):
        async with trio.open_nursery() as nursery:
            for number, outcome in enumerate(outcomes):
                if number < 3:
                    nursery.start_soon(outcome.run, traffic.consume, receivers[number])
                else:
                    name = f"sender-{number}"
                    session = name if bench.capabilities.sessions else None
                    nursery.start_soon(outcome.run, traffic.send, sender, name, session)
            await traffic.under_way.wait()
            await provider.aclose()
    for outcome in outcomes:
        kinds = (trio.ClosedResourceError, QueueError)
        expect(isinstance(outcome.error, kinds), f"a call that met the close: {outcome.error!r}")
    rest = await bench.receiver()
    left = set(bodies(await bench.drain(rest, 0.3)))
    # A completion whose confirmation met the close may have been applied: then its message is rightly gone.
    lost = traffic.acknowledged - traffic.attempted - left
    expect(not lost, f"{len(lost)} acknowledged messages are gone: {sorted(lost)[:10]}")
    again = sorted(traffic.completed & left)
    expect_equal(again, [], "messages delivered again after a confirmed completion")
