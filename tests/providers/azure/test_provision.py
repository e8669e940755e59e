"""Provisioning and statistics on the emulator: what is created, kept, said and refused, by every way to get there."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, quote

import attrs
import pytest
import trio
from click.testing import CliRunner

pytest.importorskip("azure.servicebus", reason="the extra azure is not installed")
pytest.importorskip("proton", reason="the emulator needs python-qpid-proton")

from azure.core.credentials import AccessToken
from azure.servicebus._base_handler import _generate_sas_token
from azure.servicebus.management import QueueProperties
from tests.azure.emulator_process import EmulatorProcess, emulator_process

from queue_runtime import open_client, open_supervisor
from queue_runtime.abc import ReceiverOptions
from queue_runtime.cli import root
from queue_runtime.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionFailed,
    OperationTimeout,
    PermissionDenied,
    ProviderError,
    QueueNotFound,
    ValidationError,
)
from queue_runtime.messages import (
    Delivery,
    Message,
    QueueName,
    QueueStats,
    SessionId,
    Settlement,
    SettlementAction,
)
from queue_runtime.providers.asyncio_bridge import AsyncioBridge
from queue_runtime.providers.azure import FACTORY, AzureConfig
from queue_runtime.providers.azure.administration import Administration
from queue_runtime.providers.azure.api import AzureApi
from queue_runtime.providers.azure.provider import AzureProvider
from queue_runtime.secret import Secret
from queue_runtime.testing.servicebus import AccessPolicy, QueueSettings, Right, emulator_in_thread

NUMBERS = count(1)
PATIENCE = 30.0


@pytest.fixture(scope="module")
def plain() -> Iterator[EmulatorProcess]:
    with emulator_process() as running:
        yield running


@pytest.fixture(scope="module")
def over_tls() -> Iterator[EmulatorProcess]:
    with emulator_process(tls=True) as running:
        yield running


@pytest.fixture
def name() -> QueueName:
    return QueueName(f"provisioned-{next(NUMBERS)}")


def ways(emulator: EmulatorProcess) -> dict[str, Any]:
    """The options with which an emulator is reached."""
    if emulator.ca_file is None:
        return {"connection_string": Secret(emulator.connection_string)}
    key = emulator.connection_string.replace(
        emulator.endpoint, "sb://orders.servicebus.windows.net"
    )
    return {
        "connection_string": Secret(key),
        "custom_endpoint": emulator.endpoint,
        "verify": emulator.ca_file,
    }


def url_of(emulator: EmulatorProcess, **options: Any) -> str:
    words = ways(emulator) | options
    words["connection_string"] = words["connection_string"].reveal()
    return "azure://?" + "&".join(
        f"{option}={quote(str(value), safe='')}" for option, value in words.items()
    )


@asynccontextmanager
async def connected(config: AzureConfig) -> AsyncIterator[AzureProvider]:
    provider = await FACTORY.open(config)
    assert isinstance(provider, AzureProvider)
    try:
        with trio.fail_after(PATIENCE):
            yield provider
    finally:
        await provider.aclose()


async def provision(emulator: EmulatorProcess, queue: QueueName, **options: Any) -> list[str]:
    async with connected(AzureConfig(**(ways(emulator) | options))) as provider:
        return await provider.provision(queue)


@asynccontextmanager
async def administrating(
    config: AzureConfig, credential: SignedIn | None = None
) -> AsyncIterator[Callable[[Callable[[Administration], Awaitable[Any]]], Awaitable[Any]]]:
    """Something that runs a function with an ``Administration`` on a bridge's loop."""
    bridge = await AsyncioBridge.open("test-administration")
    try:
        api = await bridge.run(AzureApi.open, config, credential)
        administration = Administration(api)

        async def run(function: Callable[[Administration], Awaitable[Any]]) -> Any:
            return await bridge.run(function, administration)

        try:
            with trio.fail_after(PATIENCE):
                yield run
        finally:
            await bridge.run(administration.aclose)
            await bridge.run(api.aclose)
    finally:
        await bridge.aclose()


async def described(emulator: EmulatorProcess, queue: str) -> QueueProperties:
    async with administrating(AzureConfig(**ways(emulator))) as run:
        found = await run(lambda administration: administration.find(queue))
    assert found is not None
    return found


# --- creating --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["plain", "over_tls"])
async def test_a_queue_with_sessions(
    request: pytest.FixtureRequest, way: str, name: QueueName
) -> None:
    emulator: EmulatorProcess = request.getfixturevalue(way)

    report = await provision(emulator, name, lock_duration=45.0, max_delivery_count=70)

    assert report == [
        f"{name}: created, with sessions, locks last 45 s, dead letters after 70 deliveries"
    ]
    found = await described(emulator, name)
    assert found.requires_session
    assert not found.requires_duplicate_detection
    assert found.dead_lettering_on_message_expiration
    assert found.lock_duration.total_seconds() == 45
    assert found.max_delivery_count == 70
    assert found.default_message_time_to_live.days == 10_675_199  # none
    assert found.max_message_size_in_kilobytes == 256


async def test_without_sessions_for_large_messages_that_come_once(
    plain: EmulatorProcess, name: QueueName
) -> None:
    report = await provision(
        plain, name, sessions=False, deduplication=True, max_message_bytes=1_048_577
    )

    assert report == [
        (
            f"{name}: created, without sessions, detects duplicates, locks last 60 s, "
            "dead letters after 10 deliveries"
        )
    ]
    found = await described(plain, name)
    assert not found.requires_session
    assert found.requires_duplicate_detection
    assert found.duplicate_detection_history_time_window.total_seconds() == 600
    assert found.max_message_size_in_kilobytes == 1_025


async def test_what_was_created_is_used(plain: EmulatorProcess, name: QueueName) -> None:
    async with connected(AzureConfig(**ways(plain))) as provider:
        await provider.provision(name)
        sender = await provider.open_sender(name)
        await sender.send([Message(body=b"1", session_id=SessionId("s"))])
        receiver = await provider.open_receiver(name, ReceiverOptions())
        [delivery] = await receiver.receive(1, 10.0)
        assert delivery.message.body == b"1"
        await receiver.aclose()
        await sender.aclose()


async def test_several_at_once_make_one(plain: EmulatorProcess, name: QueueName) -> None:
    reports: list[list[str]] = []

    async def one(provider: AzureProvider) -> None:
        reports.append(await provider.provision(name))

    async with (
        connected(AzureConfig(**ways(plain))) as provider,
        connected(AzureConfig(**ways(plain))) as another,
        trio.open_nursery() as nursery,
    ):
        for each in (provider, another) * 8:
            nursery.start_soon(one, each)

    made = [line for report in reports for line in report if ": created" in line]
    kept = [line for report in reports for line in report if ": kept" in line]
    assert (len(made), len(kept)) == (1, 15)


async def test_deleted_and_created_anew(plain: EmulatorProcess, name: QueueName) -> None:
    async with administrating(AzureConfig(**ways(plain))) as run:
        for requires_session in (True, False):
            assert await run(
                lambda each, has=requires_session: each.create(name, requires_session=has)
            )
            assert await run(lambda each: each.create(name)) is None
            await run(lambda each: each.delete(name))
            assert await run(lambda each: each.find(name)) is None
        await run(lambda each: each.delete(name))


async def test_who_uses_a_queue_hears_that_it_was_deleted(
    plain: EmulatorProcess, name: QueueName
) -> None:
    config = AzureConfig(**ways(plain))
    async with connected(config) as provider, administrating(config) as run:
        await provider.provision(name)
        sender = await provider.open_sender(name)
        receiver = await provider.open_receiver(name, ReceiverOptions())
        message = Message(body=b"1", session_id=SessionId("s"))
        await sender.send([message])
        [delivery] = await receiver.receive(1, 10.0)

        await run(lambda each: each.delete(name))

        [settled] = await receiver.settle([Settlement(delivery, SettlementAction.COMPLETE)])
        assert settled is not None
        with pytest.raises(QueueNotFound, match=name):
            while True:  # what was asked for before ends as a lost link
                with suppress(ConnectionFailed):
                    await receiver.receive(1, 10.0)
        with pytest.raises(QueueNotFound, match=name):
            await sender.send([message])
        await receiver.aclose()
        await sender.aclose()


# --- keeping ---------------------------------------------------------------------------------------


async def test_the_second_time_nothing_happens(plain: EmulatorProcess, name: QueueName) -> None:
    await provision(plain, name, deduplication=True)
    before = await described(plain, name)

    report = await provision(plain, name, deduplication=True)

    assert report == [
        (
            f"{name}: kept, with sessions, detects duplicates, locks last 60 s, "
            "dead letters after 10 deliveries"
        )
    ]
    assert dict(before.items()) == dict((await described(plain, name)).items())


async def test_what_differs_is_said_and_kept(plain: EmulatorProcess, name: QueueName) -> None:
    plain.create_queue(name, requires_session=True, lock_duration=30.0, max_delivery_count=3)

    report = await provision(plain, name, max_message_bytes=2_097_152)

    assert report == [
        f"{name}: kept, with sessions, locks last 30 s, dead letters after 3 deliveries",
        f"{name}: LockDuration is 30, a new queue would have 60",
        f"{name}: MaxDeliveryCount is 3, a new queue would have 10",
        f"{name}: DeadLetteringOnMessageExpiration is false, a new queue would have true",
        f"{name}: MaxMessageSizeInKilobytes is 256, a new queue would have 2048",
    ]
    found = await described(plain, name)
    assert found.lock_duration.total_seconds() == 30
    assert found.max_delivery_count == 3


@pytest.mark.parametrize(
    ("has", "asked", "words"),
    [
        (
            {"requires_session": True},
            {"sessions": False},
            "RequiresSession is true, sessions=false expects false: say sessions=true, choose another",
        ),
        (
            {"requires_session": False},
            {"sessions": True},
            "RequiresSession is false, sessions=true expects true: say sessions=false, choose another",
        ),
        (
            {"requires_session": True, "duplicate_window": 30.0},
            {"deduplication": False},
            "RequiresDuplicateDetection is true, deduplication=false expects false: say deduplication=true",
        ),
        (
            {},
            {"sessions": True, "deduplication": True},
            "say sessions=false, deduplication=false, choose another name, or delete the queue",
        ),
    ],
)
async def test_what_cannot_be_changed_is_refused(
    plain: EmulatorProcess,
    name: QueueName,
    has: dict[str, Any],
    asked: dict[str, Any],
    words: str,
) -> None:
    plain.create_queue(name, **has)

    with pytest.raises(ConfigurationError, match=re.escape(words)):
        await provision(plain, name, **asked)


# --- counting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["plain", "over_tls"])
async def test_statistics(request: pytest.FixtureRequest, way: str, name: QueueName) -> None:
    emulator: EmulatorProcess = request.getfixturevalue(way)
    async with connected(AzureConfig(**ways(emulator))) as provider:
        assert provider.capabilities.stats
        with pytest.raises(QueueNotFound, match=f"statistics on {name}"):
            await provider.stats(name)
        await provider.provision(name)
        sender = await provider.open_sender(name)
        await sender.send([Message(body=b"1", session_id=SessionId("s"))] * 2)
        receiver = await provider.open_receiver(name, ReceiverOptions())
        await receiver.receive(1, 10.0)

        found = await provider.stats(name)

        await receiver.aclose()
        await sender.aclose()
    assert found == QueueStats(depth=2, in_flight=None, scheduled=0, dead_lettered=0)


async def test_one_connection_for_many_questions(
    over_tls: EmulatorProcess, name: QueueName
) -> None:
    over_tls.create_queue(name)
    before = over_tls.statistics()["http_connections"]
    async with administrating(AzureConfig(**ways(over_tls))) as run:

        async def ask(administration: Administration) -> int:
            for _ in range(20):
                await administration.stats(name)
            return administration.requests

        assert await run(ask) == 20
    assert over_tls.statistics()["http_connections"] == before + 1


async def test_waiting_until_a_queue_is_empty(plain: EmulatorProcess, name: QueueName) -> None:
    handled: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.body)

    with trio.fail_after(PATIENCE):
        async with open_client(url_of(plain)) as client:
            await client.provision(name)
            bodies = [str(number).encode() for number in range(40)]
            await client.send_batch(
                name, [Message(body, session_id=f"s{int(body) % 4}") for body in bodies]
            )
            async with open_supervisor(client, name, handle) as supervisor:
                await supervisor.wait_empty(poll_interval=0.05)
            assert sorted(handled, key=int) == bodies
            assert (await client.queue_stats(name)).depth == 0


@attrs.frozen
class SignedIn:
    """What azure-identity's credentials are to the provider; the token's own end is what counts at the broker."""

    token: str

    async def get_token(self, *scopes: str) -> AccessToken:
        assert scopes == ("https://servicebus.azure.net//.default",)
        return AccessToken(self.token, int(time.time()) + 3_600)


@pytest.mark.parametrize(
    ("lifetime", "options", "error", "words"),
    [
        (60.0, {}, None, ""),
        (-60.0, {}, AuthenticationFailed, "ExpiredToken.*renew the token"),
        (60.0, {"rights": ["Listen"]}, PermissionDenied, "EntityRead claims required.*Data Owner"),
        (60.0, {"audience": "https://other"}, AuthenticationFailed, "InvalidAudience"),
    ],
)
async def test_tokens_of_an_identity(
    over_tls: EmulatorProcess,
    name: QueueName,
    lifetime: float,
    options: dict[str, Any],
    error: type[Exception] | None,
    words: str,
) -> None:
    over_tls.create_queue(name, requires_session=True)
    given = ways(over_tls)
    del given["connection_string"]
    credential = SignedIn(over_tls.issue_token(lifetime, **options))
    async with administrating(AzureConfig(namespace="orders", **given), credential) as run:
        if error is None:
            assert (await run(lambda each: each.stats(name))).depth == 0
        else:
            with pytest.raises(error, match=words) as caught:
                await run(lambda each: each.stats(name))
            assert credential.token not in str(caught.value)


# --- what goes wrong -------------------------------------------------------------------------------


async def refused(config: AzureConfig, error: type[Exception], words: str) -> None:
    """Both questions are refused, and no text of the errors and their causes shows the key."""
    said = config.said
    assert said is not None
    assert said.key is not None
    async with connected(config) as provider:
        for ask in (provider.stats, provider.provision):
            with pytest.raises(error, match=words) as caught:
                await ask(QueueName("jobs"))
            one: BaseException | None = caught.value
            while one is not None:
                assert said.key.reveal() not in f"{one} {one!r}"
                assert "sig=" not in f"{one} {one!r}"
                one = one.__cause__ or one.__context__


@pytest.mark.parametrize("way", ["plain", "over_tls"])
async def test_a_wrong_key(request: pytest.FixtureRequest, way: str) -> None:
    given = ways(request.getfixturevalue(way))
    text = given["connection_string"].reveal()
    given["connection_string"] = Secret(
        re.sub("SharedAccessKey=[^;]*", "SharedAccessKey=wrongwrong", text)
    )
    await refused(AzureConfig(**given), AuthenticationFailed, "InvalidSignature")


def at(port: int) -> AzureConfig:
    text = (
        f"Endpoint=sb://127.0.0.1:{port};SharedAccessKeyName=a;"
        "SharedAccessKey=abcdefgh;UseDevelopmentEmulator=true"
    )
    return AzureConfig(connection_string=Secret(text), operation_timeout=0.2)


async def test_a_key_without_the_right_to_manage() -> None:
    # In a thread of this process: no AMQP is spoken, whose engine could not live beside the bridge's thread.
    with emulator_in_thread(
        policy=AccessPolicy(rights=frozenset({Right.LISTEN, Right.SEND}))
    ) as emulator:
        emulator.create_queue("jobs", QueueSettings(requires_session=True))
        config = AzureConfig(connection_string=Secret(emulator.connection_string))
        await refused(config, PermissionDenied, "EntityRead claims required.*role .* Data Owner")


async def test_a_signature_made_beforehand(plain: EmulatorProcess, name: QueueName) -> None:
    plain.create_queue(name, requires_session=True)
    plain.create_queue(f"{name}-other")
    said = AzureConfig(**ways(plain)).said
    assert said is not None
    assert said.key is not None
    token = _generate_sas_token(
        f"sb://{said.host}/{name}", said.key_name, said.key.reveal(), timedelta(minutes=5)
    )
    text = (
        f"Endpoint={plain.endpoint};SharedAccessSignature={token.token};UseDevelopmentEmulator=true"
    )
    async with connected(AzureConfig(connection_string=Secret(text))) as provider:
        assert (await provider.stats(name)).depth == 0
        with pytest.raises(AuthenticationFailed, match="InvalidAudience") as caught:
            await provider.stats(QueueName(f"{name}-other"))
    assert "sig=" not in str(caught.value)


async def test_what_is_asked_names_the_queue_and_the_namespace() -> None:
    """A key of the queue's own can sign for the queue only; a gateway has to know the namespace."""
    heads: list[str] = []

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            heads.append((await stream.receive_some(65_536)).decode())
            await stream.send_all(
                b"HTTP/1.1 307 No\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
            )

    async with trio.open_nursery() as nursery:
        [port] = [
            listener.socket.getsockname()[1]
            for listener in await nursery.start(
                partial(trio.serve_tcp, answer, 0, host="127.0.0.1")
            )
        ]
        config = AzureConfig(
            connection_string=Secret(
                "Endpoint=sb://orders.servicebus.windows.net;SharedAccessKeyName=mine;"
                "SharedAccessKey=abcdefgh;EntityPath=a/b"
            ),
            administration_endpoint=f"http://127.0.0.1:{port}",
        )
        async with connected(config) as provider:
            with pytest.raises(
                ProviderError, match="HTTP status 307"
            ):  # nobody else gets the token
                await provider.stats(QueueName("a/b"))
        nursery.cancel_scope.cancel()
    [head] = heads
    lines = dict(line.partition(": ")[::2] for line in head.split("\r\n"))
    assert lines["Host"] == "orders.servicebus.windows.net"
    assert lines["Authorization"].startswith("SharedAccessSignature ")
    said = dict(parse_qsl(lines["Authorization"].partition(" ")[2]))
    assert said["sr"] == "https://orders.servicebus.windows.net/a/b"
    assert said["skn"] == "mine"


async def test_nobody_is_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listened on
        await refused(at(taken.getsockname()[1]), ConnectionFailed, "administration_endpoint")


async def test_a_proxy_leads_to_the_namespace_and_not_to_what_stands_in_its_place(
    plain: EmulatorProcess, name: QueueName, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain.create_queue(name)
    asked: list[bytes] = []

    async def refuse(stream: trio.SocketStream) -> None:
        async with stream:
            asked.append(await stream.receive_some(65_536))
            await stream.send_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, refuse, 0, host="127.0.0.1"))
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
        for variable in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(variable, raising=False)
        async with connected(AzureConfig(**ways(plain))) as provider:
            assert (await provider.stats(name)).depth == 0
        assert asked == []
        text = "Endpoint=sb://orders.servicebus.windows.net;SharedAccessKeyName=a;SharedAccessKey=abcdefgh"
        await refused(AzureConfig(connection_string=Secret(text)), ConnectionFailed, "403")
        nursery.cancel_scope.cancel()
    assert all(line.startswith(b"CONNECT orders.servicebus.windows.net:443 ") for line in asked)
    assert len(asked) == 2


async def test_somebody_is_there_and_silent() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        await refused(at(listener.socket.getsockname()[1]), OperationTimeout, "jobs")


async def test_an_authority_that_is_not_trusted(over_tls: EmulatorProcess) -> None:
    given = ways(over_tls)
    del given["verify"]
    await refused(AzureConfig(**given), ConfigurationError, "authority's file in verify")


async def test_an_authority_whose_file_is_missing(over_tls: EmulatorProcess) -> None:
    given = ways(over_tls) | {"verify": "/nowhere/ca.pem"}
    await refused(AzureConfig(**given), ConfigurationError, "check the path in verify")


async def test_an_authority_whose_file_holds_no_certificate(over_tls: EmulatorProcess) -> None:
    given = ways(over_tls) | {"verify": __file__}
    await refused(AzureConfig(**given), ConfigurationError, "name a file in verify that holds")


async def test_tls_where_there_is_none(plain: EmulatorProcess) -> None:
    endpoint = plain.endpoint.replace("sb://", "https://")
    config = AzureConfig(**ways(plain), administration_endpoint=endpoint)
    await refused(config, ConnectionFailed, "administration_endpoint")


async def test_the_administration_may_be_elsewhere(
    plain: EmulatorProcess, over_tls: EmulatorProcess, name: QueueName
) -> None:
    """Messages go one way, questions another; each has its own queues here."""
    config = attrs.evolve(
        AzureConfig(**ways(over_tls)),
        administration_endpoint=over_tls.endpoint.replace("sb://", "https://"),
        custom_endpoint="sb://127.0.0.1:1",
    )
    async with connected(config) as provider:
        assert (await provider.provision(name))[0].startswith(f"{name}: created")
    assert (await described(over_tls, name)).requires_session


@pytest.mark.parametrize("queue", ["jobs.", "-", "a" * 261])
async def test_names_that_cannot_be(plain: EmulatorProcess, queue: str) -> None:
    async with connected(AzureConfig(**ways(plain))) as provider:
        with pytest.raises(ValidationError, match="queue name"):
            await provider.provision(QueueName(queue))


async def test_another_queue_than_the_only_one(plain: EmulatorProcess) -> None:
    async with connected(AzureConfig(**ways(plain), queue="this")) as provider:
        with pytest.raises(ConfigurationError, match="is not the queue 'this'"):
            await provider.provision(QueueName("that"))


async def test_a_lock_that_the_broker_does_not_take(plain: EmulatorProcess) -> None:
    async with administrating(AzureConfig(**ways(plain))) as run:
        with pytest.raises(ValidationError, match="lock_duration is 0"):
            await run(lambda each: each.create("zero", lock_duration=0.0))


# --- the command -----------------------------------------------------------------------------------


def command(*arguments: str) -> Any:
    return CliRunner().invoke(root, list(arguments), catch_exceptions=False)


def test_the_command(plain: EmulatorProcess, name: QueueName) -> None:
    url = url_of(plain, max_delivery_count=100)
    first = command("provision", "--url", url, "--queue", name)
    again = command("provision", "--url", url, "--queue", name, "--json")
    counted = command("stats", "--url", url, "--queue", name, "--json")
    shown = command("stats", "--url", url, "--queue", name)

    assert first.exit_code == again.exit_code == counted.exit_code == shown.exit_code == 0
    assert first.stdout == (
        f"{name}: created, with sessions, locks last 60 s, dead letters after 100 deliveries\n"
    )
    assert json.loads(again.stdout) == {
        "queue": name,
        "report": [
            f"{name}: kept, with sessions, locks last 60 s, dead letters after 100 deliveries"
        ],
    }
    assert json.loads(counted.stdout)["depth"] == 0
    assert json.loads(counted.stdout)["in_flight"] is None
    assert re.search(r"in flight\W+-", shown.stdout)


def test_the_command_refuses(plain: EmulatorProcess, name: QueueName) -> None:
    plain.create_queue(name, requires_session=True)
    result = command("provision", "--url", url_of(plain, sessions="false"), "--queue", name)
    assert result.exit_code == 2
    assert "RequiresSession is true, sessions=false expects false" in result.stderr
    assert "Traceback" not in result.stderr
