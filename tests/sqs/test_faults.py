"""SQS over a bad network: what is lost on the way is neither lost nor doubled nor out of order in the end.

Everything here goes through a TCP proxy that cuts, swallows and slows, to the strict emulator, which also
throttles. The lock is long: what is received again in time was recovered, not waited for.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar, final

import attrs
import pytest
import trio

from queue_runtime import (
    BreakerConfig,
    ClientConfig,
    ConnectionFailed,
    Delivery,
    InvalidReceipt,
    Message,
    OperationTimeout,
    QueueError,
    QueueName,
    Settlement,
    SettlementAction,
    SupervisorConfig,
    Throttled,
    open_client,
    open_supervisor,
)
from queue_runtime.abc import Lease, Provider, Receiver, ReceiverOptions, Sender
from queue_runtime.providers.sqs import FACTORY
from queue_runtime.testing.tcp_proxy import TcpCut, TcpFaultProxy, open_tcp_proxy

from ..sending import send_all
from .emulator import Emulator, Failure, open_emulator, require_emulator

T = TypeVar("T")

LOCK = 30
WAIT = 1
PATIENCE = 1.0
"""Seconds beyond its wait that a call may go unanswered."""

SETTINGS = (
    f"&lock_duration={LOCK}&wait_time={WAIT}&read_timeout={WAIT + PATIENCE}"
    f"&connect_timeout={PATIENCE}"
    # Nothing here is scheduled; a forwarder would make calls of its own.
    "&holding_queue=absent.fifo"
)
SLACK = 1.0
"""Seconds that a busy machine may add."""

SOON = 10.0
"""Seconds in which everything here is done, well before a lock ends."""


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    require_emulator()
    with open_emulator() as running:
        yield running


@final
@attrs.frozen(kw_only=True)
class Link:
    """A queue of its own, reached through a proxy.

    Args:
        proxy: What breaks.
        url: The provider, through the proxy.
        provider: Connected so.
        direct: Connected past the proxy.
        queue: Provisioned, empty.
    """

    proxy: TcpFaultProxy
    url: str
    provider: Provider
    direct: Provider
    queue: QueueName

    async def sender(self) -> Sender:
        return await self.provider.open_sender(self.queue)

    async def receiver(self, **options: Any) -> Receiver:
        return await self.provider.open_receiver(self.queue, ReceiverOptions(**options))

    async def send(self, messages: Sequence[Message]) -> None:
        """Past the proxy."""
        sender = await self.direct.open_sender(self.queue)
        for result in await sender.send(messages):
            assert result.error is None

    async def assert_empty(self, dead: int = 0) -> None:
        stats = await self.direct.stats(self.queue)
        assert (stats.depth, stats.in_flight, stats.dead_lettered) == (0, 0, dead)


@asynccontextmanager
async def linked(emulator: Emulator, settings: str = SETTINGS) -> AsyncIterator[Link]:
    emulator.fail()
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(open_tcp_proxy("127.0.0.1", emulator.port))
        url = emulator.url_through(proxy.port) + settings
        direct = await FACTORY.open(FACTORY.config_from_url(f"{emulator.url}&wait_time={WAIT}"))
        stack.push_async_callback(direct.aclose)
        queue = QueueName(f"faults-{uuid.uuid4().hex}")
        await direct.provision(queue)
        provider = await FACTORY.open(FACTORY.config_from_url(url))
        stack.push_async_callback(provider.aclose)
        yield Link(proxy=proxy, url=url, provider=provider, direct=direct, queue=queue)


def work(count: int, sessions: int = 2) -> list[Message]:
    return [
        Message(b"%d" % number, session_id=f"session-{number % sessions}")
        for number in range(count)
    ]


async def receive_all(receiver: Receiver, count: int) -> list[Delivery]:
    """So many deliveries, each session's in order; a failing call is made again, as the runtime does."""
    deliveries: list[Delivery] = []
    with trio.fail_after(SOON):
        while len(deliveries) < count:
            deliveries += await again(receiver.receive, 10, 2.0)
    return deliveries


async def again(call: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Make a call until its error is not that of a network."""
    while True:
        try:
            return await call(*arguments)
        except (ConnectionFailed, OperationTimeout):
            await trio.sleep(0.01)


def settlements(
    deliveries: Sequence[Delivery], action: SettlementAction = SettlementAction.COMPLETE
) -> list[Settlement]:
    return [Settlement(delivery, action, reason="Test") for delivery in deliveries]


async def complete(receiver: Receiver, deliveries: Sequence[Delivery]) -> None:
    assert await receiver.settle(settlements(deliveries)) == [None] * len(deliveries)


def leases(deliveries: Sequence[Delivery]) -> list[Lease]:
    return list(dict.fromkeys(delivery.lease for delivery in deliveries))


def by_session(deliveries: Sequence[Delivery]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for delivery in deliveries:
        numbers.setdefault(str(delivery.session_id), []).append(int(delivery.body))
    return numbers


def in_order(count: int, sessions: int = 2) -> dict[str, list[int]]:
    return {
        f"session-{session}": list(range(session, count, sessions)) for session in range(sessions)
    }


# --- one connection, at every step ---------------------------------------------------------------------

Cut = Callable[[TcpFaultProxy, bytes], TcpCut]

CUTS: dict[str, Cut] = {
    "request": lambda proxy, action: proxy.cut_request(matching=action),
    "half_a_request": lambda proxy, action: proxy.cut_request(after=900, matching=action),
    "reply": lambda proxy, action: proxy.cut_reply(matching=action),
    "half_a_reply": lambda proxy, action: proxy.cut_reply(after=100, matching=action),
}


@pytest.fixture(params=list(CUTS))
def cut(request: pytest.FixtureRequest) -> Cut:
    return CUTS[request.param]


async def test_a_reset_while_sending(emulator: Emulator, cut: Cut) -> None:
    async with linked(emulator) as link:
        sender = await link.sender()
        messages = work(10)
        fault = cut(link.proxy, b"SendMessageBatch")
        with pytest.raises(ConnectionFailed):
            await sender.send(messages)
        assert fault.has_fired
        assert [result.error for result in await sender.send(messages)] == [None] * 10
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 10)
        assert by_session(deliveries) == in_order(10)
        await complete(receiver, deliveries)
        await link.assert_empty()


async def test_a_reset_while_receiving(emulator: Emulator, cut: Cut) -> None:
    """The claim is made and its answer lost: the same question brings it back, long before the lock ends."""
    async with linked(emulator) as link:
        await link.send(work(10))
        receiver = await link.receiver()
        fault = cut(link.proxy, b"ReceiveMessage")
        deliveries = await receive_all(receiver, 10)
        assert fault.has_fired
        assert by_session(deliveries) == in_order(10)
        assert {delivery.delivery_count for delivery in deliveries} == {1}
        await complete(receiver, deliveries)
        await link.assert_empty()


async def test_a_reset_while_completing(emulator: Emulator, cut: Cut) -> None:
    async with linked(emulator) as link:
        await link.send(work(10))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 10)
        fault = cut(link.proxy, b"DeleteMessageBatch")
        with pytest.raises(ConnectionFailed):
            await receiver.settle(settlements(deliveries))
        assert fault.has_fired
        await complete(receiver, deliveries)
        await link.assert_empty()


@pytest.mark.parametrize("action", [SettlementAction.ABANDON, SettlementAction.RELEASE])
async def test_a_reset_while_returning(
    emulator: Emulator, cut: Cut, action: SettlementAction
) -> None:
    async with linked(emulator) as link:
        await link.send(work(10))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 10)
        fault = cut(link.proxy, b"ChangeMessageVisibilityBatch")
        with pytest.raises(ConnectionFailed):
            await receiver.settle(settlements(deliveries, action))
        assert fault.has_fired
        # What took effect before its answer was lost is ours no more.
        for error in await receiver.settle(settlements(deliveries, action)):
            assert error is None or isinstance(error, InvalidReceipt)
        returned = await receive_all(receiver, 10)
        assert by_session(returned) == in_order(10)
        await complete(receiver, returned)
        await link.assert_empty()


async def test_a_reset_while_renewing(emulator: Emulator, cut: Cut) -> None:
    async with linked(emulator) as link:
        await link.send(work(10))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 10)
        before = [lease.deadline for lease in leases(deliveries)]
        fault = cut(link.proxy, b"ChangeMessageVisibilityBatch")
        with pytest.raises(ConnectionFailed):
            await receiver.renew(leases(deliveries))
        assert fault.has_fired
        assert [lease.deadline for lease in leases(deliveries)] == before
        assert await receiver.renew(leases(deliveries)) == [None] * len(before)
        assert all(lease.deadline > before[0] for lease in leases(deliveries))
        await complete(receiver, deliveries)
        await link.assert_empty()


async def test_a_reset_while_releasing(emulator: Emulator, cut: Cut) -> None:
    async with linked(emulator) as link:
        await link.send(work(10))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 10)
        fault = cut(link.proxy, b"ChangeMessageVisibilityBatch")
        with pytest.raises(ConnectionFailed):
            await receiver.release(leases(deliveries))
        assert fault.has_fired
        await receiver.release(leases(deliveries))
        returned = await receive_all(receiver, 10)
        assert by_session(returned) == in_order(10)
        await complete(receiver, returned)
        await link.assert_empty()


@pytest.mark.parametrize("step", [b"SendMessageBatch", b"DeleteMessageBatch"])
async def test_a_reset_while_dead_lettering(emulator: Emulator, cut: Cut, step: bytes) -> None:
    """Whichever half of the move is cut off, there is one dead letter in the end."""
    async with linked(emulator) as link:
        await link.send(work(10))
        receiver = await link.receiver()
        deliveries = await receive_all(receiver, 10)
        fault = cut(link.proxy, step)
        dead = settlements(deliveries, SettlementAction.DEAD_LETTER)
        try:
            answers = await receiver.settle(dead)
            assert all(isinstance(answer, ConnectionFailed) for answer in answers)
        except ConnectionFailed:
            pass
        assert fault.has_fired
        assert await receiver.settle(dead) == [None] * 10
        await link.assert_empty(dead=10)
        letters = await (await link.direct.open_dead_letters(link.queue)).peek(20)
        assert sorted(int(letter.message.body) for letter in letters) == list(range(10))


async def test_every_connection_is_reset_again_and_again(emulator: Emulator) -> None:
    async with linked(emulator) as link, trio.open_nursery() as nursery:
        await link.send(work(10))
        receiver, sender = await link.receiver(), await link.sender()

        async def reset() -> None:
            while True:
                await trio.sleep(0.05)
                link.proxy.reset_all()

        nursery.start_soon(reset)
        deliveries = await receive_all(receiver, 10)
        for number in range(10, 30, 10):
            more = [attrs.evolve(m, body=b"%d" % (int(m.body) + number)) for m in work(10)]
            results = await again(sender.send, more)
            assert [result.error for result in results] == [None] * 10
        while any(await again(receiver.settle, settlements(deliveries))):
            pass
        nursery.cancel_scope.cancel()
        seen = by_session(deliveries)
        for _ in range(2):
            deliveries = await receive_all(receiver, 10)
            for session, numbers in by_session(deliveries).items():
                seen[session] += numbers
            await complete(receiver, deliveries)
        assert seen == in_order(30)
        await link.assert_empty()


async def test_a_poll_that_sqs_goes_on_with_after_a_reset_is_asked_again(
    emulator: Emulator,
) -> None:
    """Nobody listens any more when it claims: known when its wait is over, not when the lock ends."""
    async with linked(emulator) as link, trio.open_nursery() as nursery:
        receiver = await link.receiver()
        received: list[Delivery] = []

        async def receive() -> None:
            received.extend(await receive_all(receiver, 10))
            nursery.cancel_scope.cancel()

        nursery.start_soon(receive)
        await trio.sleep(0.3)
        link.proxy.reset_all()
        await trio.sleep(0.2)
        await link.send(work(10))
    assert by_session(received) == in_order(10)


async def test_many_polls_fail_and_are_asked_again_side_by_side(emulator: Emulator) -> None:
    """Answers are lost several times in a row, so that calls take over what others may have claimed."""
    async with linked(emulator) as link, trio.open_nursery() as nursery:
        receiver = await link.receiver()
        arriving, arrived = trio.open_memory_channel[Delivery](100)

        async def receive() -> None:
            for most in itertools.cycle(range(1, 11)):
                deliveries = await again(receiver.receive, most, 2.0)
                assert len(deliveries) <= most
                for delivery in deliveries:
                    arriving.send_nowait(delivery)

        for _ in range(8):
            nursery.start_soon(receive)
        resets = link.proxy.statistics().resets
        for _ in range(5):
            for _ in range(20):
                link.proxy.cut_reply(matching=b"ReceiveMessage")
            await link.send(work(10, sessions=10))
            with trio.fail_after(SOON):
                deliveries = [await arrived.receive() for _ in range(10)]
            assert by_session(deliveries) == in_order(10, sessions=10)
            await complete(receiver, deliveries)
        # A poll that was under way before may bring a round its messages.
        assert link.proxy.statistics().resets > resets
        nursery.cancel_scope.cancel()
        await link.assert_empty()


# --- throttling ----------------------------------------------------------------------------------------


JOB = 2_000
"""Messages: some four seconds of work, into which two seconds of storm fall."""


async def test_a_throttling_storm_is_not_amplified(emulator: Emulator) -> None:
    """A job that meets a storm of refusals makes at most a fifth more requests than one that does not."""
    needed, handled = await _run_job(emulator, None)
    assert handled == in_order(JOB, 50)
    for refused in ("all", "half"):
        made, handled = await _run_job(emulator, refused)
        assert handled == in_order(JOB, 50)
        print(f"{refused} refused: {made} requests, {needed} needed: {made / needed:.2f} x")
        assert made <= 1.2 * needed


async def _run_job(emulator: Emulator, refused: str | None) -> tuple[int, dict[str, list[int]]]:
    """Send and handle; how many requests that took, and what was handled."""
    handled: dict[str, list[int]] = {}
    done = trio.Event()
    breaker = BreakerConfig(open_duration=0.5)

    async def handle(delivery: Delivery) -> None:
        numbers = handled.setdefault(str(delivery.session_id), [])
        numbers.append(int(delivery.body))
        if sum(map(len, handled.values())) == JOB:
            done.set()

    async with linked(emulator, SETTINGS) as link:
        before = sum(emulator.calls().values())
        async with (
            trio.open_nursery() as nursery,
            open_client(link.url, config=ClientConfig(breaker=breaker)) as client,
        ):
            supervisor = open_supervisor(
                client, link.queue, handle, config=SupervisorConfig(breaker=breaker)
            )
            async with supervisor:
                if refused is not None:
                    nursery.start_soon(_storm, emulator, refused)
                with trio.fail_after(30):
                    await send_all(client, link.queue, work(JOB, 50))
                    await done.wait()
            nursery.cancel_scope.cancel()
        requests = sum(emulator.calls().values()) - before
        await link.assert_empty()
    return requests, handled


async def _storm(emulator: Emulator, refused: str) -> None:
    """Refuse everything, or everything in half of the time, for two seconds."""
    everything = Failure(count=1_000_000)
    try:
        for _ in range(10):
            emulator.fail(everything)
            await trio.sleep(0.1)
            if refused == "half":
                emulator.fail()
            await trio.sleep(0.1)
    finally:
        emulator.fail()


async def test_throttling_says_so_and_passes(emulator: Emulator) -> None:
    async with linked(emulator) as link:
        sender, receiver = await link.sender(), await link.receiver()
        emulator.fail(Failure(count=1, action="SendMessageBatch", headers={"Retry-After": "2"}))
        with pytest.raises(Throttled) as caught:
            await sender.send(work(10))
        assert caught.value.is_transient
        assert caught.value.retry_after == 2.0
        messages = work(10)
        assert [result.error for result in await sender.send(messages)] == [None] * 10
        emulator.fail(
            Failure(count=1, action="ReceiveMessage", code="RequestThrottled", status=403)
        )
        with pytest.raises(Throttled):
            await receiver.receive(10, 1.0)
        deliveries = await receive_all(receiver, 10)
        assert by_session(deliveries) == in_order(10)
        for status, code in ((500, "InternalFailure"), (503, "ServiceUnavailable")):
            emulator.fail(Failure(count=1, action="DeleteMessageBatch", code=code, status=status))
            with pytest.raises(ConnectionFailed):
                await receiver.settle(settlements(deliveries))
        await complete(receiver, deliveries)
        await link.assert_empty()


# --- black holes, slow links, dead endpoints -----------------------------------------------------------


async def test_calls_into_a_black_hole_end_in_time_and_recover(emulator: Emulator) -> None:
    async with linked(emulator) as link:
        await link.send(work(10))
        sender, receiver = await link.sender(), await link.receiver()
        deliveries = await receive_all(receiver, 10)
        messages = work(10)
        held = leases(deliveries)
        link.proxy.silence()
        took: dict[str, float] = {}

        async def swallowed(name: str, call: Callable[[], Awaitable[object]]) -> None:
            began = trio.current_time()
            with pytest.raises((OperationTimeout, ConnectionFailed)):
                await call()
            took[name] = trio.current_time() - began

        with trio.fail_after(SOON):
            async with trio.open_nursery() as nursery:
                for name, call in (
                    ("send", partial(sender.send, messages)),
                    ("receive", partial(receiver.receive, 10, WAIT)),
                    ("settle", partial(receiver.settle, settlements(deliveries[:1]))),
                    ("renew", partial(receiver.renew, held)),
                    ("stats", partial(link.provider.stats, link.queue)),
                ):
                    nursery.start_soon(swallowed, name, call)
        # A poll waits, and asks once more what it may have claimed.
        assert took.pop("receive") <= WAIT + 2 * PATIENCE + SLACK
        assert max(took.values()) <= PATIENCE + SLACK, took
        link.proxy.heal()
        assert await again(receiver.renew, held) == [None] * len(held)
        await complete(receiver, deliveries)
        results = await again(sender.send, messages)
        assert [result.error for result in results] == [None] * 10
        deliveries = await receive_all(receiver, 10)
        assert by_session(deliveries) == in_order(10)
        await complete(receiver, deliveries)
        await link.assert_empty()


async def test_a_slow_link_delays_and_loses_nothing(emulator: Emulator) -> None:
    async with linked(emulator) as link:
        link.proxy.slow_down(latency=0.05, bandwidth=100_000)
        sender, receiver = await link.sender(), await link.receiver()
        seen: dict[str, list[int]] = {}
        sent = 0
        for batch in range(5):
            messages = work(50)[10 * batch : 10 * batch + 10]
            sent += sum(result.error is None for result in await sender.send(messages))
        while sum(map(len, seen.values())) < sent:
            deliveries = await receive_all(receiver, 1)
            for session, numbers in by_session(deliveries).items():
                seen.setdefault(session, []).extend(numbers)
            assert await receiver.renew(leases(deliveries)) == [None] * len(leases(deliveries))
            await complete(receiver, deliveries)
        assert seen == in_order(50)
        await link.assert_empty()


async def test_an_endpoint_that_is_down_fails_at_once_and_works_when_it_comes_back(
    emulator: Emulator,
) -> None:
    async with linked(emulator) as link:
        link.proxy.refuse()
        with trio.fail_after(PATIENCE + SLACK):
            with pytest.raises(ConnectionFailed) as caught:
                await link.sender()
            assert "check the network" in str(caught.value)
            with pytest.raises(ConnectionFailed):
                await link.receiver()
        link.proxy.heal()
        sender, receiver = await link.sender(), await link.receiver()
        await sender.send(work(10))
        link.proxy.refuse()
        link.proxy.reset_all()
        messages = work(10)
        for call in (
            partial(sender.send, messages),
            partial(receiver.receive, 10, 1.0),
            partial(link.provider.stats, link.queue),
        ):
            with trio.fail_after(PATIENCE + SLACK), pytest.raises(ConnectionFailed):
                await call()
        link.proxy.heal()
        results = await sender.send(messages)
        assert [result.error for result in results] == [None] * 10
        seen: dict[str, list[int]] = {}
        for _ in range(2):
            # All of one session: there are ten of each.
            deliveries = await receive_all(receiver, 10)
            seen |= by_session(deliveries)
            await complete(receiver, deliveries)
        assert seen == {session: 2 * numbers for session, numbers in in_order(10).items()}
        await link.assert_empty()


async def test_a_client_outlasts_an_endpoint_that_comes_back(emulator: Emulator) -> None:
    async with linked(emulator) as link, trio.open_nursery() as nursery:
        link.proxy.refuse()

        async def come_back() -> None:
            await trio.sleep(0.3)
            link.proxy.heal()

        nursery.start_soon(come_back)
        async with open_client(link.url) as client:
            with trio.fail_after(SOON):
                await client.send(link.queue, Message(b"0", session_id="session-0"))
                delivery = await client.receive(link.queue)
            assert delivery is not None
            assert delivery.body == b"0"
            await client.complete(delivery)
        await link.assert_empty()


@pytest.mark.parametrize("dead_since", ["before", "within"])
async def test_a_cancelled_receive_returns_within_100_ms_from_a_dead_link(
    emulator: Emulator, dead_since: str
) -> None:
    async with linked(emulator) as link:
        receiver = await link.receiver()
        if dead_since == "before":
            link.proxy.silence()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receiver.receive, 10, 20.0)
                await trio.sleep(0.3)
                link.proxy.silence()
                cancelled_at = trio.current_time()
                scope.cancel()
        assert scope.cancelled_caught
        assert trio.current_time() - cancelled_at < 0.1
        link.proxy.heal()
        await link.send(work(10))
        deliveries = await receive_all(receiver, 10)
        assert by_session(deliveries) == in_order(10)
        await complete(receiver, deliveries)
        await link.assert_empty()


async def test_what_a_cancelled_receive_claimed_over_a_dead_link_comes_back(
    emulator: Emulator,
) -> None:
    """The request arrived and the answer is swallowed: asked again when the link is back, or given back."""
    async with linked(emulator) as link:
        receiver = await link.receiver()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receiver.receive, 10, 20.0)
                await trio.sleep(0.3)
                link.proxy.silence()
                await link.send(work(10))
                scope.cancel()
        link.proxy.heal()
        deliveries = await receive_all(receiver, 10)
        assert by_session(deliveries) == in_order(10)
        await complete(receiver, deliveries)
        await link.assert_empty()


async def test_closing_into_a_black_hole_ends_and_the_messages_come_again(
    emulator: Emulator,
) -> None:
    lock = 4
    async with linked(emulator, SETTINGS.replace(f"={LOCK}", f"={lock}", 1)) as link:
        await link.send(work(10))
        receiver = await link.receiver()
        assert len(await receive_all(receiver, 10)) == 10
        async with trio.open_nursery() as nursery:
            poll = _Quiet(partial(receiver.receive, 10, 20.0))
            nursery.start_soon(poll.run)
            await trio.sleep(0.1)
            link.proxy.silence()
            began = trio.current_time()
            await link.provider.aclose()
            assert trio.current_time() - began < 2 + 3 * PATIENCE + SLACK
        assert isinstance(poll.error, (trio.ClosedResourceError, QueueError))
        receiver = await link.direct.open_receiver(link.queue, ReceiverOptions())
        deliveries = await receive_all(receiver, 10)
        assert by_session(deliveries) == in_order(10)
        await complete(receiver, deliveries)
        await link.assert_empty()


@final
class _Quiet:
    """A call whose error is kept."""

    def __init__(self, call: Callable[[], Awaitable[object]]) -> None:
        self._call = call
        self.error: Exception | None = None

    async def run(self) -> None:
        try:
            await self._call()
        except (trio.ClosedResourceError, QueueError) as error:
            self.error = error
