"""How a stored or received message is shown, to people and to machines."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from queue_runtime import Message
from queue_runtime.text import escape

from .output import moment

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["body_fields", "message_fields", "shown_body", "since", "table"]


def message_fields(
    message: Message, message_id: str, sequence_number: int | None
) -> dict[str, Any]:
    """What machines get of any message: everything but the body."""
    return {
        "sequence_number": sequence_number,
        "id": message_id,
        "session": message.session_id,
        "size": message.size,
        "headers": dict(message.headers),
        "correlation_id": message.correlation_id,
        "content_type": message.content_type,
        "scheduled_at": moment(message.scheduled_at),
    }


def body_fields(body: bytes) -> dict[str, str]:
    """The body as text or, when it is none, as base64 with a mark."""
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(body).decode(), "body_encoding": "base64"}


def shown_body(message: Message, limit: int = 400) -> str:
    """The beginning of a body for people: on one line, nothing in it moves the cursor."""
    return escape(message.body[: limit * 4].decode(errors="backslashreplace"), limit)


def since(time: datetime | None) -> str:
    """How long ago, for people."""
    if time is None:
        return ""
    seconds = (datetime.now(UTC) - time).total_seconds()
    if seconds < 0:
        return f"in {_duration(-seconds)}"
    return f"{_duration(seconds)} ago"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def table(*columns: str, right: tuple[str, ...] = (), fold: tuple[str, ...] = ()) -> Table:
    """An empty table; ``right`` columns hold numbers, ``fold`` ones are never cut."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in columns:
        made.add_column(
            name,
            justify="right" if name in right else "left",
            overflow="fold" if name in fold else "ellipsis",
            no_wrap=name not in fold,
        )
    return made
