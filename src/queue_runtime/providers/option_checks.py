"""Checks of the options that brokers elsewhere have in common: validators of attrs, and what is on this machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import attrs

from queue_runtime.config.structuring import shown
from queue_runtime.errors import ValidationError
from queue_runtime.secret import Secret

__all__ = [
    "LOOPBACK",
    "Validator",
    "creates_nothing",
    "matching",
    "seconds",
    "secret",
    "some_text",
    "whole",
]

LOOPBACK: Final = re.compile(r"localhost|(?:[a-z0-9-]+\.)+localhost|127(?:\.[0-9]{1,3}){3}|::1")
"""Hosts that are this machine, in lower case: what goes there is read by nobody on the way, also without TLS."""

Validator: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]
"""Of a field of attrs; raises ``ValidationError``."""


def whole(least: int, most: int, unit: str) -> Validator:
    """Accept a whole number of ``unit`` from ``least`` to ``most``."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValidationError(
                f"{attribute.name} is {shown(value)}: expected a whole number of {unit} "
                f"from {least} to {most}"
            )

    return check


def seconds(most: float) -> Validator:
    """Accept a duration above 0, at most ``most``."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            raise ValidationError(
                f"{attribute.name} is {shown(value)}: expected seconds, more than 0 and at most {most:.0f}"
            )

    return check


def matching(pattern: re.Pattern[str], expected: str) -> Validator:
    """Accept text that is ``pattern`` from end to end, or ``None``; ``expected`` tells the user what that means."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None:
            return
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValidationError(f"{attribute.name} is {shown(value)}: expected {expected}")

    return check


def some_text(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Accept text that is not empty, or ``None``."""
    if value is not None and (not isinstance(value, str) or not value):
        raise ValidationError(f"{attribute.name} is {shown(value)}: expected some text, or nothing")


def secret(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Accept a :class:`Secret` that is not empty, or ``None``. Shows nothing of the value."""
    if value is not None and not (isinstance(value, Secret) and value.reveal()):
        raise ValidationError(f"{attribute.name} must be a Secret that is not empty")


def creates_nothing(means: str) -> Validator:
    """Accept only false for ``declare``; ``means`` names what creates queues instead."""

    def check(_instance: object, _attribute: object, value: object) -> None:
        if value is not False:
            raise ValidationError(
                "declare must be false: sending and receiving create nothing in a cloud account; "
                f"create queues with {means}"
            )

    return check
