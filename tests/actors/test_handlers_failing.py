"""A handler that misbehaves hurts nobody but its message (A3 of the handler's side, A9, C3)."""

from __future__ import annotations

import re
from typing import Any

import attrs
import pytest
import trio

from queue_runtime.errors import SerializationError
from queue_runtime.handlers import CloseReason, Retry
from queue_runtime.policies.backoff import RetryPolicy

ONCE = RetryPolicy.none()


class Odd(BaseException):
    """Neither an Exception nor one of the interpreter's own."""


async def test_a_failing_session_does_not_take_others_down(lab: Any) -> None:
    def fail(delivery: Any, _attempt: int) -> None:
        if delivery.session_id == "bad":
            raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])

    await lab.send("bad:1", "good:1", "bad:2", "good:2")
    async with lab.supervise(lab.handler(fail), retry=ONCE) as actors:
        await actors.wait_empty()
    assert [text for text in lab.log if text.startswith("good")] == ["good:1", "good:2"]
    letters = await lab.dead()
    assert [letter.dead_letter.description for letter in letters] == [
        "ValueError: one; KeyError: 'two'"
    ] * 2


async def test_a_hanging_handler_is_cancelled_and_its_message_tried_again(lab: Any) -> None:
    await lab.send("a:1", "a:2")

    def hang(delivery: Any, attempt: int) -> Any:
        return trio.sleep_forever() if delivery.body == b"1" else None

    async with lab.supervise(
        lab.handler(hang), handler_timeout=10.0, retry=RetryPolicy.fixed(1.0, max_attempts=2)
    ) as actors:
        await actors.wait_empty()
    assert lab.log == ["a:1", "a:1 2", "a:2"]
    (letter,) = await lab.dead()
    assert letter.dead_letter.description == "OperationTimeout: the handler took longer than 10.0 s"


async def test_a_handler_that_is_done_in_spite_of_its_timeout_is_done(lab: Any) -> None:
    async def stubborn() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return

    await lab.send("a:1")
    async with lab.supervise(lab.handler(lambda *_: stubborn()), handler_timeout=1.0) as actors:
        await actors.wait_empty()
        assert actors.statistics().completed == 1
    assert lab.log == ["a:1"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SystemExit(3), "SystemExit: 3"),
        (GeneratorExit(), "GeneratorExit"),
        (Odd("what"), "Odd: what"),
        (BaseExceptionGroup("g", [Odd("a"), ValueError("b")]), "Odd: a; ValueError: b"),
    ],
    ids=["SystemExit", "GeneratorExit", "BaseException", "BaseExceptionGroup"],
)
async def test_crashes_are_bounded_by_the_restart_budget(
    lab: Any, error: BaseException, text: str
) -> None:
    def crash(delivery: Any, _attempt: int) -> None:
        if delivery.body == b"1":
            raise error

    await lab.send("a:1", "a:2", "b:2")
    async with lab.supervise(lab.handler(crash), restart_budget=2) as actors:
        await actors.wait_empty()
        await trio.sleep(10)
    assert [each for each in lab.log if each.startswith("a")] == ["a:1", "a:1 2", "a:1 3", "a:2"]
    assert "b:2" in lab.log
    (letter,) = await lab.dead()
    assert letter.dead_letter.reason == "SessionCrashed"
    assert letter.dead_letter.description == text
    mine = [reason for session, reason in lab.closed if session == "a"]
    assert mine == [CloseReason.CRASHED] * 3 + [CloseReason.IDLE]


async def test_a_stray_cancelled_is_a_crash(lab: Any) -> None:
    kept: list[BaseException] = []

    async def stray(attempt: int) -> None:
        if attempt > 1:
            return
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep(1)
            except trio.Cancelled as error:
                kept.append(error)
                raise
        raise kept[0]

    await lab.send("a:1")
    async with lab.supervise(lab.handler(lambda _, attempt: stray(attempt))) as actors:
        await actors.wait_empty()
    assert lab.log == ["a:1", "a:1 2"]
    assert lab.closed[0] == ("a", CloseReason.CRASHED)


async def test_a_budget_of_zero_dead_letters_at_the_first_crash(lab: Any) -> None:
    await lab.send("a:1")

    def crash(*_: Any) -> None:
        raise SystemExit

    async with lab.supervise(lab.handler(crash), restart_budget=0) as actors:
        await actors.wait_empty()
    assert lab.log == ["a:1"]
    assert [letter.dead_letter.description for letter in await lab.dead()] == ["SystemExit"]


async def test_a_completed_message_refills_the_budget(lab: Any) -> None:
    def crash_once(_delivery: Any, attempt: int) -> None:
        if attempt == 1:
            raise SystemExit

    await lab.send("a:1", "a:2", "a:3")
    async with lab.supervise(lab.handler(crash_once), restart_budget=1) as actors:
        await actors.wait_empty()
    assert await lab.dead() == []
    assert len(lab.log) == 6


async def test_a_handler_that_cannot_be_opened_is_made_anew(lab: Any) -> None:
    events: list[str] = []

    class Handler:
        async def opened(self, session: Any) -> None:
            events.append("opened")
            if events.count("opened") < 3:
                raise ConnectionRefusedError("no database")

        async def handle(self, delivery: Any) -> None:
            events.append("handle")

        async def closed(self, reason: CloseReason) -> None:
            events.append(reason.value)

    await lab.send("a:1")
    async with lab.supervise(Handler) as actors:
        await actors.wait_empty()
    assert events == ["opened", "opened", "opened", "handle", "drained"]


async def test_a_handler_that_can_never_be_opened_ends_as_a_dead_letter(lab: Any) -> None:
    class Handler:
        def __init__(self) -> None:
            raise ConnectionRefusedError("no database")

        async def handle(self, delivery: Any) -> None:
            raise AssertionError("never reached")

    await lab.send("a:1")
    async with lab.supervise(Handler, restart_budget=2) as actors:
        await actors.wait_empty()
    (letter,) = await lab.dead()
    assert letter.dead_letter.reason == "SessionCrashed"
    assert letter.dead_letter.description == "ConnectionRefusedError: no database"


async def test_what_closed_raises_or_how_long_it_takes_changes_nothing(lab: Any) -> None:
    events = []

    class Handler:
        async def handle(self, delivery: Any) -> None:
            self.body = delivery.body

        async def closed(self, reason: CloseReason) -> None:
            events.append((self.body, reason))
            if self.body == b"1":
                raise SystemExit
            if self.body == b"2":
                await trio.sleep_forever()
            raise ValueError

    await lab.send("a:1", "b:2", "c:3")
    async with lab.supervise(Handler, idle_timeout=1.0, close_timeout=3.0) as actors:
        await actors.wait_empty()
        await trio.sleep(5)
        assert actors.statistics().active_sessions == 0
    assert sorted(events) == sorted((body, CloseReason.IDLE) for body in (b"1", b"2", b"3"))
    await lab.assert_all_free()


async def test_ten_megabytes_of_exception_text_are_cut(lab: Any) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("x" * 10_000_000)

    await lab.send("a:1")
    async with lab.supervise(lab.handler(fail), retry=ONCE) as actors:
        await actors.wait_empty()
    (letter,) = await lab.dead()
    assert len(letter.dead_letter.description) <= 4096
    assert letter.dead_letter.description.startswith("ValueError: xxx")


@attrs.frozen
class Order:
    number: int
    items: list[str]


async def test_a_poison_body_is_dead_lettered_at_once_with_the_path_of_every_problem(
    lab: Any,
) -> None:
    orders = []

    async def handle(delivery: Any) -> None:
        orders.append(delivery.json(Order))

    await lab.send('a:{"number": "x", "items": [1, "two"]}', 'a:{"number": 1, "items": []}', "b:{")
    async with lab.supervise(handle) as actors:
        await actors.wait_empty()
        assert actors.statistics().retried == 0
    assert orders == [Order(1, [])]
    letters = {each.message.session_id: each.dead_letter for each in await lab.dead()}
    assert letters["a"].reason == letters["b"].reason == "SerializationFailed"
    assert re.search(r"@ .*number", letters["a"].description)
    assert letters["a"].delivery_count == 1


async def test_poison_says_nothing_about_the_handlers(lab: Any) -> None:
    from queue_runtime.policies.breaker import BreakerConfig

    def poison(*_: Any) -> None:
        raise SerializationError("no good")

    await lab.send(*(f"s{n}:1" for n in range(10)))
    async with lab.supervise(
        lab.handler(poison), handler_breaker=BreakerConfig(failure_threshold=2)
    ) as actors:
        await actors.wait_empty()
        assert actors.statistics().handler_breaker.failures == 0
    assert len(await lab.dead()) == 10


@pytest.mark.parametrize("result", [42, CloseReason.IDLE, "done"])
async def test_a_result_that_is_none_is_an_error(lab: Any, result: object) -> None:
    await lab.send("a:1")
    async with lab.supervise(lab.handler(lambda *_: result), retry=ONCE) as actors:
        await actors.wait_empty()
    assert lab.log == ["a:1"]
    (letter,) = await lab.dead()
    assert letter.dead_letter.description.startswith("TypeError: handle() returned")


async def test_an_error_while_the_handler_is_cancelled_is_not_taken_for_a_failure(lab: Any) -> None:
    """At the deadline of a drain the message is abandoned once, whatever the handler's cleanup raises."""

    async def work() -> None:
        try:
            await trio.sleep(1000)
        finally:
            raise ValueError("cleaning up failed")

    await lab.send("a:1")
    async with lab.supervise(
        lab.handler(lambda *_: work()), retry=RetryPolicy.fixed(1.0)
    ) as actors:
        await trio.sleep(1)
        await actors.drain(0)
    assert await lab.dead() == []
    assert await lab.waiting() == [("1", 1)]


async def test_a_group_with_a_cancellation_inside_is_a_cancellation(lab: Any) -> None:
    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1000)
            try:
                await trio.sleep(1000)
            finally:
                raise ValueError("cleaning up failed")

    await lab.send("a:1")
    async with lab.supervise(lab.handler(lambda *_: work()), handler_timeout=5.0) as actors:
        await trio.sleep(2)
        await actors.drain(0)
    assert await lab.waiting() == [("1", 1)]
    assert lab.closed == [("a", CloseReason.DRAINED)]


async def test_retry_needs_no_policy_delay_of_its_own(lab: Any) -> None:
    moments = []

    def again(_delivery: Any, attempt: int) -> Any:
        moments.append(trio.current_time())
        return Retry() if attempt == 1 else None

    await lab.send("a:1")
    async with lab.supervise(lab.handler(again), retry=RetryPolicy.fixed(3.0)) as actors:
        await actors.wait_empty()
    assert moments[1] - moments[0] == pytest.approx(3.0)
