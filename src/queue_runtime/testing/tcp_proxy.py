"""A TCP proxy with a bad network in it: resets, lost replies, silence, slowness, refusals.

:func:`open_tcp_proxy` listens on a free port of 127.0.0.1 and passes every connection on to a server. Point
the client under test at :attr:`TcpFaultProxy.port`, then tell the proxy what goes wrong and when::

    async with open_tcp_proxy("127.0.0.1", 5672) as proxy:
        lost = proxy.cut_reply(matching=b"DeleteMessageBatch")
        ...  # the server does it, and the client sees a reset in place of the reply
        await lost.wait_fired()

It knows no protocol. An *exchange* is what it sees of one request: it begins with the first bytes to the
server after bytes to the client, or after connecting. That is one HTTP request, for clients that do not
pipeline; for protocols in which the server speaks unasked, count bytes instead.
"""

from __future__ import annotations

import enum
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import final

import attrs
import trio

from ..client.blocks import Block
from ..errors import ValidationError

__all__ = ["TcpCut", "TcpFaultProxy", "TcpStatistics", "open_tcp_proxy"]

_HOST = "127.0.0.1"
_CHUNK = 65_536
_SLICES_PER_SECOND = 50
"""How finely a narrow link trickles."""

_SEARCHED = 65_536
"""Bytes at the beginning of an exchange in which a cut looks for its pattern."""

_BACKLOG = 128
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""``SO_LINGER`` on, for no time: closing sends a reset instead of what is left to send."""


class _Direction(enum.Enum):
    TO_SERVER = enum.auto()
    TO_CLIENT = enum.auto()


@final
@attrs.frozen(kw_only=True)
class TcpStatistics:
    """What went through a proxy so far.

    Args:
        connections: Connections accepted.
        open_connections: Those of them that are open now.
        exchanges: Requests seen, as the module defines them.
        bytes_to_server: Bytes passed on to the server.
        bytes_to_client: Bytes passed on to clients.
        resets: Connections ended by a fault of the proxy's.
    """

    connections: int
    open_connections: int
    exchanges: int
    bytes_to_server: int
    bytes_to_client: int
    resets: int


@final
class TcpCut:
    """A reset that is to come, once. Made by :class:`TcpFaultProxy`; no public constructor."""

    def __init__(self, direction: _Direction, after: int, matching: bytes, skip: int) -> None:
        self._direction = direction
        self._after = after
        self._matching = matching
        self._skip = skip
        self._fired = trio.Event()

    @property
    def has_fired(self) -> bool:
        """Whether it happened."""
        return self._fired.is_set()

    async def wait_fired(self) -> None:
        """Wait until it has happened."""
        await self._fired.wait()


@final
class _Connection:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, client: trio.SocketStream, server: trio.SocketStream | None) -> None:
        self.client = client
        self.server = server
        self.lost_bytes = False
        self.is_reset = False
        self._speaking: _Direction | None = None
        self._head = b""
        self._offered: set[TcpCut] = set()  # those that this exchange has been shown to
        self._passed = dict.fromkeys(_Direction, 0)  # in this exchange
        self._bound: dict[TcpCut, int] = {}  # bytes to pass before each

    def starts_exchange(self, direction: _Direction) -> bool:
        """Note who speaks; whether that begins an exchange."""
        starts = direction is _Direction.TO_SERVER and self._speaking is not direction
        self._speaking = direction
        if starts:
            self._head = b""
            self._offered = set()
            self._passed = dict.fromkeys(_Direction, 0)
        return starts

    def admit(
        self, direction: _Direction, data: bytes, cuts: list[TcpCut]
    ) -> tuple[bytes, TcpCut | None]:
        """How much of the data may pass, and the cut that comes after it. Takes from ``cuts`` what it binds."""
        if direction is _Direction.TO_SERVER and len(self._head) < _SEARCHED:
            self._head += data
        for cut in list(cuts):
            if self._is_for(cut, direction):
                cuts.remove(cut)
                self._bound[cut] = cut._after - self._passed[cut._direction]
        due: TcpCut | None = None
        passing = len(data)
        for cut, left in self._bound.items():
            if cut._direction is direction and left <= passing:
                due, passing = cut, max(0, left)
        if due is None:
            for cut in self._bound:
                if cut._direction is direction:
                    self._bound[cut] -= passing
        self._passed[direction] += passing
        return data[:passing], due

    def _is_for(self, cut: TcpCut, direction: _Direction) -> bool:
        if not cut._matching and not cut._skip:
            return cut._direction is direction  # also where the server speaks first
        if cut in self._offered or cut._matching not in self._head:
            return False
        self._offered.add(cut)
        if cut._skip:
            cut._skip -= 1
            return False
        return True

    def unbind(self) -> list[TcpCut]:
        """The cuts that wait for this connection no longer."""
        unbound = list(self._bound)
        self._bound.clear()
        return unbound

    def reset(self) -> None:
        """End both sides with a reset; bytes just passed may be lost with it, as on a real network."""
        self.is_reset = True
        for stream in (self.client, self.server):
            if stream is not None and stream.socket.fileno() != -1:
                with suppress(OSError):  # macOS: the other side has reset it already
                    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                stream.socket.close()


@final
class TcpFaultProxy:
    """Passes connections on to a server, and what it is told to break. Made by :func:`open_tcp_proxy`.

    Faults may be set at any time and in any combination; they are no matter of chance.
    """

    def __init__(self, target: tuple[str, int], nursery: trio.Nursery) -> None:
        self.host = _HOST
        self.port = 0
        self._target = target
        self._nursery = nursery
        self._listening: trio.CancelScope | None = None
        self._listener: trio.SocketListener | None = None
        self._connections: set[_Connection] = set()
        self._cuts: list[TcpCut] = []
        self._flowing = trio.Event()
        self._flowing.set()
        self._is_silent = False
        self._latency = 0.0
        self._bandwidth: float | None = None
        self._accepted = 0
        self._exchanges = 0
        self._resets = 0
        self._bytes = dict.fromkeys(_Direction, 0)

    def statistics(self) -> TcpStatistics:
        """What went through so far."""
        return TcpStatistics(
            connections=self._accepted,
            open_connections=len(self._connections),
            exchanges=self._exchanges,
            bytes_to_server=self._bytes[_Direction.TO_SERVER],
            bytes_to_client=self._bytes[_Direction.TO_CLIENT],
            resets=self._resets,
        )

    # Faults

    def reset_all(self) -> int:
        """Reset every connection there is, now. Returns how many."""
        connections = list(self._connections)
        for connection in connections:
            self._reset(connection)
        return len(connections)

    def cut_request(self, *, after: int = 0, matching: bytes = b"", skip: int = 0) -> TcpCut:
        """Reset the connection of an exchange, once, on the request's way to the server.

        The first exchange that is meant has it, on whichever connection; one under way counts.

        Args:
            after: Bytes that get through first, counted from the beginning of the exchange. They may be more
                than the request has: then the count goes on over what follows on this connection. With 0
                nothing arrives.
            matching: Only exchanges whose request holds these bytes in its first 64 KiB are meant. What was
                passed on before they came stays passed on.
            skip: So many of these exchanges are spared.
        """
        return self._add_cut(_Direction.TO_SERVER, after, matching, skip)

    def cut_reply(self, *, after: int = 0, matching: bytes = b"", skip: int = 0) -> TcpCut:
        """Reset the connection of an exchange, once, on the reply's way to the client.

        With ``after=0`` the reply is lost altogether, after the server has done what it was asked to. The
        arguments are those of :meth:`cut_request`; ``after`` counts the reply's bytes.
        """
        return self._add_cut(_Direction.TO_CLIENT, after, matching, skip)

    def _add_cut(self, direction: _Direction, after: int, matching: bytes, skip: int) -> TcpCut:
        for name, value in (("after", after), ("skip", skip)):
            if value < 0:
                raise ValidationError(f"{name} is {value!r}: expected 0 or more")
        cut = TcpCut(direction, after, matching, skip)
        self._cuts.append(cut)
        return cut

    def slow_down(self, *, latency: float = 0.0, bandwidth: float | None = None) -> None:
        """Make the link slow from now on, each way and each connection for itself.

        Args:
            latency: Seconds that whatever is read in one go, up to 64 KiB, is held back.
            bandwidth: Bytes per second; ``None`` for no limit.
        """
        if not 0 <= latency < float("inf"):
            raise ValidationError(f"latency is {latency!r}: expected seconds, 0 or more")
        if bandwidth is not None and not bandwidth > 0:
            raise ValidationError(f"bandwidth is {bandwidth!r}: expected bytes per second, above 0")
        self._latency = latency
        self._bandwidth = bandwidth

    def pause(self) -> None:
        """Pass nothing on, in either direction, until :meth:`resume`; nothing is lost."""
        if self._flowing.is_set():
            self._flowing = trio.Event()

    def resume(self) -> None:
        """Let flow what :meth:`pause` held back."""
        self._flowing.set()

    def silence(self) -> None:
        """Become a black hole until :meth:`heal`: connections are accepted, and whatever comes is swallowed.

        Connections that lost something so cannot go on: healing resets them.
        """
        self._is_silent = True

    def refuse(self) -> None:
        """Refuse connections until :meth:`heal`; those that are open stay so."""
        if self._listening is not None and self._listener is not None:
            self._listening.cancel()
            self._listener.socket.close()
            self._listening = self._listener = None

    def heal(self) -> None:
        """End every fault: cuts that have not happened, slowness, pause, silence, refusal.

        Raises:
            OSError: Another process has taken the port since :meth:`refuse`.
        """
        self._cuts.clear()
        for connection in list(self._connections):
            connection.unbind()
            if connection.lost_bytes:
                self._reset(connection)
        self.slow_down()
        self._is_silent = False
        self.resume()
        if self._listener is None:
            self._listen()

    # The work

    def _listen(self) -> None:
        listening = socket.create_server((self.host, self.port), backlog=_BACKLOG)
        self.port = listening.getsockname()[1]
        listening.setblocking(False)
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        self._listening = trio.CancelScope()
        self._nursery.start_soon(self._accept, self._listener, self._listening)

    async def _accept(self, listener: trio.SocketListener, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await trio.serve_listeners(self._serve, [listener], handler_nursery=self._nursery)
            except trio.ClosedResourceError:
                pass  # closed by `refuse`, before the cancellation came

    async def _serve(self, client: trio.SocketStream) -> None:
        self._accepted += 1
        connection = _Connection(client, None)
        connection.lost_bytes = self._is_silent
        self._connections.add(connection)
        try:
            if not self._is_silent:
                connection.server = await trio.open_tcp_stream(*self._target)
            if connection.server is None:
                await self._swallow(connection)
            elif not connection.is_reset:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, connection, _Direction.TO_SERVER)
                    nursery.start_soon(self._pump, connection, _Direction.TO_CLIENT)
        except OSError:
            connection.reset()  # there is no server: the client learns of it
        finally:
            self._connections.discard(connection)
            # Whoever binds to a connection that ends otherwise goes on waiting for another one.
            self._cuts[:0] = connection.unbind()
            for stream in (client, connection.server):
                if stream is not None:
                    stream.socket.close()

    async def _swallow(self, connection: _Connection) -> None:
        try:
            while await connection.client.receive_some(_CHUNK):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _pump(self, connection: _Connection, direction: _Direction) -> None:
        assert connection.server is not None
        source, sink = connection.client, connection.server
        if direction is _Direction.TO_CLIENT:
            source, sink = sink, source
        try:
            while data := await source.receive_some(self._chunk()):
                await self._travel(len(data))
                if self._is_silent:
                    connection.lost_bytes = True
                elif not connection.lost_bytes:
                    await self._pass_on(connection, direction, data, sink)
            await self._flowing.wait()
            if not connection.lost_bytes:
                await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            connection.reset()  # what happens to one side happens to the other

    def _chunk(self) -> int:
        if self._bandwidth is None:
            return _CHUNK
        return max(1, min(_CHUNK, int(self._bandwidth / _SLICES_PER_SECOND)))

    async def _travel(self, size: int) -> None:
        seconds = self._latency
        if self._bandwidth is not None:
            seconds += size / self._bandwidth
        if seconds:
            await trio.sleep(seconds)
        await self._flowing.wait()

    async def _pass_on(
        self, connection: _Connection, direction: _Direction, data: bytes, sink: trio.SocketStream
    ) -> None:
        if connection.starts_exchange(direction):
            self._exchanges += 1
        passing, cut = connection.admit(direction, data, self._cuts)
        if passing:
            self._bytes[direction] += len(passing)
            await sink.send_all(passing)
        if cut is not None:
            connection._bound.pop(cut, None)
            self._reset(connection)
            cut._fired.set()

    def _reset(self, connection: _Connection) -> None:
        if not connection.is_reset:
            self._resets += 1
            connection.reset()


@asynccontextmanager
async def open_tcp_proxy(host: str, port: int) -> AsyncIterator[TcpFaultProxy]:
    """A proxy before the server at ``host`` and ``port``, for as long as the block lasts.

    Without faults it only counts. The server need not run yet; a client that connects before it does is reset.
    All connections end with the block.
    """
    block = Block()
    with block.outside():
        async with trio.open_nursery() as nursery:
            proxy = TcpFaultProxy((host, port), nursery)
            proxy._listen()
            try:
                with block.inside():
                    yield proxy
            finally:
                nursery.cancel_scope.cancel()
                proxy.refuse()
