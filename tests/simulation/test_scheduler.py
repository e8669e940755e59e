"""The same seed gives the same run, in this process and in any other."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio

import queue_runtime
from queue_runtime.testing.simulation import deterministic, run_deterministically, simulate
from queue_runtime.testing.simulation.__main__ import main


async def race() -> list[tuple[int, float]]:
    """In which order tasks come by, and a number each."""
    order: list[tuple[int, float]] = []

    async def runner(number: int) -> None:
        for _ in range(3):
            await trio.sleep(1)
            order.append((number, random.random()))

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(runner, number)
    return order


def test_a_seed_decides_the_order_of_tasks() -> None:
    runs = [tuple(run_deterministically(seed, race)) for seed in (1, 1, 2, 3)]
    assert runs[0] == runs[1]
    assert len(set(runs)) == 3


def test_arguments_are_passed_and_the_clock_jumps() -> None:
    async def nap(seconds: float) -> float:
        began = trio.current_time()
        await trio.sleep(seconds)
        return trio.current_time() - began

    assert run_deterministically(0, nap, 1e6) == pytest.approx(1e6)


def test_everything_is_put_back() -> None:
    core = trio._core._run
    before = (
        core._ALLOW_DETERMINISTIC_SCHEDULING,
        core._r.getstate(),
        random.getstate(),
        gc.isenabled(),
    )

    def fail_inside() -> None:
        with deterministic(3):
            assert core._ALLOW_DETERMINISTIC_SCHEDULING
            assert not gc.isenabled()
            raise RuntimeError("whatever happens")

    with pytest.raises(RuntimeError, match="whatever"):
        fail_inside()
    after = (
        core._ALLOW_DETERMINISTIC_SCHEDULING,
        core._r.getstate(),
        random.getstate(),
        gc.isenabled(),
    )
    assert after == before


def test_a_collector_that_rests_goes_on_resting() -> None:
    gc.disable()
    try:
        with deterministic(3):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_two_runs_of_a_seed_have_one_digest() -> None:
    digests = [simulate(seed).digest() for seed in (4, 4, 5)]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_different_seeds_have_different_digests() -> None:
    assert len({simulate(seed).digest() for seed in range(10)}) == 10


def test_another_process_replays_the_same_digest(capsys: pytest.CaptureFixture[str]) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(queue_runtime.__file__).parent.parent),
        "PYTHONHASHSEED": "12345",
    }
    run = subprocess.run(
        [sys.executable, "-m", "queue_runtime.testing.simulation", "--seed", "6"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert simulate(6).digest() in run.stdout
    assert main(["--seed", "6", "--trace"]) == 0
    out, trace = capsys.readouterr()
    assert simulate(6).digest() in out
    assert "scenario 6" in out
    assert "HandleStarted" in trace
    assert "all faults end" in trace


def test_a_range_of_seeds_is_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0:3"]) == 0
    assert capsys.readouterr().out.startswith("3 seeds, 0 failed")


def test_a_failure_prints_how_to_have_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0:2", "--plant", "acknowledge_first"]) == 1
    out = capsys.readouterr().out
    assert "python -m queue_runtime.testing.simulation --seed 0 --trace" in out
    assert "2 seeds, 2 failed" in out


@pytest.mark.parametrize("text", ["x", "1:y", "5:5", "5:3"])
def test_a_bad_range_is_explained(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--seeds", text])
    assert repr(text) in capsys.readouterr().err
