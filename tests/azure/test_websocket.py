"""AMQP over WebSockets, with TLS: the adapter, the SDK's own classes, and a client that does what neither would."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)

from queue_runtime.abc import Receiver, ReceiverOptions
from queue_runtime.errors import ConfigurationError, ConnectionFailed, OperationTimeout, QueueError
from queue_runtime.messages import (
    Delivery,
    Message,
    QueueName,
    SessionId,
    Settlement,
    SettlementAction,
)
from queue_runtime.providers.azure import FACTORY, AzureConfig
from queue_runtime.providers.azure.provider import AzureProvider
from queue_runtime.secret import Secret
from queue_runtime.testing.tcp_proxy import open_tcp_proxy

from .emulator_process import EmulatorProcess, emulator_process
from .linked import PATIENCE, SOON, promptly

PATH = "/$servicebus/websocket"
AMQP = "AMQPWSB10"


@pytest.fixture(scope="module")
def shared() -> Iterator[EmulatorProcess]:
    with emulator_process(tls=True) as running:
        yield running


@pytest.fixture
def emulator(shared: EmulatorProcess) -> Iterator[EmulatorProcess]:
    yield shared
    shared.lift_faults()


def new_queue(emulator: EmulatorProcess, *, sessions: bool = True, **settings: Any) -> QueueName:
    name = f"socket-{uuid4().hex[:12]}"
    emulator.create_queue(name, requires_session=sessions, **settings)
    return QueueName(name)


def config_of(emulator: EmulatorProcess, **options: Any) -> AzureConfig:
    parts = emulator.connection_string.split(";", 1)[1]
    given: dict[str, Any] = {
        "connection_string": Secret(f"Endpoint=sb://orders.servicebus.windows.net/;{parts}"),
        "custom_endpoint": emulator.endpoint,
        "verify": emulator.ca_file,
        "transport": "websocket",
        "accept_wait": 1.0,
    }
    return AzureConfig(**given | options)


@asynccontextmanager
async def connected(emulator: EmulatorProcess, **options: Any) -> AsyncIterator[AzureProvider]:
    provider = await FACTORY.open(config_of(emulator, **options))
    try:
        yield provider
    finally:
        await provider.aclose()


async def take(receiver: Receiver, count: int = 1, within: float = SOON) -> list[Delivery]:
    taken: list[Delivery] = []
    with trio.fail_after(within):
        while len(taken) < count:
            taken += await receiver.receive(count - len(taken), within)
    return taken


async def settle(
    receiver: Receiver, *deliveries: Delivery, action: SettlementAction = SettlementAction.COMPLETE
) -> None:
    answers = await receiver.settle([Settlement(delivery, action) for delivery in deliveries])
    assert answers == [None] * len(deliveries)


# --- the adapter -------------------------------------------------------------------------------------------


async def test_sessions_and_settlements(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator)
    before = emulator.statistics()
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        bodies = [b"%d" % number * 3_000 for number in range(30)]
        await sender.send(
            [
                Message(body, session_id=SessionId(f"s{number % 3}"))
                for number, body in enumerate(bodies)
            ]
        )
        deliveries = await take(receiver, 30)
        for session in range(3):
            of_session = [each.body for each in deliveries if each.session_id == f"s{session}"]
            assert of_session == bodies[session::3]
        lease = deliveries[0].lease
        await receiver.set_state(lease, b"state")
        assert await receiver.get_state(lease) == b"state"
        assert await receiver.renew([lease]) == [None]
        await settle(receiver, *deliveries[2:])
        await settle(receiver, deliveries[0], action=SettlementAction.DEAD_LETTER)
        await settle(receiver, deliveries[1], action=SettlementAction.ABANDON)
        [again] = await take(receiver)
        assert (again.body, again.delivery_count) == (deliveries[1].body, 2)
        await settle(receiver, again)
        letters = await provider.open_dead_letters(queue)
        [letter] = await letters.peek(5)
        assert letter.message.body == deliveries[0].body
        opened = provider.connections_opened
    after = emulator.statistics()
    assert after["websockets"] - before["websockets"] == opened
    assert after["connections"] - before["connections"] == opened  # no other kind
    await all_closed(emulator)


async def test_a_queue_without_sessions_and_large_messages(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator, sessions=False)
    async with connected(emulator, sessions=False) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        large = bytes(range(256)) * 900  # several frames each
        for number in range(5):
            await sender.send([Message(large + b"%d" % number)])
        await sender.send([Message(b"%d" % number) for number in range(500)])
        deliveries = await take(receiver, 505)
        assert [each.body for each in deliveries] == [
            *(large + b"%d" % number for number in range(5)),
            *(b"%d" % number for number in range(500)),
        ]
        await settle(receiver, *deliveries)
        assert emulator.counts(str(queue))["active"] == 0


async def test_large_messages_stay_whole_where_sending_has_to_wait(
    emulator: EmulatorProcess,
) -> None:
    queue = new_queue(emulator)
    messages = [
        Message(b"%c" % number * 200_000, session_id=SessionId(f"s{number}"))
        for number in range(40)
    ]
    async with open_tcp_proxy("127.0.0.1", emulator.port) as proxy:
        async with connected(emulator, custom_endpoint=f"sb://127.0.0.1:{proxy.port}") as provider:
            sender = await provider.open_sender(queue)
            proxy.slow_down(bandwidth=5_000_000)
            with trio.fail_after(15):
                async with trio.open_nursery() as nursery:
                    for message in messages:
                        nursery.start_soon(sender.send, [message])
            proxy.heal()
            receiver = await provider.open_receiver(queue, ReceiverOptions())
            deliveries = await take(receiver, len(messages))
            assert {each.session_id: each.body for each in deliveries} == {
                message.session_id: message.body for message in messages
            }
            await settle(receiver, *deliveries)


async def test_cancelling_leaves_at_once_and_takes_nothing(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())

        async def cancelled() -> float:
            with trio.move_on_after(0.3) as scope:
                await receiver.receive(1, 30.0)
            assert scope.cancelled_caught
            return trio.current_time() - scope.deadline

        for _ in range(3):
            await promptly(cancelled)
        await sender.send([Message(b"kept", session_id=SessionId("s"))])
        [delivery] = await take(receiver)
        assert (delivery.body, delivery.delivery_count) == (b"kept", 1)
        await settle(receiver, delivery)


async def test_a_reset_is_a_lost_connection_and_gets_over(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        await sender.send([Message(b"1", session_id=SessionId("s"))])
        [held] = await take(receiver)
        gone = trio.Event()
        held.lease.on_lost(lambda _: gone.set())
        assert emulator.fault("drop", queue=str(queue)) >= 1
        with trio.fail_after(SOON):
            await gone.wait()
        assert held.lease.lost is not None
        assert isinstance(held.lease.lost.__cause__, ConnectionFailed)
        with trio.fail_after(SOON):
            while True:
                try:
                    await sender.send([Message(b"2", session_id=SessionId("s"))])
                    [again] = await take(receiver)
                    break
                except QueueError as error:
                    if not error.is_transient:
                        raise
        assert again.body == b"1"
        await settle(receiver, again)
    await all_closed(emulator)


async def test_a_detached_link_leaves_the_socket(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator)
    async with connected(emulator) as provider:
        sender = await provider.open_sender(queue)
        opened = provider.connections_opened
        assert emulator.fault("detach", queue=str(queue)) == 1
        with trio.fail_after(SOON):
            while True:
                try:
                    await sender.send([Message(b"1", session_id=SessionId("s"))])
                    break
                except ConnectionFailed:
                    pass
        assert provider.connections_opened == opened


async def test_a_peer_that_says_nothing_does_not_hold_up_closing(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator)
    provider = await FACTORY.open(config_of(emulator, operation_timeout=PATIENCE))
    sender = await provider.open_sender(queue)
    emulator.fault("stall")
    with pytest.raises(OperationTimeout):
        await sender.send([Message(b"1", session_id=SessionId("s"))])
    with trio.fail_after(SOON):
        await provider.aclose()
    emulator.lift_faults()
    await all_closed(emulator)


async def all_closed(emulator: EmulatorProcess) -> None:
    """The other process may need a moment to see it."""
    with trio.fail_after(SOON):
        while emulator.statistics()["open_connections"]:  # noqa: ASYNC110
            await trio.sleep(0.02)


# --- what may be wrong -------------------------------------------------------------------------------------


async def test_tls_is_verified(emulator: EmulatorProcess) -> None:
    async with connected(emulator, verify=None) as provider:
        with trio.fail_after(SOON), pytest.raises(ConfigurationError, match="certificate"):
            await provider.open_sender(QueueName("orders"))
    await all_closed(emulator)


async def test_nobody_listens_there(emulator: EmulatorProcess) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = f"sb://127.0.0.1:{unused.getsockname()[1]}"
        async with connected(emulator, custom_endpoint=place) as provider:
            with pytest.raises(ConnectionFailed, match="custom_endpoint"):
                await provider.open_sender(QueueName("orders"))


async def test_a_gateway_that_takes_no_websockets(emulator: EmulatorProcess) -> None:
    """What answers with a status other than 101, such as a proxy's own page."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert emulator.ca_file is not None
    context.load_cert_chain(emulator.ca_file, emulator.ca_file.replace("certificate", "key"))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as client:
                client.recv(65_536)
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        place = f"sb://127.0.0.1:{listener.getsockname()[1]}"
        async with connected(emulator, custom_endpoint=place) as provider:
            with pytest.raises(ConnectionFailed, match="403"):
                await provider.open_sender(QueueName("orders"))
        await trio.to_thread.run_sync(thread.join)


# --- the emulator's side -----------------------------------------------------------------------------------


class RawSocket:
    """A client on wsproto that reads and writes when it is told to."""

    def __init__(self, emulator: EmulatorProcess) -> None:
        host, _, port = emulator.endpoint.removeprefix("sb://").partition(":")
        context = ssl.create_default_context(cafile=emulator.ca_file)
        below = socket.create_connection((host, int(port)), SOON)
        self.socket = context.wrap_socket(below, server_hostname=host)
        self.engine = WSConnection(ConnectionType.CLIENT)

    def __enter__(self) -> RawSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, event: Any) -> None:
        self.socket.sendall(self.engine.send(event))

    def next(self) -> Any:
        while True:
            for event in self.engine.events():
                return event
            data = self.socket.recv(65_536)
            if not data:
                return None
            self.engine.receive_data(data)

    def open(self) -> None:
        self.send(Request(host="orders", target=PATH, subprotocols=[AMQP]))
        answer = self.next()
        assert isinstance(answer, AcceptConnection)
        assert answer.subprotocol == AMQP


@pytest.mark.parametrize(
    ("target", "subprotocols"), [(PATH, []), (PATH, ["chat"]), (f"{PATH}?x=1", [AMQP])]
)
def test_an_upgrade_to_something_else(
    emulator: EmulatorProcess, target: str, subprotocols: list[str]
) -> None:
    with RawSocket(emulator) as client:
        client.send(Request(host="orders", target=target, subprotocols=subprotocols))
        answer = client.next()
        assert answer is None or isinstance(answer, RejectConnection)


def test_pings_bytes_in_pieces_and_goodbye(emulator: EmulatorProcess) -> None:
    with RawSocket(emulator) as client:
        client.open()
        client.send(Ping(payload=b"there?"))
        assert client.next() == Pong(payload=b"there?")
        for byte in b"AMQP\x03\x01\x00":
            client.send(BytesMessage(data=bytes([byte])))
        client.send(BytesMessage(data=b"\x00"))
        answer = b""
        while len(answer) < 8:
            event = client.next()
            assert isinstance(event, BytesMessage)
            answer += event.data
        assert answer.startswith(b"AMQP\x03\x01\x00\x00")
        client.send(CloseConnection(code=1000))
        while not isinstance(event := client.next(), CloseConnection):
            assert isinstance(event, BytesMessage)
        assert client.next() is None


@pytest.mark.parametrize("what", ["text", "noise"])
def test_what_is_no_amqp_ends_that_connection_only(emulator: EmulatorProcess, what: str) -> None:
    with RawSocket(emulator) as client:
        client.open()
        if what == "text":
            client.send(TextMessage(data="hello"))
        else:
            client.socket.sendall(b"\xff" * 100)
        assert isinstance(client.next(), CloseConnection)
        assert client.next() is None
    with RawSocket(emulator) as client:
        client.open()
