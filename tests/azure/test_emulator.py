"""The running emulator and the real SDK: faults, TLS, tokens, theft, starting and stopping."""

from __future__ import annotations

import asyncio
import gc
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import attrs
import pytest
import trio
from azure.servicebus import ServiceBusClient as SyncClient
from azure.servicebus import ServiceBusMessage, TransportType
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.exceptions import (
    MessageLockLostError,
    OperationTimeoutError,
    ServiceBusAuthenticationError,
    ServiceBusConnectionError,
    ServiceBusError,
    ServiceBusServerBusyError,
    SessionLockLostError,
)

from queue_runtime.errors import ValidationError
from queue_runtime.testing.servicebus import (
    AccessPolicy,
    Certificate,
    Operation,
    QueueSettings,
    ServiceBusEmulator,
    emulator_in_thread,
    open_emulator,
)

SESSIONS = QueueSettings(requires_session=True)


@pytest.fixture(scope="module")
def emulator() -> Iterator[ServiceBusEmulator]:
    with emulator_in_thread() as emulator:
        yield emulator


_names = iter(range(1_000))


@pytest.fixture
def queue(emulator: ServiceBusEmulator) -> str:
    name = f"q{next(_names)}"
    emulator.create_queue(name)
    return name


@pytest.fixture
def session_queue(emulator: ServiceBusEmulator) -> str:
    name = f"s{next(_names)}"
    emulator.create_queue(name, SESSIONS)
    return name


def run(main: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(main, 60)

    asyncio.run(limited())


@asynccontextmanager
async def connected(emulator: ServiceBusEmulator) -> AsyncIterator[ServiceBusClient]:
    async with ServiceBusClient.from_connection_string(
        emulator.connection_string, retry_total=0
    ) as client:
        yield client


async def take(receiver: Any) -> Any:
    (message,) = await receiver.receive_messages(1, max_wait_time=10)
    return message


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110 - the state of another thread
        await asyncio.sleep(0.001)


def text(message: Any) -> str:
    return b"".join(message.body).decode()


# --- faults ----------------------------------------------------------------------------------------


def test_a_detached_sender_and_receiver_find_back(emulator: Any, queue: str) -> None:
    async def main() -> None:
        async with (
            connected(emulator) as client,
            client.get_queue_sender(queue) as sender,
            client.get_queue_receiver(queue) as receiver,
        ):
            await sender.send_messages(ServiceBusMessage("one"))
            assert emulator.faults.detach(queue=queue) == 2
            with pytest.raises(ServiceBusConnectionError):
                await take(receiver)
            with pytest.raises(ServiceBusConnectionError):
                await sender.send_messages(ServiceBusMessage("lost"))
            await sender.send_messages(ServiceBusMessage("two"))
            assert [text(await take(receiver)) for _ in range(2)] == ["one", "two"]

    run(main())


def test_a_detached_session_is_free_at_once(emulator: Any, session_queue: str) -> None:
    async def main() -> None:
        async with connected(emulator) as client:
            async with client.get_queue_sender(session_queue) as sender:
                await sender.send_messages(ServiceBusMessage("x", session_id="a"))
            async with (
                client.get_queue_receiver(session_queue, session_id="a") as a,
                client.get_queue_receiver(session_queue, session_id="b"),
            ):
                message = await take(a)
                assert emulator.faults.detach(queue=session_queue, session_id="a") == 1
                assert emulator.counts(session_queue).locked_sessions == 1
                async with client.get_queue_receiver(session_queue, session_id="a") as again:
                    assert (await take(again)).delivery_count == 0
                    with pytest.raises((SessionLockLostError, ServiceBusError)):
                        await a.complete_message(message)
                    assert emulator.counts(session_queue).active == 1

    run(main())


def test_dropped_connections(emulator: Any, queue: str, session_queue: str) -> None:
    async def main() -> None:
        async with (
            connected(emulator) as client,
            client.get_queue_sender(queue) as sender,
            client.get_queue_receiver(session_queue, session_id="a"),
        ):
            assert emulator.counts(session_queue).locked_sessions == 1
            assert emulator.faults.drop(queue=session_queue) == 1
            await until(lambda: not emulator.counts(session_queue).locked_sessions)
            await sender.send_messages(ServiceBusMessage("untouched"))
            assert emulator.faults.drop(queue=queue) == 1
            with pytest.raises(ServiceBusConnectionError):
                await sender.send_messages(ServiceBusMessage("x"))
            await sender.send_messages(ServiceBusMessage("y"))
            assert emulator.counts(queue).active == 2

    run(main())


def test_a_stalled_send_is_done_after_all(emulator: Any, queue: str) -> None:
    async def main() -> None:
        async with connected(emulator) as client, client.get_queue_sender(queue) as sender:
            with emulator.faults.stall(queue) as stall:
                with pytest.raises(OperationTimeoutError):
                    await sender.send_messages(ServiceBusMessage("x"), timeout=2)
                await until(lambda: stall.happened)
                assert emulator.counts(queue).active == 0
            await until(lambda: emulator.counts(queue).active)

    run(main())


def test_throttled(emulator: Any, queue: str) -> None:
    async def main() -> None:
        async with connected(emulator) as client, client.get_queue_sender(queue) as sender:
            fault = emulator.faults.throttle(Operation.SEND, queue=queue)
            with pytest.raises(ServiceBusServerBusyError):
                await sender.send_messages(ServiceBusMessage("x"))
            await sender.send_messages(ServiceBusMessage("y"))
            assert fault.happened == 1
            emulator.faults.refuse(
                Operation.ATTACH, queue=queue, condition="com.microsoft:entity-disabled"
            )
            with pytest.raises(ServiceBusError, match="entity-disabled"):
                async with client.get_queue_sender(queue):
                    pass
            assert emulator.counts(queue).active == 1

    run(main())


def test_sent_but_not_acknowledged(emulator: Any, queue: str) -> None:
    async def main() -> None:
        async with connected(emulator) as client, client.get_queue_sender(queue) as sender:
            emulator.faults.lose_answer(Operation.SEND, queue=queue)
            with pytest.raises(OperationTimeoutError):
                await sender.send_messages(ServiceBusMessage("x"), timeout=2)
            await until(lambda: emulator.counts(queue).active == 1)

    run(main())


def test_theft_and_time(emulator: Any, queue: str, session_queue: str) -> None:
    async def main() -> None:
        async with (
            connected(emulator) as client,
            client.get_queue_sender(queue) as sender,
            client.get_queue_sender(session_queue) as session_sender,
            client.get_queue_receiver(queue) as receiver,
            client.get_queue_receiver(session_queue, session_id="a") as session,
        ):
            await sender.send_messages(ServiceBusMessage("x"))
            await session_sender.send_messages(ServiceBusMessage("x", session_id="a"))
            message, of_session = await take(receiver), await take(session)
            assert emulator.faults.steal_message(queue, message.sequence_number)
            assert emulator.faults.steal_session(session_queue, "a")
            with pytest.raises(MessageLockLostError):
                await receiver.complete_message(message)
            with pytest.raises(SessionLockLostError):
                await session.complete_message(of_session)
            message = await take(receiver)
            emulator.faults.move_time(61)
            with pytest.raises(MessageLockLostError):
                await receiver.complete_message(message)
            assert emulator.counts(queue).active == 1

    run(main())


def test_what_is_counted(queue: str) -> None:
    async def main(emulator: ServiceBusEmulator) -> None:
        async with connected(emulator) as client:
            async with client.get_queue_sender("q") as sender:
                batch = await sender.create_message_batch()
                for _ in range(3):
                    batch.add_message(ServiceBusMessage("x"))
                await sender.send_messages(batch)
            async with client.get_queue_receiver("q") as receiver:
                message = await take(receiver)
                await receiver.renew_message_lock(message)
                await receiver.complete_message(message)
                statistics = emulator.statistics()
                assert statistics.open_connections == 1
                assert statistics.open_links == 5  # the receiver, and two to each node

    with emulator_in_thread({"q": QueueSettings()}) as emulator:
        run(main(emulator))
        statistics = emulator.statistics()
        assert attrs.asdict(statistics) == {
            "connections": 2,
            "open_connections": 0,
            "http_connections": 0,
            "websockets": 0,
            "links": 8,
            "open_links": 0,
            "refused_links": 0,
            "transfers_in": 1,
            "messages_in": 3,
            "messages_out": 1,
            "dispositions": 1,
            "disposition_frames": 1,
            "requests": {"put-token": 2, "renew-lock": 1},
        }


def test_garbage_collected_in_other_threads_is_none_of_the_engines(queue: str) -> None:
    """The engine's C code runs without the lock of the interpreter: freeing its objects meanwhile would crash it."""

    async def main(emulator: ServiceBusEmulator) -> None:
        async with connected(emulator) as client:

            async def use(number: int) -> None:
                async with client.get_queue_sender("s") as sender:
                    await sender.send_messages(ServiceBusMessage("x", session_id=str(number)))
                async with client.get_queue_receiver("s", session_id=str(number)) as receiver:
                    await receiver.complete_message(await take(receiver))

            await asyncio.gather(*map(use, range(40)))
            assert emulator.counts("s").active == 0

    before = gc.get_threshold()
    with emulator_in_thread({"s": SESSIONS}) as emulator:
        gc.set_threshold(50)
        try:
            run(main(emulator))
        finally:
            gc.set_threshold(*before)


# --- TLS and tokens --------------------------------------------------------------------------------


class Credential:
    """What azure-identity's credentials are to the SDK."""

    def __init__(self, emulator: ServiceBusEmulator, lifetime: float) -> None:
        self.emulator = emulator
        self.lifetime = lifetime

    async def get_token(self, *scopes: str, **_: Any) -> Any:
        from azure.core.credentials import AccessToken

        token = self.emulator.issue_token(self.lifetime)
        return AccessToken(token, int(time.time() + 3_600))

    async def close(self) -> None:
        pass


async def send_over_tls(
    emulator: ServiceBusEmulator, credential: Credential | None = None, ca_file: Any = None
) -> None:
    options: Any = {
        "custom_endpoint_address": emulator.endpoint,
        "transport_type": TransportType.Amqp,
        "connection_verify": str(ca_file or emulator.ca_file),
        "retry_total": 0,
    }
    client = (
        ServiceBusClient.from_connection_string(emulator.connection_string, **options)
        if credential is None
        else ServiceBusClient("localhost", credential, **options)
    )
    async with client, client.get_queue_sender("q") as sender:
        await sender.send_messages(ServiceBusMessage("x"))


@contextmanager
def tls_emulator(**certificate: Any) -> Iterator[ServiceBusEmulator]:
    with emulator_in_thread(
        {"q": QueueSettings()}, certificate=Certificate(**certificate)
    ) as emulator:
        yield emulator


def test_tls_with_a_key_and_with_a_credential() -> None:
    with tls_emulator() as emulator, tls_emulator() as other:
        run(send_over_tls(emulator))
        run(send_over_tls(emulator, Credential(emulator, 3_600)))
        for credential in (Credential(emulator, -1), Credential(other, 3_600)):
            with pytest.raises(ServiceBusError):
                run(send_over_tls(emulator, credential))
        with pytest.raises(ServiceBusConnectionError):
            run(send_over_tls(emulator, ca_file=other.ca_file))
        assert emulator.counts("q").active == 2
        assert emulator.ca_file is not None
        assert emulator.ca_file.exists()
    assert not emulator.ca_file.exists()


@pytest.mark.parametrize("certificate", [{"lifetime": -60.0}, {"hosts": ("example.org",)}])
def test_bad_certificates(certificate: Any) -> None:
    with tls_emulator(**certificate) as emulator:
        with pytest.raises(ServiceBusConnectionError):
            run(send_over_tls(emulator))
        assert emulator.counts("q").active == 0


def test_a_wrong_key(emulator: Any, queue: str) -> None:
    async def main() -> None:
        wrong = re.sub("SharedAccessKey=[^;]*", "SharedAccessKey=wrong", emulator.connection_string)
        async with ServiceBusClient.from_connection_string(wrong, retry_total=0) as client:
            with pytest.raises(ServiceBusAuthenticationError):
                async with client.get_queue_sender(queue):
                    pass

    run(main())


def test_the_key_is_not_shown(emulator: ServiceBusEmulator) -> None:
    assert emulator.policy.key in emulator.connection_string
    assert emulator.policy.key not in repr(emulator)


# --- starting and stopping -------------------------------------------------------------------------


async def test_in_a_nursery_beside_the_sync_client() -> None:
    def use(connection_string: str) -> str:
        with (
            SyncClient.from_connection_string(connection_string) as client,
            client.get_queue_sender("q") as sender,
            client.get_queue_receiver("q") as receiver,
        ):
            sender.send_messages(ServiceBusMessage("x"))
            (message,) = receiver.receive_messages(1, max_wait_time=10)
            receiver.complete_message(message)
            return text(message)

    with trio.fail_after(30):
        async with open_emulator({"q": QueueSettings()}) as emulator:
            assert await trio.to_thread.run_sync(use, emulator.connection_string) == "x"
            assert emulator.counts("q").active == 0


def test_it_stops_with_clients_connected_and_leaves_nothing() -> None:
    before = threading.active_count()
    with emulator_in_thread(), emulator_in_thread() as emulator:
        waiting = [socket.create_connection(("127.0.0.1", emulator.port)) for _ in range(3)]
        waiting[0].sendall(b"AMQP\x03\x01\x00\x00")
        assert waiting[0].recv(8) == b"AMQP\x03\x01\x00\x00"
        waiting[1].sendall(b"nonsense")
        while waiting[1].recv(1_024):
            pass
    for connection in waiting:
        connection.close()
    assert threading.active_count() == before
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", emulator.port))
    with pytest.raises(trio.RunFinishedError):
        emulator.statistics()


def test_what_cannot_start_says_why(emulator: ServiceBusEmulator, queue: str) -> None:
    with pytest.raises(OSError, match="in use"), emulator_in_thread(port=emulator.port):
        pass
    with pytest.raises(ValidationError, match="65536"), emulator_in_thread(port=65_536):
        pass
    with pytest.raises(ValidationError, match="a b"), emulator_in_thread({"/a b": SESSIONS}):
        pass
    with pytest.raises(ValidationError, match="exists"):
        emulator.create_queue(queue.upper())


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "queue_runtime.testing.servicebus", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_from_the_command_line() -> None:
    arguments = ["--port", "0", "--queues", "a", "b", "--session-queues", "s", "--key", "secret"]
    with command(*arguments) as process:
        assert process.stdout is not None
        connection_string = process.stdout.readline().strip()
        assert "SharedAccessKey=secret;UseDevelopmentEmulator=true" in connection_string

        async def main() -> None:
            async with ServiceBusClient.from_connection_string(connection_string) as client:
                async with client.get_queue_sender("b") as sender:
                    await sender.send_messages(ServiceBusMessage("x"))
                async with client.get_queue_receiver("s", session_id="a"):
                    pass

        run(main())
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")
        port = re.search(r":(\d+);", connection_string)
        assert port is not None


def test_the_command_ends_with_its_input(emulator: ServiceBusEmulator) -> None:
    with command("--port", "0", "--tls", "--until-stdin-ends") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert "UseDevelopmentEmulator" not in process.stdout.readline()
        assert process.stdout.readline().strip().endswith(".pem")
        process.stdin.close()
        assert process.wait(20) == 0
    with command("--port", str(emulator.port)) as process:
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 1
        assert errors.startswith("error: ")
        assert "in use" in errors
    with command("--queues", "$") as process:
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 1
        assert "'$'" in errors


def test_a_policy_of_ones_own() -> None:
    with emulator_in_thread(policy=AccessPolicy("name", "key")) as emulator:
        assert "SharedAccessKeyName=name;SharedAccessKey=key" in emulator.connection_string
