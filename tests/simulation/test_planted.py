"""Bugs planted into the real code are found, and by the invariant that is about them."""

from __future__ import annotations

import pytest

from queue_runtime.actors.signal import Signal
from queue_runtime.testing.simulation import PLANTED_BUGS, PlantedBug, hunt, simulate

SEEDS = range(300)


@pytest.mark.parametrize("bug", PLANTED_BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: PlantedBug) -> None:
    result, tried = hunt(bug, SEEDS)
    assert result is not None, f"{bug.name} ({bug.meaning}) went unnoticed through {tried} seeds"
    assert set(result.broken) & set(bug.caught_by), f"{bug.name}: {result}"
    # It was the bug: without it the same world is in order.
    healthy = simulate(result.seed)
    assert healthy.ok, str(healthy)
    assert healthy.digest() != result.digest()


def test_the_list_has_what_was_asked_for() -> None:
    names = {bug.name for bug in PLANTED_BUGS}
    assert names >= {
        "no_fence",
        "no_local_deadline",
        "acknowledge_first",
        "requeue_as_retry",
        "cancel_before_drain",
        "tail_not_given_back",
        "drop_on_cancelled_receive",
        "lost_wake_up",
    }


def test_a_planted_bug_is_taken_out_again() -> None:
    (bug,) = (bug for bug in PLANTED_BUGS if bug.name == "lost_wake_up")
    original = Signal.wake

    def fail_inside() -> None:
        with bug.plant():
            assert Signal.wake is not original
            raise RuntimeError("whatever happens")

    with pytest.raises(RuntimeError, match="whatever"):
        fail_inside()
    assert Signal.wake is original


def test_an_unfound_bug_is_told_so() -> None:
    harmless = PlantedBug("harmless", "nothing", (), ((Signal, "wake", Signal.wake),))
    assert hunt(harmless, range(3)) == (None, 3)
