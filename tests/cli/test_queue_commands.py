"""``receive``, ``peek``, ``stats`` and ``purge``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Cli, lines


@pytest.fixture
def filled(cli: Cli) -> Cli:
    messages = [
        {"body": f"body-{n}", "session": "s", "id": f"m{n}", "headers": {"kind": "x"}}
        for n in range(3)
    ]
    cli.json("send", "--jsonl", "-", stdin=lines(*messages, {"body": "later", "delay": 1000}))
    return cli


def test_stats(filled: Cli) -> None:
    stats = filled.json("stats")
    assert stats.pop("oldest_age") >= 0
    assert stats == {
        "depth": 3,
        "in_flight": 0,
        "scheduled": 1,
        "dead_lettered": 0,
        "sessions": 1,
        "locked_sessions": 0,
    }
    shown = filled.on_queue("stats").stdout
    assert "waiting" in shown
    assert "dead-lettered" in shown


def test_stats_of_an_empty_queue(cli: Cli) -> None:
    assert cli.json("stats")["oldest_age"] is None
    assert "oldest waiting" in cli.on_queue("stats").stdout


def test_peek_hides_bodies_unless_asked(filled: Cli) -> None:
    result = filled.on_queue("peek")
    assert "m0" in result.stdout
    assert "scheduled" in result.stdout
    assert "body-0" not in result.stdout
    assert "body" not in filled.json("peek")["messages"][0]
    assert "body-0" in filled.on_queue("peek", "--show-body").stdout
    assert filled.json("peek", "--show-body")["messages"][0]["body"] == "body-0"


def test_peek_goes_on(filled: Cli) -> None:
    result = filled.on_queue("peek", "--max", "2")
    assert "--after 2" in result.stdout
    assert [m["id"] for m in filled.json("peek", "--after", "2", "--max", "1")["messages"]] == [
        "m2"
    ]
    assert filled.on_queue("peek", "--after", "1000").stdout == "nothing behind 1000\n"


def test_peek_at_nothing(cli: Cli) -> None:
    assert cli.on_queue("peek").stdout == "nothing there\n"
    assert cli.json("peek") == {"messages": []}


def test_receive_gives_back_untried(filled: Cli) -> None:
    for _ in range(2):
        result = filled.json("receive", "--max", "3", "--timeout", "1")
        assert [m["id"] for m in result["messages"]] == ["m0", "m1", "m2"]
        assert [m["delivery_count"] for m in result["messages"]] == [1, 1, 1]
        assert "body" not in result["messages"][0]
    assert filled.json("stats")["depth"] == 3


def test_receive_completes_when_told(filled: Cli) -> None:
    result = filled.on_queue("receive", "--max", "2", "--complete", "--show-body")
    assert "body-0" in result.stdout
    assert "kind: x" in result.stdout
    assert result.stdout.endswith("2 messages completed\n")
    assert filled.json("stats")["depth"] == 1
    assert "body-2" not in filled.on_queue("receive").stdout


def test_receive_from_an_empty_queue(cli: Cli) -> None:
    assert cli.on_queue("receive", "--timeout", "0").stdout == "no message came\n"
    assert cli.json("receive", "--timeout", "0") == {"messages": [], "action": "release"}


def test_ids_and_bodies_cannot_move_the_cursor(cli: Cli) -> None:
    line = {"body": "\x1b[2Jbody", "session": "\u202ereversed", "headers": {"h": "\x1b[31m"}}
    cli.json("send", "--jsonl", "-", stdin=lines(line))
    shown = (
        cli.on_queue("peek", "--show-body").stdout + cli.on_queue("receive", "--show-body").stdout
    )
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "reversed" in shown


def test_purge_asks_first(filled: Cli) -> None:
    result = filled.on_queue("purge")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert filled.json("stats")["depth"] == 3
    assert filled.on_queue("purge", "--yes").stdout == "purged 4 messages\n"
    assert filled.json("purge") == {"purged": 0}


@pytest.mark.parametrize("command", ["stats", "peek", "receive", "purge"])
@pytest.mark.parametrize(
    ("url", "code", "why"),
    [
        ("nope://x", 2, "no provider for 'nope://'"),
        ("sqlite:///q.db?lock_durtion=1", 2, "lock_duration"),
        ("sqlite:///q.db?lock_duration=-1&max_delivery_count=x", 2, "lock_duration"),
        ("sqlite:///no/such/folder/q.db", 4, "directory"),
        ("sqlite:///corrupt.db", 1, "not an SQLite database"),
        ("sqlite:///new.db?declare=false", 3, "does not exist"),
    ],
)
def test_what_cannot_be_opened(cli: Cli, command: str, url: str, code: int, why: str) -> None:
    Path("corrupt.db").write_text("this is no database, and it is long enough to look at " * 30)
    options = ("--url", url, "--queue", "jobs", "--json")
    result = cli(command, *options)
    assert result.exit_code == code, result.output
    error = json.loads(result.stderr)
    assert why in error["message"] + " ".join(error["problems"])
    assert result.stdout == ""


def test_queue_and_provider_must_be_named(cli: Cli) -> None:
    result = cli("stats", "--queue", "jobs")
    assert result.exit_code == 2
    assert "no provider" in result.stderr
    result = cli("stats", "--url", "memory://")
    assert result.exit_code == 2
    assert "--queue" in result.stderr
    assert cli("stats", "--url", "memory://", "--queue", "no good").exit_code == 2


def test_logs_go_to_stderr_when_asked_for(filled: Cli) -> None:
    assert filled.on_queue("receive", "--complete").stderr == ""
    result = filled.on_queue("receive", "--complete", "-v", "--json")
    assert json.loads(result.stdout)["action"] == "complete"
    events = [json.loads(line)["event"] for line in result.stderr.splitlines()]
    assert events == ["message_received", "message_completed"]
    assert "port_opened" in filled.on_queue("receive", "-vv").stderr
