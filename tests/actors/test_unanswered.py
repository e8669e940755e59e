"""Calls that are not answered, and replies that are lost (A3, A8)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import trio
import trio.testing

from queue_runtime.actors.bounded import BoundedCalls
from queue_runtime.actors.breaker import Breaker
from queue_runtime.actors.settlement import RepeatableSettle, settle_timeout
from queue_runtime.client import open_client, open_supervisor
from queue_runtime.config import ClientConfig, SettlementMode, SupervisorConfig
from queue_runtime.errors import (
    ConnectionFailed,
    InvalidReceipt,
    LockLost,
    OperationTimeout,
    PermissionDenied,
)
from queue_runtime.handlers import DeadLetter, Retry, Session, SessionHandler
from queue_runtime.policies.backoff import RetryPolicy
from queue_runtime.policies.breaker import BreakerConfig
from queue_runtime.testing import NO_FAULTS, Faults, FaultyProvider

MODES = pytest.mark.parametrize("mode", list(SettlementMode), ids=lambda mode: mode.value)


class Stall:
    """A hook that never answers the first ``times`` calls; notes when each came and how healthy all was then."""

    def __init__(self, times: float = 1) -> None:
        self.left = times
        self.actors: Any = None
        self.calls: list[tuple[float, bool]] = []

    async def __call__(self, proceed: Any, *args: Any) -> Any:
        self.calls.append((trio.current_time(), self.actors.statistics().healthy))
        if self.left > 0:
            self.left -= 1
            await trio.sleep_forever()
        return await proceed(*args)

    @property
    def pauses(self) -> list[float]:
        times = [when for when, _ in self.calls]
        return [later - earlier for earlier, later in itertools.pairwise(times)]


# --- bounded time -------------------------------------------------------------------------------------


async def test_a_renewal_without_an_answer_is_given_up_in_time_for_another(lab: Any) -> None:
    await lab.send("a:1", "b:1")
    lab.provider.on["renew"] = stall = Stall()
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(100))) as actors:
        stall.actors = actors
        await actors.wait_empty()
        assert actors.statistics().healthy
        assert actors.statistics().locks_lost == 0
    assert sorted(lab.log) == ["a:1", "b:1"]
    # 30 s of lock, asked again after 10 s, given up at 27 s: half of the 17 s between, and a tick.
    assert 8.5 <= stall.pauses[0] <= 9.6
    assert [healthy for _, healthy in stall.calls[:3]] == [True, False, True]


@MODES
async def test_a_settlement_without_an_answer_is_repeated(lab: Any, mode: SettlementMode) -> None:
    await lab.send("a:1", "a:2", ":1")
    lab.provider.on["settle"] = stall = Stall()
    async with lab.supervise(lab.handler(), settlement=mode) as actors:
        stall.actors = actors
        await actors.wait_empty()
        statistics = actors.statistics()
        assert (statistics.completed, statistics.locks_lost) == (3, 0)
        assert statistics.healthy
    assert sorted(lab.log) == [":1", "a:1", "a:2"]
    assert [healthy for _, healthy in stall.calls[:2]] == [True, False]
    assert 10 <= stall.pauses[0] <= 15.5


async def test_a_lock_whose_return_is_not_answered_is_given_back_again(lab: Any) -> None:
    await lab.send("a:1")
    lab.provider.on["release"] = stall = Stall()
    async with lab.supervise(lab.handler(), idle_timeout=1.0) as actors:
        stall.actors = actors
        await trio.sleep(20)
        assert [healthy for _, healthy in stall.calls] == [True, False]
        assert actors.statistics().healthy
        await lab.assert_all_free()


@pytest.mark.parametrize("operation", ["get_state", "set_state"])
async def test_state_without_an_answer_is_the_handlers_error_in_time(
    lab: Any, operation: str
) -> None:
    await lab.send("a:1")
    lab.provider.on[operation] = stall = Stall()
    failures: list[tuple[float, type[Exception]]] = []

    class Handler(SessionHandler):
        async def opened(self, session: Session) -> None:
            self.session = session

        async def handle(self, delivery: Any) -> None:
            state = self.session.state
            began = trio.current_time()
            try:
                await (state.get() if operation == "get_state" else state.set(b"1"))
            except OperationTimeout as error:
                failures.append((trio.current_time() - began, type(error)))
                raise

    async with lab.supervise(Handler) as actors:
        stall.actors = actors
        await actors.wait_empty()
        assert actors.statistics().completed == 1
    # A third of 30 s of lock, as settlements have; then the message is tried again.
    assert failures == [(pytest.approx(10.0, abs=0.1), OperationTimeout)]
    assert len(stall.calls) == 2


async def test_a_broker_that_never_answers_settlements_is_unhealthy(lab: Any) -> None:
    await lab.send("a:1")
    lab.provider.on["settle"] = stall = Stall(float("inf"))
    never_open = BreakerConfig(failure_threshold=1_000_000, failure_rate=None)
    async with lab.supervise(lab.handler(), breaker=never_open) as actors:
        stall.actors = actors
        await trio.sleep(9)
        assert actors.statistics().healthy
        for _ in range(20):
            await trio.sleep(5)
            assert not actors.statistics().healthy
        stall.left = 0
        await actors.wait_empty()
        assert actors.statistics().healthy


def test_a_settlement_may_take_a_third_of_the_lock() -> None:
    assert [settle_timeout(lock) for lock in (0.1, 30.0, 60.0, 300.0, float("inf"))] == [
        1.0,
        10.0,
        20.0,
        30.0,
        30.0,
    ]


async def test_calls_without_an_answer_count_for_a_minute_or_until_there_is_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    breaker = Breaker("b", BreakerConfig())
    calls = BoundedCalls(breaker, "tests", 2.0)

    async def answer(text: str) -> str:
        await trio.sleep(1)
        return text

    async def refuse() -> None:
        await trio.lowlevel.checkpoint()
        raise PermissionDenied("no")

    assert await calls(answer, "yes") == "yes"
    assert not calls.stuck(trio.current_time())
    for expected in (1, 2):
        with pytest.raises(OperationTimeout, match="tests did not answer within 2 s"):
            await calls(trio.sleep_forever)
        assert breaker.statistics().failures == expected
        assert calls.stuck(trio.current_time())
    with pytest.raises(PermissionDenied):
        await calls(refuse)
    assert calls.stuck(trio.current_time() + 59)
    assert not calls.stuck(trio.current_time() + 61)
    assert await calls(answer, "yes") == "yes"
    assert not calls.stuck(trio.current_time())


# --- lost replies -------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize(
    ("outcome", "counter"),
    [(None, "completed"), (DeadLetter("no"), "dead_lettered"), (Retry(3600.0), "abandoned")],
    ids=["complete", "dead_letter", "abandon"],
)
async def test_a_settlement_whose_reply_is_lost_counts_once(
    lab: Any, mode: SettlementMode, outcome: Any, counter: str
) -> None:
    await lab.send("a:1", "b:1", ":1")

    def heal(fault: str, operation: str) -> None:
        if (fault, operation) == ("drops_reply", "settle"):
            faulty.faults = NO_FAULTS

    faulty = FaultyProvider(lab.provider, observer=heal)

    def script(*_: Any) -> Any:
        if not faulty.injected:
            faulty.faults = Faults(drops_reply=1.0)
        return outcome

    config = SupervisorConfig(settlement=mode)
    async with open_supervisor(faulty, lab.queue, lab.handler(script), config=config) as actors:
        await trio.sleep(10)
        statistics = actors.statistics()
        assert getattr(statistics, counter) == 3
        assert statistics.locks_lost == 0
    assert faulty.injected == {"drops_reply": 1}
    assert sorted(lab.log) == [":1", "a:1", "b:1"]
    assert len(await lab.dead()) == (counter == "dead_lettered") * 3
    assert len(await lab.waiting()) == (counter == "abandoned") * 3


async def test_a_client_settles_once_though_the_reply_is_lost(lab: Any) -> None:
    await lab.send("a:1", ":1")
    faulty = FaultyProvider(lab.provider, observer=lambda *_: faulty.heal())
    async with open_client(faulty, config=ClientConfig(retry=RetryPolicy.fixed(1.0))) as client:
        for _ in range(2):
            delivery = await client.receive("q")
            assert delivery is not None
            faulty.faults = Faults(drops_reply=1.0)
            await client.complete(delivery)
            with pytest.raises(InvalidReceipt):
                await client.complete(delivery)
        assert faulty.injected == {"drops_reply": 2}
        assert await client.receive("q", timeout=0) is None
        await lab.assert_all_free()


async def test_only_after_an_unknown_outcome_an_invalid_receipt_says_nothing() -> None:
    answers = [InvalidReceipt("used"), LockLost("gone"), None, ConnectionFailed("busy")]
    error: list[Exception] = []

    class Receiver:
        async def settle(self, _settlements: Any) -> Any:
            await trio.lowlevel.checkpoint()
            if error:
                raise error.pop()
            return answers

    settle: Any = RepeatableSettle(Receiver())  # type: ignore[arg-type]
    assert await settle([]) == answers
    assert await settle([]) == answers
    error.append(ConnectionFailed("down"))
    with pytest.raises(ConnectionFailed):
        await settle([])
    assert await settle([]) == [None, *answers[1:]]
