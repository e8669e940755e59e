"""Figures of several programs that take turns, so that a slow moment of the machine weighs on all."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import final

from .report import Row

__all__ = ["Figures"]


@final
class Figures:
    """What was measured in the rounds so far, by name."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def __iter__(self) -> Iterator[str]:
        """The names, as they came."""
        return iter(self._values)

    def note(self, name: str, value: float) -> None:
        """One more value."""
        self._values.setdefault(name, []).append(value)

    def row(self, name: str, unit: str, *, aim: str = "") -> Row:
        """The median of all rounds, standing alone."""
        return Row(name, statistics.median(self._values[name]), unit, aim=aim)

    def ratio(self, name: str, beside: str, unit: str, *, aim: str = "") -> Row:
        """Of two programs, round by round, so that a slow moment of the machine weighs on both sides.

        The first may have been measured several times in a round.
        """
        own, others = self._values[name], self._values[beside]
        per_round = len(own) // len(others)
        ratio = statistics.median(
            statistics.median(own[start * per_round : (start + 1) * per_round]) / other
            for start, other in enumerate(others)
        )
        return Row(name, statistics.median(own), unit, beside, ratio, aim)
