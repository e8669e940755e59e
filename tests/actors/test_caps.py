"""Nobody stalls the others, and caps hold (A1, A2, A11, I4)."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from queue_runtime.config import SettlementMode
from queue_runtime.handlers import CloseReason


async def test_a_slow_session_does_not_stall_the_others(lab: Any) -> None:
    done = []

    async def work(delivery: Any) -> None:
        await trio.sleep(3600 if delivery.session_id == "slow" else 0.1)
        done.append((delivery.session_id, trio.current_time() - start))

    await lab.send("slow:1", *(f"s{n}:{m}" for n in range(5) for m in range(10)))
    start = trio.current_time()
    async with lab.supervise(lab.handler(lambda delivery, _: work(delivery))) as actors:
        await actors.wait_empty(poll_interval=10)
    assert done[-1][0] == "slow"
    assert all(moment < 2 for session, moment in done[:-1])


async def test_a_hot_session_does_not_stall_the_others(lab: Any) -> None:
    await lab.send(*(f"hot:{n}" for n in range(500)))
    await lab.send(*(f"cold{n}:1" for n in range(20)))
    start = trio.current_time()
    finished: dict[str, float] = {}

    async def work(delivery: Any) -> None:
        await trio.sleep(1.0)
        finished[delivery.session_id] = trio.current_time() - start

    async with lab.supervise(
        lab.handler(lambda delivery, _: work(delivery)), max_per_session=16, max_in_flight=64
    ) as actors:
        await actors.wait_empty()
    assert finished.pop("hot") >= 500
    assert max(finished.values()) < 3


@pytest.mark.parametrize("mode", list(SettlementMode), ids=lambda mode: mode.value)
async def test_no_more_is_in_flight_than_the_caps_allow(lab: Any, mode: SettlementMode) -> None:
    seen = []

    async def look(*_: Any) -> None:
        in_flight = actors.statistics().in_flight
        stats = await lab.stats()
        seen.append((in_flight, stats.in_flight, stats.locked_sessions))
        await trio.sleep(0.1)

    await lab.send(*(f"s{n % 20}:{n}" for n in range(200)), *(f":{n}" for n in range(50)))
    async with lab.supervise(
        lab.handler(look),
        max_in_flight=12,
        max_sessions=4,
        max_per_session=3,
        settlement=mode,
    ) as actors:
        await actors.wait_empty()
    assert len(lab.log) == 250
    assert max(mine for mine, _, _ in seen) <= 12
    assert max(broker for _, broker, _ in seen) <= 12
    assert max(sessions for _, _, sessions in seen) <= 4


async def test_a_session_never_has_more_in_flight_than_its_cap(lab: Any) -> None:
    await lab.send(*(f"a:{n}" for n in range(20)))
    seen = []

    async def look(*_: Any) -> None:
        seen.append((await lab.stats()).in_flight)
        await trio.sleep(1)

    async with lab.supervise(lab.handler(look), max_per_session=4) as actors:
        await actors.wait_empty()
    assert max(seen) == 4


async def test_messages_without_a_session_run_side_by_side_up_to_a_cap(lab: Any) -> None:
    await lab.send(*(f":{n}" for n in range(50)))
    start = trio.current_time()
    async with lab.supervise(
        lab.handler(lambda *_: trio.sleep(100)), max_concurrent_sessionless=5
    ) as actors:
        await actors.wait_empty()
        assert actors.statistics().active_sessions == 0
    # Those that wait for their turn are kept locked: nothing is delivered twice.
    assert sorted(lab.log) == sorted(f":{n}" for n in range(50))
    assert lab.most_running == 5
    assert trio.current_time() - start < 1001


@pytest.mark.parametrize("fraction", [0.05, 1 / 3, 0.8])
async def test_a_message_that_waited_for_its_turn_does_not_delay_the_renewal_of_others(
    lab: Any, fraction: float
) -> None:
    """Held twice, first while it waits and then while it is handled, it falls due when it did."""
    await lab.send(":0", ":1", "a:1", "b:1")

    async with lab.supervise(
        lab.handler(lambda d, _: trio.sleep(23 if d.body == b"0" else 120)),
        max_concurrent_sessionless=1,
        renew_fraction=fraction,
    ) as actors:
        await actors.wait_empty()
        assert actors.statistics().locks_lost == 0
    assert len(lab.log) == 4


async def test_a_waiting_message_whose_lock_is_lost_does_not_keep_those_behind_it(lab: Any) -> None:
    await lab.send(":0", ":1", ":2")
    refused: list[Any] = []

    async def refuse(proceed: Any, leases: Any) -> Any:
        answers = list(await proceed(leases))
        for index, lease in enumerate(leases):
            if not refused and lease.provider_data == 2:  # the sequence number
                from queue_runtime.errors import LockLost

                refused.append(lease)
                await proceed([])
                lease.lose(LockLost("taken away"))
                answers[index] = lease.lost
        return answers

    lab.provider.on["renew"] = refuse
    async with lab.supervise(
        lab.handler(lambda *_: trio.sleep(50)), max_concurrent_sessionless=1
    ) as actors:
        await trio.sleep(60)
        assert refused
        assert lab.log == [":0", ":2"]
        await actors.wait_empty()
    assert sorted(lab.log) == [":0", ":1", ":2"]


async def test_an_idle_session_is_closed_after_its_time_and_its_lock_given_back(lab: Any) -> None:
    async with lab.supervise(lab.handler(), idle_timeout=5.0) as actors:
        for delay in (0.0, 3.0, 4.9):
            await trio.sleep(delay)
            await lab.send("a:1")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert lab.closed == []
        await trio.sleep(4.9)
        assert actors.statistics().active_sessions == 1
        await trio.sleep(0.2)
        assert actors.statistics().active_sessions == 0
        assert lab.closed == [("a", CloseReason.IDLE)]
        await lab.assert_all_free()
        await lab.send("a:2")
        await actors.wait_empty()
        assert actors.statistics().sessions_opened == 2
    assert lab.log == ["a:1", "a:1 2", "a:1 3", "a:2"]


async def test_an_idle_time_of_zero_closes_at_once(lab: Any) -> None:
    await lab.send("a:1", "b:1")
    async with lab.supervise(lab.handler(lambda *_: trio.sleep(10)), idle_timeout=0.0) as actors:
        await actors.wait_empty()
        await trio.sleep(0.01)
        assert actors.statistics().active_sessions == 0
        await lab.assert_all_free()
    assert sorted(lab.closed) == [("a", CloseReason.IDLE), ("b", CloseReason.IDLE)]


async def test_at_the_limit_an_idle_session_makes_room_for_one_with_work(lab: Any) -> None:
    await lab.send("a:1", "b:1")
    async with lab.supervise(
        lab.handler(lambda d, _: trio.sleep(1000 if d.session_id == "b" else 0)),
        max_sessions=2,
        idle_timeout=3600.0,
    ):
        await trio.sleep(1)
        await lab.send("c:1")
        await trio.sleep(1)
        assert "c:1" in lab.log
        # `c` has the last place, so it goes as soon as it has nothing to do.
        await lab.send("d:1")
        await trio.sleep(1)
        assert "d:1" in lab.log
        assert lab.running == 1


async def test_the_session_that_is_idle_longest_goes_first(lab: Any) -> None:
    async with lab.supervise(lab.handler(), max_sessions=3, idle_timeout=3600.0) as actors:
        for session in ("a", "b", "a"):
            await lab.send(f"{session}:1")
            await trio.sleep(1)
        assert lab.closed == []
        await lab.send("c:1")
        await trio.sleep(1)
        assert [session for session, _ in lab.closed] == ["b"]
        assert sorted(actors.statistics().session_backlog) == ["a", "c"]


async def test_many_more_sessions_than_places_all_get_their_turn(lab: Any) -> None:
    for start in range(0, 5000, 1000):
        await lab.send(*(f"s{n % 500}:{n:04}" for n in range(start, start + 1000)))
    async with lab.supervise(lab.handler(), max_sessions=50) as actors:
        await actors.wait_empty()
    by_session: dict[str, list[str]] = {}
    for text in lab.log:
        session, _, body = text.partition(":")
        by_session.setdefault(session, []).append(body)
    assert len(by_session) == 500
    assert all(len(each) == 10 and each == sorted(each) for each in by_session.values())
