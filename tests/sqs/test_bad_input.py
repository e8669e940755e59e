"""What is wrong with names, settings and messages is told at the earliest moment, and nothing is lost by it.

What only AWS can tell, such as whether credentials are good, the emulator is told to answer; all codes are in
``tests/providers/sqs/test_errors.py``.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio

from queue_runtime import (
    AuthenticationFailed,
    BatchTooLarge,
    ConfigurationError,
    Delivery,
    Message,
    MessageTooLarge,
    PermissionDenied,
    QueueError,
    QueueName,
    QueueNotFound,
    SessionId,
    Unsupported,
    ValidationError,
    open_client,
    open_supervisor,
)
from queue_runtime.abc import Provider, ReceiverOptions
from queue_runtime.providers.envelope import ENVELOPE
from queue_runtime.providers.malformed import MALFORMED
from queue_runtime.providers.sqs import FACTORY

from .emulator import Emulator, Failure, open_emulator, require_emulator
from .test_emulator import make_client

ABSENT = "&holding_queue=absent.fifo"
"""Nothing here is scheduled; forwarding would only make calls of its own."""


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    require_emulator()
    with open_emulator() as running:
        yield running


@pytest.fixture
def url(emulator: Emulator) -> str:
    emulator.fail()
    return f"{emulator.url}&wait_time=1{ABSENT}"


@pytest.fixture
def name() -> QueueName:
    return QueueName(f"bad-{uuid.uuid4().hex}")


@asynccontextmanager
async def connected(url: str, *, provision: QueueName | None = None) -> AsyncIterator[Provider]:
    if provision is not None:
        async with connected(url.replace(ABSENT, "")) as provider:
            await provider.provision(provision)
    provider = await FACTORY.open(FACTORY.config_from_url(url))
    try:
        yield provider
    finally:
        await provider.aclose()


async def foreign_calls(
    emulator: Emulator, operation: str, calls: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Calls of somebody else's program, with the SDK alone."""

    async def run() -> list[dict[str, Any]]:
        async with make_client(emulator.url) as client:
            return [await getattr(client, operation)(**parameters) for parameters in calls]

    return await trio.to_thread.run_sync(lambda: asyncio.run(run()))


async def foreign(emulator: Emulator, operation: str, **parameters: Any) -> dict[str, Any]:
    (answer,) = await foreign_calls(emulator, operation, [parameters])
    return answer


def message_to(there: str, body: str, group: str, attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        "QueueUrl": there,
        "MessageBody": body,
        "MessageAttributes": attributes,
        "MessageGroupId": group,
        "MessageDeduplicationId": uuid.uuid4().hex,
    }


async def queue_url(emulator: Emulator, name: str) -> str:
    return str((await foreign(emulator, "get_queue_url", QueueName=name))["QueueUrl"])


# --- queues --------------------------------------------------------------------------------------------


async def test_a_queue_that_is_not_there(url: str, name: QueueName) -> None:
    async with connected(url) as provider:
        for opening in (
            provider.open_sender(name),
            provider.open_receiver(name, ReceiverOptions()),
            provider.open_dead_letters(name),
            provider.stats(name),
            provider.purge(name),
        ):
            with pytest.raises(QueueNotFound) as caught:
                await opening
            assert not caught.value.is_transient
            for part in (str(name), f"{name}.fifo", "eu-central-1", "queue-runtime provision"):
                assert part in str(caught.value)


async def test_a_queue_that_goes_away(emulator: Emulator, url: str, name: QueueName) -> None:
    async with connected(url, provision=name) as provider:
        sender = await provider.open_sender(name)
        receiver = await provider.open_receiver(name, ReceiverOptions())
        there = await queue_url(emulator, f"{name}.fifo")
        await foreign(emulator, "delete_queue", QueueUrl=there)
        with pytest.raises(QueueNotFound):
            await sender.send([Message(b"x", session_id="a")])
        with pytest.raises(QueueNotFound):
            await receiver.receive(10, 1.0)


async def test_a_supervisor_ends_with_a_queue_that_goes_away(
    emulator: Emulator, url: str, name: QueueName
) -> None:
    async def handle(delivery: Delivery) -> None:
        raise AssertionError(f"nothing was sent, but {delivery} came")

    async with connected(url, provision=name):
        pass
    with trio.fail_after(10), pytest.raises(QueueNotFound):
        async with open_supervisor(url, name, handle):
            there = await queue_url(emulator, f"{name}.fifo")
            await foreign(emulator, "delete_queue", QueueUrl=there)
            await trio.sleep_forever()


async def test_sessions_and_what_else_only_fifo_queues_have(url: str, name: QueueName) -> None:
    async with connected(f"{url}&queue_type=standard", provision=name) as provider:
        assert not provider.capabilities.sessions
        sender = await provider.open_sender(name)
        receiver = await provider.open_receiver(name, ReceiverOptions())
        for message, feature in (
            (Message(b"x", session_id="a"), "sessions"),
            (Message(b"x", deduplication_id="a"), "deduplication"),
        ):
            with pytest.raises(Unsupported) as caught:
                await sender.send([Message(b"good"), message])
            assert caught.value.feature == feature
            assert "use a FIFO queue" in str(caught.value)
        with pytest.raises(Unsupported):
            await receiver.accept(None, 0.0)
        # Nothing of those batches was sent.
        assert (await provider.stats(name)).depth == 0


async def test_what_fifo_queues_do_not_have(url: str, name: QueueName) -> None:
    async with connected(url, provision=name) as provider:
        sender = await provider.open_sender(name)
        receiver = await provider.open_receiver(name, ReceiverOptions())
        due = datetime.now(UTC) + timedelta(minutes=1)
        for message, feature in (
            (Message(b"x", session_id="a", scheduled_at=due), "scheduling"),
            (Message(b"x", session_id="a", time_to_live=5.0), "time_to_live"),
        ):
            with pytest.raises(Unsupported) as caught:
                await sender.send([Message(b"good", session_id="a"), message])
            assert caught.value.feature == feature
        with pytest.raises(Unsupported):
            await receiver.accept(SessionId("a"), 0.0)
        assert (await provider.stats(name)).depth == 0


async def test_the_other_type_of_queue(url: str, name: QueueName) -> None:
    """A queue of the other type has another name, so it is not there; a name that says so is refused at once."""
    standard = f"{url}&queue_type=standard"
    async with connected(url, provision=name) as fifo, connected(standard) as plain:
        with pytest.raises(QueueNotFound):
            await plain.open_sender(name)
        with pytest.raises(ValidationError, match="queue_type=fifo"):
            await plain.open_sender(QueueName(f"{name}.fifo"))
        assert await fifo.open_sender(QueueName(f"{name}.fifo")) is not None


async def test_another_region(emulator: Emulator, url: str, name: QueueName) -> None:
    async with connected(url, provision=name):
        pass
    elsewhere = url.replace("sqs://eu-central-1", "sqs://us-west-2")
    async with connected(elsewhere) as provider:
        with pytest.raises(QueueNotFound, match="does not exist in us-west-2"):
            await provider.open_sender(name)


async def test_the_url_of_a_queue_on_another_host(
    emulator: Emulator, url: str, name: QueueName
) -> None:
    """Signed requests go nowhere else, whatever a URL from somewhere says."""
    async with connected(url, provision=name):
        pass
    there = await queue_url(emulator, f"{name}.fifo")
    before = sum(emulator.calls().values())
    for strange in (
        there.replace("127.0.0.1", "localhost"),
        "https://sqs.eu-central-1.amazonaws.com/123456789012/x.fifo",
        "https://sqs.eu-central-1.amazonaws.com.example.com/123456789012/x.fifo",
    ):
        with pytest.raises(ConfigurationError, match="queue_url"):
            FACTORY.config_from_url(f"{url}&queue_url={strange}")
    assert sum(emulator.calls().values()) == before
    async with connected(f"{url}&queue_url={there}") as provider:
        sender = await provider.open_sender(name)
        (result,) = await sender.send([Message(b"x", session_id="a")])
        assert result.error is None
        with pytest.raises(ConfigurationError, match="is not the queue"):
            await provider.open_sender(QueueName("other"))


# --- credentials ---------------------------------------------------------------------------------------

REFUSALS = (
    ("InvalidClientTokenId", AuthenticationFailed),
    ("SignatureDoesNotMatch", AuthenticationFailed),
    ("ExpiredToken", AuthenticationFailed),
    ("AccessDenied", PermissionDenied),
)


@pytest.mark.parametrize(("code", "expected"), REFUSALS)
async def test_credentials_that_are_refused(
    emulator: Emulator, url: str, name: QueueName, code: str, expected: type[QueueError]
) -> None:
    url = url.replace("secret_access_key=test", "secret_access_key=wJalrXUtnFEMI")
    refusal = Failure(count=1, code=code, status=403, message="for wJalrXUtnFEMI and test")
    async with connected(url, provision=name) as provider:
        sender = await provider.open_sender(name)
        receiver = await provider.open_receiver(name, ReceiverOptions())
        emulator.fail(refusal)
        with pytest.raises(expected) as caught:
            await sender.send([Message(b"x", session_id="a")])
        assert not caught.value.is_transient
        assert code in str(caught.value)
        emulator.fail(refusal)
        with pytest.raises(expected):
            await receiver.receive(1, 1.0)
        (sent,) = await sender.send([Message(b"x", session_id="a")])
        assert sent.error is None
        (delivery,) = await receiver.receive(1, 1.0)
        assert delivery.body == b"x"
    async with connected(url) as provider:
        emulator.fail(refusal)
        with pytest.raises(expected) as caught:
            await provider.open_sender(name)
        if expected is AuthenticationFailed:
            assert "wJalrXUtnFEMI" not in str(caught.value)
        assert "wJalrXUtnFEMI" not in repr(FACTORY.config_from_url(url))


# --- sizes ---------------------------------------------------------------------------------------------


async def test_a_body_over_the_limit(emulator: Emulator, url: str, name: QueueName) -> None:
    """Told before anything of the call is sent."""
    async with connected(f"{url}&max_message_bytes=2048", provision=name) as provider:
        sender = await provider.open_sender(name)
        before = emulator.calls()
        good = Message(b"good", session_id="a")
        for message, size in (
            (Message(b"x" * 2_049, session_id="a"), 2_049),
            (Message(b"x" * 2_000, session_id="a", headers={"name": "v" * 100}), 2_110),
            (Message(b"\0" * 1_600, session_id="a"), None),
        ):
            with pytest.raises(MessageTooLarge) as caught:
                await sender.send([good, message])
            assert caught.value.limit == 2_048
            assert size is None or caught.value.size == size
        assert emulator.calls() == before
        results = await sender.send([good, Message(b"x" * 2_048, session_id="a")])
        assert [result.error for result in results] == [None, None]


async def test_the_limit_of_the_queue_itself(emulator: Emulator, url: str) -> None:
    name = f"small-{uuid.uuid4().hex}.fifo"
    await foreign(
        emulator,
        "create_queue",
        QueueName=name,
        Attributes={"FifoQueue": "true", "MaximumMessageSize": "1024"},
    )
    async with connected(url) as provider:
        sender = await provider.open_sender(QueueName(name))
        with pytest.raises(MessageTooLarge) as caught:
            await sender.send([Message(b"x" * 1_025, session_id="a")])
        assert (caught.value.size, caught.value.limit) == (1_025, 1_024)
        (result,) = await sender.send([Message(b"x" * 1_024, session_id="a")])
        assert result.error is None


async def test_one_entry_too_many(emulator: Emulator, url: str, name: QueueName) -> None:
    """SQS takes ten in a request: a sender refuses what it would have to cut, the client cuts."""
    async with connected(url, provision=name) as provider:
        most = provider.capabilities.max_batch_messages
        sender = await provider.open_sender(name)
        before = emulator.calls()
        with pytest.raises(BatchTooLarge) as caught:
            await sender.send([Message(b"x", session_id="a")] * (most + 1))
        assert (caught.value.count, caught.value.limit) == (most + 1, most)
        assert emulator.calls() == before
    messages = [Message(b"%d" % number, session_id="a") for number in range(11)]
    async with open_client(url) as client:
        results = await client.send_batch(name, messages)
        assert [result.error for result in results] == [None] * 11
        received: list[bytes] = []
        while len(received) < 11:
            for delivery in await client.receive_batch(name, max_messages=10):
                received.append(delivery.body)
                await client.complete(delivery)
        assert received == [message.body for message in messages]


# --- foreign messages ----------------------------------------------------------------------------------


def text(value: str, kind: str = "String") -> dict[str, Any]:
    return {"DataType": kind, "StringValue": value}


def envelope(**fields: Any) -> dict[str, Any]:
    return {ENVELOPE: text(json.dumps({"v": 1, **fields}))}


READABLE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "text": {"colour": text("grün")},
    "number": {"count": text("12.5", "Number")},
    "custom_type": {"count": text("12", "Number.int")},
    "bytes": {"data": {"DataType": "Binary", "BinaryValue": b"\x00\xff"}},
    "ten": {f"name-{number}": text("v") for number in range(10)},
    "later_fields": envelope(invented="tomorrow"),
}

BROKEN: dict[str, dict[str, Any]] = {
    "no_json": {ENVELOPE: text("hello")},
    "no_object": {ENVELOPE: text("[1]")},
    "number": {ENVELOPE: text("7", "Number")},
    "bytes": {ENVELOPE: {"DataType": "Binary", "BinaryValue": b"\x00\xff"}},
    "no_version": {ENVELOPE: text("{}")},
    "later_version": {ENVELOPE: text('{"v":2}')},
    "deep": {ENVELOPE: text("[" * 100_000)},
    "no_base64": envelope(body="base64"),
    "body_form": envelope(body="rot13"),
    "headers": envelope(headers="x"),
    "header": envelope(headers={"name": 7}),
    "due": envelope(due="soon"),
    "id": envelope(id=7),
    "dead": envelope(dead={"reason": 1}),
    "sequence": envelope(sequence=-1),
}


async def test_attributes_of_a_foreign_sender(
    emulator: Emulator, url: str, name: QueueName
) -> None:
    """Delivered with what can be read, or dead-lettered with the reason; what comes behind goes on."""
    async with connected(url, provision=name):
        pass
    there = await queue_url(emulator, f"{name}.fifo")
    messages = []
    for number, (case, attributes) in enumerate([*READABLE.items(), *BROKEN.items()]):
        group = f"group-{number}"
        messages.append(message_to(there, f"{case} {number}", group, attributes))
        messages.append(message_to(there, f"behind {number}", group, {}))
    await foreign_calls(emulator, "send_message", messages)
    handled: dict[str, Delivery] = {}
    done = trio.Event()
    expected = [f"{case} {number}" for number, case in enumerate(READABLE)]
    expected += [f"behind {number}" for number in range(len(READABLE) + len(BROKEN))]

    async def handle(delivery: Delivery) -> None:
        assert delivery.body.decode() not in handled
        handled[delivery.body.decode()] = delivery
        if len(handled) == len(expected):
            done.set()

    with trio.fail_after(15):
        async with open_supervisor(url, name, handle):
            await done.wait()
    assert sorted(handled) == sorted(expected)
    assert {delivery.delivery_count for delivery in handled.values()} == {1}
    headers = {
        body.split()[0]: dict(delivery.message.headers) for body, delivery in handled.items()
    }
    assert headers["text"] == {"colour": "grün"}
    assert headers["number"] == {"count": "12.5"}
    assert headers["custom_type"] == {"count": "12"}
    assert headers["bytes"] == {"data": "AP8="}
    assert len(headers["ten"]) == 10
    async with open_client(url) as client:
        letters = [letter async for letter in (await client.dead_letters(name)).find()]
        stats = await client.queue_stats(name)
    assert (stats.depth, stats.in_flight, stats.dead_lettered) == (0, 0, len(BROKEN))
    assert sorted(letter.message.body.decode().split()[0] for letter in letters) == sorted(BROKEN)
    for letter in letters:
        assert letter.dead_letter is not None
        assert letter.dead_letter.reason == MALFORMED
        assert ENVELOPE in letter.dead_letter.description
        # What was broken is there to be looked at.
        assert ENVELOPE in letter.message.headers


async def test_without_a_dead_letter_queue_what_can_be_read_is_delivered(
    emulator: Emulator, url: str
) -> None:
    name = f"lonely-{uuid.uuid4().hex}.fifo"
    created = await foreign(
        emulator, "create_queue", QueueName=name, Attributes={"FifoQueue": "true"}
    )
    attributes = {ENVELOPE: text("{}"), "colour": text("red")}
    message = message_to(created["QueueUrl"], "hello", "a", attributes)
    await foreign(emulator, "send_message", **message)
    async with connected(url) as provider:
        receiver = await provider.open_receiver(QueueName(name), ReceiverOptions())
        (delivery,) = await receiver.receive(10, 1.0)
        assert delivery.body == b"hello"
        assert delivery.message.headers == {"colour": "red", ENVELOPE: "{}"}


async def test_groups_of_a_foreign_sender(emulator: Emulator, url: str, name: QueueName) -> None:
    """All that SQS takes as a group is a session, except what only looks like one of our codes."""
    groups = ["a", "!" * 128, "~t:%C3%A9", "~x:y", "a.b;c=d"]
    imitations = ["~t:%zz", "~h:" + 64 * "0", "~n:short"]
    async with connected(url, provision=name) as provider:
        there = await queue_url(emulator, f"{name}.fifo")
        messages = [message_to(there, group, group, {}) for group in (*groups, *imitations)]
        await foreign_calls(emulator, "send_message", messages)
        receiver = await provider.open_receiver(name, ReceiverOptions())
        sessions: dict[str, str | None] = {}
        while len(sessions) < len(groups):
            for delivery in await receiver.receive(10, 1.0):
                sessions[delivery.body.decode()] = delivery.session_id
        assert sessions == {**{group: group for group in groups}, "~t:%C3%A9": "é"}
        letters = await (await provider.open_dead_letters(name)).peek(10)
        assert sorted(letter.message.body.decode() for letter in letters) == sorted(imitations)
        for letter in letters:
            assert letter.dead_letter is not None
            assert letter.dead_letter.reason == MALFORMED
