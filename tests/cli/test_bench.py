"""``queue-runtime bench`` in a small run: a table for people, every figure for machines."""

from __future__ import annotations

import json
import subprocess
import sys


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "queue_runtime", "bench", "--messages", "200", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_every_figure_for_machines() -> None:
    run = bench("--sessions", "10", "--size", "64", "--json", "--scenario", "throughput")
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout)
    assert figures["url"] == "memory://"
    assert (figures["messages"], figures["sessions"], figures["size"]) == (200, 10, 64)
    assert figures["published_per_second"] > 0
    for mode in ("strict", "pipelined"):
        assert figures["consumed_per_second"][mode] > 0
        assert len(figures["ratios"][mode]) == 2
        assert all(ratio > 0 for ratio in figures["ratios"][mode].values())
    assert figures["order_violations"] == 0
    assert figures["peak_memory_mib"] > 1


def test_a_table_for_people() -> None:
    run = bench("--short", "--scenario", "latency")
    assert run.returncode == 0, run.stderr
    assert "measuring latency on memory://" in run.stderr
    for part in ("latency: 0 order violations", "p50", "p95", "p99", "ms"):
        assert part in run.stdout


def test_what_cannot_be_measured_is_said_in_one_line() -> None:
    run = bench("--url", "sqlite:////no/such/folder/x.db", "--scenario", "latency")
    assert run.returncode == 4
    assert "error: scenario latency failed: " in run.stderr
    assert "queue_runtime." not in run.stderr
    assert "Traceback" not in run.stderr


def test_wrong_options_are_all_told() -> None:
    run = bench("--url", "azure://orders?lock_duration=301&prefetch=5", "--json")
    assert run.returncode == 2
    told = json.loads(run.stderr)
    assert told["error"] == "ConfigurationError"
    assert "scenario throughput failed" in told["message"]
    assert [problem.split()[0] for problem in told["problems"]] == ["lock_duration", "prefetch"]
