"""Sessions take turns without waiting for one that is idle, however few a receiver may hold."""

from __future__ import annotations

from urllib.parse import quote

import trio

from queue_runtime import Message, SupervisorConfig, open_client, open_supervisor
from queue_runtime.testing.benchmark import Workload
from queue_runtime.testing.benchmark.workload import Tally, publish

from .emulator_process import emulator_process

SESSIONS, HELD = 30, 2
NEVER = 600.0
"""Seconds; a session that were kept so long would keep the others waiting until the test fails."""


async def test_idle_sessions_make_room_at_the_limit_of_the_receiver() -> None:
    with emulator_process() as emulator:
        emulator.create_queue("orders", requires_session=True, lock_duration=60.0)
        words = quote(emulator.connection_string, safe="")
        async with open_client(f"azure://?connection_string={words}&max_sessions={HELD}") as client:
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
