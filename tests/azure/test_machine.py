"""The adapter and a model of the queue, side by side, through random programs; see ``machine.py``, ``reference.py``.

One thing is done after the other, so that the model knows after every step what there has to be. Hypothesis makes the
programs, and shrinks one that fails; as a network is no part of what it can repeat, a failure tells its steps as well.

``QUEUE_RUNTIME_SHORT=0`` runs the long form, with other programs each time.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queue_runtime import SettlementAction

from .emulator_process import EmulatorProcess
from .machine import LATER, LOCK, SESSIONS, Machine, Setup, Step

SHORT = os.environ.get("QUEUE_RUNTIME_SHORT", "1") != "0"
EXAMPLES = 8 if SHORT else 600

# When a call is cancelled, in milliseconds; mostly it is not.
MOMENTS = st.sampled_from([None] * 8 + [0, 1, 2, 3, 5, 8])
RECEIVERS = st.sampled_from([0, 0, 1])
SOME = st.sampled_from([1, 2, 5, 20])
LEASES = st.lists(st.integers(0, 5), min_size=1, max_size=3)
ACTIONS = st.sampled_from(SettlementAction)


def step(name: str, weight: int = 1, /, **arguments: st.SearchStrategy[Any]) -> list[Any]:
    return [st.builds(Step, st.just(name), st.fixed_dictionaries(arguments))] * weight


OPERATIONS = st.sampled_from(
    [
        *step(
            "send",
            5,
            which=RECEIVERS,
            batch=st.lists(
                st.tuples(
                    st.sampled_from([*SESSIONS, "a", "a", None]),
                    st.sampled_from([None] * 8 + ["x", "y"]),
                    st.sampled_from([False] * 7 + [True]),
                ),
                min_size=1,
                max_size=6,
            ),
            moment=MOMENTS,
            repeats=st.booleans(),
        ),
        *step("receive", 6, which=RECEIVERS, most=SOME, moment=MOMENTS),
        *step(
            "settle",
            5,
            picks=st.lists(
                st.tuples(
                    st.integers(0, 11), ACTIONS, st.sampled_from([False, False, False, True])
                ),
                min_size=1,
                max_size=6,
            ),
            which=st.sampled_from([None, None, None, None, 0, 1]),
            moment=MOMENTS,
        ),
        *step("settle_all", 2, which=RECEIVERS, action=ACTIONS, moment=MOMENTS),
        *step(
            "accept", 2, which=RECEIVERS, name=st.sampled_from([None, *SESSIONS]), moment=MOMENTS
        ),
        *step("renew", 2, numbers=LEASES, moment=MOMENTS),
        *step("release", 2, numbers=LEASES, moment=MOMENTS),
        *step("release_everything"),
        *step(
            "session_state",
            numbers=LEASES,
            state=st.sampled_from([None, b"", b"one", b"two"]),
            moment=MOMENTS,
        ),
        *step("reopen", which=RECEIVERS),
        *step("peek", after=st.integers(0, 30), most=st.integers(1, 4), which=RECEIVERS),
        *step("stats", which=RECEIVERS),
        *step(
            "dead_letters",
            2,
            which=RECEIVERS,
            numbers=st.none() | st.sets(st.integers(1, 40), max_size=3),
            redrives=st.booleans(),
            moment=MOMENTS,
        ),
        *step("purge", which=RECEIVERS, moment=MOMENTS),
        *step(
            "cancel_scheduled",
            which=RECEIVERS,
            numbers=st.lists(st.integers(1, 40), max_size=3),
            moment=MOMENTS,
        ),
        *step("time_passes", seconds=st.sampled_from([LOCK + 1, LOCK + 1, 1.1 * LATER])),
        *step("steal", name=st.sampled_from(SESSIONS)),
        *step("cut", name=st.sampled_from([None, *SESSIONS]), drops=st.booleans()),
    ]
).flatmap(lambda strategy: strategy)


def setups(sessions: bool) -> st.SearchStrategy[Setup]:
    return st.builds(
        Setup,
        sessions=st.just(sessions),
        limit=st.sampled_from([1_000, 1_000, 3]),
        outlasts=st.booleans(),
        ahead=st.booleans(),
        most=st.sampled_from([64, 1, 2]),
        few=st.sampled_from([1_000_000, 2, 1]),
        accepts=st.sampled_from([True, True, False]),
    )


SETTINGS = settings(
    max_examples=EXAMPLES,
    derandomize=SHORT,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@SETTINGS
@given(setup=setups(True), program=st.lists(OPERATIONS, min_size=20, max_size=60))
async def test_sessions(emulator: EmulatorProcess, setup: Setup, program: list[Step]) -> None:
    await Machine(emulator, setup).run(program)


@SETTINGS
@given(setup=setups(False), program=st.lists(OPERATIONS, min_size=20, max_size=60))
async def test_plain(emulator: EmulatorProcess, setup: Setup, program: list[Step]) -> None:
    await Machine(emulator, setup).run(program)
