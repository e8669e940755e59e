from __future__ import annotations

import math
from random import Random

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queue_runtime.errors import ValidationError
from queue_runtime.messages import MAX_DURATION
from queue_runtime.policies.backoff import Backoff, Jitter, RetryPolicy


def zero() -> float:
    return 0.0


def half() -> float:
    return 0.5


def almost_one() -> float:
    return math.nextafter(1.0, 0.0)


def policies() -> st.SearchStrategy[RetryPolicy]:
    seconds = st.floats(0.0, 1_000.0)
    return st.builds(
        lambda backoff, initial, extra, factor, jitter, attempts, elapsed: RetryPolicy(
            backoff, initial, factor, initial + extra, jitter, attempts, elapsed
        ),
        st.sampled_from(Backoff),
        seconds,
        seconds,
        st.floats(1.0, 1_000.0),
        st.sampled_from(Jitter),
        st.none() | st.integers(1, 10_000),
        st.none() | st.floats(0.0, 10_000.0),
    )


def test_exponential_delays_double_up_to_the_longest() -> None:
    policy = RetryPolicy.exponential(1.0, max_delay=10.0, jitter=Jitter.NONE, max_attempts=None)
    assert [policy.delay(n, random=half) for n in range(1, 7)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_fixed_delays_stay_the_same_even_when_longer_than_the_default_cap() -> None:
    policy = RetryPolicy.fixed(90.0)
    assert [policy.delay(n, random=half) for n in range(1, 6)] == [90.0, 90.0, 90.0, 90.0, None]


def test_none_never_tries_again() -> None:
    policy = RetryPolicy.none()
    assert policy.delay(1, random=half) is None
    assert policy.delay(1, retry_after=1.0, random=half) is None
    assert not RetryPolicy(Backoff.NONE).allows(1)


@pytest.mark.parametrize(
    ("jitter", "random", "expected"),
    [
        (Jitter.FULL, zero, 0.0),
        (Jitter.FULL, half, 4.0),
        (Jitter.EQUAL, zero, 4.0),
        (Jitter.EQUAL, half, 6.0),
        (Jitter.NONE, half, 8.0),
    ],
)
def test_jitter(jitter: Jitter, random: object, expected: float) -> None:
    policy = RetryPolicy.exponential(8.0, jitter=jitter)
    assert policy.delay(1, random=random) == expected  # type: ignore[arg-type]


def test_full_jitter_averages_to_half() -> None:
    policy = RetryPolicy.fixed(2.0, jitter=Jitter.FULL)
    random = Random(7).random
    delays = [policy.delay(1, random=random) or 0.0 for _ in range(2_000)]
    assert 0.95 < sum(delays) / len(delays) < 1.05
    assert max(delays) < 2.0


def test_retry_after_is_a_lower_bound_beyond_jitter_and_cap() -> None:
    policy = RetryPolicy.exponential(1.0, max_delay=2.0)
    assert policy.delay(1, retry_after=30.0, random=zero) == 30.0
    assert RetryPolicy.fixed(40.0).delay(1, retry_after=30.0, random=zero) == 40.0


@pytest.mark.parametrize("nonsense", [math.nan, -1.0])
def test_a_senseless_retry_after_is_ignored(nonsense: float) -> None:
    assert RetryPolicy.fixed(3.0).delay(1, retry_after=nonsense, random=zero) == 3.0


def test_an_endless_retry_after_ends() -> None:
    assert RetryPolicy.fixed(3.0).delay(1, retry_after=math.inf, random=zero) == MAX_DURATION


def test_no_try_begins_after_max_elapsed() -> None:
    policy = RetryPolicy.fixed(3.0, max_attempts=None, max_elapsed=10.0)
    assert policy.delay(9, elapsed=7.0, random=half) == 3.0
    assert policy.delay(9, elapsed=7.5, random=half) is None
    assert policy.delay(9, elapsed=11.0, random=half) is None
    assert policy.delay(1, elapsed=0.0, retry_after=11.0, random=half) is None


def test_huge_attempt_numbers_do_not_overflow() -> None:
    policy = RetryPolicy.exponential(1.0, jitter=Jitter.NONE, max_attempts=None)
    assert policy.delay(10**9, random=half) == 60.0
    nothing = RetryPolicy.exponential(0.0, jitter=Jitter.NONE, max_attempts=None)
    assert nothing.delay(10**9, random=half) == 0.0
    assert nothing.delay(3, random=half) == 0.0


@settings(deadline=None)
@given(
    policies(),
    st.integers(1, 10**6),
    st.floats(0.0, 20_000.0),
    st.none() | st.floats(0.0, 20_000.0),
    st.sampled_from([zero, half, almost_one]),
)
def test_every_delay_keeps_every_promise(
    policy: RetryPolicy,
    attempt: int,
    elapsed: float,
    retry_after: float | None,
    random: object,
) -> None:
    delay = policy.delay(attempt, elapsed=elapsed, retry_after=retry_after, random=random)  # type: ignore[arg-type]
    if policy.backoff is Backoff.NONE:
        assert delay is None
        return
    if policy.max_attempts is not None and attempt >= policy.max_attempts:
        assert delay is None
        return
    if delay is None:
        assert policy.max_elapsed is not None
        longest = max(policy.max_delay, retry_after or 0.0)
        assert elapsed + longest > policy.max_elapsed
        return
    assert 0.0 <= delay <= max(policy.max_delay, retry_after or 0.0)
    assert retry_after is None or delay >= retry_after
    assert policy.max_elapsed is None or elapsed + delay <= policy.max_elapsed
    if policy.jitter is Jitter.EQUAL and policy.backoff is Backoff.FIXED:
        assert delay >= policy.initial / 2


@settings(deadline=None)
@given(policies(), st.integers(1, 1_000))
def test_without_jitter_delays_never_shrink(policy: RetryPolicy, attempt: int) -> None:
    policy = attrs.evolve(policy, jitter=Jitter.NONE, max_attempts=None, max_elapsed=None)
    if policy.backoff is Backoff.NONE:
        assert policy.delay(attempt, random=half) is None
        return
    first, second = (policy.delay(n, random=half) for n in (attempt, attempt + 1))
    assert first is not None
    assert second is not None
    assert first <= second


def test_whole_numbers_become_floats() -> None:
    policy = RetryPolicy(initial=2, factor=3, max_delay=4, max_elapsed=5)
    assert policy == RetryPolicy(initial=2.0, factor=3.0, max_delay=4.0, max_elapsed=5.0)
    assert type(policy.initial) is float


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"initial": -1.0}, r"initial is -1\.0: it must be a number from 0 to 315360000"),
        ({"initial": math.nan}, "initial is nan"),
        ({"initial": "1"}, "initial is '1'"),
        ({"initial": True}, "initial is True"),
        ({"initial": 10**30}, "initial is 1000"),
        ({"factor": 0.5}, r"factor is 0\.5: it must be a number from 1 to 1000"),
        ({"factor": math.inf}, "factor is inf"),
        ({"max_delay": math.inf}, "max_delay is inf"),
        ({"initial": 5.0, "max_delay": 4.0}, r"max_delay is 4\.0, less than initial \(5\.0\)"),
        ({"max_attempts": 0}, "max_attempts is 0: it must be a whole number of at least 1"),
        ({"max_attempts": 1.5}, "max_attempts is 1.5"),
        ({"max_attempts": True}, "max_attempts is True"),
        ({"max_elapsed": -0.1}, "max_elapsed is -0.1"),
    ],
)
def test_bad_values_are_refused(fields: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        RetryPolicy(**fields)  # type: ignore[arg-type]


def test_numbers_that_cannot_be_printed_are_refused() -> None:
    with pytest.raises(ValidationError, match="initial is a huge number"):
        RetryPolicy(initial=10**5_000)
    with pytest.raises(ValidationError, match="max_attempts is a huge number"):
        RetryPolicy(max_attempts=-(10**5_000))


def test_bad_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match="backoff"):
        RetryPolicy(backoff="exponential")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="jitter"):
        RetryPolicy(jitter="full")  # type: ignore[arg-type]


@pytest.mark.parametrize("attempt", [0, -1, 1.0, True])
def test_bad_attempts_are_refused(attempt: int) -> None:
    with pytest.raises(ValidationError, match="attempt is"):
        RetryPolicy().delay(attempt, random=half)
