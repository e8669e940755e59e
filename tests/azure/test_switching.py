"""Sessions take turns without waiting for one that is idle, however few a receiver may hold."""

from __future__ import annotations

import pytest
import trio

from queue_runtime import (
    Message,
    SessionId,
    SessionLocked,
    SupervisorConfig,
    open_client,
    open_supervisor,
)
from queue_runtime.abc import ReceiverOptions
from queue_runtime.testing.benchmark import Workload
from queue_runtime.testing.benchmark.workload import Tally, publish

from .emulator_process import emulator_process
from .linked import complete, eventually, linked

SESSIONS, HELD = 30, 2
NEVER = 600.0
"""Seconds; a session that were kept so long would keep the others waiting until the test fails."""


async def test_idle_sessions_make_room_at_the_limit_of_the_receiver() -> None:
    with emulator_process() as emulator:
        emulator.create_queue("orders", requires_session=True, lock_duration=60.0)
        async with open_client(emulator.url_with(max_sessions=HELD)) as client:
            await publish(client, "orders", Workload(2 * SESSIONS, SESSIONS, 16))
            tally = Tally(2 * SESSIONS)
            config = SupervisorConfig(idle_timeout=NEVER)
            with trio.fail_after(30.0):
                async with open_supervisor(
                    client, "orders", lambda: tally, config=config
                ) as supervisor:
                    await tally.done.wait()
                    assert supervisor.statistics().active_sessions <= HELD
                    await client.send("orders", Message(b"x", session_id="late"))
            assert tally.order_violations == 0


async def test_a_receiver_of_one_session_at_a_time_goes_through_many() -> None:
    """Each is given back at once when its holder is done, and no wait for a session runs to its end."""
    with emulator_process() as emulator:
        waits = {"accept_wait": 60.0, "acceptors": 1, "max_sessions": 1}
        async with linked(emulator, lock=300.0, options=waits) as link:
            await link.send(link.work(SESSIONS, SESSIONS))
            receiver = await link.receiver()
            before = emulator.statistics()
            with trio.fail_after(40.0):  # one wait alone takes longer
                for _ in range(SESSIONS):
                    [delivery] = await receiver.receive(10, 60.0)
                    assert link.counts()["locked_sessions"] == 1
                    await complete(receiver, [delivery])
                    await receiver.release([delivery.lease])
            await eventually(lambda: link.counts()["locked_sessions"] == 0)
            seen = emulator.statistics()
            assert seen["connections"] == before["connections"]
            # A link for each session, and one that waited for the next in the end.
            assert seen["links"] - before["links"] <= SESSIONS + 1
            link.assert_empty()


async def test_an_idle_session_is_free_as_soon_as_it_is_released() -> None:
    """Somebody who waits for it gets it without its lock having to end."""
    with emulator_process() as emulator:
        async with linked(emulator, lock=300.0) as link:
            receiver = await link.receiver(auto_accept=False)
            other = await link.direct.open_receiver(link.queue, ReceiverOptions(auto_accept=False))
            for _ in range(20):
                lease = await receiver.accept(SessionId("session-0"), 1.0)
                assert lease is not None
                with pytest.raises(SessionLocked):
                    await other.accept(SessionId("session-0"), 1.0)
                await receiver.release([lease])
                lease = await other.accept(SessionId("session-0"), 1.0)
                assert lease is not None
                await other.release([lease])
            assert link.counts()["locked_sessions"] == 0
