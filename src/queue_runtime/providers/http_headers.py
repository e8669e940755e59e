"""What headers of HTTP answers say."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

__all__ = ["MAX_RETRY_AFTER", "seconds_to_wait"]

MAX_RETRY_AFTER: Final = 86_400.0
"""A day, in seconds: what asks for more waiting is not meant for us."""


def seconds_to_wait(text: str) -> float | None:
    """The header ``Retry-After`` of RFC 9110, section 10.2.3, in seconds, whether it names these or a date.

    Args:
        text: The header's value; empty if there is none.

    Returns:
        ``None`` if it is absent, or absurd.
    """
    text = text.strip()
    seconds: float
    if text.isascii() and text.isdigit() and len(text) < 10:
        seconds = float(text)
    else:
        try:
            date = parsedate_to_datetime(text)
        except (ValueError, TypeError, OverflowError):
            return None
        date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        seconds = max(0.0, (date - datetime.now(UTC)).total_seconds())
    return seconds if seconds <= MAX_RETRY_AFTER else None
