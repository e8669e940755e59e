from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_runtime.errors import ValidationError
from queue_runtime.policies.assignment import Demand


def test_room_is_what_is_not_taken() -> None:
    demand = Demand(100)
    assert demand.available == 100
    demand.taken(60)
    assert (demand.in_flight, demand.available) == (60, 40)
    demand.taken(40)
    assert demand.available == 0
    demand.settled(1)
    assert demand.available == 1


@pytest.mark.parametrize(
    ("maximum", "taken", "expected"),
    [
        (100, 75, False),
        (100, 76, True),
        (100, 100, True),
        (1, 0, False),
        (1, 1, True),
        (3, 2, False),
    ],
)
def test_nearly_full_is_less_than_a_quarter_of_room(
    maximum: int, taken: int, expected: bool
) -> None:
    demand = Demand(maximum)
    demand.taken(taken)
    assert demand.nearly_full is expected


def test_the_cap_holds() -> None:
    demand = Demand(10)
    demand.taken(10)
    with pytest.raises(
        ValidationError, match="cannot take 1 more: 10 are in flight, the cap is 10"
    ):
        demand.taken(1)
    assert demand.in_flight == 10
    demand.settled(10)
    with pytest.raises(ValidationError, match="cannot settle 1: 0 are in flight"):
        demand.settled(1)
    assert demand.in_flight == 0


def test_a_cap_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_in_flight is 0"):
        Demand(0)


def test_negative_counts_are_refused() -> None:
    demand = Demand(10)
    with pytest.raises(ValidationError, match="cannot take -1"):
        demand.taken(-1)
    with pytest.raises(ValidationError, match="cannot settle -1"):
        demand.settled(-1)
    assert demand.in_flight == 0


@given(st.integers(1, 20), st.data())
def test_demand_never_runs_dry_nor_over(maximum: int, data: st.DataObject) -> None:
    demand = Demand(maximum)
    for _ in range(data.draw(st.integers(0, 20))):
        room = demand.available
        assert room + demand.in_flight == maximum
        if room and data.draw(st.booleans()):
            demand.taken(data.draw(st.integers(1, room)))
        elif demand.in_flight:
            demand.settled(data.draw(st.integers(1, demand.in_flight)))
        assert 0 <= demand.in_flight <= maximum
    demand.settled(demand.in_flight)
    assert demand.available == maximum
