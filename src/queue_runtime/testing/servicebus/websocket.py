"""AMQP over WebSockets: the stream of bytes inside, by the engine of wsproto.

Service Bus takes the upgrade at one path, under the subprotocol that the AMQP 1.0 WebSocket binding names:
http://docs.oasis-open.org/amqp-bindmap/amqp-wsb/v1.0/amqp-wsb-v1.0.html.
"""

from __future__ import annotations

from typing import Final, final

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

__all__ = ["WebSocketStream", "is_upgrade", "may_become_upgrade"]

_PATH: Final = "/$servicebus/websocket"
_BEGINNING: Final = f"GET {_PATH} ".encode()
_SUBPROTOCOL: Final = "AMQPWSB10"
_CHUNK: Final = 262_144
_NORMAL: Final = 1000
_FOREIGN: Final = 1003
"""Close code for a kind of message that is not spoken here."""


def is_upgrade(first: bytes) -> bool:
    """Whether a connection that begins so asks for AMQP over WebSockets."""
    return first.startswith(_BEGINNING)


def may_become_upgrade(first: bytes) -> bool:
    """Whether a connection that begins so may yet ask for that."""
    return _BEGINNING.startswith(first) and first != _BEGINNING


@final
class WebSocketStream(trio.abc.Stream):
    """What the messages of a WebSocket carry, as one stream. Made by :meth:`accept`.

    Where messages begin and end means nothing to AMQP.

    Args:
        stream: What is below.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._engine = WSConnection(ConnectionType.SERVER)
        self._received = bytearray()
        self._is_over = False
        # Answers to pings are written by who reads.
        self._writing = trio.Lock()

    @classmethod
    async def accept(cls, stream: trio.abc.Stream, first: bytes) -> WebSocketStream | None:
        """Answer an upgrade; ``None`` when it was refused, or not completed.

        Args:
            stream: Where it comes from.
            first: What has come already.
        """
        socket = cls(stream)
        engine = socket._engine
        data: bytes | None = first
        try:
            while data:
                engine.receive_data(data)
                for event in engine.events():
                    if not isinstance(event, Request):
                        continue
                    if event.target == _PATH and _SUBPROTOCOL in event.subprotocols:
                        await socket._send(AcceptConnection(subprotocol=_SUBPROTOCOL))
                        await socket._take_events()
                        return socket
                    await socket._send(RejectConnection(status_code=400))
                    return None
                data = bytes(await stream.receive_some(_CHUNK))
        except RemoteProtocolError as error:
            if error.event_hint is not None:
                await socket._send(error.event_hint)
        return None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes; none when the client has closed."""
        while not self._received and not self._is_over:
            data = bytes(await self._stream.receive_some(_CHUNK))
            try:
                self._engine.receive_data(data or None)
                await self._take_events()
            except RemoteProtocolError as error:
                self._is_over = True
                if error.event_hint is not None:
                    await self._send(error.event_hint)
        size = len(self._received) if max_bytes is None else max_bytes
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    async def _take_events(self) -> None:
        for event in self._engine.events():
            match event:
                case BytesMessage():
                    self._received += event.data
                case Ping():
                    await self._send(event.response())
                case CloseConnection():
                    self._is_over = True
                    if self._engine.state is ConnectionState.REMOTE_CLOSING:
                        await self._send(event.response())
                case _:  # text; or what comes with no answer
                    if not isinstance(event, AcceptConnection | Request) and hasattr(event, "data"):
                        self._is_over = True
                        await self._send(CloseConnection(code=_FOREIGN))

    async def _send(self, event: Event) -> None:
        async with self._writing:
            try:
                data = self._engine.send(event)
            except LocalProtocolError:
                return  # it is closed: there is nobody to tell
            await self._stream.send_all(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, as one message."""
        await self._send(BytesMessage(data=bytes(data)))

    async def wait_send_all_might_not_block(self) -> None:
        """As of the stream below."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Say goodbye and close what is below."""
        try:
            await self._send(CloseConnection(code=_NORMAL))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it left without a word
        finally:
            await self._stream.aclose()
