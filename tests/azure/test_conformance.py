"""What the project relies on of Service Bus, by the SDK alone: the emulator must do it, and so must the real one.

``QUEUE_RUNTIME_TEST_AZURE_URL`` may name a namespace or Microsoft's emulator, with a connection string; then this file
runs against that. Its queues have to exist there, empty: see ``README.md``.

Opening and closing a link takes the SDK about a second, most of it waiting. So all scenarios run at once, each on
queues of its own, and every test then tells how one of them ended.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from azure.servicebus import (
    NEXT_AVAILABLE_SESSION,
    ServiceBusMessage,
    ServiceBusReceiveMode,
    ServiceBusSubQueue,
    TransportType,
)
from azure.servicebus import ServiceBusClient as SyncClient
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.exceptions import (
    MessageAlreadySettled,
    MessageLockLostError,
    MessageNotFoundError,
    MessageSizeExceededError,
    MessagingEntityNotFoundError,
    OperationTimeoutError,
    ServiceBusError,
    SessionCannotBeLockedError,
    SessionLockLostError,
)

from queue_runtime.testing.servicebus import Certificate, QueueSettings, emulator_in_thread

from .given import SHORT, URL_VARIABLE, given_url, said

GIVEN = given_url()
LOCK = SHORT if GIVEN else 6.0
"""Seconds; what is given has its own. In a third of that a busy machine does what has to be done in time."""

QUEUES = {
    "qr-batches": QueueSettings(),
    "qr-outcomes": QueueSettings(),
    "qr-locks": QueueSettings(lock_duration=LOCK, max_delivery_count=2),
    "qr-schedule": QueueSettings(),
    "qr-modes": QueueSettings(),
    "qr-expiry": QueueSettings(dead_letter_expired=True),
    "qr-bodies": QueueSettings(),
    "qr-duplicates": QueueSettings(duplicate_window=30.0),
    "qr-sync": QueueSettings(),
    "qr-iterate": QueueSettings(),
    "qr-closing": QueueSettings(lock_duration=60.0),
    "qr-named": QueueSettings(requires_session=True),
    "qr-next": QueueSettings(requires_session=True),
    "qr-lost": QueueSettings(requires_session=True, lock_duration=LOCK),
    "qr-deferred": QueueSettings(requires_session=True),
    "qr-states": QueueSettings(requires_session=True),
}

CONFORMS: ContextVar[str] = ContextVar("CONFORMS")
"""The URL of the broker, for scenarios that open clients of their own."""


def connecting(url: str) -> dict[str, Any]:
    """What a URL of this project is to the SDK."""
    options = said(url)
    if "connection_string" not in options:
        pytest.fail(f"{URL_VARIABLE} has no connection_string, by which alone this file connects")
    return {
        "conn_str": options["connection_string"],
        "custom_endpoint_address": options.get("custom_endpoint"),
        "connection_verify": options.get("verify"),
        # Said, as the SDK takes WebSockets for granted where a custom endpoint is.
        "transport_type": TransportType.AmqpOverWebsocket
        if options.get("transport") == "websocket"
        else TransportType.Amqp,
    }


Scenario = Callable[[ServiceBusClient], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


def text(message: Any) -> str:
    return b"".join(message.body).decode()


async def take(receiver: Any, count: int = 1, wait: float = 10.0) -> list[Any]:
    messages: list[Any] = []
    while len(messages) < count:
        (message,) = await receiver.receive_messages(1, max_wait_time=wait)
        messages.append(message)
    return messages


async def is_empty(receiver: Any) -> bool:
    return not await receiver.receive_messages(1, max_wait_time=1)


def from_now(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)


def after_the_sdk(message: Any) -> Any:
    """Have the SDK believe that a lock still lasts, so that the broker is asked."""
    later = int(from_now(60).timestamp() * 1_000)
    message._raw_amqp_message.annotations[b"x-opt-locked-until"] = later
    return message


# --- queues without sessions -----------------------------------------------------------------------


@scenario
async def batches_and_lists(client: ServiceBusClient) -> None:
    async with client.get_queue_sender("qr-batches") as sender:
        batch = await sender.create_message_batch()
        for number in range(20):
            batch.add_message(ServiceBusMessage(str(number), message_id=f"m{number}"))
        await sender.send_messages(batch)
        await sender.send_messages([ServiceBusMessage(str(number)) for number in range(20, 25)])
        await sender.send_messages(ServiceBusMessage(b"x" * 200_000))
        with pytest.raises(MessageSizeExceededError):
            await sender.send_messages(ServiceBusMessage(b"x" * batch.max_size_in_bytes))
    async with client.get_queue_receiver("qr-batches", prefetch_count=20) as receiver:
        messages = await take(receiver, 26)
        assert [text(message) for message in messages[:25]] == [str(n) for n in range(25)]
        assert len(text(messages[25])) == 200_000
        numbers = [message.sequence_number for message in messages]
        assert numbers == sorted(set(numbers))
        for message in messages:
            await receiver.complete_message(message)
        assert await is_empty(receiver)


@scenario
async def outcomes(client: ServiceBusClient) -> None:
    async with (
        client.get_queue_sender("qr-outcomes") as sender,
        client.get_queue_receiver("qr-outcomes") as receiver,
        client.get_queue_receiver(
            "qr-outcomes", sub_queue=ServiceBusSubQueue.DEAD_LETTER
        ) as dead_letters,
    ):
        await sender.send_messages(
            [ServiceBusMessage(name, application_properties={"name": name}) for name in "abc"]
        )
        (a,) = await take(receiver)
        assert (text(a), a.delivery_count) == ("a", 0)
        await receiver.abandon_message(a)
        (a,) = await take(receiver)
        assert (text(a), a.delivery_count) == ("a", 1)
        await receiver.complete_message(a)
        with pytest.raises(MessageAlreadySettled):
            await receiver.complete_message(a)
        (b,) = await take(receiver)
        await receiver.dead_letter_message(b, reason="why", error_description="because")
        (c,) = await take(receiver)
        await receiver.defer_message(c)
        assert await is_empty(receiver)
        (peeked,) = await receiver.peek_messages(5, sequence_number=1)
        assert peeked.state.name == "DEFERRED"
        (c,) = await receiver.receive_deferred_messages([c.sequence_number])
        assert text(c) == "c"
        await receiver.complete_message(c)
        with pytest.raises(MessageNotFoundError):
            await receiver.receive_deferred_messages([c.sequence_number])
        (b,) = await take(dead_letters)
        assert (b.dead_letter_reason, b.dead_letter_error_description) == ("why", "because")
        assert b.application_properties[b"name"] == b"b"
        await dead_letters.complete_message(b)


@scenario
async def locks(client: ServiceBusClient) -> None:
    async with (
        client.get_queue_sender("qr-locks") as sender,
        client.get_queue_receiver("qr-locks") as receiver,
        client.get_queue_receiver(
            "qr-locks", sub_queue=ServiceBusSubQueue.DEAD_LETTER
        ) as dead_letters,
    ):
        await sender.send_messages(ServiceBusMessage("x"))
        (message,) = await take(receiver)
        left = (message.locked_until_utc - from_now(0)).total_seconds()
        assert LOCK - 3 < left < LOCK + 1
        await asyncio.sleep(LOCK * 0.7)
        until = await receiver.renew_message_lock(message)
        assert (until - from_now(0)).total_seconds() > LOCK * 0.7
        await asyncio.sleep(LOCK * 0.7)
        assert not message._lock_expired
        (again,) = await take(receiver)  # when the lock has ended
        assert again.delivery_count == 1
        with pytest.raises(MessageLockLostError):
            await receiver.complete_message(after_the_sdk(message))
        with pytest.raises(MessageLockLostError):
            await receiver.renew_message_lock(after_the_sdk(message))
        await receiver.abandon_message(again)
        (dead,) = await take(dead_letters)
        assert dead.dead_letter_reason == "MaxDeliveryCountExceeded"
        await dead_letters.complete_message(dead)


@scenario
async def scheduling_and_peeking(client: ServiceBusClient) -> None:
    async with (
        client.get_queue_sender("qr-schedule") as sender,
        client.get_queue_receiver("qr-schedule") as receiver,
    ):
        due = from_now(10)
        (one,) = await sender.schedule_messages(ServiceBusMessage("one"), due)
        two, three = await sender.schedule_messages(
            [ServiceBusMessage("two"), ServiceBusMessage("three")], due
        )
        assert one < two < three
        await sender.cancel_scheduled_messages(two)
        with pytest.raises(MessageNotFoundError):
            await sender.cancel_scheduled_messages(two)
        await sender.send_messages(ServiceBusMessage("four", scheduled_enqueue_time_utc=due))
        peeked = await receiver.peek_messages(10)
        assert [text(message) for message in peeked] == ["one", "three", "four"]
        assert {message.state.name for message in peeked} == {"SCHEDULED"}
        assert await is_empty(receiver)
        messages = await take(receiver, 3, wait=20.0)
        assert {text(message) for message in messages} == {"one", "three", "four"}
        assert from_now(0) >= due - dt.timedelta(seconds=1)
        for message in messages:
            await receiver.complete_message(message)


@scenario
async def receive_and_delete(client: ServiceBusClient) -> None:
    async with client.get_queue_sender("qr-modes") as sender:
        await sender.send_messages([ServiceBusMessage(str(number)) for number in range(10)])
    async with client.get_queue_receiver(
        "qr-modes", receive_mode=ServiceBusReceiveMode.RECEIVE_AND_DELETE
    ) as receiver:
        messages = await receiver.receive_messages(4, max_wait_time=5)
        while len(messages) < 10:
            messages += await receiver.receive_messages(10 - len(messages), max_wait_time=5)
        assert [text(message) for message in messages] == [str(number) for number in range(10)]
        assert await receiver.peek_messages() == []


@scenario
async def expiry(client: ServiceBusClient) -> None:
    async with (
        client.get_queue_sender("qr-expiry") as sender,
        client.get_queue_receiver("qr-expiry") as receiver,
        client.get_queue_receiver(
            "qr-expiry", sub_queue=ServiceBusSubQueue.DEAD_LETTER
        ) as dead_letters,
    ):
        await sender.send_messages(ServiceBusMessage("short", time_to_live=dt.timedelta(seconds=1)))
        await asyncio.sleep(2)
        assert await is_empty(receiver)
        (dead,) = await take(dead_letters)
        assert dead.dead_letter_reason == "TTLExpiredException"
        await dead_letters.complete_message(dead)


@scenario
async def properties(client: ServiceBusClient) -> None:
    everything = ServiceBusMessage(
        b"\x00\xff" * 10,
        application_properties={
            "text": "ü",
            "int": 7,
            "float": 0.5,
            "bytes": b"\x00",
            "bool": True,
        },
        message_id="id",
        correlation_id="correlation",
        content_type="text/x",
        subject="subject",
        reply_to="reply",
        to="to",
    )
    async with (
        client.get_queue_sender("qr-bodies") as sender,
        client.get_queue_receiver("qr-bodies") as receiver,
    ):
        before = from_now(-5)
        await sender.send_messages(everything)
        (message,) = await take(receiver)
        assert b"".join(message.body) == b"\x00\xff" * 10
        sent = everything.application_properties
        assert message.application_properties == {
            key.encode(): value.encode() if isinstance(value, str) else value
            for key, value in sent.items()
        }
        for name in ("message_id", "correlation_id", "content_type", "subject", "reply_to", "to"):
            assert getattr(message, name) == getattr(everything, name)
        assert before < message.enqueued_time_utc < from_now(5)
        await receiver.complete_message(message)


@scenario
async def duplicates(client: ServiceBusClient) -> None:
    same = uuid.uuid4().hex
    async with (
        client.get_queue_sender("qr-duplicates") as sender,
        client.get_queue_receiver("qr-duplicates") as receiver,
    ):
        for number in range(3):
            await sender.send_messages(ServiceBusMessage(str(number), message_id=same))
        (message,) = await take(receiver)
        assert text(message) == "0"
        await receiver.complete_message(message)
        assert await is_empty(receiver)


@scenario
async def iterating(client: ServiceBusClient) -> None:
    async with (
        client.get_queue_sender("qr-iterate") as sender,
        client.get_queue_receiver("qr-iterate", max_wait_time=5) as receiver,
    ):
        await sender.send_messages([ServiceBusMessage(str(number)) for number in range(5)])
        got = []
        async for message in receiver:
            got.append(text(message))
            await receiver.complete_message(message)
        assert got == ["0", "1", "2", "3", "4"]


@scenario
async def closing_gives_back_what_was_prefetched(client: ServiceBusClient) -> None:
    async with client.get_queue_sender("qr-closing") as sender:
        await sender.send_messages([ServiceBusMessage(str(number)) for number in range(10)])
    async with client.get_queue_receiver("qr-closing", prefetch_count=20) as receiver:
        (first,) = await take(receiver)
        await receiver.complete_message(first)
    async with client.get_queue_receiver("qr-closing") as receiver:
        messages = await take(receiver, 9)
        assert [text(message) for message in messages] == [str(number) for number in range(1, 10)]
        for message in messages:
            await receiver.complete_message(message)


@scenario
async def queues_that_are_not_there(client: ServiceBusClient) -> None:
    for handler in (
        client.get_queue_sender("qr-not-there"),
        client.get_queue_receiver("qr-not-there"),
    ):
        with pytest.raises(MessagingEntityNotFoundError):
            async with handler:
                pass


@scenario
async def the_sync_client(_client: ServiceBusClient) -> None:
    url = CONFORMS.get()

    def run() -> None:
        with (
            SyncClient.from_connection_string(**connecting(url)) as client,
            client.get_queue_sender("qr-sync") as sender,
            client.get_queue_receiver("qr-sync") as receiver,
        ):
            sender.send_messages([ServiceBusMessage("a"), ServiceBusMessage("b")])
            for name, settle in (
                ("a", receiver.abandon_message),
                ("a", receiver.complete_message),
                ("b", receiver.complete_message),
            ):
                (message,) = receiver.receive_messages(1, max_wait_time=10)
                assert text(message) == name
                settle(message)

    await asyncio.to_thread(run)


# --- sessions --------------------------------------------------------------------------------------


@scenario
async def sessions_by_name(client: ServiceBusClient) -> None:
    async with client.get_queue_sender("qr-named") as sender:
        await sender.send_messages(
            [ServiceBusMessage(f"{k}{n}", session_id=k) for n in range(3) for k in "ab"]
        )
        with pytest.raises(ServiceBusError):
            await sender.send_messages(ServiceBusMessage("none"), timeout=10)
    with pytest.raises(ServiceBusError):
        async with client.get_queue_receiver("qr-named"):
            pass
    async with (
        client.get_queue_receiver("qr-named", session_id="a") as a,
        client.get_queue_receiver("qr-named", session_id="b") as b,
    ):
        with pytest.raises(SessionCannotBeLockedError):
            async with client.get_queue_receiver("qr-named", session_id="a"):
                pass
        assert a.session.session_id == "a"
        until = a.session.locked_until_utc
        assert await a.session.renew_lock() >= until
        for receiver, name in ((a, "a"), (b, "b")):
            for number in range(3):
                (message,) = await take(receiver)
                assert (text(message), message.session_id) == (f"{name}{number}", name)
                if (name, number) == ("a", 1):
                    await receiver.abandon_message(message)
                    (message,) = await take(receiver)
                    assert (text(message), message.delivery_count) == ("a1", 1)
                await receiver.complete_message(message)


@scenario
async def next_available_sessions(client: ServiceBusClient) -> None:
    def accept(wait: float) -> Any:
        return client.get_queue_receiver(
            "qr-next", session_id=NEXT_AVAILABLE_SESSION, max_wait_time=wait
        )

    with pytest.raises(OperationTimeoutError):
        async with accept(1):
            pass
    name = uuid.uuid4().hex

    async def send_later() -> None:
        await asyncio.sleep(1)
        async with client.get_queue_sender("qr-next") as sender:
            await sender.send_messages(
                [ServiceBusMessage(str(number), session_id=name) for number in range(2)]
            )

    sending = asyncio.create_task(send_later())
    async with accept(20) as receiver:
        assert receiver.session.session_id == name
        with pytest.raises(OperationTimeoutError):
            async with accept(1):
                pass
        (message,) = await take(receiver)
        assert text(message) == "0"
    async with accept(20) as receiver:  # closing gave it back, uncounted
        for number in range(2):
            (message,) = await take(receiver)
            assert (text(message), message.delivery_count) == (str(number), 0)
            await receiver.complete_message(message)
    await sending


@scenario
async def lost_sessions(client: ServiceBusClient) -> None:
    async with client.get_queue_sender("qr-lost") as sender:
        await sender.send_messages(ServiceBusMessage("x", session_id="s"))
    async with client.get_queue_receiver("qr-lost", session_id="s") as receiver:
        (message,) = await take(receiver)
        await asyncio.sleep(LOCK * 0.6)
        await receiver.session.renew_lock()
        await asyncio.sleep(LOCK * 0.6)
        await receiver.session.renew_lock()
        receiver.session._locked_until_utc += dt.timedelta(seconds=60)
        await asyncio.sleep(LOCK + 1)
        with pytest.raises(SessionLockLostError):
            await receiver.complete_message(message)
    async with client.get_queue_receiver("qr-lost", session_id="s") as receiver:
        (message,) = await take(receiver)
        assert message.delivery_count == 1
        await receiver.complete_message(message)


@scenario
async def deferred_within_a_session(client: ServiceBusClient) -> None:
    async with client.get_queue_sender("qr-deferred") as sender:
        await sender.send_messages(ServiceBusMessage("x", session_id="s"))
        (number,) = await sender.schedule_messages(
            ServiceBusMessage("y", session_id="s"), from_now(3_600)
        )
        await sender.cancel_scheduled_messages(number)
    async with client.get_queue_receiver("qr-deferred", session_id="s") as receiver:
        (message,) = await take(receiver)
        await receiver.defer_message(message)
        (message,) = await receiver.receive_deferred_messages([message.sequence_number])
        assert text(message) == "x"
        await receiver.dead_letter_message(message, reason="r")
    async with client.get_queue_receiver(
        "qr-deferred", sub_queue=ServiceBusSubQueue.DEAD_LETTER
    ) as receiver:
        (message,) = await take(receiver)
        assert (message.session_id, message.dead_letter_reason) == ("s", "r")
        await receiver.complete_message(message)


@scenario
async def session_states(client: ServiceBusClient) -> None:
    async with client.get_queue_receiver("qr-states", session_id="s") as receiver:
        assert not await receiver.session.get_state()
        await receiver.session.set_state(b"\x00state")
        assert bytes(await receiver.session.get_state()) == b"\x00state"
    async with client.get_queue_receiver("qr-states", session_id="s") as receiver:
        assert bytes(await receiver.session.get_state()) == b"\x00state"
        await receiver.session.set_state(None)
        assert not await receiver.session.get_state()


# --- all of them at once ---------------------------------------------------------------------------


async def run_all(url: str) -> dict[str, BaseException | None]:
    CONFORMS.set(url)
    over_websockets = said(url).get("transport") == "websocket"
    # In threads the SDK's WebSockets are those of a package that nothing else here needs.
    chosen = {
        name: run
        for name, run in SCENARIOS.items()
        if not over_websockets or run is not the_sync_client
    }

    async def run(run_one: Scenario) -> None:
        async with ServiceBusClient.from_connection_string(
            **connecting(url), retry_total=0
        ) as client:
            await asyncio.wait_for(run_one(client), 120)

    results = await asyncio.gather(*map(run, chosen.values()), return_exceptions=True)
    return dict(zip(chosen, results, strict=True))


@pytest.fixture(scope="module", params=["amqp"] if GIVEN else ["amqp", "websocket"])
def results(request: pytest.FixtureRequest) -> Iterator[dict[str, BaseException | None]]:
    if GIVEN:
        yield asyncio.run(run_all(GIVEN))
        return
    over_websockets = request.param == "websocket"
    certificate = Certificate() if over_websockets else None
    with emulator_in_thread(QUEUES, certificate=certificate) as emulator:
        yield asyncio.run(run_all(emulator.url + "&transport=websocket" * over_websockets))
        statistics = emulator.statistics()
    assert (statistics.websockets > 0) == over_websockets
    assert (statistics.open_connections, statistics.open_links) == (0, 0)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, results: dict[str, BaseException | None]) -> None:
    if name not in results:
        pytest.skip("the SDK has no WebSockets in threads here")
    error = results[name]
    if error is not None:
        raise error
