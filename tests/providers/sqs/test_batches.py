"""Batches within the limits; order within sessions whatever is cut; as few and as concurrent as can be."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queue_runtime.errors import MessageTooLarge
from queue_runtime.providers.sqs.batches import MAX_ENTRIES, plan, split

LIMIT = 100
sizes_ = st.lists(st.integers(0, LIMIT), max_size=60)
entries_ = st.lists(
    st.tuples(st.none() | st.integers(0, 5), st.integers(0, LIMIT) | st.just(0)), max_size=60
)


@settings(deadline=None)
@given(sizes_)
def test_splitting_keeps_order_and_limits(sizes: list[int]) -> None:
    batches = split(sizes, LIMIT)
    assert [position for batch in batches for position in batch] == list(range(len(sizes)))
    for batch in batches:
        assert 1 <= len(batch) <= MAX_ENTRIES
        assert sum(sizes[position] for position in batch) <= LIMIT
    # As full as it gets: the first of a batch did not fit into the one before.
    for before, batch in pairwise(batches):
        full = sum(sizes[position] for position in before) + sizes[batch[0]] > LIMIT
        assert full or len(before) == MAX_ENTRIES


def test_what_fits_nowhere() -> None:
    assert split([], LIMIT) == []
    assert split([LIMIT], LIMIT) == [[0]]
    with pytest.raises(MessageTooLarge) as caught:
        split([1, LIMIT + 1], LIMIT)
    assert (caught.value.size, caught.value.limit) == (LIMIT + 1, LIMIT)
    with pytest.raises(MessageTooLarge):
        plan([None, "a"], [1, LIMIT + 1], LIMIT)


@settings(deadline=None)
@given(entries_)
def test_plans_keep_sessions_in_order(entries: list[tuple[int | None, int]]) -> None:
    keys = [key for key, _ in entries]
    sizes = [size for _, size in entries]
    chains = plan(keys, sizes, LIMIT)
    sent = [position for chain in chains for batch in chain for position in batch]
    assert sorted(sent) == list(range(len(keys)))
    for batch in (batch for chain in chains for batch in chain):
        assert batch == sorted(batch)
        assert 1 <= len(batch) <= MAX_ENTRIES
        assert sum(sizes[position] for position in batch) <= LIMIT
    for session in set(keys) - {None}:
        # In one chain, and in order along it.
        homes = [
            [position for batch in chain for position in batch if keys[position] == session]
            for chain in chains
        ]
        (home,) = filter(None, homes)
        assert home == sorted(home)


@settings(deadline=None)
@given(entries_)
def test_plans_overlap_as_far_as_sessions_let_them(entries: list[tuple[int | None, int]]) -> None:
    keys = [key for key, _ in entries]
    sizes = [size for _, size in entries]
    for chain in plan(keys, sizes, LIMIT):
        for before, batch in pairwise(chain):
            shared = {keys[position] for position in before} & {
                keys[position] for position in batch
            }
            assert shared - {None}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([], []),
        (["a", "b", "a"], [[[0, 1, 2]]]),
        # Without sessions: whatever fits.
        (
            [None] * 12,
            [
                [
                    list(range(10)),
                ],
                [[10, 11]],
            ],
        ),
        # One long session: one after the other, and what is left of the last call is used.
        (["a"] * 12 + ["b"], [[list(range(10)), [10, 11, 12]]]),
        # Two that do not fit together overlap.
        (["a", "b"] * 6, [[[0, 2, 4, 6, 8, 10]], [[1, 3, 5, 7, 9, 11]]]),
        # A session called None is none; keys are told apart from positions.
        ([0, None] * 6, [[[0, 1, 2, 3, 4, 5, 6, 7, 8, 10]], [[9, 11]]]),
    ],
)
def test_how_plans_look(keys: list[object], expected: list[list[list[int]]]) -> None:
    assert plan(keys, [1] * len(keys), LIMIT) == expected


def test_bytes_cut_sessions_too() -> None:
    assert plan(["a", "b", "a"], [60, 40, 60], LIMIT) == [[[0], [1, 2]]]
    assert plan(["a", "b", "a"], [60, 41, 60], LIMIT) == [[[0], [2]], [[1]]]
