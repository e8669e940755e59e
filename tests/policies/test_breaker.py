from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queue_runtime.errors import ValidationError
from queue_runtime.policies.breaker import (
    BreakerConfig,
    BreakerMachine,
    BreakerState,
    BreakerStatistics,
)

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class Model:
    """What a breaker is to do, written from its description and kept as a list of what happened.

    It remembers every result of the present period and derives everything from that, so it shares neither
    the counters nor the numbering of permits with the machine.
    """

    def __init__(self, config: BreakerConfig) -> None:
        self.config = config
        self.state = CLOSED
        self.period = 0
        self.changed_at: float | None = None
        self.outstanding: dict[int, int] = {}  # permit → period
        self.results: list[tuple[float, bool]] = []  # of this period
        self.rejected = self.late = self.opened = 0

    def enter(self, state: BreakerState, now: float) -> None:
        self.state, self.changed_at = state, now
        self.period += 1
        self.results = []

    def tick(self, now: float) -> None:
        if (
            self.state is OPEN
            and self.changed_at is not None
            and now >= self.changed_at + self.config.open_duration
        ):
            self.enter(HALF_OPEN, now)

    def admits(self, now: float) -> bool:
        self.tick(now)
        if self.state is OPEN:
            return False
        return self.state is CLOSED or self.period not in self.outstanding.values()

    def redeem(self, permit: int) -> bool:
        good = self.outstanding.pop(permit) == self.period
        self.late += not good
        return good

    def settle(self, permit: int, now: float, failed: bool) -> None:
        if not self.redeem(permit):
            return
        self.results.append((now, failed))
        opens = failed if self.state is HALF_OPEN else self.trips(now)
        if opens:
            self.opened += 1
            self.enter(OPEN, now)
        elif self.state is HALF_OPEN and len(self.results) == self.config.half_open_successes:
            self.enter(CLOSED, now)

    def trips(self, now: float) -> bool:
        if not self.results[-1][1]:
            return False  # a success never opens
        row = 0
        while row < len(self.results) and self.results[-1 - row][1]:
            row += 1
        if row >= self.config.failure_threshold:
            return True
        if self.config.failure_rate is None:
            return False
        width = self.config.window / 10
        recent = [bad for when, bad in self.results if when // width > now // width - 10]
        return len(recent) >= self.config.minimum_calls and sum(recent) >= (
            self.config.failure_rate * len(recent)
        )


class Run:
    """A machine and the model side by side; every step compares all that can be seen of them."""

    def __init__(self, config: BreakerConfig, start: float = 100.0) -> None:
        self.machine = BreakerMachine(config)
        self.model = Model(config)
        self.now = start
        self.permits: list[int] = []

    def step(self, operation: str) -> bool:
        """Apply one operation; ``False`` if it makes no sense now."""
        name, _, argument = operation.partition(" ")
        if name == "wait":
            self.now += float(argument)
        elif name == "tick":
            self.machine.tick(self.now)
            self.model.tick(self.now)
        elif name == "admit":
            permit = self.machine.admit(self.now)
            expected = self.model.admits(self.now)
            assert (permit is not None) == expected
            if permit is None:
                self.model.rejected += 1
            else:
                assert permit > 0
                assert permit not in self.model.outstanding
                self.model.outstanding[permit] = self.model.period
                self.permits.append(permit)
        elif not self.permits:
            return False
        else:
            permit = self.permits.pop(0 if argument == "oldest" else -1)
            self.settle(name, permit)
        self.compare()
        return True

    def settle(self, name: str, permit: int) -> None:
        if name == "cancel":
            self.machine.cancel(permit)
            self.model.redeem(permit)
        elif name == "succeed":
            self.machine.succeed(permit, self.now)
            self.model.settle(permit, self.now, failed=False)
        else:
            self.machine.fail(permit, self.now)
            self.model.settle(permit, self.now, failed=True)

    def compare(self) -> None:
        machine, model = self.machine, self.model
        assert machine.state is model.state
        if model.state is OPEN:
            assert model.changed_at is not None
            until = model.changed_at + model.config.open_duration
            assert machine.next_transition() == until
            assert machine.retry_after(self.now) == max(0.0, until - self.now)
        else:
            assert machine.next_transition() is None
            assert machine.retry_after(self.now) == 0.0
        seen = machine.statistics(self.now)
        assert (seen.state, seen.rejected, seen.late, seen.opened_count, seen.last_change) == (
            model.state,
            model.rejected,
            model.late,
            model.opened,
            model.changed_at,
        )
        assert seen.retry_after == machine.retry_after(self.now)
        assert 0 <= seen.window_failures <= seen.window_calls
        # What must hold whatever the model says: one probe at a time, none while open.
        current = sum(period == model.period for period in model.outstanding.values())
        assert current <= {CLOSED: len(model.outstanding), OPEN: 0, HALF_OPEN: 1}[machine.state]


OPERATIONS = (
    "admit",
    "succeed oldest",
    "succeed newest",
    "fail oldest",
    "fail newest",
    "cancel oldest",
    "wait 10",
)

CONFIGS = {
    "one failure opens": BreakerConfig(1, failure_rate=None, open_duration=10.0),
    "two failures open": BreakerConfig(2, failure_rate=None, open_duration=10.0),
    "two probes close": BreakerConfig(
        1, failure_rate=None, open_duration=10.0, half_open_successes=2
    ),
    "half of two calls opens": BreakerConfig(
        9, window=15.0, failure_rate=0.5, minimum_calls=2, open_duration=10.0
    ),
    "opens for no time": BreakerConfig(1, failure_rate=None, open_duration=0.0),
}


AFTER_OPENING = ("admit", "admit", "fail newest", "wait 10")
"""A call from before the opening is still out, and it is time to probe."""


def explore(config: BreakerConfig, beginning: tuple[str, ...], more: int) -> int:
    """Run all sensible sequences of up to ``more`` operations after ``beginning``; return how many."""
    count = 0
    pending = [beginning]
    while pending:
        prefix = pending.pop()
        for operation in OPERATIONS:
            run = Run(config)
            for earlier in prefix:
                assert run.step(earlier)
            if run.step(operation):
                count += 1
                if len(prefix) + 1 < len(beginning) + more:
                    pending.append((*prefix, operation))
    return count


@pytest.mark.parametrize("name", CONFIGS)
def test_every_sequence_of_operations(name: str) -> None:
    assert explore(CONFIGS[name], (), 6) > 1_500


def test_every_sequence_of_operations_around_a_probe() -> None:
    assert explore(CONFIGS["two probes close"], AFTER_OPENING, 5) > 2_000


@settings(deadline=None, max_examples=300)
@given(
    st.builds(
        BreakerConfig,
        st.integers(1, 6),
        st.sampled_from([1.0, 20.0, 60.0]),
        st.none() | st.sampled_from([0.25, 0.5, 1.0]),
        st.integers(1, 6),
        st.sampled_from([0.0, 0.1, 10.0]),
        st.integers(1, 3),
    ),
    st.floats(-1e6, 1e6),
    st.lists(
        st.sampled_from(
            [*OPERATIONS, "cancel newest", "tick", "wait 0.1", "wait 3", "wait 70", "admit"]
        ),
        max_size=80,
    ),
)
def test_long_sequences(config: BreakerConfig, start: float, operations: list[str]) -> None:
    run = Run(config, start)
    taken = sum(run.step(operation) for operation in operations)
    assert taken <= len(operations)


# --- the same, told one by one ---------------------------------------------------------------------


def opened(
    config: BreakerConfig = CONFIGS["one failure opens"], now: float = 0.0
) -> BreakerMachine:
    machine = BreakerMachine(config)
    while machine.state is CLOSED:
        machine.fail(machine.admit(now) or 0, now)
    return machine


def test_failures_in_a_row_open_it_and_a_success_starts_the_row_again() -> None:
    machine = BreakerMachine(BreakerConfig(3, failure_rate=None))
    for failed in (True, True, False, True, True):
        permit = machine.admit(0.0)
        assert permit is not None
        (machine.fail if failed else machine.succeed)(permit, 0.0)
    assert machine.state is CLOSED
    machine.fail(machine.admit(0.0) or 0, 0.0)
    assert machine.state is OPEN


def test_failures_spread_among_successes_open_it_by_rate() -> None:
    machine = BreakerMachine(BreakerConfig(5, failure_rate=0.5, minimum_calls=10))
    for number in range(9):
        permit = machine.admit(float(number)) or 0
        (machine.fail if number % 2 else machine.succeed)(permit, float(number))
        assert machine.state is CLOSED
    machine.fail(machine.admit(9.0) or 0, 9.0)
    assert machine.state is OPEN


def test_what_left_the_window_is_forgotten() -> None:
    machine = BreakerMachine(BreakerConfig(5, window=10.0, failure_rate=0.5, minimum_calls=4))
    for now in (0.0, 0.5, 1.0):
        machine.fail(machine.admit(now) or 0, now)
    assert machine.statistics(1.0).window_failures == 3
    machine.succeed(machine.admit(8.0) or 0, 8.0)
    assert machine.statistics(10.5).window_calls == 2
    assert machine.statistics(30.0).window_calls == 0
    machine.fail(machine.admit(30.0) or 0, 30.0)
    assert machine.state is CLOSED


def test_a_window_of_a_million_calls_stays_small() -> None:
    machine = BreakerMachine(BreakerConfig(window=1.0))
    for number in range(20_000):
        now = number * 0.01
        machine.succeed(machine.admit(now) or 0, now)
    seen = machine.statistics(200.0)
    assert 90 <= seen.window_calls <= 101
    assert seen.successes == 20_000


def test_open_refuses_until_it_is_time_and_then_lets_one_probe_through() -> None:
    machine = opened()
    assert machine.next_transition() == 10.0
    assert machine.retry_after(4.0) == 6.0
    assert machine.admit(9.999) is None
    assert machine.state is OPEN
    probe = machine.admit(10.0)
    assert probe is not None
    assert machine.state is HALF_OPEN
    assert machine.admit(11.0) is None
    machine.succeed(probe, 12.0)
    assert machine.state is CLOSED
    assert machine.statistics(12.0) == BreakerStatistics(
        state=CLOSED,
        consecutive_failures=0,
        window_calls=0,
        window_failures=0,
        successes=1,
        failures=1,
        rejected=2,
        late=0,
        opened_count=1,
        last_change=12.0,
        retry_after=0.0,
    )


def test_a_failed_probe_opens_for_the_whole_time_again() -> None:
    machine = opened()
    machine.fail(machine.admit(10.0) or 0, 15.0)
    assert machine.next_transition() == 25.0
    assert machine.statistics(15.0).opened_count == 2


def test_probes_that_close_it_must_succeed_in_a_row() -> None:
    machine = opened(CONFIGS["two probes close"])
    machine.succeed(machine.admit(10.0) or 0, 10.0)
    machine.fail(machine.admit(10.0) or 0, 10.0)
    machine.succeed(machine.admit(20.0) or 0, 20.0)
    assert machine.state is HALF_OPEN
    machine.succeed(machine.admit(20.0) or 0, 20.0)
    assert machine.state is CLOSED


def test_a_cancelled_probe_makes_room_for_another() -> None:
    machine = opened()
    probe = machine.admit(10.0)
    assert probe is not None
    machine.cancel(probe)
    assert machine.state is HALF_OPEN
    another = machine.admit(10.0)
    assert another is not None
    machine.succeed(probe, 10.0)
    assert machine.state is HALF_OPEN
    machine.succeed(another, 10.0)
    assert machine.state is CLOSED


@pytest.mark.parametrize("late", ["succeed", "fail", "cancel"])
@pytest.mark.parametrize("state", [OPEN, HALF_OPEN, CLOSED])
def test_a_late_result_changes_nothing(late: str, state: BreakerState) -> None:
    machine = BreakerMachine(CONFIGS["one failure opens"])
    slow = machine.admit(0.0)
    assert slow is not None
    machine.fail(machine.admit(0.0) or 0, 0.0)
    probe = None
    if state is not OPEN:
        probe = machine.admit(10.0)
        assert probe is not None
    if state is CLOSED:
        machine.succeed(probe or 0, 10.0)
    before = machine.statistics(10.0)
    action: dict[str, Callable[[], None]] = {
        "succeed": lambda: machine.succeed(slow, 10.0),
        "fail": lambda: machine.fail(slow, 10.0),
        "cancel": lambda: machine.cancel(slow),
    }
    action[late]()
    after = machine.statistics(10.0)
    assert after.late == before.late + 1
    assert (after.state, after.successes, after.failures, after.retry_after) == (
        state,
        before.successes,
        before.failures,
        before.retry_after,
    )
    if state is HALF_OPEN:
        assert machine.admit(10.0) is None
        machine.succeed(probe or 0, 10.0)
        assert machine.state is CLOSED


def test_statistics_do_not_move_the_state_on() -> None:
    machine = opened()
    assert machine.statistics(50.0).state is OPEN
    machine.tick(50.0)
    assert machine.statistics(50.0).state is HALF_OPEN


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"failure_threshold": 0}, "failure_threshold is 0"),
        ({"window": 0.0}, "window is 0.0"),
        ({"window": math.nan}, "window is nan"),
        ({"failure_rate": 0.0}, "failure_rate is 0.0"),
        ({"failure_rate": 1.1}, "failure_rate is 1.1"),
        ({"minimum_calls": 0}, "minimum_calls is 0"),
        ({"open_duration": -1.0}, "open_duration is -1.0"),
        ({"open_duration": "30"}, "open_duration is '30'"),
        ({"half_open_successes": 0}, "half_open_successes is 0"),
    ],
)
def test_bad_values_are_refused(fields: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        BreakerConfig(**fields)  # type: ignore[arg-type]
