"""``queue-runtime bench`` on the emulator, small: figures are looked at, not judged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from queue_runtime import ConfigurationError
from queue_runtime.testing.benchmark import Report, Scale, Workload, run_scenario
from queue_runtime.testing.benchmark.place import open_place

from .emulator import Emulator, open_emulator

SMALL = Scale(
    rate=50.0,
    duration=0.2,
    depth=2_000,
    idle_sessions=20,
    hot_messages=50,
    cold_sessions=5,
    rounds=1,
    cancellations=3,
    switches=30,
)


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with open_emulator() as emulator:
        yield emulator


def run(name: str, emulator: Emulator, *, options: str = "") -> Report:
    report = run_scenario(
        name, f"{emulator.url}&wait_time=1{options}", Workload(200, 10, 64), SMALL
    )
    assert report.order_violations == 0
    assert all(row.value > 0 for row in report.rows if row.unit != "calls")
    return report


def figure(report: Report, what: str) -> float:
    return next(row.value for row in report.rows if row.what == what)


def test_throughput_stands_beside_the_sdk_alone(emulator: Emulator) -> None:
    before = emulator.calls()

    report = run("throughput", emulator)

    judged = {row.what: row.beside for row in report.rows if row.ratio is not None}
    assert judged == {
        "publish, batches of 500, 8 tasks": "raw SDK: publish, sessions in order",
        "runtime, strict": "raw SDK: drain, sessions in order",
        "runtime, pipelined": "raw SDK: drain, sessions in order",
    }
    assert figure(report, "calls: publish, batches of 500, 8 tasks") < 0.25
    for mode in ("strict", "pipelined"):
        assert 0.2 <= figure(report, f"calls: runtime, {mode}") < 1.0
    sent = emulator.calls()["SendMessageBatch"] - before.get("SendMessageBatch", 0)
    assert sent >= 4 * 20  # four programs, 200 messages each, batches of 10


def test_standard_queues_have_no_sessions_to_keep_in_order(emulator: Emulator) -> None:
    report = run("throughput", emulator, options="&queue_type=standard")

    assert figure(report, "runtime, strict") > 0


def test_waiting_costs_a_call_per_long_poll(emulator: Emulator) -> None:
    report = run("waiting", emulator)

    assert 0 < figure(report, "calls in 1 s, idle") < 3
    assert figure(report, "cancelling a receive, longest") < 1_000


def test_sending_stands_beside_the_sdk_alone(emulator: Emulator) -> None:
    report = run("sending", emulator)

    assert {row.what: row.beside for row in report.rows if row.ratio is not None} == {
        "send one by one, one task": "raw SDK: send one by one, one task",
        "send one by one, 8 tasks": "raw SDK: send one by one, 8 tasks",
    }


def test_switching_stands_alone(emulator: Emulator) -> None:
    report = run("switching", emulator)

    assert [row.what for row in report.rows] == ["30 sessions of one message"]


def test_latency(emulator: Emulator) -> None:
    report = run("latency", emulator)

    assert [row.unit for row in report.rows] == ["ms"] * 3


def test_every_queue_is_removed_again(emulator: Emulator) -> None:
    async def main() -> list[str]:
        async with open_place(emulator.url) as place:
            await place.new_queue()
            queues = list(place.provisioned)
        async with open_place(emulator.url) as place:
            assert place.raw is not None
            await place.raw.remove(queues)  # not there any more: nothing happens
            report = await place.client.provision(queues[0])
            place.provisioned += queues
            return report

    report = trio.run(main)

    assert all("created" in line for line in report)
    assert len(report) == 3


def test_an_account_is_left_alone_without_a_word() -> None:
    url = "sqs://eu-central-1?access_key_id=AKIDEXAMPLE&secret_access_key=nothing"

    with pytest.raises(ConfigurationError, match="say --provision"):
        run_scenario("latency", url, Workload(100, 10, 64), SMALL)


def test_the_command(emulator: Emulator) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "queue_runtime", "bench", "--url", emulator.url),
            *("--messages", "100", "--sessions", "10", "--size", "64", "--rounds", "1"),
            *("--scenario", "throughput", "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert "secret_access_key=***" in figures["url"]
    assert figures["ratios"]["publish"].keys() == {"raw SDK: publish, sessions in order"}
    assert figures["calls_per_message"]["strict"] > 0
