"""The demo's messages: webhook payloads of GitHub, one session per pull request where there is one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Final, final
from urllib.parse import urlencode
from zlib import crc32

import attrs

from queue_runtime import (
    CompositeKey,
    Constant,
    FieldKey,
    FirstOf,
    Message,
    SessionId,
    ValidationError,
)

from .json_lines import MAX_LINE, BadLine
from .output import Failure

__all__ = ["FORM", "by_pull_request", "failures", "load"]

FORM: Final = "application/x-www-form-urlencoded"
"""The other way GitHub sends payloads: what the first version of the demo's handler has not heard of."""

_OWNER: Final = "repository.owner.login"
_NAME: Final = "repository.name"


def _comment_on_pull_request(payload: Mapping[str, Any]) -> SessionId | None:
    """GitHub calls a comment on a pull request an issue's, and tells it by one key."""
    issue = payload.get("issue")
    if not isinstance(issue, Mapping) or not issue.get("pull_request"):
        return None
    return CompositeKey(_OWNER, _NAME, Constant("pull_request"), "issue.number")(payload)


by_pull_request: Final = FirstOf(
    CompositeKey(_OWNER, _NAME, Constant("pull_request"), "pull_request.number"),
    _comment_on_pull_request,
    CompositeKey(_OWNER, _NAME, Constant("issue"), "issue.number"),
    CompositeKey(_OWNER, _NAME, Constant("discussion"), "discussion.number"),
    CompositeKey(_OWNER, _NAME),
    FieldKey("organization.login", prefix="organization"),
    FieldKey("installation.account.login", prefix="account"),
    FieldKey("sender.login", prefix="sender"),
)
"""``owner/repo/pull_request/number``, and what is nearest to it for events of other kinds."""


def failures(message_id: str) -> int:
    """How often the handler fails on a message before it succeeds: a fixed choice of about one in sixteen."""
    draw = crc32(message_id.encode()) % 48
    return 2 if draw == 0 else 1 if draw % 16 == 0 else 0


@final
@attrs.frozen
class _Event:
    name: str
    payload: Mapping[str, Any]
    session: SessionId | None


def load(path: Path | None) -> list[Message]:
    """The messages of an events file, in its order; one of them is encoded as a form.

    Args:
        path: JSON lines ``{"event": …, "payload": {…}}``, possibly gzipped; ``None``: the project's own.

    Raises:
        Failure: The file cannot be read, holds no event, or a line is none.
    """
    try:
        if path is None:
            source = resources.files("queue_runtime.cli") / "data" / "github-webhooks.jsonl.gz"
            with source.open("rb") as packed:
                events = list(_events(gzip.GzipFile(fileobj=packed)))
        else:
            with path.open("rb") as stream:
                compressed = stream.peek(2)[:2] == b"\x1f\x8b"
                events = list(_events(gzip.GzipFile(fileobj=stream) if compressed else stream))
    except BadLine as error:
        raise Failure(f"{path}: {error}", code=2, kind="BadLine") from None
    except (OSError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Failure(f"{path} cannot be read: {reason}", code=2, kind="FileError") from None
    if not events:
        raise Failure(f"{path} holds no event", code=2, kind="FileError")
    poison = _choose_poison(events)
    return [_message(number, event, number == poison) for number, event in enumerate(events)]


def _events(lines: BufferedIOBase) -> Iterator[_Event]:
    number = 0
    while line := lines.readline(MAX_LINE + 1):
        number += 1
        if line.isspace():
            continue
        if len(line) > MAX_LINE:
            raise BadLine(number, f"longer than {MAX_LINE:,} bytes, the most that is read")
        yield _event(number, line)


def _event(number: int, line: bytes) -> _Event:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise BadLine(number, "not JSON") from None
    name = fields.get("event") if isinstance(fields, dict) else None
    payload = fields.get("payload") if isinstance(fields, dict) else None
    if not isinstance(name, str) or not isinstance(payload, dict):
        raise BadLine(number, 'expected {"event": "text", "payload": {…}}')
    try:
        event = _Event(name, payload, by_pull_request(payload))
        _message(number, event, poison=True)  # a name may not do for an id
    except ValidationError as error:
        raise BadLine(number, str(error)) from None
    return event


def _choose_poison(events: list[_Event]) -> int:
    """An event about a third into the file, of a pull request if there is any."""
    return min(
        range(len(events)),
        key=lambda number: (
            "/pull_request/" not in (events[number].session or ""),
            abs(number - len(events) // 3),
        ),
    )


def _message(number: int, event: _Event, poison: bool) -> Message:
    text = json.dumps(event.payload)
    return Message(
        (urlencode({"payload": text}) if poison else text).encode(),
        session_id=event.session,
        message_id=f"{number:05d}-{event.name}",
        content_type=FORM if poison else "application/json",
        headers={"event": event.name},
    )
