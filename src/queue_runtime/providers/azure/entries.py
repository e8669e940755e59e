"""A message as the SDK's class takes it, and the bytes that AMQP makes of it. Pure: the SDK is not asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

__all__ = ["NATIVE_HEADERS", "SCHEDULED", "Entry", "header_size", "in_batch", "wire_size"]

NATIVE_HEADERS: Final[Mapping[str, str]] = {
    "amqp-subject": "subject",
    "amqp-to": "to",
    "amqp-reply-to": "reply_to",
    "amqp-reply-to-session-id": "reply_to_session_id",
}
"""Header to the argument of the SDK's message that it travels as."""

Entry: TypeAlias = dict[str, Any]
"""Arguments of the SDK's ``ServiceBusMessage``; those that would be ``None`` are left out."""

SCHEDULED: Final = "x-opt-scheduled-enqueue-time"
"""The annotation that says when a message is due."""


def wire_size(entry: Mapping[str, Any]) -> int:
    """Bytes of the message as AMQP encodes it, which is what the broker's limits count."""
    body = len(entry["body"])
    return header_size(entry) + 3 + body + (2 if body <= 255 else 5)


def in_batch(size: int) -> int:
    """Bytes that a message of ``size`` takes in a batch, where each is a data section of its own."""
    return size + (5 if size <= 255 else 8)


def header_size(entry: Mapping[str, Any]) -> int:
    """All sections but the body's: three bytes of descriptor each, then a list or a map of AMQP's encodings."""
    texts = sum(
        _string(entry[name]) - 1
        for name in (
            "message_id",
            "session_id",
            "content_type",
            "correlation_id",
            *NATIVE_HEADERS.values(),
        )
        if name in entry
    )
    size = 3 + _compound(13 + texts + (16 if "time_to_live" in entry else 0))
    if "time_to_live" in entry:
        size += 15
    if "scheduled_enqueue_time_utc" in entry:
        size += 3 + _compound(2 + len(SCHEDULED) + 9)
    properties = entry.get("application_properties")
    if properties:
        pairs = sum(_string(name) + _string(value) for name, value in properties.items())
        size += 3 + _compound(pairs, 2 * len(properties))
    return size


def _string(text: str) -> int:
    size = len(text.encode())
    return size + (2 if size <= 255 else 5)


def _compound(size: int, count: int = 0) -> int:
    return size + (3 if size < 255 and count <= 255 else 9)
