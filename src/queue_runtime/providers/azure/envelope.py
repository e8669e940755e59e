"""What has no field of its own in AMQP: JSON in one application property, and in a dead letter's description. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from queue_runtime.config.structuring import shown
from queue_runtime.messages import DeadLetterInfo

from .foreign import header_name, text_of, utf16_length

__all__ = [
    "ENVELOPE",
    "MAX_DESCRIPTION",
    "broker_dead_letter",
    "dead_letter_fields",
    "dead_letter_of",
    "dead_letter_words",
    "moment_of",
    "open_envelope",
    "packed_headers",
    "read_field",
    "sealed",
    "whole_of",
]

ENVELOPE: Final = "queue-runtime"
"""Name of the application property."""

MAX_DESCRIPTION: Final = 4_096
"""Characters (UTF-16 units, as .NET counts) of a dead letter's reason, and of its description."""

T = TypeVar("T")

_VERSION: Final = 1
_TAIL: Final = "\nqueue-runtime "
_REASONS: Final = {"TTLExpiredException": "TimeToLiveExpired"}


def sealed(fields: Mapping[str, Any]) -> str:
    """The property's text: all ASCII, control characters escaped."""
    return json.dumps({"v": _VERSION, **fields}, separators=(",", ":"))


def open_envelope(given: object, problems: list[str]) -> dict[str, Any]:
    """The fields of a property; empty if there is none, or none that can be read."""
    if given is None:
        return {}
    try:
        fields = json.loads(text_of(given))
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


def packed_headers(fields: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    """The headers that could not travel under their own names."""
    packed = fields.get("headers", {})
    if isinstance(packed, dict) and all(isinstance(value, str) for value in packed.values()):
        return {header_name(name): text_of(value) for name, value in packed.items()}
    problems.append("headers is not an object of texts")
    return {}


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


def moment_of(value: Any) -> datetime:
    """A time in UTC. Raises ``ValueError`` or ``TypeError`` for anything else than ISO 8601 with a time zone."""
    moment = datetime.fromisoformat(value)
    if moment.utcoffset() is None:
        raise ValueError("no time zone")
    return moment.astimezone(UTC)


def whole_of(value: Any) -> int:
    """A whole number from 0. Raises ``ValueError`` for anything else."""
    if type(value) is not int or value < 0:
        raise ValueError("not a whole number")
    return value


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _history(at: datetime, first_failed_at: datetime | None, count: int) -> dict[str, Any]:
    first = None if first_failed_at is None else first_failed_at.isoformat()
    return {"at": at.isoformat(), "first": first, "count": count}


def dead_letter_fields(info: DeadLetterInfo) -> dict[str, Any]:
    """What a message carries about its death, in JSON's values."""
    return {
        "reason": info.reason,
        "description": info.description[:MAX_DESCRIPTION],
        **_history(info.dead_lettered_at, info.first_failed_at, info.delivery_count),
    }


def dead_letter_of(value: Any) -> DeadLetterInfo:
    """What :func:`dead_letter_fields` told. Raises as the JSON that it is not."""
    first = value["first"]
    return DeadLetterInfo(
        reason=_word(value["reason"]),
        description=_word(value["description"])[:MAX_DESCRIPTION],
        dead_lettered_at=moment_of(value["at"]),
        first_failed_at=None if first is None else moment_of(first),
        delivery_count=whole_of(value["count"]),
    )


def dead_letter_words(
    reason: str,
    description: str,
    *,
    at: datetime,
    first_failed_at: datetime | None,
    delivery_count: int,
) -> tuple[str, str]:
    """Reason and description for the broker's dead-letter outcome.

    The broker keeps neither the time nor the deliveries it did not see, so they stand in the description's last
    line, where :func:`broker_dead_letter` finds them.

    Returns:
        Each at most :data:`MAX_DESCRIPTION` UTF-16 units; the description is cut, its last line is not.
    """
    history = json.dumps(_history(at, first_failed_at, delivery_count), separators=(",", ":"))
    tail = _TAIL + history
    return _cut(reason, MAX_DESCRIPTION), _cut(description, MAX_DESCRIPTION - len(tail)) + tail


def _cut(text: str, units: int) -> str:
    text = text.encode(errors="replace").decode()
    if utf16_length(text) <= units:
        return text
    encoded = text.encode("utf-16-le")[: 2 * units]
    return encoded.decode("utf-16-le", "ignore")  # half a character at the end is left out


def broker_dead_letter(
    words: Iterable[object], count: int, enqueued_at: datetime, time_to_live: float | None
) -> DeadLetterInfo:
    """What the broker keeps of a dead letter, with what :func:`dead_letter_words` added to it.

    The broker's own moves have no time: theirs is the earliest it can have been.
    """
    reason, description = ("" if word is None else text_of(word) for word in words)
    rest, tail, history = description.rpartition(_TAIL)
    if tail:
        try:
            return dead_letter_of({**json.loads(history), "reason": reason, "description": rest})
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
            pass
    at = enqueued_at
    if reason in _REASONS and time_to_live is not None:
        try:
            at += timedelta(seconds=time_to_live)
        except OverflowError:
            pass  # later than there are dates
    return DeadLetterInfo(
        reason=_REASONS.get(reason, reason),
        description=description[:MAX_DESCRIPTION],
        dead_lettered_at=at,
        first_failed_at=None,
        delivery_count=count,
    )
