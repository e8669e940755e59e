"""Messages on the wire: what the broker reads of them, and how it adds to them, with all else passed on as it came.

Only what the broker looks at is decoded. Sections, map entries and list elements are found by their lengths,
so that properties and bodies of any AMQP type reach their receiver byte by byte as the sender encoded them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, final
from uuid import UUID

import attrs
from proton import Array, Data, Described, ProtonException

from .entities import Content, Stored
from .refusals import Refused

__all__ = [
    "BATCH_FORMAT",
    "decode_transfer",
    "decode_value",
    "encode_stored",
    "encode_value",
    "owned",
]

BATCH_FORMAT: Final = 0x80013700
"""The message format of a transfer whose data sections are whole messages."""

_HEADER, _DELIVERY_ANNOTATIONS, _ANNOTATIONS, _PROPERTIES, _APPLICATION, _DATA = range(0x70, 0x76)
_LAST_SECTION: Final = 0x78

_OWN: Final = frozenset(
    {
        b"x-opt-deadletter-source",
        b"x-opt-enqueue-sequence-number",
        b"x-opt-enqueued-time",
        b"x-opt-locked-until",
        b"x-opt-message-state",
        b"x-opt-scheduled-enqueue-time",
        b"x-opt-sequence-number",
    }
)
"""Annotations that the broker sets; a sender's are dropped, but for when a message is due."""

# Bytes of a value after its constructor, by the constructor's upper half.
_FIXED: Final = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}
_SIZE_8: Final = frozenset({0xA, 0xC, 0xE})
_SIZE_32: Final = frozenset({0xB, 0xD, 0xF})

_FAR: Final = (1 << 63) - 1
"""Milliseconds that a timestamp can have."""

_UINT32: Final = struct.Struct(">I")
_INT64: Final = struct.Struct(">q")
_HEADS: Final = {0x45: 1, 0xC0: 3, 0xC1: 3, 0xD0: 9, 0xD1: 9}
"""Bytes before the elements of a list or map, by its constructor."""


@final
@attrs.frozen
class _Payload:
    """The parts of an encoded message that are passed on: entries without their map, sections whole."""

    durable: bool
    priority: int | None
    time_to_live: int | None
    annotations: bytes
    annotation_count: int
    properties: bytes
    application: bytes
    body: bytes


class _Section(NamedTuple):
    code: int
    start: int
    value: int
    end: int


def _malformed(problem: str) -> Refused:
    return Refused("amqp:decode-error", f"The message cannot be decoded: {problem}.")


def _skip(raw: bytes, position: int) -> int:
    """The position behind the value at ``position``."""
    constructor = raw[position]
    if constructor == 0:
        return _skip(raw, _skip(raw, position + 1))
    upper = constructor >> 4
    fixed = _FIXED.get(upper)
    if fixed is not None:
        return position + 1 + fixed
    if upper in _SIZE_8:
        return position + 2 + raw[position + 1]
    if upper in _SIZE_32:
        size: int = _UINT32.unpack_from(raw, position + 1)[0]
        return position + 5 + size
    raise _malformed(f"no type has the constructor {constructor:#x}")


def _sections(raw: bytes) -> list[_Section]:
    found, position, end = [], 0, len(raw)
    while position < end:
        if raw[position] != 0 or raw[position + 1] not in {0x53, 0x80}:
            raise _malformed(f"no section begins at byte {position}")
        is_short = raw[position + 1] == 0x53
        code = raw[position + 2] if is_short else _INT64.unpack_from(raw, position + 2)[0]
        if not _HEADER <= code <= _LAST_SECTION:
            raise _malformed(f"no section has the code {code:#x}")
        value = position + (3 if is_short else 10)
        behind = _skip(raw, value)
        if behind > end:
            raise _malformed("it ends in the middle of a section")
        found.append(_Section(code, position, value, behind))
        position = behind
    return found


def _elements(raw: bytes, position: int) -> Iterator[bytes]:
    """The encoded elements of the list or map at ``position``; keys and values of a map alternate."""
    constructor = raw[position]
    if constructor not in _HEADS:
        raise _malformed(f"a list or map cannot begin with {constructor:#x}")
    end = _skip(raw, position)
    position += _HEADS[constructor]
    while position < end:
        behind = _skip(raw, position)
        yield raw[position:behind]
        position = behind


def _content(raw: bytes) -> bytes:
    """What is in an encoded binary, string or symbol."""
    return raw[2:] if raw[0] >> 4 == 0xA else raw[5:]


def owned(value: Any) -> Any:
    """A value that proton decoded, with bytes of its own: proton shows views of what it frees."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, dict):
        return {owned(key): owned(each) for key, each in value.items()}
    if isinstance(value, list):
        return [owned(each) for each in value]
    if isinstance(value, Array):
        return Array(value.descriptor, value.type, *map(owned, value.elements))
    if isinstance(value, Described):
        return Described(owned(value.descriptor), owned(value.value))
    return value


def decode_value(raw: bytes) -> Any:
    """One encoded value as a Python object, typed as proton does."""
    if raw[0] in {0xA1, 0xB1}:
        return _content(raw).decode()
    data = Data()
    data.decode(raw)
    data.rewind()
    data.next()
    return owned(data.get_object())


def encode_value(value: Any) -> bytes:
    """A Python object as AMQP; proton's types choose among those that Python does not tell apart."""
    data = Data()
    data.put_object(value)
    return bytes(data.encode())


def decode_transfer(raw: bytes, message_format: int) -> list[Content]:
    """The messages of one transfer.

    Raises:
        Refused: They are none.
    """
    try:
        if message_format != BATCH_FORMAT:
            return [_decode(raw)]
        return [
            _decode(_content(raw[section.value : section.end]))
            for section in _sections(raw)
            if section.code == _DATA
        ]
    except (IndexError, ProtonException, RecursionError, ValueError, struct.error) as error:
        raise _malformed(str(error)) from error


def _check(name: str, value: Any, *types: type) -> Any:
    if value is not None and not isinstance(value, types):
        raise _malformed(f"its {name} is a {type(value).__name__}")
    return value


def _decode(raw: bytes) -> Content:
    durable, priority, time_to_live = False, None, None
    annotations: list[bytes] = []
    properties = application = b""
    body: list[bytes] = []
    due = message_id = session_id = None
    for section in _sections(raw):
        whole = raw[section.start : section.end]
        if section.code == _HEADER:
            header = [decode_value(value) for value in _elements(raw, section.value)]
            durable, priority, time_to_live = (header + [None] * 3)[:3]
            _check("priority", priority, int)
            _check("time to live", time_to_live, int)
            if not 0 <= (priority or 0) <= 255 or (time_to_live or 0) < 0:
                raise _malformed(
                    f"priority {priority} or time to live {time_to_live} is out of range"
                )
        elif section.code == _ANNOTATIONS:
            entries = _elements(raw, section.value)
            for key, value in zip(entries, entries, strict=True):
                name = _content(key)
                if name == b"x-opt-scheduled-enqueue-time":
                    due = _check("due time", decode_value(value), int)
                elif name not in _OWN:
                    annotations += key, value
        elif section.code == _PROPERTIES:
            properties = whole
            for number, value in enumerate(_elements(raw, section.value)):
                if number == 0:
                    message_id = _check("message id", decode_value(value), str, int, bytes, UUID)
                elif number == 10:
                    session_id = _check("session id", decode_value(value), str)
                    break
        elif section.code == _APPLICATION:
            application = whole
            entries = _elements(raw, section.value)
            for name, _ in zip(entries, entries, strict=True):
                _content(name).decode()
        elif section.code != _DELIVERY_ANNOTATIONS:
            body.append(whole)
    payload = _Payload(
        bool(durable),
        priority,
        time_to_live,
        b"".join(annotations),
        len(annotations),
        properties,
        application,
        b"".join(body),
    )
    return Content(
        payload=payload,
        size=len(raw),
        message_id=message_id,
        session_id=session_id,
        time_to_live=None if time_to_live is None else int(time_to_live) / 1_000,
        due=None if due is None else int(due) / 1_000,
    )


def encode_stored(message: Stored) -> bytes:
    """A message as its receiver gets it."""
    payload: _Payload = message.content.payload
    return b"".join(
        (
            _encode_header(payload, message.count),
            _encode_annotations(payload, message),
            payload.properties,
            _merged(payload.application, message.overrides)
            if message.overrides
            else payload.application,
            payload.body,
        )
    )


def _encode_header(payload: _Payload, count: int) -> bytes:
    elements = (
        b"\x41" if payload.durable else b"\x42",
        b"\x40" if payload.priority is None else bytes((0x50, payload.priority)),
        b"\x40" if payload.time_to_live is None else _uint(payload.time_to_live),
        b"\x42",  # first-acquirer
        _uint(count),
    )
    return _compound(b"\x00\x53\x70", 0xC0, len(elements), b"".join(elements))


def _encode_annotations(payload: _Payload, message: Stored) -> bytes:
    entries = [
        payload.annotations,
        _symbol(b"x-opt-enqueued-time"),
        _timestamp(message.enqueued_at),
        _symbol(b"x-opt-sequence-number"),
        _long(message.sequence),
        _symbol(b"x-opt-enqueue-sequence-number"),
        _long(message.enqueued_sequence),
        _symbol(b"x-opt-message-state"),
        b"\x71" + _UINT32.pack(message.state),
    ]
    if message.lock is not None and message.lane.session_id is None:
        entries += _symbol(b"x-opt-locked-until"), _timestamp(message.lock.until)
    if message.content.due is not None:
        entries += _symbol(b"x-opt-scheduled-enqueue-time"), _timestamp(message.content.due)
    if message.source is not None:
        entries += _symbol(b"x-opt-deadletter-source"), encode_value(message.source)
    count = payload.annotation_count + len(entries) - 1
    return _compound(b"\x00\x53\x72", 0xC1, count, b"".join(entries))


def _merged(section: bytes, overrides: Mapping[str, Any]) -> bytes:
    """The application properties of a section with some set anew."""
    kept: list[bytes] = []
    if section:
        entries = _elements(section, 3 if section[1] == 0x53 else 10)
        for key, value in zip(entries, entries, strict=True):
            if _content(key).decode() not in overrides:
                kept += key, value
    for name, new in overrides.items():
        kept += encode_value(name), encode_value(new)
    return _compound(b"\x00\x53\x74", 0xC1, len(kept), b"".join(kept))


def _compound(descriptor: bytes, constructor: int, count: int, elements: bytes) -> bytes:
    """A described list or map; ``constructor`` is the short form's."""
    if len(elements) < 255 and count <= 255:
        return descriptor + bytes((constructor, len(elements) + 1, count)) + elements
    sizes = _UINT32.pack(len(elements) + 4) + _UINT32.pack(count)
    return descriptor + bytes((constructor + 0x10,)) + sizes + elements


def _uint(value: int) -> bytes:
    return b"\x70" + _UINT32.pack(min(int(value), 0xFFFF_FFFF))


def _long(value: int) -> bytes:
    return b"\x81" + _INT64.pack(value)


def _timestamp(seconds: float) -> bytes:
    return b"\x83" + _INT64.pack(max(-_FAR, min(round(seconds * 1_000), _FAR)))


def _symbol(name: bytes) -> bytes:
    return bytes((0xA3, len(name))) + name
