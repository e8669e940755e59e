"""What Service Bus itself keeps of a dead letter, a reason and a description, with what it does not keep. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from queue_runtime.messages import DeadLetterInfo

from ..envelope import MAX_DESCRIPTION, dead_letter_history, dead_letter_of
from .foreign import text_of, utf16_length

__all__ = ["MAX_WORDS", "broker_dead_letter", "dead_letter_words"]

MAX_WORDS: Final = 4_096
"""Characters (UTF-16 units, as .NET counts) of a dead letter's reason, and of its description."""

_TAIL: Final = "\nqueue-runtime "
_REASONS: Final = {"TTLExpiredException": "TimeToLiveExpired"}


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
        Each at most :data:`MAX_WORDS` UTF-16 units; the description is cut, its last line is not.
    """
    history = dead_letter_history(at, first_failed_at, delivery_count)
    tail = _TAIL + json.dumps(history, separators=(",", ":"))
    return _cut(reason, MAX_WORDS), _cut(description, MAX_WORDS - len(tail)) + tail


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
