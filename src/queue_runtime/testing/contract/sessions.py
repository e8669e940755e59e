"""Sessions: one holder at a time, taken over in good order, by turns, with state."""

from __future__ import annotations

import trio

from ...abc import Receiver
from ...errors import InvalidReceipt, LockLost, SessionLocked
from ...messages import Delivery, Message, SessionId, SettlementAction
from .bench import (
    Bench,
    bodies,
    expect,
    expect_equal,
    expect_refused,
    expect_unsupported,
    raised_by,
    running,
)
from .core import case, unsupported_case

NAME = SessionId("session")


@unsupported_case("sessions")
async def without_sessions(bench: Bench) -> None:
    """Where sessions are not declared, sending to one and accepting one raise ``Unsupported``."""
    sender, receiver = await bench.sender(), await bench.receiver()
    await expect_unsupported("sessions", sender.send([Message(b"", session_id=NAME)]))
    await expect_unsupported("sessions", receiver.accept(None, 0.0))
    await expect_unsupported("sessions", receiver.accept(NAME, 0.0))


@unsupported_case("accept_by_name", "sessions")
async def without_accept_by_name(bench: Bench) -> None:
    """Where it is not declared, accepting a session by its id raises ``Unsupported``."""
    receiver = await bench.receiver(auto_accept=False)
    await expect_unsupported("accept_by_name", receiver.accept(NAME, 0.0))


@unsupported_case("session_state", "sessions")
async def without_state(bench: Bench) -> None:
    """Where session state is not declared, reading and writing it raise ``Unsupported``."""
    await bench.send(*bench.messages(1, "session"))
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    await expect_unsupported("session_state", receiver.get_state(delivery.lease))
    await expect_unsupported("session_state", receiver.set_state(delivery.lease, b"state"))


@case("sessions")
async def one_holder_at_a_time(bench: Bench) -> None:
    """While a receiver holds a session, no other gets its messages, from whatever connection; other sessions flow."""
    receiver, other = await bench.two_receivers()
    neighbour = await bench.receiver()
    await bench.send(*bench.messages(3, "held"))
    first, second = await bench.receive(receiver, 2)
    for stranger in (other, neighbour):
        await bench.expect_nothing(stranger, 0.15, "the session is held by another")
    await bench.send(*bench.messages(1, "free"))
    [free] = await bench.receive(other, 1)
    expect_equal(free.session_id, "free", "the session of what the other receiver got")
    await bench.complete(receiver, first)
    await bench.expect_nothing(other, 0.15, "one of the session's messages is still unsettled")
    await bench.complete(receiver, second)
    [third] = await bench.receive(receiver, 1)
    expect_equal(third.body, b"3", "the rest of the session")
    await bench.complete(receiver, third)
    await bench.complete(other, free)


@case("sessions", "keeps_empty_sessions")
async def held_although_empty(bench: Bench) -> None:
    """A session stays with its holder while nothing of it is unsettled, and what comes next is its holder's."""
    receiver, other = await bench.two_receivers()
    await bench.send(*bench.messages(2, "held"))
    [first] = await bench.receive(receiver, 1)
    [second] = await bench.receive(receiver, 1)
    await bench.complete(receiver, [first, second])
    await bench.send(*bench.messages(1, "held", first=3))
    await bench.expect_nothing(
        other, 0.15, "the session is held although nothing of it is unsettled"
    )
    [third] = await bench.receive(receiver, 1)
    await bench.complete(receiver, third)


@unsupported_case("keeps_empty_sessions", "sessions")
async def without_empty_sessions(bench: Bench) -> None:
    """Where no empty session is kept a lease ends with its last delivery: anybody gets the session, under a new one."""
    receiver, other = await bench.two_receivers()
    await bench.send(*bench.messages(2, "session"))
    held = await bench.receive(receiver, 2)
    lease = held[0].lease
    expect(held[1].lease is lease, "what one call brought of a session has more than one lease")
    await bench.send(*bench.messages(2, "session", first=3))
    await bench.complete(receiver, held[0])
    await bench.expect_nothing(other, 0.15, "one of the lease's deliveries is unsettled")
    async with running(other.receive, 10, bench.environment.patience) as waiting:
        settled = trio.current_time()
        await bench.complete(receiver, held[1])
        deliveries = await waiting.result()
        took = waiting.at - settled
    limit = bench.environment.tolerance
    expect(took <= limit, f"the end of the lease was noticed after {took:.3f} s of {limit} s")
    deliveries += await bench.receive(other, 2 - len(deliveries)) if len(deliveries) < 2 else []
    expect_equal(bodies(deliveries), ["3", "4"], "what the next holder got")
    expect(deliveries[0].lease.token > lease.token, "the next lease's token is not higher")
    for action in SettlementAction:
        if action is SettlementAction.DEAD_LETTER and not bench.capabilities.dead_letters:
            continue
        error = await bench.try_settle(receiver, held[1], action)
        expect_refused(error, (InvalidReceipt, LockLost), f"{action.value} under an ended lease")
    if bench.capabilities.lock_renewal:
        error = await bench.renew(receiver, lease)
        expect_refused(error, LockLost, "renewing an ended lease")
    await receiver.release([lease])
    await bench.expect_nothing(receiver, 0.15, "releasing an ended lease freed the next one")
    await bench.complete(other, deliveries)
    await bench.send(*bench.messages(1, "session", first=5))
    [fifth] = await bench.receive(receiver, 1)
    expect(fifth.lease is not lease, "a lease that ended came back")
    expect(fifth.lease.token > deliveries[0].lease.token, "its token is not higher")
    await bench.complete(receiver, fifth)


@case("sessions", "keeps_empty_sessions")
async def a_lease_is_kept(bench: Bench) -> None:
    """Deliveries of a held session come under the same lease until it is released."""
    receiver = await bench.receiver()
    await bench.send(*bench.messages(4, "session"))
    first = await bench.receive(receiver, 2)
    await bench.complete(receiver, first)
    second = await bench.receive(receiver, 2)
    leases = {id(delivery.lease) for delivery in (*first, *second)}
    expect_equal(len(leases), 1, "different lease objects of one held session")
    await bench.complete(receiver, second)
    await receiver.release([first[0].lease])
    await bench.send(*bench.messages(1, "session", first=5))
    [third] = await bench.receive(receiver, 1)
    expect(third.lease is not first[0].lease, "a released lease came back")
    await bench.complete(receiver, third)


@case("sessions")
async def tokens_only_grow(bench: Bench) -> None:
    """Every new lease of a session has a higher fencing token, also when the session was empty in between."""
    receiver, other = await bench.two_receivers()
    tokens: list[int] = []
    for number in range(1, 7):
        await bench.send(*bench.messages(1, "session", first=number))
        holder = receiver if number % 2 else other
        [delivery] = await bench.receive(holder, 1)
        tokens.append(delivery.lease.token)
        await bench.finish(holder, delivery)
    expect_equal(tokens, sorted(set(tokens)), "the fencing tokens of successive leases, growing")


@case("sessions")
async def released_to_whoever_waits(bench: Bench) -> None:
    """Releasing a lease returns its messages in order and wakes a waiting receiver."""
    receiver, other = await bench.two_receivers()
    await bench.send(*bench.messages(4, "session"))
    held = await bench.receive(receiver, 3)
    await bench.complete(receiver, held[0])
    async with running(other.receive, 10, bench.environment.patience) as waiting:
        await receiver.release([held[0].lease])
        released = trio.current_time()
        deliveries = await waiting.result()
        took = waiting.at - released
    expect(took <= bench.environment.tolerance, f"the release was noticed after {took:.3f} s")
    deliveries += await bench.receive(other, 3 - len(deliveries)) if len(deliveries) < 3 else []
    expect_equal(bodies(deliveries), ["2", "3", "4"], "what the next holder got")
    expect(deliveries[0].lease.token > held[0].lease.token, "the next holder's token is not higher")
    if bench.capabilities.release_restores_count:
        counts = [delivery.delivery_count for delivery in deliveries]
        expect_equal(counts, [1, 1, 1], "delivery counts after a release")
    await bench.complete(other, deliveries)


@case("sessions")
async def releasing_twice(bench: Bench) -> None:
    """Releasing a lease that is over does nothing, least of all to the next holder."""
    receiver, other = await bench.two_receivers()
    await bench.send(*bench.messages(1, "session"))
    [stale] = await bench.receive(receiver, 1)
    await receiver.release([stale.lease])
    await receiver.release([stale.lease, stale.lease])
    [fresh] = await bench.receive(other, 1)
    await receiver.release([stale.lease])
    await bench.complete(other, fresh)


@case("sessions")
async def closing_gives_back_at_once(bench: Bench) -> None:
    """A closed receiver's sessions are available to others at once, in order."""
    receiver, other = await bench.two_receivers()
    await bench.send(*bench.messages(3, "session"))
    await bench.receive(receiver, 2)
    async with running(other.receive, 10, bench.environment.patience) as waiting:
        await receiver.aclose()
        closed = trio.current_time()
        deliveries = await waiting.result()
        took = waiting.at - closed
    expect(took <= bench.environment.tolerance, f"the close was noticed after {took:.3f} s")
    deliveries += await bench.receive(other, 3 - len(deliveries)) if len(deliveries) < 3 else []
    expect_equal(bodies(deliveries), ["1", "2", "3"], "what the next holder got")
    await bench.complete(other, deliveries)


@case()
async def without_a_session_each_has_its_own_lease(bench: Bench) -> None:
    """Messages without a session are locked one by one and may go to different receivers."""
    receiver, other = await bench.two_receivers()
    await bench.send(*bench.messages(4))
    mine = await bench.receive(receiver, 2)
    theirs = await bench.receive(other, 2)
    leases = {id(delivery.lease) for delivery in (*mine, *theirs)}
    expect_equal(len(leases), 4, "leases of four messages without a session")
    expect_equal(
        sorted(bodies([*mine, *theirs])), ["1", "2", "3", "4"], "what the two receivers got"
    )
    expect(mine[0].lease.session_id is None, "the lease of a lone message names a session")
    await bench.complete(receiver, mine[0])
    await receiver.release([mine[1].lease])
    [back] = await bench.receive(other, 1, within=bench.environment.tolerance)
    expect_equal(back.body, mine[1].body, "the message whose lease was released")
    await bench.complete(other, [*theirs, back])


@case("sessions", "accept_by_name")
async def accepted_by_name(bench: Bench) -> None:
    """A session can be locked by its id, existing or not, and then only it is read."""
    await bench.send(*bench.messages(2, "wanted"), *bench.messages(1, "other"))
    receiver = await bench.receiver(auto_accept=False)
    lease = await receiver.accept(SessionId("wanted"), bench.environment.patience)
    if lease is None:
        raise AssertionError("accept by name returned None")
    expect_equal(lease.session_id, "wanted", "the session of the lease")
    deliveries = await bench.receive(receiver, 2)
    expect_equal({id(d.lease) for d in deliveries}, {id(lease)}, "the leases of the deliveries")
    await bench.complete(receiver, deliveries)
    await bench.expect_nothing(receiver, 0.1, "the other session was not accepted")
    unborn = await receiver.accept(SessionId("unborn"), bench.environment.patience)
    expect(unborn is not None, "accepting a session without messages returned None")
    await bench.send(*bench.messages(1, "unborn"))
    [delivery] = await bench.receive(receiver, 1)
    expect(delivery.lease is unborn, "the message came under another lease")
    await bench.complete(receiver, delivery)


@case("sessions", "accept_by_name")
async def locked_means_locked(bench: Bench) -> None:
    """Accepting a session that is held raises ``SessionLocked``; after its release it can be had."""
    receiver, other = await bench.two_receivers(auto_accept=False)
    lease = await receiver.accept(NAME, bench.environment.patience)
    if lease is None:
        raise AssertionError("accept by name returned None")
    for who in (other, receiver):
        error = await raised_by(who.accept(NAME, 0.2))
        expect(isinstance(error, SessionLocked), f"expected SessionLocked, got {error!r}")
    await bench.send(*bench.messages(1, "session"))
    taker = await bench.receiver()
    await bench.expect_nothing(taker, 0.1, "the session was accepted by another")
    await receiver.release([lease])
    again = await other.accept(NAME, bench.environment.patience)
    if again is None:
        raise AssertionError("accept by name returned None")
    expect(again.token > lease.token, "the next holder's token is not higher")
    [delivery] = await bench.receive(other, 1)
    await bench.complete(other, delivery)


@case("sessions")
async def accepted_next(bench: Bench) -> None:
    """The next session with messages can be locked: each only once, and none if there is none."""
    receiver, other = await bench.two_receivers(auto_accept=False)
    began = trio.current_time()
    expect_equal(await receiver.accept(None, 0.2), None, "the next session of an empty queue")
    took = trio.current_time() - began
    expect(took >= 0.19, f"accept gave up after {took:.3f} s of 0.2 s")
    await bench.send(*bench.messages(1, "a"), *bench.messages(1, "b"))
    one = await receiver.accept(None, bench.environment.patience)
    two = await other.accept(None, bench.environment.patience)
    if one is None or two is None:
        raise AssertionError("there are two sessions with messages, and accept returned None")
    expect_equal({one.session_id, two.session_id}, {"a", "b"}, "the sessions accepted")
    expect_equal(await receiver.accept(None, 0.1), None, "the next session when all are held")
    for holder, lease in ((receiver, one), (other, two)):
        [delivery] = await bench.receive(holder, 1)
        expect(delivery.lease is lease, "the message came under another lease")
        await bench.complete(holder, delivery)


@case("sessions")
async def accepting_waits(bench: Bench) -> None:
    """Accepting the next session waits until one has a message; cancelled it holds nothing."""
    receiver, other = await bench.two_receivers(auto_accept=False)
    with trio.move_on_after(0.05) as scope:
        await other.accept(None, bench.environment.patience)
    expect(scope.cancelled_caught, "accept returned although there is no session")
    async with running(receiver.accept, None, bench.environment.patience) as waiting:
        await bench.send(*bench.messages(1, "session"))
        sent = trio.current_time()
        lease = await waiting.result()
        took = waiting.at - sent
    expect(took <= bench.environment.tolerance, f"the session was noticed after {took:.3f} s")
    expect_equal(lease.session_id, "session", "the session accepted")
    [delivery] = await bench.receive(receiver, 1)
    await bench.complete(receiver, delivery)


@case("sessions")
async def nothing_is_accepted_unasked(bench: Bench) -> None:
    """With ``auto_accept=False`` nothing is received before a session was accepted."""
    receiver = await bench.receiver(auto_accept=False)
    # Accepting may bring one message and no more than that, which a lease that ends with it has no time for.
    count = 2 if bench.capabilities.keeps_empty_sessions else 1
    await bench.send(*bench.messages(count, "session"))
    await bench.expect_nothing(receiver, 0.15, "no session was accepted")
    lease = await receiver.accept(None, bench.environment.patience)
    expect(lease is not None, "there is a session, and accept returned None")
    await bench.complete(receiver, await bench.receive(receiver, count))


@case("sessions")
async def at_most_so_many_sessions(bench: Bench) -> None:
    """``max_sessions`` is kept; a released session makes room for another."""
    receiver = await bench.receiver(max_sessions=2)
    for name in ("a", "b", "c"):
        await bench.send(*bench.messages(2, name))
    deliveries: list[Delivery] = []
    until = trio.current_time() + bench.environment.patience
    while len({delivery.session_id for delivery in deliveries}) < 2:
        left = until - trio.current_time()
        expect(left > 0, f"only {_short_sessions(deliveries)} came: there is room for two sessions")
        deliveries += await receiver.receive(4, left)
    while more := await receiver.receive(
        4, 0.15
    ):  # of the same two sessions, if a call brought only a part
        deliveries += more
    held = {delivery.session_id for delivery in deliveries}
    expect_equal(len(held), 2, "sessions held")
    if bench.capabilities.keeps_empty_sessions:
        expect_equal(len(deliveries), 4, "what two sessions hold")
        await bench.complete(receiver, deliveries)
        await bench.expect_nothing(receiver, 0.15, "held sessions count although they are empty")
        await receiver.release([deliveries[0].lease])
    else:
        await bench.complete(receiver, deliveries)
    rest = await bench.gather(receiver, 6 - len(deliveries))
    for name in ("a", "b", "c"):
        got = bodies(each for each in (*deliveries, *rest) if each.session_id == name)
        expect_equal(got, ["1", "2"], f"what came of session {name}")


def _short_sessions(deliveries: list[Delivery]) -> str:
    return ", ".join(sorted({str(delivery.session_id) for delivery in deliveries})) or "nothing"


@case("sessions")
async def at_most_so_many_of_a_session(bench: Bench) -> None:
    """``max_per_session`` unsettled deliveries, not more; settling makes room, for what is next in order."""
    receiver = await bench.receiver(max_per_session=2)
    await bench.send(*bench.messages(5, "session"))
    first = await bench.receive(receiver, 2)
    expect_equal(bodies(first), ["1", "2"], "the first two")
    await bench.expect_nothing(receiver, 0.15, "two of the session are unsettled")
    await bench.complete(receiver, first[0])
    if bench.capabilities.keeps_empty_sessions:
        [third] = await receiver.receive(10, bench.environment.patience)
        expect_equal(third.body, b"3", "the one that there was room for")
        await bench.complete(receiver, [first[1], third])
    else:
        await bench.complete(receiver, first[1])
        [third] = await bench.receive(receiver, 1)
        expect_equal(third.body, b"3", "the next one")
        await bench.complete(receiver, third)
    rest = await bench.receive(receiver, 2)
    expect_equal(bodies(rest), ["4", "5"], "the rest")
    await bench.complete(receiver, rest)


@case("sessions")
async def sessions_take_turns(bench: Bench) -> None:
    """A session with many messages does not keep the others waiting for its end."""
    hot, cold = 200, 10
    await bench.send(*bench.messages(hot, "hot"))
    for number in range(cold):
        await bench.send(*bench.messages(1, f"cold-{number}"))
    receiver = await bench.receiver()
    if not bench.capabilities.keeps_empty_sessions:
        await _take_turns_with_one_that_is_held(bench, receiver, hot, cold)
        return
    served_at: dict[str, int] = {}
    served = 0
    while served < hot + cold:
        deliveries = await receiver.receive(10, bench.environment.patience)
        expect(bool(deliveries), f"only {served} of {hot + cold} messages were delivered")
        await bench.complete(receiver, deliveries)
        for delivery in deliveries:
            served += 1
            served_at.setdefault(str(delivery.session_id), served)
    late = max(position for name, position in served_at.items() if name != "hot")
    expect(
        late <= hot // 2,
        f"a session with one message had to wait for {late} messages of {hot} of the hot one",
    )


async def _take_turns_with_one_that_is_held(
    bench: Bench, receiver: Receiver, hot: int, cold: int
) -> None:
    """Where a lease ends with its last delivery the long session may be the next again, but not while it is held."""
    received: list[Delivery] = []
    until = trio.current_time() + bench.environment.patience
    while sum(delivery.session_id != "hot" for delivery in received) < cold:
        left = until - trio.current_time()
        expect(left > 0, "the sessions with one message do not come beside the hot one")
        received += await receiver.receive(10, left)
    await bench.complete(receiver, received)
    rest = await bench.gather(receiver, hot + cold - len(received))
    got = bodies(delivery for delivery in (*received, *rest) if delivery.session_id == "hot")
    expect_equal(got, [str(number) for number in range(1, hot + 1)], "the order of the hot session")


@case("sessions", "session_state")
async def state_is_kept(bench: Bench) -> None:
    """Session state: absent at first, kept over releases and empty sessions, cleared by ``None``."""
    receiver, other = await bench.two_receivers()
    state = bytes(range(256)) * 4

    for number, (holder, expected, new) in enumerate(
        [
            (receiver, None, state),
            (other, state, b""),
            (receiver, b"", None),
            (other, None, None),
        ],
        start=1,
    ):
        await bench.send(*bench.messages(1, "session", first=number))
        [delivery] = await bench.receive(holder, 1)
        found = await holder.get_state(delivery.lease)
        expect_equal(found, expected, f"the state found by holder {number}")
        await holder.set_state(delivery.lease, new)
        expect_equal(await holder.get_state(delivery.lease), new, "the state just set")
        await bench.complete(holder, delivery)
        if bench.capabilities.keeps_empty_sessions:
            found = await holder.get_state(delivery.lease)
            expect_equal(found, new, "the state of an empty session")
        await holder.release([delivery.lease])


@case("sessions", "session_state")
async def state_is_per_session(bench: Bench) -> None:
    """Each session has a state of its own."""
    receiver = await bench.receiver()
    await bench.send(*bench.messages(1, "a"), *bench.messages(1, "b"))
    deliveries = await bench.receive(receiver, 2)
    for delivery in deliveries:
        await receiver.set_state(delivery.lease, str(delivery.session_id).encode())
    for delivery in deliveries:
        found = await receiver.get_state(delivery.lease)
        expect_equal(found, str(delivery.session_id).encode(), f"state of {delivery.session_id}")
    await bench.complete(receiver, deliveries)


@case("sessions", "session_state")
async def state_is_fenced(bench: Bench) -> None:
    """Who does not hold the session can neither read nor write its state."""
    receiver, other = await bench.two_receivers()
    await bench.send(*bench.messages(1, "session"))
    [stale] = await bench.receive(receiver, 1)
    await receiver.set_state(stale.lease, b"first")
    await receiver.release([stale.lease])

    async def expect_fenced(when: str) -> None:
        for call in (receiver.get_state(stale.lease), receiver.set_state(stale.lease, b"stale")):
            error = await raised_by(call)
            expect(isinstance(error, LockLost), f"state {when}: expected LockLost, got {error!r}")

    await expect_fenced("after the release")
    [fresh] = await bench.receive(other, 1)
    await expect_fenced("after the takeover")
    expect_equal(await other.get_state(fresh.lease), b"first", "the state after refused writes")
    await bench.complete(other, fresh)


@case("sessions", "session_state", "durable")
async def state_survives_reconnecting(bench: Bench) -> None:
    """Session state is still there for a new connection after the one that set it was closed."""
    provider = await bench.connect()
    await bench.send(*bench.messages(1, "session"))
    receiver = await bench.receiver(provider)
    [delivery] = await bench.receive(receiver, 1)
    await receiver.set_state(delivery.lease, b"kept")
    await bench.complete(receiver, delivery)
    await provider.aclose()
    await bench.send(*bench.messages(1, "session", first=2))
    again = await bench.receiver(await bench.connect())
    [delivery] = await bench.receive(again, 1)
    expect_equal(await again.get_state(delivery.lease), b"kept", "the state after reconnecting")
    await bench.complete(again, delivery)
