"""What the contract suite does not reach: lost answers, cancelled polls, costs, refusals before the wire."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, TypeAlias

import attrs
import pytest
import trio
from tests.sqs.emulator import Emulator, Failure, sqs_for_tests

from queue_runtime.abc import Receiver, ReceiverOptions, Sender
from queue_runtime.errors import (
    AuthenticationFailed,
    BatchTooLarge,
    ConnectionFailed,
    InvalidReceipt,
    LockLost,
    MessageTooLarge,
    QueueError,
    QueueNotFound,
    Throttled,
    Unsupported,
    ValidationError,
)
from queue_runtime.messages import Delivery, Message, QueueName, Settlement, SettlementAction
from queue_runtime.providers.asyncio_bridge import AsyncioBridge
from queue_runtime.providers.sqs import FACTORY
from queue_runtime.providers.sqs.api import SqsApi
from queue_runtime.providers.sqs.provider import SqsProvider
from queue_runtime.testing import open_tcp_proxy

NUMBERS = count(1)
PATIENCE = 20.0


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with sqs_for_tests() as emulator:
        yield emulator


@attrs.frozen
class Line:
    """A queue, with a sender and a receiver on one connection."""

    provider: SqsProvider
    queue: QueueName
    sender: Sender
    receiver: Receiver

    def calls(self, operation: str) -> int:
        return self.provider.calls.get(operation, 0)

    async def send(self, *bodies: str, session: str | None = "s") -> None:
        for result in await self.sender.send(
            [Message(body.encode(), session_id=session) for body in bodies]
        ):
            assert result.error is None

    async def complete(self, *deliveries: Delivery) -> list[QueueError | None]:
        return await self.settle(SettlementAction.COMPLETE, *deliveries)

    async def settle(
        self, action: SettlementAction, *deliveries: Delivery
    ) -> list[QueueError | None]:
        return await self.receiver.settle([Settlement(d, action) for d in deliveries])


Connect: TypeAlias = Callable[..., Awaitable[Line]]


@pytest.fixture
async def connect(emulator: Emulator) -> AsyncIterator[Connect]:
    """Opens connections to a new queue; ``url`` and options are those of the URL."""
    opened: list[SqsProvider] = []
    queue = QueueName(f"adapter-{next(NUMBERS)}-{time.time_ns()}")

    async def open_line(
        url: str = "",
        *,
        provisioned: bool = True,
        forwards: bool = True,
        receiver: Any = None,
        **options: Any,
    ) -> Line:
        if not forwards:  # so that all polls are those of the queue itself
            await (await open_line(**options)).receiver.aclose()
            options |= {"holding_queue": "missing.fifo"}
            provisioned = False
        options = {"wait_time": 1} | options
        text = "&".join(f"{name}={value}" for name, value in options.items())
        provider = await FACTORY.open(FACTORY.config_from_url(f"{url or emulator.url}&{text}"))
        opened.append(provider)
        if provisioned:
            await provider.provision(queue)
        return Line(
            provider,
            queue,
            await provider.open_sender(queue),
            await provider.open_receiver(queue, receiver or ReceiverOptions()),
        )

    yield open_line
    for provider in opened:
        await provider.aclose()


async def send_by_hand(emulator: Emulator, queue: QueueName, **parameters: Any) -> None:
    """What a program sends that is not this one."""
    bridge = await AsyncioBridge.open("by hand")
    api = await bridge.run(SqsApi.open, FACTORY.config_from_url(emulator.url))
    name = f"{queue}.fifo"
    answer = await bridge.run(api.call, "GetQueueUrl", name, {"QueueName": name})
    request = {"QueueUrl": answer["QueueUrl"], **parameters}
    await bridge.run(api.call, "SendMessage", name, request)
    await bridge.run(api.aclose)
    await bridge.aclose()


def bodies(deliveries: list[Delivery]) -> list[str]:
    return [delivery.body.decode() for delivery in deliveries]


# --- refusals before the wire --------------------------------------------------------------------


async def test_a_queue_that_is_not_there_is_told_by_name_with_a_cure(connect: Connect) -> None:
    line = await connect()
    with pytest.raises(QueueNotFound, match=r"queue nowhere does not exist .* provision"):
        await line.provider.open_sender(QueueName("nowhere"))


async def test_a_name_that_sqs_cannot_have_is_refused(connect: Connect) -> None:
    line = await connect()
    with pytest.raises(ValidationError, match="a/b"):
        await line.provider.open_sender(QueueName("a/b"))


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        ({"session_id": "s"}, "sessions"),
        ({"deduplication_id": "d"}, "deduplication"),
        ({"time_to_live": 60.0}, "time_to_live"),
    ],
)
async def test_a_standard_queue_says_what_it_lacks(
    connect: Connect, fields: dict[str, Any], feature: str
) -> None:
    line = await connect(queue_type="standard")
    before = line.calls("SendMessageBatch")
    with pytest.raises(Unsupported) as raised:
        await line.sender.send([Message(b"x", **fields)])
    assert raised.value.feature == feature
    assert line.calls("SendMessageBatch") == before


async def test_an_eleven_entry_batch_is_refused(connect: Connect) -> None:
    line = await connect()
    with pytest.raises(BatchTooLarge) as raised:
        await line.sender.send([Message(b"x", session_id="s")] * 11)
    assert (raised.value.count, raised.value.limit) == (11, 10)


async def test_a_body_that_grows_over_the_limit_on_the_wire_is_refused(connect: Connect) -> None:
    line = await connect(max_message_bytes=2048)
    await line.send("x" * 2048)
    with pytest.raises(MessageTooLarge) as raised:
        await line.sender.send([Message(b"\x00" * 1600, session_id="s")])  # base64: a third more
    assert raised.value.limit == 2048
    assert raised.value.size > 2048


async def test_a_batch_of_more_bytes_than_a_call_takes_is_split(connect: Connect) -> None:
    line = await connect(max_message_bytes=2048)
    before = line.calls("SendMessageBatch")
    texts = [str(number) * 1500 for number in range(5)]
    await line.send(*texts)
    assert line.calls("SendMessageBatch") == before + 5
    deliveries = await line.receiver.receive(10, PATIENCE)
    assert bodies(deliveries) == texts


async def test_without_a_holding_queue_scheduling_names_the_cure(
    emulator: Emulator, connect: Connect
) -> None:
    line = await connect(holding_queue="somewhere-else.fifo")
    other = await connect(holding_queue="missing.fifo", provisioned=False)
    later = datetime.now(UTC) + timedelta(hours=1)
    with pytest.raises(Unsupported, match="provision") as raised:
        await other.sender.send([Message(b"x", session_id="s", scheduled_at=later)])
    assert raised.value.feature == "scheduling"
    [result] = await line.sender.send([Message(b"x", session_id="s", scheduled_at=later)])
    assert result.error is None
    assert emulator.endpoint_url is not None


async def test_scheduled_beyond_what_the_holding_queue_keeps(connect: Connect) -> None:
    line = await connect()
    later = datetime.now(UTC) + timedelta(days=15)
    with pytest.raises(ValidationError, match="keeps messages for 1209600 seconds"):
        await line.sender.send([Message(b"x", session_id="s", scheduled_at=later)])


async def test_a_standard_queue_delays_fifteen_minutes_by_itself(connect: Connect) -> None:
    line = await connect(queue_type="standard", holding_queue="not-needed.fifo", provisioned=True)
    soon = datetime.now(UTC) + timedelta(minutes=14)
    [result] = await line.sender.send([Message(b"x", scheduled_at=soon)])
    assert result.error is None
    assert (await line.provider.stats(line.queue)).scheduled == 1


async def test_credentials_are_needed_and_never_shown(emulator: Emulator) -> None:
    config = FACTORY.config_from_url(emulator.url)
    assert config.secret_access_key is not None
    canary = "canary-of-a-secret"
    config = attrs.evolve(config, secret_access_key=type(config.secret_access_key)(canary))
    provider = await FACTORY.open(config)
    try:
        with pytest.raises(QueueError) as raised:
            await provider.open_sender(QueueName("nowhere"))
        assert canary not in repr(raised.value)
        assert canary not in repr(provider) + repr(config) + repr(vars(provider))
    finally:
        await provider.aclose()


async def test_no_credentials_anywhere(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    config = attrs.evolve(
        FACTORY.config_from_url(emulator.url), access_key_id=None, secret_access_key=None
    )
    with pytest.raises(AuthenticationFailed):
        await FACTORY.open(config)


# --- lost answers --------------------------------------------------------------------------------


async def test_a_send_whose_answer_is_lost_can_be_repeated(
    emulator: Emulator, connect: Connect
) -> None:
    async with open_tcp_proxy("127.0.0.1", emulator.port) as proxy:
        line = await connect(emulator.url_through(proxy.port))
        messages = [Message(str(number).encode(), session_id="s") for number in range(3)]
        lost = proxy.cut_reply(matching=b"SendMessageBatch")
        with pytest.raises(ConnectionFailed):
            await line.sender.send(messages)
        assert lost.has_fired
        with pytest.raises(MessageTooLarge):  # they are no more certain for what is beside them
            await line.sender.send([*messages, Message(b"x" * 2_000_000, session_id="s")])
        for result in await line.sender.send(messages):
            assert result.error is None
        deliveries = await line.receiver.receive(10, PATIENCE)
        assert bodies(deliveries) == ["0", "1", "2"]
        # Sent for a third time, on purpose: these are new messages.
        await line.complete(*deliveries)
        await line.sender.send(messages)
        assert bodies(await line.receiver.receive(10, PATIENCE)) == ["0", "1", "2"]


async def test_a_receive_whose_answer_is_lost_brings_the_same_messages(
    emulator: Emulator, connect: Connect
) -> None:
    async with open_tcp_proxy("127.0.0.1", emulator.port) as proxy:
        line = await connect(emulator.url_through(proxy.port), forwards=False)
        await line.send("1", "2")
        lost = proxy.cut_reply(matching=b"ReceiveMessage")
        deliveries = await line.receiver.receive(10, PATIENCE)
        assert lost.has_fired
        assert bodies(deliveries) == ["1", "2"]
        assert [delivery.delivery_count for delivery in deliveries] == [1, 1]
        assert await line.complete(*deliveries) == [None, None]


async def test_an_answer_lost_twice_is_found_by_the_next_receive(
    emulator: Emulator, connect: Connect
) -> None:
    async with open_tcp_proxy("127.0.0.1", emulator.port) as proxy:
        line = await connect(emulator.url_through(proxy.port), forwards=False)
        await line.send("1")
        for _ in range(2):
            proxy.cut_reply(matching=b"ReceiveMessage")
        with pytest.raises(ConnectionFailed):
            await line.receiver.receive(10, PATIENCE)
        [delivery] = await line.receiver.receive(10, PATIENCE)
        assert delivery.delivery_count == 1


async def test_a_completion_whose_answer_is_lost_can_be_repeated(
    emulator: Emulator, connect: Connect
) -> None:
    async with open_tcp_proxy("127.0.0.1", emulator.port) as proxy:
        line = await connect(emulator.url_through(proxy.port))
        await line.send("1")
        [delivery] = await line.receiver.receive(10, PATIENCE)
        proxy.cut_reply(matching=b"DeleteMessageBatch")
        with pytest.raises(ConnectionFailed):
            await line.complete(delivery)
        assert await line.complete(delivery) == [None]
        [again] = await line.complete(delivery)
        assert isinstance(again, InvalidReceipt)


async def test_a_move_to_the_dead_letters_whose_answer_is_lost_leaves_one(
    emulator: Emulator, connect: Connect
) -> None:
    async with open_tcp_proxy("127.0.0.1", emulator.port) as proxy:
        line = await connect(emulator.url_through(proxy.port))
        await line.send("1")
        [delivery] = await line.receiver.receive(10, PATIENCE)
        proxy.cut_reply(matching=b"SendMessageBatch")
        with pytest.raises(ConnectionFailed):
            await line.settle(SettlementAction.DEAD_LETTER, delivery)
        assert await line.settle(SettlementAction.DEAD_LETTER, delivery) == [None]
        dead_letters = await line.provider.open_dead_letters(line.queue)
        [dead] = await dead_letters.peek(10)
        assert dead.message.body == b"1"


async def test_throttling_says_so_and_is_not_tried_again_below(
    emulator: Emulator, connect: Connect
) -> None:
    line = await connect()
    before = line.calls("SendMessageBatch")
    emulator.fail(Failure(count=1, action="SendMessageBatch", headers={"Retry-After": "7"}))
    with pytest.raises(Throttled) as raised:
        await line.send("x")
    assert raised.value.retry_after == 7
    assert line.calls("SendMessageBatch") == before + 1


# --- polls ---------------------------------------------------------------------------------------


async def test_a_cancelled_receive_returns_at_once_and_its_poll_serves_the_next(
    connect: Connect,
) -> None:
    line = await connect(wait_time=15, lock_duration=60, forwards=False)
    await line.receiver.receive(1, 0.0)
    before = line.calls("ReceiveMessage")
    with trio.move_on_after(0.3) as scope:
        await line.receiver.receive(10, PATIENCE)
    assert scope.cancelled_caught
    assert trio.current_time() < scope.deadline + 0.1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.send, "1")
        [delivery] = await line.receiver.receive(10, PATIENCE)
    assert delivery.delivery_count == 1
    assert line.calls("ReceiveMessage") == before + 1


async def test_what_a_cancelled_receive_brings_is_given_back(connect: Connect) -> None:
    line = await connect(wait_time=15, lock_duration=60, forwards=False)
    other = await connect(provisioned=False)
    with trio.move_on_after(0.2):
        await line.receiver.receive(10, PATIENCE)
    await line.send("1", "2")
    began = trio.current_time()
    assert bodies(await other.receiver.receive(10, PATIENCE)) == ["1", "2"]
    assert trio.current_time() - began < 1.5


async def test_closing_recovers_what_a_poll_that_is_cut_off_has_claimed(
    emulator: Emulator, connect: Connect
) -> None:
    async with open_tcp_proxy("127.0.0.1", emulator.port) as proxy:
        line = await connect(emulator.url_through(proxy.port), forwards=False, lock_duration=60)
        other = await connect(provisioned=False)
        await line.send("1")
        await line.receiver.renew([])
        proxy.cut_reply(matching=b"ReceiveMessage")
        proxy.cut_reply(matching=b"ReceiveMessage")
        with pytest.raises(ConnectionFailed):
            await line.receiver.receive(10, PATIENCE)
        assert await other.receiver.receive(10, 0.0) == []
        await line.receiver.aclose()
        assert bodies(await other.receiver.receive(10, 1.0)) == ["1"]


async def test_an_idle_queue_costs_one_call_per_long_poll(connect: Connect) -> None:
    line = await connect(wait_time=3, forwards=False)
    await line.receiver.receive(10, 0.0)
    before = line.calls("ReceiveMessage")
    assert await line.receiver.receive(10, 3.0) == []
    assert line.calls("ReceiveMessage") - before == 1


async def test_a_full_load_costs_a_quarter_of_a_call_per_message(connect: Connect) -> None:
    line = await connect()
    total = 200
    for start in range(0, total, 10):
        await line.send(*map(str, range(start, start + 10)), session=f"s{start % 50}")
    before = sum(line.provider.calls.values())
    got = 0
    while got < total:
        deliveries = await line.receiver.receive(10, PATIENCE)
        assert await line.complete(*deliveries) == [None] * len(deliveries)
        got += len(deliveries)
    assert sum(line.provider.calls.values()) - before <= total / 4


async def test_no_more_sessions_than_there_is_room_for(connect: Connect) -> None:
    line = await connect(receiver=ReceiverOptions(max_sessions=2))
    for name in "abc":
        await line.send("1", "2", session=name)
    held = await line.receiver.receive(10, PATIENCE)
    held += await line.receiver.receive(10, PATIENCE)
    assert len({delivery.session_id for delivery in held}) == 2
    assert await line.receiver.receive(10, 0.3) == []
    freed = [delivery for delivery in held if delivery.session_id == held[0].session_id]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.complete, *freed)
        [more, *_] = await line.receiver.receive(10, PATIENCE)
    assert more.lease.token > held[0].lease.token


# --- leases --------------------------------------------------------------------------------------


async def test_a_lease_ends_with_its_last_message(connect: Connect) -> None:
    line = await connect()
    await line.send("1", "2")
    first, second = await line.receiver.receive(10, PATIENCE)
    assert first.lease is second.lease
    await line.complete(first)
    assert await line.receiver.renew([first.lease]) == [None]
    await line.complete(second)
    [answer] = await line.receiver.renew([first.lease])
    assert isinstance(answer, LockLost)
    assert first.lease.lost is None
    await line.send("3")
    [third] = await line.receiver.receive(10, PATIENCE)
    assert third.lease.token > first.lease.token


async def test_an_abandoned_head_waits_for_its_tail(connect: Connect) -> None:
    line, other = await connect(), await connect(provisioned=False)
    await line.send("1", "2", "3")
    head, *tail = await line.receiver.receive(10, PATIENCE)
    assert await line.settle(SettlementAction.ABANDON, head) == [None]
    assert await other.receiver.receive(10, 0.3) == []
    assert await line.receiver.renew([head.lease]) == [None]
    [again] = await line.settle(SettlementAction.ABANDON, head)
    assert isinstance(again, InvalidReceipt)
    assert await line.complete(*tail) == [None, None]
    [first] = await other.receiver.receive(10, PATIENCE)
    assert (first.body, first.delivery_count) == (b"1", 2)


async def test_an_abandoned_head_keeps_its_promise_when_the_tail_fails(
    emulator: Emulator, connect: Connect
) -> None:
    line = await connect()
    await line.send("1", "2")
    head, tail = await line.receiver.receive(10, PATIENCE)
    assert await line.settle(SettlementAction.ABANDON, head) == [None]
    emulator.fail(
        Failure(count=1, action="DeleteMessageBatch"),
        Failure(count=1, action="ChangeMessageVisibilityBatch"),
    )
    with pytest.raises(Throttled):
        await line.complete(tail)
    assert await line.complete(tail) == [None]
    [again] = await line.receiver.receive(10, PATIENCE)
    assert again.body == b"1"


async def test_a_renewal_that_meets_a_give_back_does_not_hide_the_message(
    connect: Connect,
) -> None:
    line = await connect(lock_duration=60)
    for number in range(5):
        await line.send(str(number))
        [delivery] = await line.receiver.receive(10, PATIENCE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.receiver.renew, [delivery.lease])
            await trio.lowlevel.checkpoint()
            nursery.start_soon(line.settle, SettlementAction.RELEASE, delivery)
        [again] = await line.receiver.receive(10, 2.0)
        assert await line.complete(again) == [None]


async def test_a_message_of_a_newer_program_is_buried_with_the_reason(
    emulator: Emulator, connect: Connect
) -> None:
    line = await connect()
    attributes = {"queue-runtime": {"DataType": "String", "StringValue": '{"v":99}'}}
    await send_by_hand(
        emulator,
        line.queue,
        MessageBody="from the future",
        MessageGroupId="s",
        MessageDeduplicationId="1",
        MessageAttributes=attributes,
    )
    await line.send("2")
    deliveries = await line.receiver.receive(10, PATIENCE)
    assert bodies(deliveries) == ["2"]
    dead_letters = await line.provider.open_dead_letters(line.queue)
    [dead] = await dead_letters.peek(10)
    assert dead.dead_letter is not None
    assert dead.dead_letter.reason == "MalformedEnvelope"
    assert "version is 99" in dead.dead_letter.description
    assert dead.message.body == b"from the future"
