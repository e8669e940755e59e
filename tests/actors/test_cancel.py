"""Cancellation at every step: nothing lost, nothing acknowledged in vain, no task and no lock left (A10, I1, I5)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from queue_runtime.config import SettlementMode
from queue_runtime.errors import ConnectionFailed
from queue_runtime.handlers import Retry
from queue_runtime.policies.backoff import RetryPolicy

SENT = ["a:1", "a:2", "a:3", "b:1", "b:2", ":1", ":2"]


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when any task has made so many steps."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.scope = scope
        self.left = step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if not self.left:
            self.scope.cancel()


class World:
    """A handler that fails once, and what was seen of it."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.finished: Counter[str] = Counter()
        self.running: set[str] = set()
        self.tries: Counter[str] = Counter()

    async def __call__(self, delivery: Any) -> Retry | None:
        session = delivery.session_id or f":{delivery.body}"
        text = f"{delivery.session_id or ''}:{delivery.body.decode()}"
        assert session not in self.running, "two handlers of one session"
        self.running.add(session)
        self.started.append(text)
        self.tries[text] += 1
        try:
            await trio.sleep(0.5)
            await trio.lowlevel.checkpoint()
        finally:
            self.running.discard(session)
        if text in ("a:2", ":1") and self.tries[text] == 1:
            return Retry(0.5 if text == ":1" else 20.0)
        self.finished[text] += 1
        return None


async def slow(proceed: Any, *args: Any) -> Any:
    await trio.sleep(0.1)
    return await proceed(*args)


def check(world: World) -> None:
    """Each session in order, its retries in place."""
    for session in "ab":
        firsts = list(dict.fromkeys(text for text in world.started if text[0] == session))
        assert firsts == [text for text in SENT if text[0] == session]
    assert world.finished == Counter(SENT), "lost, or handled again although it was finished"


@pytest.mark.parametrize("way", ["block", "drain", "drain at once"])
@pytest.mark.parametrize("mode", list(SettlementMode), ids=lambda mode: mode.value)
async def test_cancelled_at_every_step(open_lab: Any, mode: SettlementMode, way: str) -> None:
    options = {
        "settlement": mode,
        "max_concurrent_sessionless": 1,
        "retry": RetryPolicy.fixed(1.0),
        "idle_timeout": 1.0,
    }
    step = 0
    while True:
        step += 1 if step < 200 else 7
        lab = await open_lab(name=f"{step}")
        lab.provider.on = {"settle": slow, "release": slow}
        await lab.send(*SENT)
        world = World()
        before = trio.lowlevel.current_statistics().tasks_living
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                async with lab.supervise(world, **options) as actors:
                    if way == "block":
                        await actors.wait_empty(poll_interval=2.0)
                    else:
                        await trio.sleep(0.7)
                        await actors.drain(10.0 if way == "drain" else 0.0)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert not world.running
        await lab.assert_all_free()
        # Nothing is lost, and what a handler finished was reported.
        async with lab.supervise(world, **options) as actors:
            await actors.wait_empty(poll_interval=2.0)
        check(world)
        if not scope.cancelled_caught:
            break
    assert step > 60


async def test_cancelled_while_the_broker_fails(open_lab: Any) -> None:
    """As above with every second call failing: at least once is all that can be asked for."""
    for step in range(1, 600, 4):
        lab = await open_lab(name=f"{step}")
        calls = 0

        async def flaky(proceed: Any, *args: Any) -> Any:
            nonlocal calls
            calls += 1
            await trio.lowlevel.checkpoint()
            if calls % 2:
                raise ConnectionFailed("down")
            return await proceed(*args)

        lab.provider.on = dict.fromkeys(("settle", "release", "renew", "receive"), flaky)
        await lab.send(*SENT)
        world = World()
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                async with lab.supervise(world) as actors:
                    await actors.wait_empty(poll_interval=2.0)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await lab.assert_all_free()
        lab.provider.on.clear()
        async with lab.supervise(world) as actors:
            await actors.wait_empty(poll_interval=2.0)
        assert set(world.finished) == set(SENT)
        for session in "ab":
            firsts = list(dict.fromkeys(text for text in world.started if text[0] == session))
            assert firsts == [text for text in SENT if text[0] == session]


async def test_cancelled_before_it_is_ready_nothing_is_left(lab: Any) -> None:
    for step in range(1, 30):
        before = trio.lowlevel.current_statistics().tasks_living
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                async with lab.supervise(lab.handler()):
                    await trio.sleep_forever()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        assert scope.cancelled_caught
        assert trio.lowlevel.current_statistics().tasks_living == before
    assert lab.provider.calls["open_receiver"] >= lab.provider.calls["receive"]


async def test_a_handler_that_finishes_although_cancelled_has_finished(lab: Any) -> None:
    async def stubborn(*_: Any) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(3)

    await lab.send("a:1", "a:2")
    with trio.move_on_after(1):
        async with lab.supervise(lab.handler(stubborn)):
            await trio.sleep_forever()
    assert lab.log == ["a:1"]
    assert await lab.waiting() == [("2", 0)]
    await lab.assert_all_free()


async def test_once_a_handler_ended_the_program_no_other_one_begins(lab: Any) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    await lab.send(*(f"s{n}:1" for n in range(20)), *(f":{n}" for n in range(20)))
    with pytest.raises(KeyboardInterrupt):
        async with lab.supervise(lab.handler(interrupt), max_concurrent_sessionless=1):
            await trio.sleep_forever()
    assert len(lab.log) == 1
    await lab.assert_all_free()
    assert sum(count for _, count in await lab.waiting()) <= 1
