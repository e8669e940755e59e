"""What a user writes: outcomes, and what may stand for a handler (A5)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

from queue_runtime.errors import ConfigurationError, ValidationError
from queue_runtime.handlers import (
    Abandon,
    CloseReason,
    Complete,
    DeadLetter,
    Retry,
    SessionHandler,
    handler_maker,
)


class Plain:
    async def handle(self, delivery: Any) -> str:
        return f"plain {delivery}"


class Derived(SessionHandler):
    async def handle(self, delivery: Any) -> Any:
        return f"derived {delivery}"


class NeedsArguments(Plain):
    def __init__(self, database: str) -> None:
        self.database = database


class Empty(SessionHandler):
    pass


class Blocking:
    def handle(self, delivery: Any) -> None:
        pass


class Stream:
    async def handle(self, delivery: Any) -> Any:
        yield delivery


class CallableObject:
    async def __call__(self, delivery: Any) -> str:
        return f"called {delivery}"


class Factory:
    def __call__(self) -> Plain:
        return Plain()


async def function(delivery: Any, prefix: str = "function") -> str:
    return f"{prefix} {delivery}"


@pytest.mark.parametrize(
    ("handler", "answer"),
    [
        (Plain, "plain x"),
        (Derived, "derived x"),
        (lambda: Plain(), "plain x"),  # noqa: PLW0108 - a lambda is the point
        (Factory(), "plain x"),
        (partial(NeedsArguments, "db"), "plain x"),
        (function, "function x"),
        (partial(function, prefix="partial"), "partial x"),
        (CallableObject(), "called x"),
        (Plain().handle, "plain x"),
    ],
    ids=[
        "class",
        "derived",
        "lambda",
        "factory object",
        "partial class",
        "function",
        "partial function",
        "async callable",
        "bound method",
    ],
)
async def test_what_makes_a_handler(handler: Any, answer: str) -> None:
    make = handler_maker(handler)
    assert await make().handle("x") == answer


def test_every_session_gets_an_instance_of_its_own() -> None:
    make = handler_maker(Plain)
    assert make() is not make()


@pytest.mark.parametrize(
    ("handler", "problem"),
    [
        (Empty, "Empty is not a handler: give it 'async def handle"),
        (object, "object is not a handler: give it 'async def handle"),
        (Blocking, "Blocking.handle must be declared with 'async def'"),
        (Stream, "Stream.handle must be declared with 'async def'"),
        (NeedsArguments, "NeedsArguments cannot be called without arguments .*database"),
        (lambda delivery: None, "needs 'async def'"),
        (Plain(), "Plain instance given: give the class"),
        (42, "42 is not a handler"),
        (None, "None is not a handler"),
        ("module:Handler", "'module:Handler' is not a handler"),
    ],
    ids=repr,
)
def test_what_makes_none_is_refused_with_its_cure(handler: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        handler_maker(handler)


def test_a_callable_that_does_not_tell_its_parameters_is_taken() -> None:
    # `iter` has no signature that could be read.
    assert handler_maker(iter) is iter


@pytest.mark.parametrize("delay", [0, 0.5, 86_400, None])
def test_delays_of_a_retry(delay: float | None) -> None:
    assert Retry(delay, "busy").delay == delay


@pytest.mark.parametrize("delay", [-1, math.nan, math.inf, 1e12, True, "5"])
def test_delays_that_are_none_are_refused(delay: Any) -> None:
    with pytest.raises(ValidationError, match="delay is"):
        Retry(delay)


def test_outcomes_are_values() -> None:
    assert Complete() == Complete()
    assert DeadLetter("no", "text") == DeadLetter("no", description="text")
    assert Abandon() != Complete()
    assert len({Retry(), Retry(1.0), Complete(), Abandon(), DeadLetter("a")}) == 5


async def test_the_base_class_does_nothing_but_ask_for_handle() -> None:
    handler = SessionHandler()
    await handler.opened(None)  # type: ignore[arg-type]
    await handler.closed(CloseReason.IDLE)
    with pytest.raises(NotImplementedError):
        await handler.handle(None)  # type: ignore[arg-type]
