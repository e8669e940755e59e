"""``run``: until empty, until told to stop, and what is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .conftest import QUEUE, Cli, lines

WORKERS = """
import pathlib
import trio
from queue_runtime import DeadLetter, Retry, SessionHandler
from queue_runtime.instrumentation import MessagesSettled

class Counter(SessionHandler):
    async def handle(self, delivery):
        with open("handled", "a") as file:
            file.write(f"{delivery.session_id} {delivery.body.decode()}\\n")

class Choosy(SessionHandler):
    async def handle(self, delivery):
        if delivery.body == b"bad":
            return DeadLetter("Bad")
        if delivery.body == b"slow" and delivery.delivery_count == 1:
            return Retry(delay=0.01)

def note(event):
    with open("events", "a") as file:
        file.write(type(event).__name__ + "\\n")

def note_settled(event):
    if isinstance(event, MessagesSettled):
        with open("settled", "a") as file:
            file.write(f"{len(event.settlements)}\\n")

async def short(delivery):
    pathlib.Path("started").touch()
    await trio.sleep(0.5)
    pathlib.Path("finished").touch()

async def endless(delivery):
    pathlib.Path("started").touch()
    await trio.sleep_forever()
"""


@pytest.fixture
def workers(cli: Cli, module: Callable[[str, str], None]) -> Cli:
    module("some_workers", WORKERS)
    return cli


def fill(cli: Cli, *bodies: str, sessions: int = 1) -> None:
    cli.json(
        "send",
        *("--jsonl", "-"),
        stdin=lines(
            *({"body": body, "session": f"s{n % sessions}"} for n, body in enumerate(bodies))
        ),
    )


@pytest.mark.parametrize("settlement", ["strict", "pipelined"])
def test_until_empty(workers: Cli, settlement: str) -> None:
    fill(workers, *map(str, range(20)), sessions=2)
    result = workers.json(
        *("run", "--handler", "some_workers:Counter", "--until-empty", "--max-sessions", "1"),
        *("--settlement", settlement, "--idle-timeout", "0", "--log-level", "error"),
    )
    assert result["completed"] == 20
    assert result["clean"] is True
    assert result["messages_per_second"] > 0
    handled = Path("handled").read_text().splitlines()
    for session in ("s0", "s1"):
        numbers = [int(line.split()[1]) for line in handled if line.startswith(session)]
        assert numbers == sorted(numbers)
    stats = workers.json("stats")
    assert (stats["depth"], stats["in_flight"], stats["locked_sessions"]) == (0, 0, 0)


def test_the_summary_for_people(workers: Cli) -> None:
    fill(workers, "good", "slow", "bad", "good")
    result = workers.on_queue("run", "--handler", "some_workers:Choosy", "--until-empty")
    assert result.exit_code == 0
    assert result.stdout.startswith("jobs: 3 completed, 1 retried, 1 dead lettered in ")
    assert "message_dead_lettered" in result.stderr


def test_the_log_is_json_for_machines(workers: Cli) -> None:
    fill(workers, "x")
    result = workers.on_queue("run", "--handler", "some_workers:Counter", "--until-empty", "--json")
    events = [json.loads(line)["event"] for line in result.stderr.splitlines()]
    assert events[0] == "supervisor_started"
    assert "message_completed" in events
    assert json.loads(result.stdout)["completed"] == 1


def test_instruments_are_told_what_happens(workers: Cli) -> None:
    fill(workers, "x", "y")
    instruments = ("--instrument", "some_workers:note", "--instrument", "some_workers:note_settled")
    result = workers.json("run", "--handler", "some_workers:Counter", "--until-empty", *instruments)
    assert result["completed"] == 2
    events = Path("events").read_text().splitlines()
    assert events.count("HandlerFinished") == 2
    assert events.count("SupervisorStarted") == 1
    assert sum(map(int, Path("settled").read_text().split())) == 2


def test_an_empty_queue_is_done_at_once(workers: Cli) -> None:
    result = workers.json("run", "--handler", "some_workers:Counter", "--until-empty")
    assert result["received"] == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--max-sessions", "0"), "max_sessions"),
        (("--drain-timeout", "-1"), "drain_timeout"),
        (("--handler-timeout", "1e300"), "handler_timeout"),
        (("--idle-timeout", "nan", "--max-in-flight", "0"), "max_in_flight"),
        (("--settlement", "loose"), "strict"),
        (("--url", "nope://x"), "nope"),
    ],
)
def test_wrong_options(workers: Cli, options: tuple[str, ...], why: str) -> None:
    arguments = ("--handler", "some_workers:Counter", "--until-empty", *options)
    result = workers("run", *QUEUE, *arguments)
    assert result.exit_code == 2
    assert why in result.stderr


def test_a_queue_that_does_not_exist(workers: Cli) -> None:
    assert (
        workers("send", "--url", "sqlite:///q.db", "--queue", "other", "--body", "x").exit_code == 0
    )
    options = ("--url", "sqlite:///q.db?declare=false", "--queue", "jobs", "--until-empty")
    result = workers(
        "run", *options, "--handler", "some_workers:Counter", "--log-level", "critical"
    )
    assert result.exit_code == 3
    assert "error: queue jobs does not exist" in result.stderr


@contextmanager
def running(handler: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A worker process that is handling its first message."""
    command = [sys.executable, "-m", "queue_runtime", "run", *QUEUE, "--json"]
    with subprocess.Popen(
        [*command, "--handler", f"some_workers:{handler}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            until(Path("started").exists, process)
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def outcome(process: subprocess.Popen[str]) -> tuple[int, Any, str]:
    out, err = process.communicate(timeout=20)
    return process.returncode, json.loads(out), err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(workers: Cli, number: signal.Signals) -> None:
    fill(workers, "1", "2", "3")
    with running("short") as process:
        process.send_signal(number)
        code, result, errors = outcome(process)
    assert code == 0
    assert Path("finished").exists()
    assert (result["completed"], result["clean"]) == (1, True)
    assert "draining" in errors
    stats = workers.json("stats")
    assert (stats["depth"], stats["in_flight"], stats["locked_sessions"]) == (2, 0, 0)
    assert [m["delivery_count"] for m in workers.json("peek")["messages"]] == [0, 0]


def test_a_drain_that_takes_too_long_cancels(workers: Cli) -> None:
    fill(workers, "1", "2")
    with running("endless", "--drain-timeout", "0.1") as process:
        process.terminate()
        code, result, _ = outcome(process)
    assert code == 1
    assert (result["completed"], result["clean"]) == (0, False)
    assert [m["delivery_count"] for m in workers.json("peek")["messages"]] == [1, 0]
    assert workers.json("stats")["locked_sessions"] == 0


def test_a_second_signal_cancels_at_once(workers: Cli) -> None:
    fill(workers, "1")
    with running("endless", "--drain-timeout", "1000") as process:
        process.terminate()
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("draining"):
                break
        process.terminate()
        code, result, errors = outcome(process)
    assert code == 1
    assert result["clean"] is False
    assert "cancelling the handlers" in errors
    assert workers.json("stats")["depth"] == 1


def test_a_signal_ends_until_empty_too(workers: Cli) -> None:
    fill(workers, "1", "2")
    with running("short", "--until-empty") as process:
        process.terminate()
        code, result, _ = outcome(process)
    assert (code, result["completed"]) == (0, 1)
