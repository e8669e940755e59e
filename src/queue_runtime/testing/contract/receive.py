"""Waiting for messages: in time, at once, and cancelled without a loss."""

from __future__ import annotations

import trio

from ...messages import Delivery, Message
from .bench import Bench, bodies, expect, expect_equal, running, skip
from .core import case

TRIES = 3
"""Calls that may come late before the receiver is held to be slow, and not the machine."""


@case(waits=True)
async def empty_at_the_timeout(bench: Bench) -> None:
    """Receiving from an empty queue returns nothing, at the timeout and not long after it."""
    receiver = await bench.receiver()
    await receiver.receive(1, 0.0)  # a first call may have to set things up
    for timeout in (0.0, 0.05, 0.7):
        late = float("inf")
        limit = bench.environment.empty_tolerance
        for _ in range(TRIES):
            began = trio.current_time()
            deliveries = await receiver.receive(10, timeout)
            took = trio.current_time() - began
            expect_equal(deliveries, [], "deliveries from an empty queue")
            expect(took >= timeout - 0.01, f"receive gave up after {took:.3f} s of {timeout} s")
            late = min(late, took - timeout)
            if late <= limit:
                break
        expect(
            late <= limit, f"receive returned {late:.3f} s after its timeout, allowed are {limit} s"
        )


@case()
async def looks_once_without_a_timeout(bench: Bench) -> None:
    """``timeout=0`` returns what is there."""
    await bench.send(*bench.messages(1, bench.session))
    receiver = await bench.receiver()
    deliveries: list[Delivery] = []
    with trio.move_on_after(bench.environment.tolerance):
        while not (deliveries := await receiver.receive(1, 0.0)):  # noqa: ASYNC110  # the case
            await trio.sleep(0.01)
    expect_equal(bodies(deliveries), ["1"], "a look at a queue with a message")
    await bench.complete(receiver, deliveries)


@case()
async def returns_as_soon_as_there_is_something(bench: Bench) -> None:
    """A waiting receiver gets a message when it is sent, not at its timeout, and does not wait for more."""
    receiver = await bench.receiver()
    sender = await bench.sender(await bench.connect())
    for number in (1, 2, 3):
        async with running(receiver.receive, 10, bench.environment.patience) as waiting:
            await sender.send(bench.messages(1, bench.session, first=number))
            sent = trio.current_time()
            deliveries = await waiting.result()
            took = waiting.at - sent
        expect_equal(bodies(deliveries), [str(number)], "what the waiting receiver got")
        limit = bench.environment.tolerance
        expect(
            took <= limit, f"the message came {took:.3f} s after it was sent, allowed are {limit} s"
        )
        await bench.complete(receiver, deliveries)


@case()
async def several_wait_and_all_are_served(bench: Bench) -> None:
    """Five waiting receivers and five messages: each message wakes somebody, none sleeps on."""
    can = bench.capabilities
    sender = await bench.sender()
    got: list[str] = []
    done = trio.Event()

    async def consume() -> None:
        receiver = await bench.receiver(max_sessions=1)
        while not done.is_set():
            deliveries = await receiver.receive(1, bench.environment.patience)
            await bench.finish(receiver, deliveries)
            got.extend(bodies(deliveries))
            if len(got) == 5:
                done.set()

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(consume)
        await trio.sleep(0.05)
        for number in range(1, 6):
            session = f"session-{number}" if can.sessions else None
            await sender.send(bench.messages(1, session, first=number))
        with trio.fail_after(bench.environment.patience):
            await done.wait()
        nursery.cancel_scope.cancel()
    expect_equal(sorted(got), ["1", "2", "3", "4", "5"], "messages that woke a receiver")


@case()
async def at_most_so_many(bench: Bench) -> None:
    """``max_messages`` is a limit, however many are there."""
    await bench.send(*bench.messages(20, bench.session))
    receiver = await bench.receiver()
    got = 0
    while got < 20:
        limit = min(3, 20 - got)
        deliveries = await receiver.receive(limit, bench.environment.patience)
        expect(0 < len(deliveries) <= limit, f"asked for {limit}, got {len(deliveries)}")
        got += len(deliveries)
        await bench.complete(receiver, deliveries)


@case()
async def more_is_asked_for_than_a_call_brings(bench: Bench) -> None:
    """However much is asked for: a call returns no more than is declared, and the next calls the rest."""
    count = 25
    for number in range(1, count + 1):
        session = f"session-{number}" if bench.capabilities.sessions else None
        await bench.send(*bench.messages(1, session, first=number))
    receiver = await bench.receiver()
    most = bench.capabilities.max_receive_messages or count
    got: list[Delivery] = []
    while len(got) < count:
        deliveries = await receiver.receive(1_000, bench.environment.patience)
        expect(0 < len(deliveries) <= most, f"a call brought {len(deliveries)}, not up to {most}")
        got += deliveries
    expect_equal(sorted(bodies(got), key=int), [str(n) for n in range(1, count + 1)], "all of them")
    await bench.complete(receiver, got)


@case("sessions")
async def calls_side_by_side(bench: Bench) -> None:
    """Where calls overlap, no call brings more of a session while another's of it is unsettled."""
    calls = bench.capabilities.max_concurrent_receives
    if calls == 1:
        skip("calls do not overlap: max_concurrent_receives is 1")
    sessions, each = 6, 12
    for number in range(1, each + 1):
        await bench.send(
            *[bench.messages(1, f"s{which}", first=number)[0] for which in range(sessions)]
        )
    receiver = await bench.receiver()
    unsettled: set[str | None] = set()
    got: dict[str | None, list[str]] = {f"s{which}": [] for which in range(sessions)}
    left = sessions * each
    done = trio.Event()

    async def consume() -> None:
        nonlocal left
        while True:
            deliveries = await receiver.receive(5, bench.environment.patience)
            for session in {delivery.session_id for delivery in deliveries}:
                expect(session not in unsettled, f"{session} came while an earlier call's was open")
                of_session = [each for each in deliveries if each.session_id == session]
                unsettled.add(session)
                got[session] += bodies(of_session)
            await trio.sleep(0.002)
            # Before they are settled: from then on another call may bring the next ones.
            unsettled.difference_update(delivery.session_id for delivery in deliveries)
            await bench.finish(receiver, deliveries)
            left -= len(deliveries)
            if not left:
                done.set()

    async with trio.open_nursery() as nursery:
        for _ in range(min(calls, 8)):
            nursery.start_soon(consume)
        with trio.fail_after(bench.environment.patience):
            await done.wait()
        nursery.cancel_scope.cancel()
    for session, order in got.items():
        expect_equal(order, [str(n) for n in range(1, each + 1)], f"the order of {session}")


@case()
async def settling_while_another_task_waits(bench: Bench) -> None:
    """A settlement goes through while a receive of the same receiver waits."""
    await bench.send(*bench.messages(1, bench.session))
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    async with running(receiver.receive, 10, bench.environment.patience) as waiting:
        with trio.fail_after(bench.environment.tolerance):
            await bench.complete(receiver, delivery)
        expect(not waiting.done.is_set(), "the waiting receive ended with nothing to receive")
        await bench.send(*bench.messages(1, bench.session, first=2))
        [second] = await waiting.result()
    expect_equal(second.body, b"2", "what the waiting receive got in the end")
    await bench.complete(receiver, second)


@case()
async def a_cancelled_call_does_nothing(bench: Bench) -> None:
    """Calls made in a cancelled scope are cancelled; a message that waits stays where it is."""
    await bench.send(*bench.messages(1, bench.session))
    receiver, sender = await bench.receiver(), await bench.sender()
    with trio.CancelScope() as scope:
        scope.cancel()
        await receiver.receive(1, bench.environment.patience)
    expect(scope.cancelled_caught, "receive is not a checkpoint: it returned in a cancelled scope")
    with trio.CancelScope() as scope:
        scope.cancel()
        await sender.send([])
    expect(scope.cancelled_caught, "send is not a checkpoint: it returned in a cancelled scope")
    [delivery] = await bench.receive(receiver, 1, within=bench.environment.tolerance)
    expect_first_delivery(bench, delivery.delivery_count)
    await bench.complete(receiver, delivery)


@case()
async def cancelled_while_waiting(bench: Bench) -> None:
    """A receive cancelled while it waits leaves nothing claimed: the next message reaches another receiver."""
    receiver, other = await bench.two_receivers()
    for number in range(1, 6):
        with trio.move_on_after(0.05):
            await receiver.receive(1, bench.environment.patience)
        await bench.send(*bench.messages(1, bench.session, first=number))
        [delivery] = await bench.receive(other, 1, within=bench.environment.tolerance)
        expect_equal(delivery.body, str(number).encode(), "the message sent after the cancellation")
        await bench.finish(other, delivery)


@case()
async def cancelled_at_any_moment(bench: Bench) -> None:
    """Receives cancelled at many different moments, beside sends: every message is delivered, none stays locked."""
    receiver, other = await bench.two_receivers()
    sender = await bench.sender()
    got: list[str] = []
    rounds = 40
    for number in range(1, rounds + 1):
        session = f"session-{number}" if bench.capabilities.sessions else None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send, bench.messages(1, session, first=number))
            with trio.move_on_after(0.0005 * (number % 20)):
                deliveries = await receiver.receive(10, bench.environment.patience)
                with trio.CancelScope(shield=True):
                    await bench.finish(receiver, deliveries)
                    got.extend(bodies(deliveries))
    # At once: what a cancelled call had claimed must not have to wait for its lock to expire.
    rest = await bench.receive(other, rounds - len(got), within=bench.environment.tolerance)
    await bench.complete(other, rest)
    got.extend(bodies(rest))
    expect_equal(sorted(got, key=int), [str(n) for n in range(1, rounds + 1)], "all messages")
    for delivery in rest:
        expect_first_delivery(bench, delivery.delivery_count)


@case("sessions")
async def cancelled_keeps_the_order(bench: Bench) -> None:
    """Receives of one session cancelled at many moments: what is delivered stays in order without gaps."""
    receiver = await bench.receiver()
    await bench.send(*bench.messages(60, "session"))
    got: list[str] = []
    turn = in_vain = 0
    while len(got) < 60:
        turn += 1
        expect(turn < 2_000, "cancelled receives make no progress")
        deliveries = []
        # Later and later while nothing comes: a busy machine may need longer for any.
        with trio.move_on_after(0.0005 * (turn % 20) * (1 + in_vain // 20)):
            deliveries = await receiver.receive(5, bench.environment.patience)
        in_vain = 0 if deliveries else in_vain + 1
        await bench.finish(receiver, deliveries)
        got.extend(bodies(deliveries))
    expect_equal(got, [str(number) for number in range(1, 61)], "the order under cancellation")


@case()
async def a_wait_survives_the_wrong_wake_ups(bench: Bench) -> None:
    """A receiver that waits on one queue is not disturbed by traffic that is not for it."""
    receiver = await bench.receiver()
    noise = await bench.sender(queue=bench.environment.queue_name())
    async with running(receiver.receive, 1, bench.environment.patience) as waiting:
        for _ in range(20):
            await noise.send([Message(b"noise", session_id=bench.session)])
        expect(not waiting.done.is_set(), "a receive ended because of another queue's messages")
        await bench.send(*bench.messages(1, bench.session))
        [delivery] = await waiting.result()
    await bench.complete(receiver, delivery)


@case()
async def an_emptied_queue(bench: Bench) -> None:
    """A queue that was emptied is like one that never had a message."""
    receiver = await bench.receiver()
    await bench.send(*bench.messages(3, bench.session))
    await bench.complete(receiver, await bench.receive(receiver, 3))
    await bench.expect_nothing(receiver, 0.0, "everything was completed")


def expect_first_delivery(bench: Bench, count: int) -> None:
    """A delivery nobody got is not counted, where the broker can take it back."""
    if bench.capabilities.release_restores_count:
        expect_equal(count, 1, "the delivery count after a delivery that nobody got")
