"""The emulator on the network, by clients that say anything, nothing, or too much, and come in numbers."""

from __future__ import annotations

import gc
import socket
import struct
from pathlib import Path

import pytest
import trio
import trio.testing
from proton import Message

from queue_runtime.testing.servicebus import QueueSettings, ServiceBusEmulator, open_emulator
from queue_runtime.testing.servicebus.namespace import Namespace

from .raw_client import Edge

RESET = struct.pack("ii", 1, 0)


async def connect(emulator: ServiceBusEmulator) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", emulator.port)


async def until_closed(stream: trio.SocketStream) -> None:
    """Read what the emulator has to say, to the end."""
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass  # reset


def said_by_a_client() -> bytes:
    """What one writes that opens a connection, sends, receives, and closes nothing."""
    namespace = Namespace()
    namespace.create("q", QueueSettings())
    client = Edge(namespace).connect()
    client.authorize()
    client.send(client.link("out", "q"), Message("x"))
    client.link("in", "q", receives=True, credit=1)
    client.link("nobody", "nobody", receives=True)
    client.close()
    return bytes(client.written)


async def test_a_thousand_connections_leave_nothing_behind() -> None:
    """Closed, reset, or cut off in the middle of a frame."""
    said = said_by_a_client()

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async with open_emulator({"q": QueueSettings()}) as emulator:

        async def come_and_go(number: int) -> None:
            stream = await connect(emulator)
            async with stream:
                cut = len(said) if number % 3 == 0 else number * 37 % len(said)
                await stream.send_all(said[:cut])
                if number % 3 == 1:
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                elif number % 3 == 2:
                    await stream.send_eof()
                    await until_closed(stream)

        files = open_files()

        async def many(numbers: range) -> int:
            for first in numbers[::50]:
                async with trio.open_nursery() as nursery:
                    for number in range(first, first + 50):
                        nursery.start_soon(come_and_go, number)
            with trio.fail_after(30):  # also those that had said nothing, which are not counted
                while emulator.statistics().open_connections or open_files() > files:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            gc.collect()
            return len(gc.get_objects())

        objects = await many(range(100))
        more_objects = await many(range(100, 1_100))
        assert emulator.statistics().connections > 1_000
        assert emulator.statistics().open_links == 0
        assert more_objects - objects < 1_000


async def test_a_client_above_the_limit_is_turned_away_until_another_has_left() -> None:
    async with open_emulator(max_connections=2) as emulator:
        async with await connect(emulator), await connect(emulator) as second:
            await second.send_all(b"AMQP\x00\x01\x00\x00")
            await second.receive_some()
            async with await connect(emulator) as third:
                with trio.fail_after(30):
                    await until_closed(third)
        with trio.fail_after(30):
            while True:
                async with await connect(emulator) as another:
                    try:
                        await another.send_all(b"AMQP\x00\x01\x00\x00")
                        if await another.receive_some():
                            break
                    except trio.BrokenResourceError:
                        pass  # the others are still leaving


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        (b"AMQP\x03\x01\x00\x00", b"AMQP\x03\x01\x00\x00"),
        (b"GET /q HTTP/1.1\r\nHost: q\r\n\r\n", b"HTTP/1.1 401 "),
        (b"GET /$servicebus/websocket HTTP/1.1\r\nHost: q\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /\xff[ HTTP/1.1\r\n\r\n", b"HTTP/1.1 401 "),
        (b"GET //[ HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 "),
        (b"PUT /q HTTP/1.1\r\nContent-Length: " + b"9" * 5_000 + b"\r\n\r\n", b"HTTP/1.1 400 "),
    ],
    ids=["amqp", "http", "websocket", "letters", "no address", "length"],
)
@pytest.mark.parametrize("is_cut", [False, True], ids=["whole", "byte by byte"])
async def test_what_a_client_speaks_is_seen_however_it_comes(
    said: bytes, answered: bytes, is_cut: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_emulator() as emulator, await connect(emulator) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in [bytes([byte]) for byte in said[:200]] + [said[200:]] if is_cut else [said]:
            await stream.send_all(part)
            await trio.testing.wait_all_tasks_blocked()
        answer = b""
        with trio.fail_after(30):
            while len(answer) < len(answered):
                more = bytes(await stream.receive_some())
                assert more, answer
                answer += more
        assert answer.startswith(answered)
    assert not caplog.records


async def test_a_client_that_never_says_anything_is_left(autojump_clock: object) -> None:
    async with open_emulator() as emulator:
        async with await connect(emulator) as silent:
            began = trio.current_time()
            assert await silent.receive_some() == b""
            assert 59 < trio.current_time() - began < 75


@pytest.mark.parametrize(
    "noise",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS, to an emulator that speaks none
        b"AMQP\x03\x01\x00\x00\xff\xff\xff\xff\x02\x01\x00\x00",
        b"AMQP\x00\x09\x00\x01",
        b"\x00" * 4_096,
    ],
)
async def test_noise_ends_its_own_connection_and_no_other(
    noise: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_emulator({"q": QueueSettings()}) as emulator:
        async with await connect(emulator) as other, await connect(emulator) as noisy:
            await other.send_all(b"AMQP\x03\x01\x00\x00")
            assert (await other.receive_some()).startswith(b"AMQP\x03")
            await noisy.send_all(noise)
            with trio.fail_after(30):
                await until_closed(noisy)
            assert emulator.statistics().open_connections == 1
    assert not caplog.records
