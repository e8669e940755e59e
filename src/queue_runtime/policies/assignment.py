"""How much may be in flight."""

from __future__ import annotations

from typing import final

from ..errors import ValidationError
from ._checks import check_count

__all__ = ["Demand"]


@final
class Demand:
    """Keeps count of what is in flight against a cap.

    Take the number *before* asking the provider, and give back what it did not deliver: two receive calls
    at the same time then never bring more than the cap.

    Args:
        max_in_flight: Most messages taken and not settled.

    Raises:
        ValidationError: The cap is outside what is accepted.
    """

    __slots__ = ("_max_in_flight", "in_flight")

    def __init__(self, max_in_flight: int) -> None:
        check_count("max_in_flight", max_in_flight)
        self._max_in_flight = max_in_flight
        self.in_flight = 0
        """How many are taken and not settled."""

    @property
    def available(self) -> int:
        """How many may be taken now."""
        return self._max_in_flight - self.in_flight

    @property
    def nearly_full(self) -> bool:
        """Whether so little room is left (less than a quarter) that a call is better made a little later."""
        return 4 * self.available < self._max_in_flight

    def taken(self, count: int) -> None:
        """``count`` are asked for.

        Raises:
            ValidationError: They would exceed the cap; nothing changed.
        """
        if not 0 <= count <= self.available:
            raise ValidationError(
                f"cannot take {count} more: {self.in_flight} are in flight, the cap is {self._max_in_flight}"
            )
        self.in_flight += count

    def settled(self, count: int) -> None:
        """``count`` are settled, or were asked for and not delivered.

        Raises:
            ValidationError: So many are not in flight; nothing changed.
        """
        if not 0 <= count <= self.in_flight:
            raise ValidationError(f"cannot settle {count}: {self.in_flight} are in flight")
        self.in_flight -= count
