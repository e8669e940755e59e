"""Writing to a shared connection, by who does not wait for it. On the bridge's loop.

The engine writes the frames of a message one by one, and counts the message when the last of them is written. Had it
to wait in between, frames of another message would come among them under the same number, and who is cancelled
meanwhile would leave half a message, which the next one completes. So writing only hands over; who has much to write
waits for room before.
"""

from __future__ import annotations

import asyncio
from typing import Any, final

__all__ = ["Writing"]


@final
class Writing:
    """Makes a transport of the SDK's engine, which is connected, take what is written without waiting."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._writer = getattr(transport, "writer", None)  # a WebSocket has none
        self._send = transport._write
        self._sending: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        transport._write = self._write

    async def _write(self, data: bytes) -> None:
        if self._error is not None:
            raise self._error
        if self._writer is None:
            # Each hands over in its first step, and these come in order; what is left is waiting for room.
            task = asyncio.create_task(self._send(data), name="websocket writer")
            self._sending.add(task)
            task.add_done_callback(self._sent)
        elif self._writer.transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        else:
            self._writer.write(data)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled():
            self._error = task.exception() or self._error

    async def room(self) -> None:
        """Wait until the peer has taken most of what was written.

        Raises:
            Exception: The connection is gone.
        """
        if self._writer is not None:
            await self._writer.drain()
        elif self._sending:
            await asyncio.wait(self._sending)
        if self._error is not None:
            raise self._error

    async def aclose(self) -> None:
        """Write as before, for the goodbye: nobody else does any more. Never fails."""
        self._transport._write = self._send
        await asyncio.sleep(0)  # what was just handed over goes out
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
