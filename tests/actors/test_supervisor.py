"""The supervisor from outside: statistics, events, state, embedding, and how errors come out (A1, A12, A13)."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
import trio.testing

from queue_runtime.client import open_client, open_supervisor
from queue_runtime.config import SupervisorConfig
from queue_runtime.errors import (
    ConfigurationError,
    ConnectionFailed,
    LockLost,
    PermissionDenied,
    Unsupported,
)
from queue_runtime.handlers import CloseReason, DeadLetter, Retry, SessionHandler
from queue_runtime.instrumentation import (
    BreakerChanged,
    HandlerFinished,
    LeaseLost,
    MessageDeadLettered,
    RetryScheduled,
    SessionClosed,
    SessionOpened,
    SupervisorDraining,
    SupervisorStarted,
    SupervisorStopped,
)
from queue_runtime.messages import Message
from queue_runtime.policies.breaker import BreakerConfig, BreakerState


async def test_statistics_are_a_snapshot(lab: Any) -> None:
    await lab.send("a:1", "a:2", "a:3", "b:1", ":1")
    script = {
        ("a", b"1"): lambda n: Retry(1.0) if n == 1 else None,
        ("a", b"2"): lambda _: DeadLetter("no"),
        ("a", b"3"): lambda n: Retry(10.0) if n == 1 else trio.sleep(1000),
    }

    def decide(delivery: Any, attempt: int) -> Any:
        follow = script.get((delivery.session_id, delivery.body))
        return None if follow is None else follow(attempt)

    async with lab.supervise(lab.handler(decide), idle_timeout=100.0) as actors:
        first = actors.statistics()
        assert (first.received, first.in_flight, first.active_sessions) == (0, 0, 0)
        assert first.handler_breaker is None
        await trio.sleep(0.5)
        early = actors.statistics()
        assert (early.received, early.completed, early.retried) == (5, 2, 1)
        assert early.session_backlog == {"a": 2, "b": 0}
        assert (early.in_flight, early.active_sessions) == (3, 2)
        assert early.completed_per_second > 0
        await trio.sleep(15)
        late = actors.statistics()
        assert (late.completed, late.dead_lettered, late.abandoned) == (3, 1, 1)
        assert (late.in_flight, late.sessions_opened, late.received) == (1, 3, 6)
        assert late.healthy
        assert not late.draining
        await actors.drain(0)
        end = actors.statistics()
        assert end.draining
        assert (end.in_flight, end.active_sessions) == (0, 0)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            end.completed = 7  # type: ignore[misc]
        # The one taken earlier did not change.
        assert (early.received, early.completed) == (5, 2)


async def test_the_rate_is_that_of_the_last_ten_seconds(lab: Any) -> None:
    await lab.send(*(f"a:{n}" for n in range(200)))
    async with lab.supervise(
        lab.handler(lambda *_: trio.sleep(0.2)), idle_timeout=3600.0
    ) as actors:
        await trio.sleep(30)
        assert actors.statistics().completed_per_second == pytest.approx(5, rel=0.1)
        await actors.wait_empty()
        await trio.sleep(15)
        assert actors.statistics().completed_per_second == 0


async def test_instruments_hear_what_happens(lab: Any) -> None:
    events: list[Any] = []

    def decide(delivery: Any, attempt: int) -> Any:
        if delivery.body == b"1" and attempt == 1:
            return Retry(1.0, "not yet")
        if delivery.body == b"2" and attempt == 1:
            raise ValueError("no")
        return DeadLetter("no") if delivery.body == b"3" else None

    await lab.send("a:1", "a:2", "a:3")
    async with lab.supervise(
        lab.handler(decide), instruments=[events.append], park_threshold=0.0
    ) as actors:
        await actors.wait_empty()

    def of(kind: type[Any]) -> list[Any]:
        return [event for event in events if isinstance(event, kind)]

    assert all((event.queue, event.provider) == ("q", "tampered") for event in events)
    assert len(of(SupervisorStarted)) == len(of(SupervisorStopped)) == 1
    assert [event.grace for event in of(SupervisorDraining)] == [30.0]
    assert of(SupervisorStopped)[0].clean
    assert [event.session_id for event in of(SessionOpened)] == ["a"] * 3
    assert [(event.reason, event.messages) for event in of(SessionClosed)] == [
        (CloseReason.PARKED, 1),
        (CloseReason.PARKED, 2),
        (CloseReason.DRAINED, 2),
    ]
    assert [(e.delay, e.attempt, e.parked, e.reason) for e in of(RetryScheduled)] == [
        (1.0, 1, True, "not yet"),
        (1.0, 1, True, "ValueError"),
    ]
    finished = of(HandlerFinished)
    assert [(e.delivery.body, e.attempt, e.error_type) for e in finished] == [
        (b"1", 1, None),
        (b"1", 2, None),
        (b"2", 1, ValueError),
        (b"2", 2, None),
        (b"3", 1, None),
    ]
    assert [event.reason for event in of(MessageDeadLettered)] == ["no"]


async def test_instruments_hear_of_lost_locks_and_breakers(lab: Any) -> None:
    events: list[Any] = []

    async def fail(_proceed: Any, _leases: Any) -> Any:
        raise ConnectionFailed("down")

    await lab.send("a:1")
    lab.provider.on["renew"] = fail
    async with lab.supervise(
        lab.handler(lambda *_: trio.sleep(100)),
        instruments=[events.append],
        breaker=BreakerConfig(failure_threshold=3),
    ) as actors:
        await trio.sleep(28)
        await actors.drain()
    (lost,) = [event for event in events if isinstance(event, LeaseLost)]
    assert isinstance(lost.error, LockLost)
    assert lost.lease.session_id == "a"
    moves = [(e.previous, e.current) for e in events if isinstance(e, BreakerChanged)]
    assert moves[0] == (BreakerState.CLOSED, BreakerState.OPEN)


async def test_a_cancelled_supervisor_says_that_it_was_not_clean(lab: Any) -> None:
    events: list[Any] = []
    await lab.send("a:1")
    with trio.move_on_after(1):
        async with lab.supervise(
            lab.handler(lambda *_: trio.sleep(100)), instruments=[events.append]
        ):
            await trio.sleep_forever()
    (stopped,) = [event for event in events if isinstance(event, SupervisorStopped)]
    assert not stopped.clean
    assert [e.grace for e in events if isinstance(e, SupervisorDraining)] == [0.0]


async def test_a_session_keeps_its_state(lab: Any) -> None:
    seen: list[bytes | None] = []

    class Handler(SessionHandler):
        async def opened(self, session: Any) -> None:
            self.session = session

        async def handle(self, delivery: Any) -> None:
            state = await self.session.state.get()
            seen.append(state)
            await self.session.state.set((state or b"") + delivery.body)
            assert self.session.id == "a"
            assert self.session.fencing_token > 0
            assert self.session.deadline > trio.current_time()

    for body in "123":
        await lab.send(f"a:{body}")
        async with lab.supervise(Handler) as actors:
            await actors.wait_empty()
    assert seen == [None, b"1", b"12"]


async def test_state_is_fenced_by_the_lock(lab: Any) -> None:
    outcomes: list[object] = []

    async def fail(_proceed: Any, _leases: Any) -> Any:
        raise ConnectionFailed("down")

    class Handler(SessionHandler):
        async def opened(self, session: Any) -> None:
            self.session = session

        async def handle(self, delivery: Any) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(31)
                try:
                    await self.session.state.set(b"stale")
                except LockLost as error:
                    outcomes.append(error)

    await lab.send("a:1")
    lab.provider.on["renew"] = fail
    async with lab.supervise(Handler) as actors:
        await trio.sleep(32)
        assert len(outcomes) == 1
        await actors.drain(0)


async def test_messages_without_a_session_have_no_state_to_keep(lab: Any) -> None:
    ids = []

    class Handler(SessionHandler):
        async def opened(self, session: Any) -> None:
            ids.append(session.id)

        async def handle(self, delivery: Any) -> None:
            assert delivery.session_id is None

    await lab.send(":1")
    async with lab.supervise(Handler) as actors:
        await actors.wait_empty()
    assert ids == [None]


async def test_wait_empty_waits_for_retries_but_not_for_what_is_scheduled(lab: Any) -> None:
    from datetime import UTC, datetime, timedelta

    await lab.send("a:1")
    await lab.send("a:9", scheduled_at=datetime.now(UTC) + timedelta(days=1))
    async with lab.supervise(lab.handler(lambda _, n: Retry(100.0) if n == 1 else None)) as actors:
        await actors.wait_empty()
    assert lab.log == ["a:1", "a:1 2"]


async def test_wait_settled_waits_for_what_was_received(lab: Any) -> None:
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(5)), idle_timeout=3600.0) as actors:
        await actors.wait_settled()
        assert lab.log == []
        began = trio.current_time()
        await lab.send("a:1", "a:2", "b:1")
        while not actors.statistics().in_flight:
            await trio.testing.wait_all_tasks_blocked()
        await actors.wait_settled()
        assert sorted(lab.log) == ["a:1", "a:2", "b:1"]
        assert trio.current_time() - began == pytest.approx(10, abs=1)
        assert actors.statistics().in_flight == 0


async def test_wait_empty_outlasts_transient_errors_and_raises_others(lab: Any) -> None:
    calls = 0

    async def fail(proceed: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise ConnectionFailed("down")
        return await proceed(*args)

    async def refuse(_proceed: Any, *_args: Any) -> Any:
        raise Unsupported("stats", "tampered")

    await lab.send("a:1")
    lab.provider.on["stats"] = fail
    async with lab.supervise(lab.handler()) as actors:
        await actors.wait_empty()
        assert calls == 4
        lab.provider.on["stats"] = refuse
        with pytest.raises(Unsupported):
            await actors.wait_empty()


class Mine(Exception):
    """An error of the program's own."""


@pytest.mark.parametrize(
    "error", [Mine("x"), ExceptionGroup("mine", [Mine("a"), Mine("b")]), KeyboardInterrupt()]
)
async def test_an_error_in_the_block_comes_out_as_itself(lab: Any, error: BaseException) -> None:
    await lab.send("a:1")
    with pytest.raises(type(error)) as caught:
        async with lab.supervise(lab.handler(lambda *_: trio.sleep(1))):
            await trio.sleep(0.5)
            raise error
    assert caught.value is error
    await lab.assert_all_free()


@pytest.mark.parametrize("where", ["handle", "opened", "closed", "group"])
async def test_a_keyboard_interrupt_passes_through(lab: Any, where: str) -> None:
    class Handler:
        async def opened(self, session: Any) -> None:
            if where == "opened":
                raise KeyboardInterrupt

        async def handle(self, delivery: Any) -> None:
            if where == "handle":
                raise KeyboardInterrupt
            if where == "group":
                raise BaseExceptionGroup("g", [KeyboardInterrupt(), ValueError()])

        async def closed(self, reason: CloseReason) -> None:
            if where == "closed":
                raise KeyboardInterrupt

    await lab.send("a:1", "b:1")
    start = trio.current_time()
    with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)) as caught:
        async with lab.supervise(Handler, idle_timeout=1.0):
            await trio.sleep_forever()
    error = caught.value
    if isinstance(error, BaseExceptionGroup):
        # Several sessions were interrupted, or one with more than that.
        assert error.subgroup(KeyboardInterrupt) is not None
    assert trio.current_time() - start < 3, "nothing waits for actors that are gone"
    await lab.assert_all_free()


async def test_an_interrupt_in_closed_at_the_end_still_ends_the_session(lab: Any) -> None:
    class Handler:
        async def handle(self, delivery: Any) -> None:
            await trio.sleep(100)

        async def closed(self, reason: CloseReason) -> None:
            raise KeyboardInterrupt

    await lab.send("a:1")
    with pytest.raises(KeyboardInterrupt):
        async with lab.supervise(Handler) as actors:
            await trio.sleep(1)
            await actors.drain(0)
    await lab.assert_all_free()


async def test_embedded_with_nursery_start(lab: Any) -> None:
    await lab.send("a:1")
    async with open_client(lab.provider) as client, trio.open_nursery() as nursery:
        actors = await nursery.start(client.supervise, "q", lab.handler())
        await client.send("q", Message(b"2", session_id="a"))
        await actors.wait_empty()
        await actors.drain()
    assert lab.log == ["a:1", "a:2"]


async def test_two_supervisors_share_a_queue(lab: Any) -> None:
    await lab.send(*(f"s{n % 9}:{n:02}" for n in range(90)))
    options = {"max_sessions": 3, "idle_timeout": 0.0}
    slow = lab.handler(lambda *_: trio.sleep(0.1))
    async with lab.supervise(slow, **options) as one, lab.supervise(slow, **options) as two:
        await one.wait_empty()
        assert one.statistics().completed + two.statistics().completed == 90
        assert min(one.statistics().completed, two.statistics().completed) > 0
    for session in range(9):
        mine = [text for text in lab.log if text.startswith(f"s{session}:")]
        assert len(mine) == 10
        assert mine == sorted(mine)


async def test_a_permanent_error_reaches_whoever_started_it_in_a_nursery(lab: Any) -> None:
    async def refuse(_proceed: Any, *_args: Any) -> Any:
        raise PermissionDenied("no")

    lab.provider.on["receive"] = refuse
    async with open_client(lab.provider) as client:
        with pytest.raises(PermissionDenied):
            await client.supervise("q", lab.handler())


async def test_what_is_no_handler_is_refused_before_anything_is_opened(lab: Any) -> None:
    with pytest.raises(ConfigurationError, match="not a handler"):
        async with open_supervisor(lab.provider, "q", 42):
            raise AssertionError("not opened")
    assert lab.provider.calls == {}


async def test_open_supervisor_takes_a_url(lab: Any) -> None:
    handled = []

    async def handle(delivery: Any) -> None:
        handled.append(delivery.body)

    async with (
        open_client("memory://shared") as client,
        open_supervisor(
            "memory://shared", "q", handle, config=SupervisorConfig(receive_timeout=1.0)
        ) as actors,
    ):
        await client.send("q", Message(b"1"))
        await actors.wait_empty()
    assert handled == [b"1"]
