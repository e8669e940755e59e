"""``queue-runtime bench`` on the emulator, small: figures are looked at, not judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from urllib.parse import quote

import pytest
import trio

from queue_runtime import ConfigurationError, QueueName, QueueNotFound
from queue_runtime.testing.benchmark import Report, Scale, Workload, run_scenario
from queue_runtime.testing.benchmark.place import open_place

from .emulator_process import EmulatorProcess

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
    openings=2,
)


def run(
    name: str,
    emulator: EmulatorProcess,
    workload: Workload = Workload(100, 5, 64),  # noqa: B008 - frozen
    *,
    options: str = "",
) -> Report:
    report = run_scenario(name, emulator.url_with() + options, workload, SMALL)
    assert report.order_violations == 0
    assert all(row.value > 0 for row in report.rows)
    return report


@pytest.mark.parametrize(
    ("options", "publish", "drain"),
    [
        ("", "raw SDK: publish, sessions in order", "raw SDK: drain, sessions in order"),
        ("&sessions=false", "raw SDK: publish", "raw SDK: drain"),
    ],
    ids=["sessions", "plain"],
)
def test_throughput_stands_beside_the_sdk_alone(
    emulator: EmulatorProcess, options: str, publish: str, drain: str
) -> None:
    report = run("throughput", emulator, options=options)

    judged = {row.what: (row.beside, row.aim) for row in report.rows if row.ratio is not None}
    assert judged == {
        "publish, batches of 500, 8 tasks": (publish, "at least 0.85"),
        "runtime, strict": (drain, "at least 0.85"),
        "runtime, pipelined": (drain, "at least 0.85"),
    }
    assert not any(row.what.startswith("calls") for row in report.rows)


def test_latency(emulator: EmulatorProcess) -> None:
    report = run("latency", emulator)

    assert [row.unit for row in report.rows] == ["ms"] * 3


def figure(report: Report, what: str) -> float:
    return next(row.value for row in report.rows if row.what == what)


def test_switching_stands_beside_the_sdks_session_receivers(emulator: EmulatorProcess) -> None:
    report = run("switching", emulator, options="&acceptors=2")

    [judged] = [row for row in report.rows if row.ratio is not None]
    beside = "30 times the raw SDK's, by 2 acceptors"
    assert (judged.what, judged.beside) == ("30 sessions of one message", beside)
    one = figure(report, "raw SDK: open, read and close one session receiver")
    assert figure(report, beside) == pytest.approx(one / 1_000 * 30 / 2)
    assert judged.ratio == pytest.approx(judged.value / figure(report, beside))
    assert figure(report, "connections the runtime opened in all") < 10


def test_without_sessions_there_is_no_switching(emulator: EmulatorProcess) -> None:
    assert run("switching", emulator, options="&sessions=false").rows == ()


@pytest.mark.parametrize("options", ["", "&sessions=false"], ids=["sessions", "plain"])
def test_waiting_calls_can_be_cancelled(emulator: EmulatorProcess, options: str) -> None:
    report = run("waiting", emulator, options=options)

    aims = {row.what: row.aim for row in report.rows if row.aim}
    calls = ["a receive"] if options else ["a receive", "an accept"]
    assert aims == {f"cancelling {call}, longest": "at most 250" for call in calls}


def test_sending_message_by_message(emulator: EmulatorProcess) -> None:
    report = run("sending", emulator, options="&sessions=false")

    assert {row.what: row.beside for row in report.rows if row.ratio is not None} == {
        "send one by one, one task": "raw SDK: send one by one, one task",
        "send one by one, 8 tasks": "raw SDK: send one by one, 8 tasks",
    }


def test_every_queue_is_removed_again(emulator: EmulatorProcess) -> None:
    async def main() -> None:
        async with open_place(emulator.url_with()) as place:
            queue = await place.new_queue()
            assert (await place.client.provider.stats(QueueName(queue))).depth == 0
        async with open_place(emulator.url_with()) as place:
            with pytest.raises(QueueNotFound):
                await place.client.provider.stats(QueueName(queue))
            assert place.raw is not None
            await place.raw.remove([queue])  # not there any more: nothing happens

    trio.run(main)


def test_a_namespace_is_left_alone_without_a_word() -> None:
    said = "Endpoint=sb://orders.example/;SharedAccessKeyName=all;SharedAccessKey=nothing"
    url = f"azure://?connection_string={quote(said, safe='')}"

    with pytest.raises(ConfigurationError, match="say --provision"):
        run_scenario("latency", url, Workload(100, 10, 64), SMALL)


def test_the_command_with_credentials_of_the_environment(emulator: EmulatorProcess) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "queue_runtime", "bench"),
            *("--url", "azure://?sessions=false"),
            *("--messages", "100", "--size", "64", "--rounds", "1"),
            *("--scenario", "throughput", "--json"),
        ],
        env=os.environ | {"AZURE_SERVICEBUS_CONNECTION_STRING": emulator.connection_string},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["url"] == "azure://?sessions=false"
    assert figures["ratios"]["publish"].keys() == {"raw SDK: publish"}
    assert figures["calls_per_message"]["strict"] is None
