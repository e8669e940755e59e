"""When a settlement counts, although its confirmation comes later, or never: found by simulation."""

from __future__ import annotations

import pytest

from queue_runtime.testing.history import (
    Completed,
    DeadLettered,
    Ended,
    HandleEnded,
    HandleStarted,
    Record,
    Redriven,
    Sent,
    check,
)


def sent(message: str, number: int, *, copies: int = 1) -> list[Record]:
    attempts: list[Record] = [Sent("s", message, number, False, 0.0) for _ in range(copies)]
    return [*attempts, Sent("s", message, number, True, 0.0)]


def turn(process: str, message: str, at: float, token: int, outcome: Ended) -> list[Record]:
    return [
        HandleStarted(process, "s", message, at, token),
        HandleEnded(process, "s", message, at + 0.5, outcome),
    ]


def test_under_a_newer_token_nobody_waits_for_an_old_confirmation() -> None:
    """Its session was lost and locked again; that the broker went on says that the first one is settled."""
    history = [
        *sent("1", 1),
        *sent("2", 2),
        *turn("a", "1", 1.0, 9, Ended.COMPLETE),
        *turn("a", "2", 2.0, 15, Ended.COMPLETE),
        Completed("a", "s", "1", 3.0),
        Completed("a", "s", "2", 3.0),
    ]
    assert check(history).ok


def test_under_the_same_token_the_confirmation_is_waited_for() -> None:
    history = [
        *sent("1", 1),
        *sent("2", 2),
        *turn("a", "1", 1.0, 9, Ended.COMPLETE),
        *turn("a", "2", 2.0, 9, Ended.COMPLETE),
        Completed("a", "s", "1", 3.0),
        Completed("a", "s", "2", 3.0),
    ]
    assert check(history).order_violations == 1


@pytest.mark.parametrize("is_redriven", [False, True])
def test_a_dead_lettering_counts_from_the_end_of_the_last_failed_turn(is_redriven: bool) -> None:
    """Another process may go on before the reply reaches the one that asked for it."""
    history = [
        *sent("1", 1),
        *sent("2", 2),
        *turn("a", "1", 1.0, 1, Ended.RAISED),
        *turn("b", "2", 1.6, 2, Ended.COMPLETE),
        DeadLettered("a", "s", "1", 1.8),
        Completed("b", "s", "2", 2.2),
    ]
    if is_redriven:
        history += [
            Redriven("o", "s", "1", 3.0),
            *turn("a", "1", 4.0, 3, Ended.COMPLETE),
            Completed("a", "s", "1", 5.0),
        ]
    assert check(history).ok


def test_a_failed_turn_that_is_tried_again_settles_nothing() -> None:
    history = [
        *sent("1", 1),
        *sent("2", 2),
        *turn("a", "1", 1.0, 1, Ended.RAISED),
        *turn("b", "2", 1.6, 2, Ended.COMPLETE),
        *turn("a", "1", 2.2, 3, Ended.RAISED),
        DeadLettered("a", "s", "1", 3.0),
        Completed("b", "s", "2", 3.0),
    ]
    assert check(history).order_violations == 1


def test_one_of_two_copies_in_the_dead_letter_queue_settles_any_failed_turn() -> None:
    history = [
        *sent("1", 1, copies=2),
        *sent("2", 2),
        *turn("a", "1", 1.0, 1, Ended.RAISED),
        *turn("a", "2", 2.0, 1, Ended.COMPLETE),
        Completed("a", "s", "2", 2.6),
        *turn("a", "1", 3.0, 1, Ended.COMPLETE),
        Completed("a", "s", "1", 4.0),
        DeadLettered("o", "s", "1", 5.0, found=True),
    ]
    assert check(history).ok


def test_of_two_redriven_copies_the_first_goes_before_what_is_between_them() -> None:
    history = [
        *sent("1", 1, copies=2),
        *sent("2", 2, copies=2),
        *(DeadLettered("o", "s", message, 1.0, found=True) for message in ("2", "1", "2")),
        *(Redriven("o", "s", message, 1.0) for message in ("2", "1", "2")),
    ]
    for at, message in ((2.0, "2"), (3.0, "1"), (4.0, "2")):
        history += turn("a", message, at, 1, Ended.COMPLETE)
        history += [Completed("a", "s", message, at + 0.6)]
    assert check(history).ok
