"""The benchmark measures what it says: small runs, whose figures are looked at but not judged."""

from __future__ import annotations

import pytest

from queue_runtime.testing.benchmark import SCENARIOS, Scale, Workload, run_scenario
from queue_runtime.testing.benchmark.runtime import percentile

SMALL = Scale(
    rate=200.0,
    duration=0.2,
    depth=2_000,
    idle_sessions=50,
    hot_messages=200,
    cold_sessions=10,
    switches=50,
)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_runs_on_memory_and_keeps_order(name: str) -> None:
    report = run_scenario(name, "memory://", Workload(400, 10, 64), SMALL)
    assert report.scenario == name
    assert report.order_violations == 0
    assert report.peak_memory_mib > 1
    assert report.rows
    assert all(row.value > 0 for row in report.rows)


def test_throughput_on_a_file_stands_beside_programs_over_the_same_file(tmp_path) -> None:
    report = run_scenario(
        "throughput", f"sqlite:///{tmp_path}/bench.db", Workload(300, 10, 64), SMALL
    )
    ratios = {row.what: row.ratio for row in report.rows if row.ratio is not None}
    assert set(ratios) == {"runtime, strict", "runtime, pipelined"}
    assert all(ratio > 0 for ratio in ratios.values())


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100), (0.001, 1)]
)
def test_percentiles_are_nearest_rank(share: float, expected: int) -> None:
    assert percentile(list(range(1, 101)), share) == expected
