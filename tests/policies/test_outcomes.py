from __future__ import annotations

import math
import sys
import tracemalloc
from collections.abc import Callable
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queue_runtime.errors import (
    ConnectionFailed,
    LockLost,
    SerializationError,
    Throttled,
    ValidationError,
)
from queue_runtime.handlers import Abandon, Complete, DeadLetter, Outcome, Retry
from queue_runtime.messages import MAX_DURATION, SettlementAction
from queue_runtime.policies.backoff import RetryPolicy
from queue_runtime.policies.outcomes import (
    Decision,
    FailurePolicy,
    Park,
    Settle,
    Wait,
    decide,
    error_text,
)

COMPLETE = Settle(SettlementAction.COMPLETE)
EVERY_SECOND = FailurePolicy(RetryPolicy.fixed(1.0, max_attempts=3))


def judge(
    result: object,
    attempt: int = 1,
    elapsed: float = 0.0,
    policy: FailurePolicy = EVERY_SECOND,
    random: Callable[[], float] = lambda: 0.5,
) -> Decision:
    return decide(result, attempt=attempt, elapsed=elapsed, policy=policy, random=random)


def dead(reason: str, description: str = "") -> Settle:
    return Settle(SettlementAction.DEAD_LETTER, reason, description)


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class Textless(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307


# --- outcomes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", [1, 3, 1_000])
@pytest.mark.parametrize("result", [None, Complete()])
def test_complete(result: object, attempt: int) -> None:
    assert judge(result, attempt, elapsed=1e9) == COMPLETE


def test_dead_letter_takes_the_handlers_words() -> None:
    assert judge(DeadLetter("Poison", "no number")) == dead("Poison", "no number")


def test_dead_letter_texts_are_escaped_and_cut() -> None:
    decision = judge(DeadLetter("a\x1b[31m\n" + "r" * 1_000, "\u202eevil\x00" + "d" * 10_000))
    assert isinstance(decision, Settle)
    assert decision.reason.startswith(r"a\x1b[31m\nrrr")
    assert len(decision.reason) == 256
    assert decision.description.startswith(r"\u202eevil\x00ddd")
    assert len(decision.description) == 4_096
    assert (decision.reason + decision.description).isprintable()


def test_dead_letter_survives_texts_that_are_none() -> None:
    assert judge(DeadLetter(7, Unreadable())) == dead(  # type: ignore[arg-type]
        "7", "(its text could not be read: RuntimeError)"
    )


def test_abandon_parks_without_delay() -> None:
    assert judge(Abandon(), attempt=99) == Park(0.0)


def test_retry_takes_the_policys_delay() -> None:
    policy = FailurePolicy(RetryPolicy.exponential(4.0))
    assert judge(Retry(), 1, policy=policy) == Wait(2.0)
    assert judge(Retry(), 2, policy=policy) == Wait(4.0)
    assert judge(Retry(), 3, policy=policy) == Park(8.0)


@pytest.mark.parametrize(
    ("delay", "expected"),
    [(0, Wait(0.0)), (5.0, Wait(5.0)), (math.nextafter(5.0, 6.0), Park(math.nextafter(5.0, 6.0)))],
)
def test_retry_with_a_delay_of_its_own(delay: float, expected: Decision) -> None:
    decision = judge(Retry(delay))
    assert decision == expected
    assert isinstance(decision, (Wait, Park))
    assert type(decision.delay) is float


def test_a_threshold_of_zero_parks_every_real_delay() -> None:
    policy = FailurePolicy(park_threshold=0)
    assert judge(Retry(0.001), policy=policy) == Park(0.001)
    assert judge(Retry(0.0), policy=policy) == Wait(0.0)


@pytest.mark.parametrize("delay", [None, 0.0, 100.0])
@pytest.mark.parametrize(
    ("max_attempts", "max_delivery_count", "cap"),
    [(3, None, 3), (3, 2, 2), (3, 9, 3), (None, 4, 4)],
)
def test_retries_end_at_the_lower_of_both_caps(
    delay: float | None, max_attempts: int | None, max_delivery_count: int | None, cap: int
) -> None:
    policy = FailurePolicy(
        RetryPolicy.fixed(1.0, max_attempts=max_attempts), max_delivery_count=max_delivery_count
    )
    result = Retry(delay, "the service\nis down")
    assert isinstance(judge(result, cap - 1, policy=policy), (Wait, Park))
    for attempt in (cap, cap + 1, 1_000):
        assert judge(result, attempt, policy=policy) == dead(
            "MaxDeliveryCountExceeded", r"the service\nis down"
        )


def test_retries_end_with_the_time() -> None:
    policy = FailurePolicy(RetryPolicy.fixed(1.0, max_elapsed=10.0))
    assert judge(Retry(3.0), elapsed=7.0, policy=policy) == Wait(3.0)
    assert judge(Retry(3.1), elapsed=7.0, policy=policy) == dead("MaxDeliveryCountExceeded")
    assert judge(ValueError("x"), elapsed=9.5, policy=policy) == dead(
        "HandlerFailed", "ValueError: x"
    )


def test_without_any_cap_retries_never_end() -> None:
    policy = FailurePolicy(RetryPolicy.fixed(1.0, max_attempts=None))
    assert judge(Retry(), 10**9, policy=policy) == Wait(1.0)


# --- exceptions ------------------------------------------------------------------------------------


def test_an_exception_is_retried_and_then_dead_lettered_with_its_text() -> None:
    error = ValueError("no\nluck")
    assert judge(error, 1) == Wait(1.0)
    assert judge(error, 2) == Wait(1.0)
    assert judge(error, 3) == dead("HandlerFailed", r"ValueError: no\nluck")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_is_no_exception_counts_as_one(error: BaseException) -> None:
    assert judge(error) == Wait(1.0)
    decision = judge(error, 3)
    assert isinstance(decision, Settle)
    assert decision.description.startswith(type(error).__name__)


def test_retry_after_of_a_queue_error_is_honoured() -> None:
    assert judge(Throttled("slow down", retry_after=4.0)) == Wait(4.0)
    assert judge(Throttled("slow down", retry_after=40.0)) == Park(40.0)
    assert judge(Throttled("slow down")) == Wait(1.0)
    assert judge(Throttled("slow down", retry_after=4.0), 3) == dead(
        "HandlerFailed", "Throttled: slow down"
    )


def test_the_longest_retry_after_in_a_group_counts() -> None:
    group = ExceptionGroup(
        "several",
        [
            Throttled("a", retry_after=3.0),
            ExceptionGroup("inner", [ConnectionFailed("b", retry_after=4.0), LockLost("c")]),
            ValueError("d"),
        ],
    )
    assert judge(group) == Wait(4.0)


@pytest.mark.parametrize("retry_after", [math.nan, -3.0])
def test_a_senseless_retry_after_is_ignored(retry_after: float) -> None:
    assert judge(Throttled("?", retry_after=retry_after)) == Wait(1.0)
    assert judge(Throttled("?", retry_after=math.inf)) == Park(MAX_DURATION)


def test_a_poison_body_is_dead_lettered_at_once() -> None:
    error = SerializationError(
        "does not fit", ("required field missing @ $.a", "expected int @ $.b")
    )
    expected = dead("SerializationFailed", "required field missing @ $.a; expected int @ $.b")
    assert judge(error) == expected
    assert judge(ExceptionGroup("from a nursery", [error])) == expected


def test_a_poison_body_without_problems_shows_its_text() -> None:
    assert judge(SerializationError("does not fit")) == dead("SerializationFailed", "does not fit")


def test_endless_problems_are_cut() -> None:
    errors = [SerializationError("x", tuple(["p" * 1_000] * 50)) for _ in range(50)]
    decision = judge(ExceptionGroup("many", errors))
    assert isinstance(decision, Settle)
    assert len(decision.description) == 4_096


def test_a_poison_body_beside_another_failure_is_a_failure() -> None:
    group = ExceptionGroup("both", [SerializationError("x", ("p",)), ValueError("y")])
    assert judge(group) == Wait(1.0)


@pytest.mark.parametrize("value", ["done", True, 0, b"", Complete, object()])
def test_a_value_that_is_no_outcome_is_a_type_error(value: object) -> None:
    assert judge(value) == Wait(1.0)
    decision = judge(value, 3)
    assert isinstance(decision, Settle)
    assert decision.reason == "HandlerFailed"
    assert decision.description == (
        f"TypeError: handle() returned {type(value).__name__}: "
        "it must return Complete, Retry, DeadLetter, Abandon or None"
    )


def test_a_value_that_is_no_outcome_is_not_shown() -> None:
    decision = judge("secret", 3)
    assert isinstance(decision, Settle)
    assert "secret" not in decision.description


# --- error texts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("a"), "ValueError: a"),
        (ValueError(), "ValueError"),
        (KeyError("a"), "KeyError: 'a'"),
        (ValueError("\x1b[2J\r\n\u2028"), r"ValueError: \x1b[2J\r\n\u2028"),
        (ValueError("\ud800"), r"ValueError: \ud800"),
        (Unreadable(), "Unreadable: (its text could not be read: RuntimeError)"),
        (Textless(), "Textless: (its text could not be read: TypeError)"),
        (ExceptionGroup("g", [ValueError("a"), OSError("b")]), "ValueError: a; OSError: b"),
        (
            BaseExceptionGroup("g", [ExceptionGroup("h", [ValueError("a")]), SystemExit(1)]),
            "ValueError: a; SystemExit: 1",
        ),
    ],
)
def test_error_text(error: BaseException, expected: str) -> None:
    assert error_text(error) == expected


def test_a_long_text_is_cut_at_4096_characters() -> None:
    assert len(error_text(ValueError("x" * (4_096 - 12)))) == 4_096
    assert not error_text(ValueError("x" * (4_096 - 12))).endswith("…")
    assert error_text(ValueError("x" * (4_096 - 11))).endswith("x…")
    assert len(error_text(ValueError("\x00" * 10_000))) <= 4_096
    assert len(error_text(type("N" * 10_000, (Exception,), {})("x" * 10_000))) == 4_096


def test_a_text_of_ten_megabytes_is_not_copied() -> None:
    error = ValueError("x" * 10_000_000)
    tracemalloc.start()
    try:
        text = error_text(error)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(text) == 4_096
    assert peak < 1_000_000


def test_a_group_of_very_many_is_cut_early() -> None:
    class Counted(Exception):
        read = 0

        def __str__(self) -> str:
            Counted.read += 1
            return "x" * 100

    text = error_text(ExceptionGroup("g", [Counted() for _ in range(10_000)]))
    assert len(text) == 4_096
    assert Counted.read < 100


def test_a_deeply_nested_group_does_not_exhaust_the_stack() -> None:
    error: Exception = ValueError("deep")
    for _ in range(sys.getrecursionlimit() * 2):
        error = ExceptionGroup("g", [error])
    assert error_text(error) == "ValueError: deep"
    assert judge(error) == Wait(1.0)
    while isinstance(error, ExceptionGroup):  # freed one by one: freeing all at once would recurse
        error = error.exceptions[0]


def test_locals_of_the_traceback_are_not_read() -> None:
    def fail(password: str) -> NoReturn:
        raise ValueError("denied")

    with pytest.raises(ValueError, match="denied") as caught:
        fail("hunter2")
    assert error_text(caught.value) == "ValueError: denied"


@settings(deadline=None)
@given(
    st.text(max_size=200).map(ValueError)
    | st.recursive(
        st.text(max_size=50).map(OSError),
        lambda inner: st.lists(inner, min_size=1, max_size=4).map(lambda e: ExceptionGroup("g", e)),
    )
)
def test_every_error_text_can_be_shown(error: Exception) -> None:
    text = error_text(error)
    assert text
    assert text.isprintable()
    assert len(text) <= 4_096


# --- all of it -------------------------------------------------------------------------------------

OUTCOMES: st.SearchStrategy[Outcome | BaseException | None] = st.one_of(
    st.none(),
    st.just(Complete()),
    st.just(Abandon()),
    st.builds(Retry, st.none() | st.floats(0.0, 100.0), st.text(max_size=20)),
    st.builds(DeadLetter, st.text(max_size=20), st.text(max_size=20)),
    st.builds(ValueError, st.text(max_size=20)),
    st.builds(lambda wait: Throttled("x", retry_after=wait), st.none() | st.floats(0.0, 100.0)),
    st.just(SerializationError("x", ("p",))),
)


@settings(deadline=None, max_examples=300)
@given(
    OUTCOMES,
    st.integers(1, 12),
    st.floats(0.0, 100.0),
    st.builds(
        FailurePolicy,
        st.builds(
            lambda initial, attempts, elapsed: RetryPolicy.exponential(
                initial, max_delay=100.0, max_attempts=attempts, max_elapsed=elapsed
            ),
            st.floats(0.0, 50.0),
            st.none() | st.integers(1, 10),
            st.none() | st.floats(0.0, 100.0),
        ),
        st.floats(0.0, 50.0),
        st.none() | st.integers(1, 10),
    ),
    st.floats(0.0, 0.999),
)
def test_every_decision_keeps_every_promise(
    result: Outcome | BaseException | None,
    attempt: int,
    elapsed: float,
    policy: FailurePolicy,
    chance: float,
) -> None:
    decision = judge(result, attempt, elapsed, policy, lambda: chance)
    caps = [
        cap for cap in (policy.retry.max_attempts, policy.max_delivery_count) if cap is not None
    ]
    exhausted = any(attempt >= cap for cap in caps)
    if isinstance(decision, Settle):
        assert (decision.action is SettlementAction.COMPLETE) == (
            result is None or isinstance(result, Complete)
        )
        assert (decision.reason + decision.description).isprintable()
        return
    assert isinstance(result, (Abandon, Retry, ValueError, Throttled))
    if isinstance(result, Abandon):
        assert decision == Park(0.0)
        return
    assert not exhausted
    assert isinstance(decision, Wait) == (decision.delay <= policy.park_threshold)
    limit = policy.retry.max_elapsed
    assert limit is None or elapsed + decision.delay <= limit
    if isinstance(result, Retry) and result.delay is not None:
        assert decision.delay == result.delay
    if isinstance(result, Throttled) and result.retry_after is not None:
        assert decision.delay >= result.retry_after


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"park_threshold": -1.0}, "park_threshold is -1.0"),
        ({"park_threshold": math.nan}, "park_threshold is nan"),
        ({"max_delivery_count": 0}, "max_delivery_count is 0"),
    ],
)
def test_bad_values_are_refused(fields: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        FailurePolicy(**fields)  # type: ignore[arg-type]


def test_a_retry_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="retry"):
        FailurePolicy(retry=5)  # type: ignore[arg-type]
