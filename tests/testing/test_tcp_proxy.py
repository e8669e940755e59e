"""The TCP proxy breaks what it is told to, when it is told to, and passes on everything else."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from queue_runtime.errors import ValidationError
from queue_runtime.testing import TcpFaultProxy, open_tcp_proxy

Connect = Callable[[], Awaitable[trio.SocketStream]]

RESET = trio.BrokenResourceError


class Echo:
    """Answers every line with itself in capitals; remembers what came."""

    def __init__(self) -> None:
        self.received = b""

    async def serve(self, stream: trio.SocketStream) -> None:
        try:
            async for data in stream:
                self.received += data
                await stream.send_all(data.upper())
        except trio.BrokenResourceError:
            pass


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def port(nursery: trio.Nursery, echo: Echo) -> int:
    listeners = await nursery.start(
        lambda task_status: trio.serve_tcp(echo.serve, 0, host="127.0.0.1", task_status=task_status)
    )
    found: int = listeners[0].socket.getsockname()[1]
    return found


@pytest.fixture
async def proxy(port: int) -> AsyncIterator[TcpFaultProxy]:
    async with open_tcp_proxy("127.0.0.1", port) as opened:
        yield opened


@pytest.fixture
async def connect(proxy: TcpFaultProxy) -> AsyncIterator[Connect]:
    streams: list[trio.SocketStream] = []

    async def open_stream() -> trio.SocketStream:
        streams.append(await trio.open_tcp_stream("127.0.0.1", proxy.port))
        return streams[-1]

    yield open_stream
    for stream in streams:
        await trio.aclose_forcefully(stream)


async def ask(stream: trio.SocketStream, text: bytes) -> bytes:
    """One exchange."""
    await stream.send_all(text)
    reply = b""
    while len(reply) < len(text):
        data = await stream.receive_some()
        if not data:
            break
        reply += data
    return reply


# --- nothing wrong --------------------------------------------------------------------------------


async def test_without_faults_it_passes_on_and_counts(
    proxy: TcpFaultProxy, connect: Connect
) -> None:
    first, second = await connect(), await connect()
    assert await ask(first, b"one") == b"ONE"
    assert await ask(first, b"four") == b"FOUR"
    assert await ask(second, b"x" * 200_000) == b"X" * 200_000
    statistics = proxy.statistics()
    assert (statistics.connections, statistics.open_connections) == (2, 2)
    assert statistics.bytes_to_server == statistics.bytes_to_client == 200_007
    assert statistics.resets == 0


async def test_an_exchange_begins_when_the_client_speaks_again(
    proxy: TcpFaultProxy, connect: Connect
) -> None:
    stream = await connect()
    for number in range(1, 4):
        await ask(stream, b"text")
        assert proxy.statistics().exchanges == number


async def test_an_end_of_file_is_passed_on(connect: Connect, echo: Echo) -> None:
    stream = await connect()
    assert await ask(stream, b"x") == b"X"
    await stream.send_eof()
    assert await stream.receive_some() == b""


async def test_a_server_that_is_not_there_resets_the_client(proxy: TcpFaultProxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    async with open_tcp_proxy("127.0.0.1", port) as other:
        stream = await trio.open_tcp_stream("127.0.0.1", other.port)
        async with stream:
            with pytest.raises(RESET):
                await stream.receive_some()


# --- cuts -----------------------------------------------------------------------------------------


async def test_all_connections_are_reset_now(proxy: TcpFaultProxy, connect: Connect) -> None:
    streams = [await connect(), await connect()]
    for stream in streams:
        await ask(stream, b"x")
    assert proxy.reset_all() == 2
    for stream in streams:
        with pytest.raises(RESET):
            await stream.receive_some()
    assert proxy.statistics().resets == 2
    assert await ask(await connect(), b"again") == b"AGAIN"


async def test_a_cut_request_arrives_in_part(
    proxy: TcpFaultProxy, connect: Connect, echo: Echo
) -> None:
    stream = await connect()
    cut = proxy.cut_request(after=3)
    with pytest.raises(RESET):
        assert await ask(stream, b"request") == b"never"
    await cut.wait_fired()
    assert echo.received in {b"req", b""}  # a reset may overtake what was passed on before
    assert proxy.statistics().bytes_to_server == 3
    assert await ask(await connect(), b"next") == b"NEXT"


async def test_a_request_cut_at_once_never_arrives(
    proxy: TcpFaultProxy, connect: Connect, echo: Echo
) -> None:
    stream = await connect()
    proxy.cut_request()
    with pytest.raises(RESET):
        await ask(stream, b"request")
    assert await ask(await connect(), b"next") == b"NEXT"
    assert echo.received == b"next"


async def test_a_lost_reply_is_lost_after_the_server_acted(
    proxy: TcpFaultProxy, connect: Connect, echo: Echo
) -> None:
    stream = await connect()
    cut = proxy.cut_reply()
    with pytest.raises(RESET):
        await ask(stream, b"request")
    assert cut.has_fired
    assert echo.received == b"request"
    assert proxy.statistics().bytes_to_client == 0


async def test_a_cut_reply_arrives_in_part(proxy: TcpFaultProxy, connect: Connect) -> None:
    stream = await connect()
    proxy.cut_reply(after=2)
    await stream.send_all(b"request")
    reply = b""
    with pytest.raises(RESET):
        while True:
            reply += await stream.receive_some()
    assert reply in {b"RE", b""}
    assert proxy.statistics().bytes_to_client == 2


async def test_a_cut_waits_for_the_exchange_it_is_meant_for(
    proxy: TcpFaultProxy, connect: Connect
) -> None:
    stream, other = await connect(), await connect()
    cut = proxy.cut_reply(matching=b"delete", skip=1)
    assert await ask(stream, b"send") == b"SEND"
    assert await ask(stream, b"delete 1") == b"DELETE 1"
    assert await ask(other, b"send") == b"SEND"
    assert not cut.has_fired
    with pytest.raises(RESET):
        await ask(other, b"please delete 2")
    assert cut.has_fired
    assert await ask(stream, b"delete 3") == b"DELETE 3"


async def test_a_cut_can_wait_for_the_nth_exchange(proxy: TcpFaultProxy, connect: Connect) -> None:
    stream = await connect()
    proxy.cut_request(skip=2)
    assert await ask(stream, b"1") == b"1"
    assert await ask(stream, b"2") == b"2"
    with pytest.raises(RESET):
        await ask(stream, b"3")


async def test_bytes_are_counted_over_later_exchanges(
    proxy: TcpFaultProxy, connect: Connect
) -> None:
    stream = await connect()
    proxy.cut_request(after=5)
    assert await ask(stream, b"abc") == b"ABC"
    with pytest.raises(RESET):
        await ask(stream, b"defg")
    assert proxy.statistics().bytes_to_server == 5


async def test_several_cuts_hit_one_connection_each(proxy: TcpFaultProxy, connect: Connect) -> None:
    cuts = [proxy.cut_reply(), proxy.cut_reply(), proxy.cut_reply()]
    for _ in cuts:
        stream = await connect()
        with pytest.raises(RESET):
            await ask(stream, b"x")
    assert all(cut.has_fired for cut in cuts)
    assert proxy.statistics().resets == 3
    assert await ask(await connect(), b"x") == b"X"


async def test_a_cut_outlives_a_connection_that_ended_without_it(
    proxy: TcpFaultProxy, connect: Connect
) -> None:
    stream = await connect()
    cut = proxy.cut_request(after=5)
    assert await ask(stream, b"abc") == b"ABC"
    await stream.aclose()
    with pytest.raises(RESET):
        await ask(await connect(), b"abcdef")
    assert cut.has_fired


# --- silence, slowness, refusal -------------------------------------------------------------------


async def test_a_pause_holds_everything_back_and_loses_nothing(
    proxy: TcpFaultProxy, connect: Connect, echo: Echo
) -> None:
    stream = await connect()
    assert await ask(stream, b"1") == b"1"
    proxy.pause()
    proxy.pause()
    replies: list[bytes] = []

    async def ask_later() -> None:
        replies.append(await ask(stream, b"late"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_later)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert echo.received == b"1"
        proxy.resume()
    assert replies == [b"LATE"]


async def test_silence_accepts_and_answers_nothing(
    proxy: TcpFaultProxy, connect: Connect, echo: Echo
) -> None:
    old = await connect()
    assert await ask(old, b"1") == b"1"
    proxy.silence()
    new = await connect()
    for stream in (old, new):
        await stream.send_all(b"lost")
        with trio.move_on_after(0.05) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
    assert echo.received == b"1"
    proxy.heal()
    for stream in (old, new):
        with pytest.raises(RESET):
            await stream.receive_some()
    assert await ask(await connect(), b"2") == b"2"


async def test_refusing_closes_the_port_and_healing_opens_the_same(
    proxy: TcpFaultProxy, connect: Connect
) -> None:
    stream = await connect()
    assert await ask(stream, b"1") == b"1"
    proxy.refuse()
    proxy.refuse()
    with pytest.raises(OSError, match="connect"):
        await connect()
    assert await ask(stream, b"2") == b"2"
    port = proxy.port
    proxy.heal()
    assert proxy.port == port
    assert await ask(await connect(), b"3") == b"3"


async def test_a_slow_link_takes_its_time(proxy: TcpFaultProxy, connect: Connect) -> None:
    stream = await connect()
    proxy.slow_down(latency=0.05)
    started = trio.current_time()
    assert await ask(stream, b"x") == b"X"
    assert trio.current_time() - started >= 0.1
    proxy.slow_down(bandwidth=10_000)
    started = trio.current_time()
    assert await ask(stream, b"x" * 2_000) == b"X" * 2_000
    assert trio.current_time() - started >= 0.2
    proxy.heal()


async def test_healing_forgets_cuts(proxy: TcpFaultProxy, connect: Connect) -> None:
    stream = await connect()
    waiting, bound = proxy.cut_reply(matching=b"x"), proxy.cut_request(after=100)
    assert await ask(stream, b"abc") == b"ABC"
    proxy.heal()
    assert await ask(stream, b"x" * 200) == b"X" * 200
    assert not waiting.has_fired
    assert not bound.has_fired


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (lambda proxy: proxy.cut_reply(after=-1), "after"),
        (lambda proxy: proxy.cut_request(skip=-1), "skip"),
        (lambda proxy: proxy.slow_down(latency=-0.1), "latency"),
        (lambda proxy: proxy.slow_down(latency=float("nan")), "latency"),
        (lambda proxy: proxy.slow_down(bandwidth=0), "bandwidth"),
    ],
)
async def test_a_senseless_fault_is_refused(
    proxy: TcpFaultProxy, fault: Callable[[TcpFaultProxy], Any], name: str
) -> None:
    with pytest.raises(ValidationError, match=f"{name} is .*: expected"):
        fault(proxy)


# --- closing --------------------------------------------------------------------------------------


async def test_all_ends_with_the_block(port: int) -> None:
    async with open_tcp_proxy("127.0.0.1", port) as proxy:
        stream = await trio.open_tcp_stream("127.0.0.1", proxy.port)
        assert await ask(stream, b"x") == b"X"
        proxy.pause()
        await stream.send_all(b"held back")
    async with stream:
        with pytest.raises(RESET):
            while True:
                await stream.send_all(b"more")
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream("127.0.0.1", proxy.port)


async def test_the_block_ends_when_cancelled_and_raises_what_it_raised(port: int) -> None:
    with trio.move_on_after(0.05) as scope:
        async with open_tcp_proxy("127.0.0.1", port) as proxy:
            proxy.silence()
            async with await trio.open_tcp_stream("127.0.0.1", proxy.port):
                await trio.sleep_forever()
    assert scope.cancelled_caught
    with pytest.raises(KeyError):
        async with open_tcp_proxy("127.0.0.1", port):
            raise KeyError("mine")
