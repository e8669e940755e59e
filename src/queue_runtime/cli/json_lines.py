"""Messages as JSON lines: what ``send --jsonl`` reads and ``dlq export`` writes."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, Final, NoReturn, final

import trio

from queue_runtime import Message, MessageTooLarge, PeekedMessage, ValidationError
from queue_runtime.config.structuring import did_you_mean, shown
from queue_runtime.messages import MAX_DURATION

from .output import moment

__all__ = ["MAX_LINE", "BadLine", "Lines", "build", "dump_dead_letter", "parse"]

MAX_LINE: Final = 64 * 1024 * 1024
"""Bytes of the longest line that is read: far above every broker's limit on messages."""
_CHUNK: Final = 256 * 1024

_TEXT: Final = {
    "session": "session_id",
    "id": "message_id",
    "correlation_id": "correlation_id",
    "content_type": "content_type",
    "deduplication_id": "deduplication_id",
}
"""Keys of a line whose values are text or null, and the fields of ``Message`` they become."""
_KEYS: Final = (*_TEXT, "body", "body_encoding", "headers", "ttl", "delay", "dead_letter")


@final
class BadLine(Exception):
    """A line that is no message.

    Args:
        number: Which line, from 1.
        why: What is wrong with it; quotes no body.
    """

    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"line {number}: {why}")
        self.number = number


@final
class Lines:
    """Numbered lines of a stream, as they come, without holding more than a chunk and one line.

    Args:
        stream: Read in a thread of its own: a pipe may keep silent.
        on_bytes: Told how many bytes were read.
    """

    def __init__(self, stream: BinaryIO, on_bytes: Callable[[int], object] | None = None) -> None:
        self._read = getattr(stream, "read1", stream.read)
        self._on_bytes = on_bytes
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._number = 0
        self._ended = False

    async def read(self) -> list[tuple[int, bytes]]:
        """The next lines, at least one; ``[]`` at the end.

        Raises:
            BadLine: A line is longer than :data:`MAX_LINE`; those before it have been returned.
            OSError: The stream cannot be read.
        """
        while not self._ended:
            if self._rest_size > MAX_LINE:
                raise BadLine(
                    self._number + 1, f"longer than {MAX_LINE:,} bytes, the most that is read"
                )
            chunk = await trio.to_thread.run_sync(self._read, _CHUNK, abandon_on_cancel=True)
            if self._on_bytes is not None:
                self._on_bytes(len(chunk))
            if not chunk:
                self._ended = True
                last = b"".join(self._rest)
                return self._numbered([last]) if last else []
            head, newline, tail = chunk.rpartition(b"\n")
            if not newline:
                self._rest.append(chunk)
                self._rest_size += len(chunk)
                continue
            lines = b"".join([*self._rest, head]).split(b"\n")
            self._rest, self._rest_size = [tail], len(tail)
            return self._numbered(lines)
        return []

    def _numbered(self, lines: list[bytes]) -> list[tuple[int, bytes]]:
        first = self._number + 1
        self._number += len(lines)
        return list(enumerate(lines, first))


def parse(number: int, line: bytes, max_bytes: int) -> Message:
    """The message a line stands for.

    Raises:
        BadLine: It stands for none; with every problem that was found.
    """
    try:
        fields = json.loads(line.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise BadLine(number, f"not UTF-8 (byte {error.start + 1} of the line)") from None
    except json.JSONDecodeError as error:
        raise BadLine(number, f"not JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # huge numbers, NaN, nesting without end
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadLine(number, f"not JSON: {reason}") from None
    if not isinstance(fields, dict):
        raise BadLine(number, f'expected an object such as {{"body": "…"}}, got {_kind(fields)}')
    problems = list(_problems(fields))
    if problems:
        raise BadLine(number, "; ".join(problems))
    try:
        message = build(
            _body(fields),
            headers=fields.get("headers") or {},
            ttl=fields.get("ttl"),
            delay=fields.get("delay"),
            **{field: fields.get(key) for key, field in _TEXT.items()},
        )
    except ValidationError as error:
        raise BadLine(number, str(error)) from None
    if message.size > max_bytes:
        raise BadLine(number, str(MessageTooLarge(message.size, max_bytes)))
    return message


def build(body: bytes, *, ttl: float | None, delay: float | None, **fields: Any) -> Message:
    """A message, with its times as people write them: seconds from now.

    Raises:
        ValidationError: Something is outside what is accepted.
    """
    scheduled_at = None
    if delay is not None:
        if not 0 <= delay <= MAX_DURATION:  # also refuses NaN
            raise ValidationError(
                f"delay is {delay!r} seconds: it must be at least 0 and at most {MAX_DURATION:.0f}"
            )
        scheduled_at = datetime.now(UTC) + timedelta(seconds=delay) if delay else None
    return Message(body, time_to_live=ttl, scheduled_at=scheduled_at, **fields)


def _problems(fields: dict[str, Any]) -> list[str]:
    problems = [
        f"unknown key {shown(key)}{did_you_mean(key, _KEYS)}" for key in fields if key not in _KEYS
    ]
    if "body" not in fields:
        problems.append("body is missing: expected text")
    elif not isinstance(fields["body"], str):
        problems.append(f"body must be text, got {_kind(fields['body'])}")
    problems += [
        f"{key} must be text, got {_kind(fields[key])}"
        for key in _TEXT
        if not isinstance(fields.get(key), (str, type(None)))
    ]
    for key in ("ttl", "delay"):
        value = fields.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
            problems.append(f"{key} must be a number of seconds, got {_kind(value)}")
    headers = fields.get("headers")
    if not isinstance(headers, (dict, type(None))):
        problems.append(f"headers must be an object, got {_kind(headers)}")
    elif headers:
        problems += [
            f"header {shown(name)} must be text, got {_kind(value)}"
            for name, value in headers.items()
            if not isinstance(value, str)
        ]
    if fields.get("body_encoding") not in (None, "base64"):
        problems.append(
            f"body_encoding is {shown(fields['body_encoding'])}: only 'base64' is known"
        )
    return problems


def _body(fields: dict[str, Any]) -> bytes:
    try:
        body = fields["body"].encode()
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"body holds half a surrogate pair at position {error.start}, which UTF-8 cannot carry"
        ) from None
    if fields.get("body_encoding") is None:
        return bytes(body)
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValidationError(f"body is not base64: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    kinds = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds[type(value)]


def dump_dead_letter(letter: PeekedMessage) -> str:
    """A dead letter as a line that :func:`parse` reads; what it cannot send again is under ``dead_letter``."""
    message = letter.message
    line: dict[str, Any] = {"id": letter.message_id}
    try:
        line["body"] = message.body.decode()
    except UnicodeDecodeError:
        line["body"] = base64.b64encode(message.body).decode()
        line["body_encoding"] = "base64"
    for key, field in _TEXT.items():
        value = getattr(message, field)
        if value is not None:
            line[key] = value
    if message.headers:
        line["headers"] = dict(message.headers)
    if message.time_to_live is not None and math.isfinite(message.time_to_live):
        line["ttl"] = message.time_to_live
    info = letter.dead_letter
    line["dead_letter"] = {
        "sequence_number": letter.sequence_number,
        "enqueued_at": moment(letter.enqueued_at),
        **(
            {}
            if info is None
            else {
                "reason": info.reason,
                "description": info.description,
                "delivery_count": info.delivery_count,
                "dead_lettered_at": moment(info.dead_lettered_at),
                "first_failed_at": moment(info.first_failed_at),
            }
        ),
    }
    return json.dumps(line, ensure_ascii=False)
