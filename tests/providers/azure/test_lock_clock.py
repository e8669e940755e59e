"""How long locks last, and how late a message came, by two clocks that need not agree."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("azure.servicebus", reason="the extra azure is not installed")

from queue_runtime.providers.azure.sources import LockClock

LOCK = 30.0


@pytest.mark.parametrize("ahead", [-100.0, 0.0, 100.0])
def test_what_came_late_is_told_from_what_did_not(ahead: float) -> None:
    """Whatever the broker's clock says, one message shows the other."""
    locks = LockClock(LOCK)
    until = time.time() + ahead + LOCK
    assert locks.saw(until) == 0.0
    assert locks.saw(until - 10.0) == pytest.approx(10.0, abs=1.0)
    assert locks.saw(until) == pytest.approx(0.0, abs=1.0)


@pytest.mark.parametrize("step", [-100.0, 100.0])
def test_a_clock_that_is_set_right_makes_no_message_late(
    step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = LockClock(LOCK)
    now = time.time()
    assert locks.saw(now + LOCK) == 0.0
    duration = locks.duration
    monkeypatch.setattr(time, "time", lambda: now + step)
    assert locks.saw(now + LOCK) == pytest.approx(0.0, abs=1.0)
    assert locks.duration == pytest.approx(duration, abs=1.0)
    assert locks.saw(now + LOCK - 10.0) == pytest.approx(10.0, abs=1.0)
