"""The emulator on the network: a TCP server under trio, one pair of tasks per connection."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
from typing import Final, final
from urllib.parse import unquote, urlsplit

import trio

from . import atom
from .administration import Administration, HttpAnswer, HttpRequest
from .authority import Authority
from .connection import Connection
from .counters import Counters
from .fault_book import FaultBook, Operation
from .http import is_http, may_become_http, serve_http
from .namespace import Namespace
from .refusals import Refused, entity_deleted
from .websocket import WebSocketStream, is_upgrade, may_become_upgrade

__all__ = ["Server"]

_HOST: Final = "127.0.0.1"
_CHUNK: Final = 262_144
_BACKLOG: Final = 1_024
_TICK: Final = 10.0
"""Seconds between looks after idle connections."""

_PATIENCE: Final = 60.0
"""Seconds that a client may take to say what it speaks, a handshake of TLS included."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""``SO_LINGER`` on, for no time: closing sends a reset instead of what is left to send."""

_logger = logging.getLogger(__name__)


async def _first_of(stream: trio.abc.Stream) -> bytes:
    """As much of what a client says as tells what it speaks, or more; nothing if it ends before."""
    first = b""
    while not first or may_become_http(first) or may_become_upgrade(first):
        more = bytes(await stream.receive_some(_CHUNK))
        if not more:
            break
        first += more
    return first


@final
class Server:
    """Everything that runs.

    Args:
        namespace: The queues.
        authority: Who checks tokens.
        faults: What goes wrong.
        tls: Speaks TLS when given.
        max_connections: Clients above so many at a time are turned away.
    """

    def __init__(
        self,
        namespace: Namespace,
        authority: Authority,
        faults: FaultBook,
        tls: ssl.SSLContext | None,
        max_connections: int,
    ) -> None:
        self.namespace = namespace
        self.counters = Counters()
        self.connections: set[Connection] = set()
        self._authority = authority
        self._administration = Administration(namespace, authority, self._end_links)
        self._faults = faults
        self._tls = tls
        self._max_connections = max_connections
        self._clients = 0
        self._sooner = trio.Event()

    async def listen(self, port: int) -> tuple[list[trio.SocketListener], int]:
        """What to :meth:`run` on, at 127.0.0.1, and the port: a free one if ``port`` is 0.

        Raises:
            OSError: The port cannot be had.
        """
        listeners = await trio.open_tcp_listeners(port, host=_HOST, backlog=_BACKLOG)
        address: tuple[str, int] = listeners[0].socket.getsockname()
        return listeners, address[1]

    async def run(self, listeners: list[trio.SocketListener]) -> None:
        """Serve until cancelled."""
        self.namespace.timers.on_sooner = self._come_sooner
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time)
            nursery.start_soon(trio.serve_listeners, self._serve, listeners)

    def _end_links(self, queue: str) -> None:
        """The queue is gone: tell everybody who sends to it or receives from it."""
        of_queue = f"{queue.lower()}/"
        for connection in list(self.connections):
            for link in connection.queue_links():
                if f"{link.path}/".lower().startswith(of_queue):
                    connection.end_link(link, entity_deleted(queue))

    def _come_sooner(self) -> None:
        self._sooner.set()

    async def _keep_time(self) -> None:
        timers = self.namespace.timers
        next_tick = trio.current_time() + _TICK
        while True:
            timers.run()
            now = trio.current_time()
            if now >= next_tick:
                next_tick = now + _TICK
                for connection in list(self.connections):
                    connection.tick(now)
            with trio.move_on_after(min(timers.next_in(), next_tick - now)):
                await self._sooner.wait()
            self._sooner = trio.Event()

    async def _serve(self, tcp: trio.SocketStream) -> None:
        if self._clients >= self._max_connections:
            _logger.warning("a client is turned away: %d are connected", self._clients)
            await trio.aclose_forcefully(tcp)
            return
        self._clients += 1
        try:
            await self._serve_client(tcp)
        finally:
            self._clients -= 1

    async def _serve_client(self, tcp: trio.SocketStream) -> None:
        stream: trio.abc.Stream = tcp
        if self._tls is not None:
            stream = trio.SSLStream(tcp, self._tls, server_side=True, https_compatible=True)
        try:
            first = b""
            with trio.move_on_after(_PATIENCE):
                first = await _first_of(stream)
            if is_upgrade(first):
                await self._serve_websocket(tcp, stream, first)
            elif is_http(first):
                self.counters.http_connections += 1
                await serve_http(stream, first, self._administer)
            elif first:
                await self._serve_amqp(tcp, stream, first)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away
        except* Exception:
            _logger.exception("a connection to the emulator ended by an error of the emulator's")
        finally:
            await trio.aclose_forcefully(tcp)

    async def _administer(self, request: HttpRequest) -> HttpAnswer | None:
        """Answer a request to the administration endpoint, unless a fault has it otherwise; ``None``: never."""
        path = unquote(urlsplit(request.target).path).strip("/")
        while (stall := self._faults.stall_of(path)) is not None:
            lifted = trio.Event()
            stall.hold(lifted.set)
            await lifted.wait()
        try:
            self._faults.check(Operation.ADMINISTER, path)
        except Refused as refusal:
            return HttpAnswer(refusal.status, atom.error(refusal.status, refusal.description))
        answered = self._administration.answer(request)
        return None if self._faults.loses_answer(Operation.ADMINISTER, path) else answered

    async def _serve_websocket(
        self, tcp: trio.SocketStream, below: trio.abc.Stream, first: bytes
    ) -> None:
        stream, amqp = None, b""
        with trio.move_on_after(_PATIENCE):
            stream = await WebSocketStream.accept(below, first)
            if stream is not None:
                amqp = await stream.receive_some(_CHUNK)
        if stream is None:
            return
        is_reset = False
        if amqp:
            self.counters.websockets += 1
            is_reset = await self._serve_amqp(tcp, stream, amqp)
        if not is_reset:
            with trio.move_on_after(_PATIENCE):
                await stream.aclose()

    async def _serve_amqp(
        self, tcp: trio.SocketStream, stream: trio.abc.Stream, first: bytes
    ) -> bool:
        """Until either side ends it; whether that is to be seen as a reset."""
        writable = trio.Event()
        scope = trio.CancelScope()
        is_reset = False

        def wake() -> None:
            writable.set()

        def abort() -> None:
            nonlocal is_reset
            is_reset = True
            scope.cancel()

        connection = Connection(
            self.namespace, self._authority, self._faults, self.counters, wake=wake, abort=abort
        )

        async def write() -> None:
            nonlocal writable
            while not connection.is_done:
                await writable.wait()
                writable = trio.Event()
                data = connection.output()
                if data:
                    await stream.send_all(data)
            scope.cancel()

        self.connections.add(connection)
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(write)
                    connection.receive(first)
                    while data := await stream.receive_some(_CHUNK):
                        connection.receive(bytes(data))
                    scope.cancel()
        finally:
            self.connections.discard(connection)
            connection.lose()
            if is_reset:
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        return is_reset
