"""Ids as Service Bus takes them, and sessions that nobody sees. Pure.

A queue that requires sessions takes no message without one. So each message without a session is a session of its
own there, a lone one, whose id begins with what no encoded id of a user begins with.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import quote, unquote

from queue_runtime.errors import ValidationError
from queue_runtime.messages import SessionId

from ..wire_ids import GENERATED, HASHED, digest
from .foreign import utf16_length

__all__ = ["MARKED", "MAX_ID", "decode_id", "encode_id", "fitting", "is_lone", "with_lone_session"]

MAX_ID: Final = 128
"""Longest id, in UTF-16 units."""

MARKED: Final = re.compile(r"~[hn]:")
"""How ids begin that were made here."""

_FOREIGN: Final = "~f:"


def encode_id(text: str) -> str:
    """A session id as Service Bus takes it: at most 128 UTF-16 units.

    Different ids stay different. What fits goes as it is; what is too long, or begins like an id made here, is
    ``~h:`` and its SHA-256, and the envelope carries the id itself. What :func:`decode_id` made of a foreign
    session becomes that session again.
    """
    if text.startswith(_FOREIGN):
        wire = unquote(text.removeprefix(_FOREIGN), errors="replace")
        if decode_id(wire) == text:
            return wire
    return fitting(text)


def fitting(text: str) -> str:
    """An id as it is, or what stands for it where Service Bus, or we, would misread it."""
    return HASHED + digest(text) if utf16_length(text) > MAX_ID or MARKED.match(text) else text


def decode_id(wire: str) -> SessionId:
    """The session of a session id on the wire that no envelope explains: the same, as far as it can be one here.

    Foreign senders may use empty ids and control characters; those are percent-encoded behind ``~f:`` or, when too
    long then, hashed.
    """
    try:
        return SessionId(wire)
    except ValidationError:
        escaped = _FOREIGN + quote(wire, safe=" ", errors="replace")
        return SessionId(escaped if len(escaped) <= MAX_ID else _FOREIGN + digest(wire))


def is_lone(session: str | None) -> bool:
    """Whether a session id on the wire stands for none."""
    return session is not None and session.startswith(GENERATED)


def with_lone_session(entry: dict[str, Any], token: str) -> dict[str, Any]:
    """Give an encoded message that has no session one of its own."""
    if "session_id" not in entry:
        entry["session_id"] = GENERATED + token
    return entry
