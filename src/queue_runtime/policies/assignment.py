"""How much may be in flight, and which deliveries belong together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, final

from ..errors import ValidationError
from ..messages import Delivery
from ._checks import check_count

if TYPE_CHECKING:
    from ..abc import Lease

__all__ = ["Demand", "group_by_lease"]


@final
class Demand:
    """Keeps count of what is in flight against a cap.

    Take the number *before* asking the provider, and give back what it did not deliver: two receive calls
    at the same time then never bring more than the cap.

    Args:
        max_in_flight: Most messages taken and not settled.
        low_water: Ask for more only while no more than this is in flight, so that the calls ask for many at
            once instead of one by one. Room above it may stay unused while handlers are slow. ``None``:
            three quarters of ``max_in_flight``.

    Raises:
        ValidationError: A number is outside what is accepted.
    """

    __slots__ = ("_in_flight", "_low_water", "_max_in_flight")

    def __init__(self, max_in_flight: int, low_water: int | None = None) -> None:
        check_count("max_in_flight", max_in_flight)
        if low_water is None:
            low_water = max_in_flight * 3 // 4
        check_count("low_water", low_water, 0)
        if low_water >= max_in_flight:
            raise ValidationError(
                f"low_water is {low_water}: it must be less than max_in_flight ({max_in_flight})"
            )
        self._max_in_flight = max_in_flight
        self._low_water = low_water
        self._in_flight = 0

    @property
    def in_flight(self) -> int:
        """How many are taken and not settled."""
        return self._in_flight

    def available(self) -> int:
        """How many may be taken now; 0 while more than ``low_water`` are in flight."""
        if self._in_flight > self._low_water:
            return 0
        return self._max_in_flight - self._in_flight

    def taken(self, count: int) -> None:
        """``count`` are asked for.

        Raises:
            ValidationError: They would exceed the cap; nothing changed.
        """
        check_count("count", count, 0)
        if self._in_flight + count > self._max_in_flight:
            raise ValidationError(
                f"{count} more than the {self._in_flight} in flight exceed the cap of {self._max_in_flight}"
            )
        self._in_flight += count

    def settled(self, count: int) -> None:
        """``count`` are settled, or were asked for and not delivered.

        Raises:
            ValidationError: So many are not in flight; nothing changed.
        """
        check_count("count", count, 0)
        if count > self._in_flight:
            raise ValidationError(
                f"{count} cannot be settled, only {self._in_flight} are in flight"
            )
        self._in_flight -= count


def group_by_lease(deliveries: Iterable[Delivery]) -> dict[Lease, list[Delivery]]:
    """The deliveries of each lease in their order; leases in the order of their first delivery."""
    groups: dict[Lease, list[Delivery]] = {}
    for delivery in deliveries:
        lease = delivery.lease
        group = groups.get(lease)
        if group is None:
            groups[lease] = [delivery]
        else:
            group.append(delivery)
    return groups
