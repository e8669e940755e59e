"""What python-qpid-proton does not tell, read off the frames that come in.

A batch differs from a message by the ``message-format`` of its transfer alone. So the heads of attach and transfer
frames are read here as well, of links on which clients send. And one frame may settle many deliveries: the frames
that do are counted.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any, Final, final

__all__ = ["MessageFormats"]

_ATTACH: Final = 0x12
_TRANSFER: Final = 0x14
_DISPOSITION: Final = 0x15
_DETACH: Final = 0x16
_END: Final = 0x17
_PROTOCOL_HEADER: Final = b"AMQP"
_HEAD: Final = struct.Struct(">IBBH")


@final
class MessageFormats:
    """The message formats of one connection's incoming deliveries, by link and in order.

    Attributes:
        dispositions: Frames so far that told outcomes.
    """

    def __init__(self) -> None:
        self.dispositions = 0
        self._buffer = bytearray()
        self._names: dict[tuple[int, int], str] = {}
        self._formats: dict[str, deque[tuple[int, int]]] = {}

    def feed(self, data: bytes) -> None:
        """Look at the next bytes of the connection."""
        buffer = self._buffer
        buffer += data
        position, end = 0, len(buffer)
        while end - position >= _HEAD.size:
            if buffer.startswith(_PROTOCOL_HEADER, position):
                position += _HEAD.size
                continue
            size, offset, kind, channel = _HEAD.unpack_from(buffer, position)
            if size < _HEAD.size or end - position < size:
                break  # incomplete; or broken, of which the engine makes an error
            if kind == 0 and size > offset * 4:
                with memoryview(buffer)[position + offset * 4 : position + size] as body:
                    try:
                        self._frame(channel, body)
                    except (IndexError, UnicodeDecodeError):
                        pass  # of this, too, the engine makes an error
            position += size
        del buffer[:position]

    def _frame(self, channel: int, body: memoryview) -> None:
        if len(body) < 4 or body[0] != 0 or body[1] != 0x53:
            return
        code = body[2]
        if code == _TRANSFER:
            handle, delivery, _, message_format = _fields(body, 4)
            formats = self._formats.get(self._names.get((channel, handle), ""))
            if formats is None or delivery is None:
                return
            if not formats or formats[-1][0] != delivery:
                formats.append((delivery, message_format or 0))
        elif code == _DISPOSITION:
            self.dispositions += 1
        elif code == _ATTACH:
            link, handle, is_receiver = _fields(body, 3)
            if not is_receiver:
                self._names[channel, handle] = link
                self._formats[link] = deque()
        elif code == _DETACH:
            (handle,) = _fields(body, 1)
            self._forget((channel, handle))
        elif code == _END:
            for place in [place for place in self._names if place[0] == channel]:
                self._forget(place)

    def _forget(self, place: tuple[int, int]) -> None:
        self._formats.pop(self._names.pop(place, ""), None)

    def take(self, link: str) -> int:
        """The format of a link's next complete delivery; 0, that of a plain message, if unknown."""
        formats = self._formats.get(link)
        return formats.popleft()[1] if formats else 0


def _fields(body: memoryview, count: int) -> list[Any]:
    """The first fields of a performative: absent ones, and those of other types than used here, are ``None``."""
    position = 3 + (3 if body[3] == 0xC0 else 9)
    fields: list[Any] = []
    while len(fields) < count and position < len(body):
        constructor = body[position]
        position += 1
        value: Any = None
        width = 0
        if constructor in {0x41, 0x42}:
            value = constructor == 0x41
        elif constructor == 0x43:
            value = 0
        elif constructor in {0x52, 0x56}:
            width = 1
            value = body[position]
        elif constructor == 0x70:
            width = 4
            value = int.from_bytes(body[position : position + 4])
        elif constructor in {0xA0, 0xA1}:
            width = 1 + body[position]
            value = bytes(body[position + 1 : position + width])
            if constructor == 0xA1:
                value = value.decode()
        elif constructor in {0xB0, 0xB1}:
            width = 4 + int.from_bytes(body[position : position + 4])
            value = bytes(body[position + 4 : position + width])
            if constructor == 0xB1:
                value = value.decode()
        elif constructor != 0x40:
            break
        position += width
        fields.append(value)
    return fields + [None] * (count - len(fields))
