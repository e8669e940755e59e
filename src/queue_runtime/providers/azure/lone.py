"""Messages without a session in a queue that requires one: each is a session of its own, which nobody sees.

Its id begins with what no encoded id of a user begins with, see :func:`.codec.encode_id`.
"""

from __future__ import annotations

import attrs

from queue_runtime.messages import Message

from ..wire_ids import GENERATED
from .codec import Entry

__all__ = ["is_lone", "with_lone_session", "without_lone_session"]


def is_lone(session: str | None) -> bool:
    """Whether a session id on the wire stands for none."""
    return session is not None and session.startswith(GENERATED)


def with_lone_session(entry: Entry, token: str) -> Entry:
    """Give a message that has no session one of its own."""
    if "session_id" not in entry:
        entry["session_id"] = GENERATED + token
    return entry


def without_lone_session(message: Message) -> Message:
    """The message as it was sent."""
    return attrs.evolve(message, session_id=None)
