"""Checks shared by the policies' configuration values."""

from __future__ import annotations

from typing import Any

from ..errors import ValidationError
from ..text import escape


def to_float(value: Any) -> Any:
    """An ``int`` as a ``float``; everything else is left to the validator."""
    return float(value) if type(value) is int and abs(value) <= 2**53 else value


def check_number(name: str, value: object, low: float, high: float) -> None:
    """Raise ``ValidationError`` unless ``value`` is a ``float`` from ``low`` to ``high``; NaN never is."""
    if type(value) is not float or not low <= value <= high:
        raise ValidationError(
            f"{name} is {_shown(value)}: it must be a number from {low:g} to {high:.15g}"
        )


def check_count(name: str, value: object, low: int = 1) -> None:
    """Raise ``ValidationError`` unless ``value`` is an ``int`` of at least ``low``."""
    if type(value) is not int or value < low:
        raise ValidationError(
            f"{name} is {_shown(value)}: it must be a whole number of at least {low}"
        )


def _shown(value: object) -> str:
    # Python refuses to print numbers of more than 4,300 digits.
    if type(value) is int and value.bit_length() > 1_000:
        return "a huge number"
    return escape(repr(value))
