"""A connection that is closed with an error in its shortest form, which the SDK's engine cannot read."""

from __future__ import annotations

from functools import partial

import trio
import trio.testing
from azure.servicebus._pyamqp.error import AMQPConnectionError

from queue_runtime import ConnectionFailed, Message, QueueError
from queue_runtime.abc import ReceiverOptions
from queue_runtime.providers.azure import FACTORY

from .emulator_process import emulator_process
from .linked import SOON, again, complete, eventually


def listed(*fields: bytes) -> bytes:
    """A list of AMQP's, short."""
    content = b"".join(fields)
    return bytes([0xC0, len(content) + 1, len(fields)]) + content


def close(condition: bytes, description: bytes) -> bytes:
    """A close whose error has no ``info``: null at the end of a list may be left out."""
    words = listed(
        bytes([0xA3, len(condition)]) + condition, bytes([0xA1, len(description)]) + description
    )
    body = b"\x00\x53\x18" + listed(b"\x00\x53\x1d" + words)
    return (len(body) + 8).to_bytes(4, "big") + b"\x02\x00\x00\x00" + body


class Relay:
    """Passes connections on, and can put in a word to the clients."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._clients: set[trio.SocketStream] = set()

    async def serve(self, client: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self._port) as server, client:
            self._clients.add(client)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass, client, server, nursery.cancel_scope)
                nursery.start_soon(self._pass, server, client, nursery.cancel_scope)
            self._clients.discard(client)

    async def _pass(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            async for part in source:
                await sink.send_all(part)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()

    async def say(self, frame: bytes) -> None:
        for client in list(self._clients):
            await client.send_all(frame)


async def test_a_close_without_details_is_a_lost_connection() -> None:
    """Told as one, so that it is tried again; and the next connection works."""
    with emulator_process() as emulator:
        emulator.create_queue("orders")
        relay = Relay(int(emulator.endpoint.rpartition(":")[2]))
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(
                partial(trio.serve_tcp, relay.serve, 0, host="127.0.0.1")
            )
            port = listener.socket.getsockname()[1]
            config = FACTORY.config_from_url(emulator.url_with(port, sessions=False))
            provider = await FACTORY.open(config)
            receiver = await provider.open_receiver("orders", ReceiverOptions())
            sender = await provider.open_sender("orders")
            await sender.send([Message(b"first")])
            [first] = await again(receiver.receive, 1, SOON)
            await complete(receiver, [first])
            wire = receiver._intake._plain._inlet.wire
            errors: list[Exception] = []

            async def wait() -> None:
                try:
                    await receiver.receive(1, SOON)
                except QueueError as error:
                    errors.append(error)

            async with trio.open_nursery() as waiting:
                waiting.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked(0.1)
                await relay.say(close(b"amqp:connection:forced", b"so it is"))
            [error] = errors
            assert isinstance(error, ConnectionFailed), error
            # Who asks on it later is told the same.
            await eventually(lambda: wire.error is not None)
            assert isinstance(wire.error, AMQPConnectionError), wire.error
            assert "what cannot be read" in str(wire.error)
            with trio.fail_after(SOON):
                await again(sender.send, [Message(b"sent")])
                [delivery] = await again(receiver.receive, 1, SOON)
            assert delivery.body == b"sent"
            await provider.aclose()
            nursery.cancel_scope.cancel()
