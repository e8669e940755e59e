"""Checks of arguments that several methods take."""

from __future__ import annotations

import math

from ..errors import ValidationError

__all__ = ["check_positive", "check_timeout"]


def check_positive(name: str, value: object) -> int:
    """``value`` if it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValidationError(f"{name} is {value!r}: it must be a whole number, at least 1")
    return value


def check_timeout(value: object, default: float) -> float:
    """``value`` in seconds; ``default`` for ``None``."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValidationError(f"timeout is {value!r}: it must be seconds, at least 0")
    return float(value)
