"""What is wrong with names, credentials, settings and messages is told at the earliest moment, with a cure.

Nothing is lost by it, and no key is shown, wherever one looks.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
import traceback
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import pytest
import trio
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.amqp import (
    AmqpAnnotatedMessage,
    AmqpMessageProperties,
)
from click.testing import CliRunner

from queue_runtime import (
    AuthenticationFailed,
    BatchTooLarge,
    ConfigurationError,
    ConnectionFailed,
    Delivery,
    Message,
    MessageTooLarge,
    QueueError,
    QueueName,
    QueueNotFound,
    Unsupported,
    ValidationError,
    open_client,
    open_supervisor,
)
from queue_runtime.abc import ReceiverOptions
from queue_runtime.cli import root
from queue_runtime.providers.azure import FACTORY
from queue_runtime.providers.azure.provider import AzureProvider
from queue_runtime.providers.envelope import ENVELOPE
from queue_runtime.providers.malformed import MALFORMED

from .emulator_process import EmulatorProcess
from .linked import complete, linked, receive_all

CANARY = b64encode(b"a key that nobody may ever see").decode()


@pytest.fixture
def queue(emulator: EmulatorProcess) -> QueueName:
    name = QueueName(f"bad-{uuid.uuid4().hex[:12]}")
    emulator.create_queue(str(name), requires_session=True)
    return name


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(root, arguments)

    return run


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AzureProvider]:
    provider = await FACTORY.open(FACTORY.config_from_url(url))
    try:
        yield provider
    finally:
        await provider.aclose()


def said_of(error: BaseException) -> str:
    """All that somebody may come to see of an error."""
    seen = [str(error), repr(error), *map(str, error.args)]
    seen += traceback.format_exception(error)
    seen += [str(value) for value in vars(error).values()]
    return "\n".join(seen)


def with_key(emulator: EmulatorProcess, key: str) -> str:
    parts = dict(part.partition("=")[::2] for part in emulator.connection_string.split(";"))
    parts["SharedAccessKey"] = key
    return ";".join(f"{name}={value}" for name, value in parts.items())


def url_with(connection_string: str, **options: Any) -> str:
    words = {name: str(value).lower() for name, value in options.items()}
    return (
        f"azure://?{urlencode({'connection_string': connection_string, **words}, quote_via=quote)}"
    )


# --- queues --------------------------------------------------------------------------------------------


async def test_a_queue_that_is_not_there(emulator: EmulatorProcess) -> None:
    async with connected(emulator.url_with()) as provider:
        name = QueueName("nowhere")
        for opening in (
            provider.open_sender(name),
            provider.open_receiver(name, ReceiverOptions()),
            provider.open_dead_letters(name),
            provider.peek(name, 1),
            provider.purge(name),
        ):
            with pytest.raises(QueueNotFound) as caught:
                await opening
            assert not caught.value.is_transient
            for part in ("nowhere", "check the name and the namespace"):
                assert part in str(caught.value)


def test_a_queue_that_is_not_there_on_the_command_line(
    emulator: EmulatorProcess, cli: Callable[..., Any]
) -> None:
    result = cli("peek", "--url", emulator.url_with(), "--queue", "nowhere")
    assert result.exit_code != 0
    assert "nowhere" in result.output
    key = emulator.connection_string.partition("SharedAccessKey=")[2].partition(";")[0]
    assert key not in result.output


async def test_a_queue_without_sessions_used_with_sessions(emulator: EmulatorProcess) -> None:
    name = QueueName(f"bad-{uuid.uuid4().hex[:12]}")
    emulator.create_queue(str(name))
    async with connected(emulator.url_with()) as provider:
        with pytest.raises(ConfigurationError, match="sessions=false"):
            await provider.open_receiver(name, ReceiverOptions())
    async with connected(emulator.url_with(sessions=False)) as provider:
        sender = await provider.open_sender(name)
        receiver = await provider.open_receiver(name, ReceiverOptions())
        with pytest.raises(Unsupported) as caught:
            await sender.send([Message(b"good"), Message(b"x", session_id="a")])
        assert caught.value.feature == "sessions"
        assert emulator.counts(str(name))["active"] == 0
        for call in (receiver.accept(None, 0.0), receiver.accept("a", 0.0)):
            with pytest.raises(Unsupported):
                await call
    assert emulator.counts(str(name))["locked_sessions"] == 0


async def test_a_queue_with_sessions_used_without(
    emulator: EmulatorProcess, queue: QueueName
) -> None:
    async with connected(emulator.url_with(sessions=False)) as provider:
        with pytest.raises(ConfigurationError, match="sessions=true"):
            await provider.open_receiver(queue, ReceiverOptions())
        sender = await provider.open_sender(queue)
        with pytest.raises(QueueError, match="sess"):
            await sender.send([Message(b"x")])
    assert emulator.counts(str(queue))["active"] == 0


async def test_a_supervisor_ends_with_a_queue_of_the_other_kind(emulator: EmulatorProcess) -> None:
    name = f"bad-{uuid.uuid4().hex[:12]}"
    emulator.create_queue(name)

    async def handle(delivery: Delivery) -> None:
        raise AssertionError(f"nothing was sent, but {delivery} came")

    with trio.fail_after(10), pytest.raises(ConfigurationError, match="sessions=false"):
        async with open_supervisor(emulator.url_with(), name, handle):
            await trio.sleep_forever()


async def test_names_that_service_bus_cannot_hold(emulator: EmulatorProcess) -> None:
    async with connected(emulator.url_with()) as provider:
        with pytest.raises(ValidationError, match="must end in a letter or a digit"):
            await provider.open_sender(QueueName("orders-"))
    async with connected(f"{emulator.url_with()}&queue=orders") as provider:
        with pytest.raises(ConfigurationError, match="is not the queue"):
            await provider.open_sender(QueueName("others"))


# --- credentials and places ----------------------------------------------------------------------------


async def test_a_wrong_key_is_shown_nowhere(
    emulator: EmulatorProcess,
    queue: QueueName,
    cli: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    url = url_with(with_key(emulator, CANARY))
    assert CANARY not in repr(FACTORY.config_from_url(url))
    async with connected(url) as provider:
        assert CANARY not in repr(provider)
        for opening in (
            provider.open_sender(queue),
            provider.open_receiver(queue, ReceiverOptions()),
            provider.peek(queue, 1),
        ):
            with pytest.raises(AuthenticationFailed) as caught:
                await opening
            assert not caught.value.is_transient
            assert "check the connection string's key" in str(caught.value)
            assert CANARY not in said_of(caught.value)
            assert "sig=" not in said_of(caught.value)
    result = await trio.to_thread.run_sync(lambda: cli("peek", "--url", url, "--queue", str(queue)))
    assert result.exit_code != 0
    assert CANARY not in result.output
    assert CANARY not in caplog.text


async def test_a_signature_that_has_expired(emulator: EmulatorProcess, queue: QueueName) -> None:
    parts = dict(part.partition("=")[::2] for part in emulator.connection_string.split(";"))
    audience = f"sb://{emulator.endpoint.removeprefix('sb://')}/{queue}"
    expired = int(time.time()) - 60
    payload = f"{quote_plus(audience)}\n{expired}".encode()
    digest = hmac.new(parts["SharedAccessKey"].encode(), payload, hashlib.sha256).digest()
    sig = b64encode(digest).decode()
    fields = {"sr": audience, "sig": sig, "se": expired, "skn": parts["SharedAccessKeyName"]}
    text = (
        f"Endpoint={emulator.endpoint};UseDevelopmentEmulator=true;"
        f"SharedAccessSignature=SharedAccessSignature {urlencode(fields)}"
    )
    async with connected(url_with(text)) as provider:
        with pytest.raises(AuthenticationFailed, match="renew the token") as caught:
            await provider.open_sender(queue)
        for secret in (sig, quote_plus(sig)):
            assert secret not in said_of(caught.value)


async def test_a_namespace_that_does_not_resolve() -> None:
    text = f"Endpoint=sb://no-such.invalid/;SharedAccessKeyName=Root;SharedAccessKey={CANARY}"
    url = url_with(text, connect_timeout=3)
    async with connected(url) as provider:
        with trio.fail_after(10), pytest.raises(ConnectionFailed) as caught:
            await provider.open_sender(QueueName("orders"))
    assert "check the namespace's name" in str(caught.value)
    assert CANARY not in said_of(caught.value)


PIECES = {
    "Endpoint": "Endpoint=sb://orders.servicebus.windows.net/",
    "SharedAccessKeyName": "SharedAccessKeyName=Root",
    "SharedAccessKey": f"SharedAccessKey={CANARY}",
}

STRINGS = {
    "no_endpoint": (("SharedAccessKeyName", "SharedAccessKey"), "Endpoint is missing"),
    "no_name": (("Endpoint", "SharedAccessKey"), "SharedAccessKeyName is missing"),
    "no_key": (("Endpoint", "SharedAccessKeyName"), "SharedAccessKey is missing"),
    "the_key_alone": ((CANARY,), "part 1"),
    "not_a_pair": (("Endpoint", "SharedAccessKeyName", CANARY[:20]), "part 3 is not name=value"),
    "a_typo": (("Endpoint", "SharedAccessKeyName", f"SharedAccesKey={CANARY}"), "did you mean"),
    "twice": ((*PIECES, "SharedAccessKey"), "SharedAccessKey is given more than once"),
    "http": (
        ("Endpoint=https://orders.example.com/", "SharedAccessKeyName", "SharedAccessKey"),
        "Endpoint must be sb://",
    ),
    "port": (
        ("Endpoint=sb://orders.example.com:5672/", "SharedAccessKeyName", "SharedAccessKey"),
        "Endpoint has a port",
    ),
    "emulator": ((*PIECES, "UseDevelopmentEmulator=True"), "UseDevelopmentEmulator must be"),
}


@pytest.mark.parametrize("case", list(STRINGS))
def test_a_connection_string_that_is_none_names_the_part(
    case: str, cli: Callable[..., Any]
) -> None:
    pieces, expected = STRINGS[case]
    text = ";".join(PIECES.get(piece, piece) for piece in pieces)
    with pytest.raises(ConfigurationError) as caught:
        FACTORY.config_from_url(url_with(text))
    assert expected in str(caught.value)
    assert CANARY[:20] not in said_of(caught.value)
    result = cli("peek", "--url", url_with(text), "--queue", "orders")
    assert result.exit_code != 0
    assert CANARY[:20] not in result.output
    # The terminal folds lines.
    assert "".join(expected.split()) in "".join(result.output.split())


# --- sizes ---------------------------------------------------------------------------------------------


async def test_what_is_too_large_is_told_before_anything_is_sent(emulator: EmulatorProcess) -> None:
    async with linked(emulator, max_message_bytes=20_000) as link:
        sender = await link.sender()
        before = emulator.statistics()["transfers_in"]
        good = Message(b"good", session_id="a")
        for body in (b"x" * 20_000, b"x" * 1_000_000):
            with pytest.raises(MessageTooLarge) as caught:
                await sender.send([good, Message(body, session_id="a")])
            assert caught.value.size > 20_000
        with pytest.raises(BatchTooLarge):
            await sender.send([good] * (link.provider.capabilities.max_batch_messages + 1))
        assert emulator.statistics()["transfers_in"] == before
        [result] = await sender.send([Message(b"x" * 19_000, session_id="a")])
        assert result.error is None


@pytest.mark.parametrize("later", [False, True], ids=["sent", "scheduled"])
async def test_large_messages_go_alone_where_a_batch_may_not_be_as_large(
    emulator: EmulatorProcess, later: bool
) -> None:
    size = 3 * 1_048_576
    options = {"max_message_bytes": size, "operation_timeout": 10.0}
    async with linked(emulator, max_message_bytes=size, options=options) as link:
        sender = await link.sender()
        due = datetime.now(UTC) + timedelta(days=1) if later else None
        messages = [
            Message(b"x" * length, session_id="a", scheduled_at=due)
            for length in (400_000, 400_000, 400_000, 2_000_000 if not later else 100, 100)
        ]
        assert [result.error for result in await sender.send(messages)] == [None] * 5
        assert link.counts()["scheduled" if later else "active"] == 5


async def test_a_batch_is_not_too_large_for_what_stands_around_it(
    emulator: EmulatorProcess,
) -> None:
    """Around it stand the first message's ids, of which each character may take three bytes."""
    size = 20_000
    async with linked(
        emulator, max_message_bytes=size, options={"max_message_bytes": size}
    ) as link:
        sender = await link.sender()
        for length in range(size // 2 - 1_500, size // 2, 50):
            messages = [
                Message(b"x" * length, session_id="\u4e00" * 128, message_id="\u4e00" * 128)
            ] * 2
            assert [result.error for result in await sender.send(messages)] == [None] * 2


async def test_a_life_that_service_bus_would_cut_is_refused(emulator: EmulatorProcess) -> None:
    async with linked(emulator) as link:
        sender = await link.sender()
        for seconds in (0.5, 1.5, 0.999):
            with pytest.raises(ValidationError, match="whole ones"):
                await sender.send([Message(b"", session_id="a", time_to_live=seconds)])
        link.assert_empty()


# --- foreign messages ----------------------------------------------------------------------------------

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
SOME_ID = uuid.UUID("12345678-1234-5678-1234-567812345678")


def plain(body: Any = b"body", **options: Any) -> Callable[[str], Any]:
    return lambda session: ServiceBusMessage(body, session_id=session, **options)


def amqp(**options: Any) -> Callable[[str], Any]:
    return lambda session: AmqpAnnotatedMessage(
        properties=AmqpMessageProperties(group_id=session), **options
    )


FOREIGN: dict[str, tuple[Callable[[str], Any], bytes, dict[str, str]]] = {
    "data": (plain(), b"body", {}),
    "no_body": (plain(b""), b"", {}),
    "data_sections": (amqp(data_body=[b"one", b"-", b"two"]), b"one-two", {}),
    "no_utf8": (plain(b"\xff\xfe\x00"), b"\xff\xfe\x00", {}),
    "huge": (plain(b"\x00" * 250_000), b"\x00" * 250_000, {}),
    "value_text": (amqp(value_body="grün"), "grün".encode(), {"queue-runtime-body": "value"}),
    "value_bytes": (amqp(value_body=b"\xff"), b"\xff", {"queue-runtime-body": "value"}),
    "value_map": (
        amqp(value_body={"a": [1, None, True], "b": {"c": 1.5}}),
        b'{"a":[1,null,true],"b":{"c":1.5}}',
        {"queue-runtime-body": "value-json"},
    ),
    "value_number": (amqp(value_body=7), b"7", {"queue-runtime-body": "value-json"}),
    "value_none": (amqp(value_body=None), b"", {"queue-runtime-body": "none"}),
    "sequence": (
        amqp(sequence_body=[[1, "two"], [3.5]]),
        b'[1,"two",3.5]',
        {"queue-runtime-body": "sequence-json"},
    ),
    "properties": (
        plain(
            application_properties={
                "int": 7,
                "negative": -(2**31),
                "float": 1.5,
                "bool": True,
                "uuid": SOME_ID,
                "when": NOW,
                "bytes": bytearray(b"\xff\x00"),  # of bytes the SDK makes text
                "text": "grün",
                "none": None,
            }
        ),
        b"body",
        {
            "int": "7",
            "negative": str(-(2**31)),
            "float": "1.5",
            "bool": "true",
            "uuid": str(SOME_ID),
            "bytes": "/wA=",
            "text": "grün",
            "none": "null",
        },
    ),
    "nested": (
        amqp(data_body=b"body", application_properties={"map": {"a": {"b": [1, 2]}}, "list": [1]}),
        b"body",
        {"map": '{"a":{"b":[1,2]}}', "list": "[1]"},
    ),
    "header_name": (plain(application_properties={"a\nb": "v"}), b"body", {"a\\nb": "v"}),
    "fields": (
        plain(subject="s", to="t", reply_to="r", content_type="c", correlation_id="i"),
        b"body",
        {},
    ),
}

BROKEN: dict[str, object] = {
    "no_json": "hello",
    "no_object": "[1]",
    "number": 7,
    "bytes": bytearray(b"\xff"),
    "no_version": "{}",
    "later_version": '{"v":2}',
    "deep": "[" * 20_000,
    "headers": json.dumps({"v": 1, "headers": "x"}),
    "due": json.dumps({"v": 1, "due": "soon"}),
    "id": json.dumps({"v": 1, "id": 7}),
}


async def foreign_send(emulator: EmulatorProcess, queue: str, messages: list[Any]) -> None:
    """As somebody else's program does, with the SDK alone."""

    async def run() -> None:
        async with ServiceBusClient.from_connection_string(emulator.connection_string) as client:
            async with client.get_queue_sender(queue) as sender:
                for message in messages:
                    await sender.send_messages(message)

    await trio.to_thread.run_sync(lambda: asyncio.run(run()))


async def test_messages_of_foreign_senders_are_delivered_as_they_are(
    emulator: EmulatorProcess, queue: QueueName
) -> None:
    await foreign_send(emulator, str(queue), [make(name) for name, (make, *_) in FOREIGN.items()])
    async with connected(emulator.url_with()) as provider:
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        deliveries = await receive_all(receiver, len(FOREIGN))
        found = {str(delivery.session_id): delivery for delivery in deliveries}
        assert sorted(found) == sorted(FOREIGN)
        for name, (_, body, headers) in FOREIGN.items():
            message = found[name].message
            assert message.body == body, name
            assert headers.items() <= dict(message.headers).items(), name
            assert found[name].message_id
            assert found[name].delivery_count == 1
        milliseconds = int(NOW.timestamp() * 1_000)  # as AMQP counts, which has no more to it
        assert found["properties"].message.headers["when"] == str(milliseconds)
        fields = found["fields"].message
        assert (fields.content_type, fields.correlation_id) == ("c", "i")
        await complete(receiver, deliveries)
        counts = emulator.counts(str(queue))
        assert (counts["active"], counts["dead_letters"]) == (0, 0)


async def test_ids_of_foreign_senders(emulator: EmulatorProcess, queue: QueueName) -> None:
    """None, numbers, bytes, UUIDs, much too long: each delivery has an identity of its own."""
    ids = [None, 7, b"\xff\x00", SOME_ID, "x" * 128, "line\nfeed"]
    messages = [
        AmqpAnnotatedMessage(
            data_body=b"%d" % number,
            properties=AmqpMessageProperties(group_id="a", message_id=given),
        )
        for number, given in enumerate(ids)
    ]
    await foreign_send(emulator, str(queue), messages)
    async with connected(emulator.url_with()) as provider:
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        deliveries = await receive_all(receiver, len(ids))
        assert [int(delivery.body) for delivery in deliveries] == list(range(len(ids)))
        assert len({delivery.message_id for delivery in deliveries}) == len(ids)
        await complete(receiver, deliveries)


async def test_envelopes_that_are_none_are_dead_letters_and_hold_nobody_up(
    emulator: EmulatorProcess, queue: QueueName
) -> None:
    messages = []
    for name, value in BROKEN.items():
        messages.append(plain(name.encode(), application_properties={ENVELOPE: value})(name))
        messages.append(plain(f"behind {name}".encode())(name))
    await foreign_send(emulator, str(queue), messages)
    handled: list[str] = []
    done = trio.Event()

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.body.decode())
        if len(handled) == len(BROKEN):
            done.set()

    with trio.fail_after(15):
        async with open_supervisor(emulator.url_with(), queue, handle):
            await done.wait()
    assert sorted(handled) == sorted(f"behind {name}" for name in BROKEN)
    async with open_client(emulator.url_with()) as client:
        letters = [letter async for letter in (await client.dead_letters(queue)).find()]
    assert sorted(letter.message.body.decode() for letter in letters) == sorted(BROKEN)
    for letter in letters:
        assert letter.dead_letter is not None
        assert letter.dead_letter.reason == MALFORMED
        assert ENVELOPE in letter.dead_letter.description
    assert emulator.counts(str(queue))["active"] == 0


def test_foreign_messages_on_the_command_line(
    emulator: EmulatorProcess, queue: QueueName, cli: Callable[..., Any]
) -> None:
    trio.run(
        foreign_send, emulator, str(queue), [make(name) for name, (make, *_) in FOREIGN.items()]
    )
    result = cli("peek", "--url", emulator.url_with(), "--queue", str(queue), "--json")
    assert result.exit_code == 0, result.output
    shown = {each["session"] for each in json.loads(result.stdout)["messages"]}
    assert shown <= set(FOREIGN)
    assert shown
