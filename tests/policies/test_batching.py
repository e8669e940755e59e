from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queue_runtime.errors import ValidationError
from queue_runtime.policies.batching import AdaptiveBatch, ReceiveConcurrency


def test_it_starts_small_and_at_most_doubles() -> None:
    batch = AdaptiveBatch(1, 100, target_duration=1.0)
    sizes = [batch.size]
    for _ in range(8):
        batch.observe(batch.size, 0.0)
        sizes.append(batch.size)
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 100, 100]


def test_it_settles_where_a_batch_takes_the_target() -> None:
    batch = AdaptiveBatch(1, 1_000, target_duration=0.1)
    for _ in range(20):
        batch.observe(batch.size, batch.size * 0.002)
    assert 49 <= batch.size <= 50


def test_it_shrinks_when_messages_take_longer_and_recovers() -> None:
    batch = AdaptiveBatch(2, 64, target_duration=0.1)
    for _ in range(20):
        batch.observe(batch.size, batch.size * 0.001)
    assert batch.size == 64
    for _ in range(40):
        batch.observe(batch.size, batch.size * 1.0)
    assert batch.size == 2
    for _ in range(60):
        batch.observe(batch.size, batch.size * 0.001)
    assert batch.size == 64


def test_one_slow_batch_does_not_end_it() -> None:
    batch = AdaptiveBatch(1, 1_000, target_duration=0.1)
    for _ in range(30):
        batch.observe(batch.size, batch.size * 0.001)
    before = batch.size
    batch.observe(before, before * 0.002)
    assert before / 2 < batch.size < before


def test_nothing_is_learnt_from_nothing() -> None:
    batch = AdaptiveBatch(3, 10)
    batch.observe(0, 5.0)
    assert batch.size == 3


def test_a_target_of_zero_keeps_it_small() -> None:
    batch = AdaptiveBatch(1, 10, target_duration=0)
    batch.observe(1, 0.001)
    assert batch.size == 1


@settings(deadline=None)
@given(
    st.integers(1, 50),
    st.integers(0, 1_000),
    st.floats(0.0, 10.0),
    st.lists(st.tuples(st.integers(0, 1_000), st.floats(0.0, 1e9)), max_size=50),
)
def test_it_stays_within_its_bounds(
    minimum: int, more: int, target: float, observations: list[tuple[int, float]]
) -> None:
    batch = AdaptiveBatch(minimum, minimum + more, target)
    for count, duration in observations:
        before = batch.size
        batch.observe(count, duration)
        assert minimum <= batch.size <= minimum + more
        assert batch.size <= 2 * before


def test_extreme_durations() -> None:
    batch = AdaptiveBatch(1, 10**9, 0.1)
    batch.observe(1, 5e-324)
    batch.observe(10**9, 5e-324)
    assert batch.size == 4
    batch.observe(1, 1.7e308)
    assert batch.size == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 10, 0.1), "minimum is 0"),
        ((5, 4, 0.1), "maximum is 4: it must be a whole number of at least 5"),
        ((1, 10, -0.1), "target_duration is -0.1"),
        ((1, 10, math.nan), "target_duration is nan"),
        ((1, 2.5, 0.1), "maximum is 2.5"),
    ],
)
def test_bad_bounds_are_refused(arguments: tuple[int, int, float], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        AdaptiveBatch(*arguments)


@pytest.mark.parametrize(
    ("count", "duration", "expected"),
    [
        (-1, 1.0, "count is -1"),
        (1, -0.1, "duration is -0.1"),
        (1, math.nan, "duration is nan"),
        (1, math.inf, "duration is inf"),
    ],
)
def test_bad_observations_are_refused(count: int, duration: float, expected: str) -> None:
    batch = AdaptiveBatch()
    with pytest.raises(ValidationError, match=expected):
        batch.observe(count, duration)
    assert batch.size == 1


def test_receives_grow_with_full_batches_and_shrink_with_empty_ones() -> None:
    receives = ReceiveConcurrency(3)
    seen = [receives.size]
    for asked, received in [
        (10, 10),
        (10, 9),
        (10, 12),
        (10, 10),
        (10, 0),
        (10, 1),
        (10, 0),
        (10, 0),
    ]:
        receives.observe(asked, received)
        seen.append(receives.size)
    assert seen == [1, 2, 2, 3, 3, 2, 2, 1, 1]


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5))))
def test_receives_stay_within_their_bounds(
    maximum: int, observations: list[tuple[int, int]]
) -> None:
    receives = ReceiveConcurrency(maximum)
    for asked, received in observations:
        before = receives.size
        receives.observe(asked, received)
        assert 1 <= receives.size <= maximum
        assert abs(receives.size - before) <= 1


def test_at_least_one_receive() -> None:
    with pytest.raises(ValidationError, match="maximum is 0"):
        ReceiveConcurrency(0)
