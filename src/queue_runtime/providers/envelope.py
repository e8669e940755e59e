"""What a broker has no field for: JSON in one property or attribute of a message, made and read. Pure.

What is read may be anybody's: what cannot be read is named in a list of problems. Only what :func:`read_field` is
given raises for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, final

import attrs

from queue_runtime.config.structuring import shown
from queue_runtime.messages import DeadLetterInfo, MessageId

__all__ = [
    "ENVELOPE",
    "MAX_DESCRIPTION",
    "NOTHING_MORE",
    "Extras",
    "dead_letter_history",
    "dead_letter_of",
    "extras_of",
    "fields_of",
    "moment_of",
    "open_envelope",
    "read_field",
    "sealed",
    "with_less",
]

ENVELOPE: Final = "queue-runtime"
"""Name of the property or attribute."""

MAX_DESCRIPTION: Final = 4_096
"""Characters kept of a dead letter's description."""

T = TypeVar("T")

_VERSION: Final = 1
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode


@final
@attrs.frozen(kw_only=True)
class Extras:
    """What travels beside a message that was in a queue before.

    Args:
        message_id: Its identity there, where the sender gave it none.
        dead_letter: Why it is, or was, a dead letter.
        enqueued_at: When its queue accepted it.
        sequence_number: Its position in that queue.
    """

    message_id: MessageId | None = None
    dead_letter: DeadLetterInfo | None = None
    enqueued_at: datetime | None = None
    sequence_number: int | None = None


NOTHING_MORE: Final = Extras()


def with_less(extras: Extras, excess: int) -> Extras:
    """``extras`` whose dead letter's description is ``excess`` characters shorter, as far as it is that long.

    In JSON it is all ASCII: no character of it took less than one byte.
    """
    info = extras.dead_letter
    if info is None:
        return extras
    description = info.description[:MAX_DESCRIPTION]
    shorter = attrs.evolve(info, description=description[: max(0, len(description) - excess)])
    return attrs.evolve(extras, dead_letter=shorter)


# --- writing -------------------------------------------------------------------------------------------


def sealed(fields: Mapping[str, Any]) -> str:
    """The envelope's text: all ASCII, control characters escaped."""
    return _to_json({"v": _VERSION, **fields})


def fields_of(extras: Extras) -> dict[str, Any]:
    """The fields for what ``extras`` say, in JSON's values; not for the identity, whose form depends on the broker."""
    fields: dict[str, Any] = {}
    if extras.sequence_number is not None:
        fields["sequence"] = extras.sequence_number
    if extras.enqueued_at is not None:
        fields["enqueued"] = extras.enqueued_at.isoformat()
    dead = extras.dead_letter
    if dead is not None:
        fields["dead"] = {
            "reason": dead.reason,
            "description": dead.description[:MAX_DESCRIPTION],
            **dead_letter_history(dead.dead_lettered_at, dead.first_failed_at, dead.delivery_count),
        }
    return fields


def dead_letter_history(
    at: datetime, first_failed_at: datetime | None, count: int
) -> dict[str, Any]:
    """A dead letter's times and deliveries, in JSON's values."""
    first = None if first_failed_at is None else first_failed_at.isoformat()
    return {"at": at.isoformat(), "first": first, "count": count}


# --- reading -------------------------------------------------------------------------------------------


def open_envelope(text: str | None, problems: list[str]) -> dict[str, Any]:
    """The fields of an envelope; empty if there is none, or none that can be read."""
    if text is None:
        return {}
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        problems.append("it is not a JSON object")
        return {}
    version = fields.get("v")
    if type(version) is not int or version != _VERSION:
        problems.append(
            f"its version is {shown(version)}, this program reads {_VERSION}: "
            "a newer one wrote it, or none of ours did"
        )
        return {}
    return fields


def read_field(
    fields: Mapping[str, Any], name: str, make: Callable[[Any], T], problems: list[str]
) -> T | None:
    """A field made into what it stands for; ``None`` if it is absent or cannot be."""
    value = fields.get(name)
    if value is None:
        return None
    try:
        return make(value)
    except (ValueError, TypeError, LookupError, OverflowError):
        problems.append(f"{name} cannot be read")
        return None


def extras_of(fields: Mapping[str, Any], problems: list[str]) -> Extras:
    """What the fields tell of an earlier queue."""
    return Extras(
        message_id=read_field(fields, "was", MessageId, problems),
        dead_letter=read_field(fields, "dead", dead_letter_of, problems),
        enqueued_at=read_field(fields, "enqueued", moment_of, problems),
        sequence_number=read_field(fields, "sequence", _whole, problems),
    )


def moment_of(value: Any) -> datetime:
    """A time in UTC. Raises ``ValueError`` or ``TypeError`` for anything else than ISO 8601 with a time zone."""
    moment = datetime.fromisoformat(value)
    if moment.utcoffset() is None:
        raise ValueError("no time zone")
    return moment.astimezone(UTC)


def dead_letter_of(value: Any) -> DeadLetterInfo:
    """What the field of a dead letter tells, for :func:`read_field`. Raises as the JSON that it is not."""
    first = value["first"]
    return DeadLetterInfo(
        reason=_word(value["reason"]),
        description=_word(value["description"])[:MAX_DESCRIPTION],
        dead_lettered_at=moment_of(value["at"]),
        first_failed_at=None if first is None else moment_of(first),
        delivery_count=_whole(value["count"]),
    )


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a whole number")
    return value


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value
