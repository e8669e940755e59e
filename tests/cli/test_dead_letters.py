"""``dlq``: list, show, export, redrive, purge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Cli, lines

REFUSER = """
from queue_runtime import DeadLetter

async def refuse(delivery):
    if delivery.headers.get("keep") is None:
        return DeadLetter("Poison", f"no use: {delivery.message_id}")
"""


@pytest.fixture
def dead(cli: Cli, module: Callable[[str, str], None]) -> Cli:
    """Five dead letters: three of session a, one of b, one binary without a session."""
    module("refuser", REFUSER)
    sent: list[dict[str, Any]] = [
        {"body": f"body-{n}", "session": session, "id": f"m{n}", "headers": {"h": "x"}}
        for n, session in enumerate(["a", "b", "a", "a"])
    ]
    sent.append({"body": "/w==", "body_encoding": "base64", "id": "binary"})
    cli.json("send", "--jsonl", "-", stdin=lines(*sent))
    done = cli.json(
        "run", "--handler", "refuser:refuse", "--until-empty", "--log-level", "critical"
    )
    assert done["dead_lettered"] == 5
    return cli


def ids(cli: Cli, *arguments: str) -> list[str]:
    return [letter["id"] for letter in cli.json("dlq", "list", *arguments)["dead_letters"]]


def test_list(dead: Cli) -> None:
    letters = dead.json("dlq", "list")["dead_letters"]
    assert [letter["id"] for letter in letters] == ["m0", "m1", "m2", "m3", "binary"]
    first = letters[0]
    assert set(first) == {
        *("sequence_number", "id", "session", "reason", "description", "delivery_count", "size"),
        *("dead_lettered_at", "first_failed_at", "enqueued_at"),
    }
    assert (first["session"], first["reason"], first["delivery_count"]) == ("a", "Poison", 1)
    assert first["description"] == "no use: m0"
    assert dead.json("dlq", "list", "--headers")["dead_letters"][0]["headers"] == {"h": "x"}


def test_list_for_people_hides_bodies(dead: Cli) -> None:
    shown = dead.on_queue("dlq", "list").stdout
    assert "Poison" in shown
    assert "no use: m3" in shown
    assert "body-0" not in shown
    assert "--max" in dead.on_queue("dlq", "list", "--max", "2").stdout


def test_nothing_to_list(cli: Cli) -> None:
    assert cli.on_queue("dlq", "list").stdout == "no dead letters\n"
    assert cli.json("dlq", "list") == {"dead_letters": []}


def test_filters(dead: Cli) -> None:
    assert ids(dead, "--session", "a") == ["m0", "m2", "m3"]
    assert ids(dead, "--id", "m1", "--id", "m2") == ["m1", "m2"]
    assert ids(dead, "--id", "m1", "--session", "a") == []
    assert ids(dead, "--reason", "Poison", "--max", "2") == ["m0", "m1"]
    assert ids(dead, "--reason", "Other") == []
    assert len(ids(dead, "--all")) == 5
    result = dead.on_queue("dlq", "list", "--all", "--session", "a")
    assert result.exit_code == 2


def test_show(dead: Cli) -> None:
    shown = dead.on_queue("dlq", "show", "m2").stdout
    assert "no use: m2" in shown
    assert "body-2" not in shown
    assert "body-2" in dead.on_queue("dlq", "show", "m2", "--show-body").stdout
    number = str(dead.json("dlq", "list")["dead_letters"][2]["sequence_number"])
    assert dead.json("dlq", "show", number)["id"] == "m2"
    assert dead.json("dlq", "show", "binary", "--show-body")["body_encoding"] == "base64"


def test_show_what_is_not_there(dead: Cli) -> None:
    result = dead.on_queue("dlq", "show", "nobody")
    assert result.exit_code == 3
    assert "nobody" in result.stderr
    assert dead.on_queue("dlq", "show", "99999").exit_code == 3


@pytest.mark.parametrize("to", [(), ("--output", "-")])
def test_export_to_stdout(dead: Cli, to: tuple[str, ...]) -> None:
    result = dead.on_queue("dlq", "export", "--json", *to)
    exported = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["body"] for line in exported] == ["body-0", "body-1", "body-2", "body-3", "/w=="]
    assert exported[4]["body_encoding"] == "base64"
    assert "body_encoding" not in exported[0]
    assert exported[0]["session"] == "a"
    assert exported[0]["headers"] == {"h": "x"}
    assert exported[0]["dead_letter"]["reason"] == "Poison"
    assert json.loads(result.stderr) == {"exported": 5}
    assert len(ids(dead)) == 5


def test_export_to_a_file_that_send_reads(dead: Cli, tmp_path: Path) -> None:
    file = tmp_path / "dead.jsonl"
    result = dead.on_queue("dlq", "export", "--output", str(file), "--session", "a")
    assert (result.stdout, result.stderr) == ("", "exported 3 dead letters\n")
    assert file.stat().st_mode & 0o077 == 0
    assert dead.json("send", "--jsonl", str(file))["sent"] == 3
    assert [m["id"] for m in dead.json("peek")["messages"]] == ["m0", "m2", "m3"]


def test_export_to_where_nothing_can_be_written(dead: Cli) -> None:
    result = dead.on_queue("dlq", "export", "--output", "no/such/folder/file")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_redrive_some_and_all(dead: Cli) -> None:
    assert dead.json("dlq", "redrive", "--id", "m2") == {"redriven": 1}
    assert (
        dead.on_queue("dlq", "redrive", "--session", "b", "--yes").stdout
        == "redriven 1 dead letter\n"
    )
    assert dead.json("dlq", "redrive") == {"redriven": 3}
    assert dead.json("dlq", "redrive") == {"redriven": 0}
    waiting = dead.json("peek")["messages"]
    assert [m["id"] for m in waiting if m["session"] == "a"] == ["m0", "m2", "m3"]
    assert {m["delivery_count"] for m in waiting} == {0}


def test_purge_some_and_all(dead: Cli) -> None:
    assert dead.json("dlq", "purge", "--session", "a") == {"purged": 3}
    assert ids(dead) == ["m1", "binary"]
    assert dead.on_queue("dlq", "purge", "--yes").stdout == "purged 2 dead letters\n"
    assert dead.json("stats")["dead_lettered"] == 0


@pytest.mark.parametrize("command", ["redrive", "purge"])
def test_nobody_to_ask(dead: Cli, command: str) -> None:
    result = dead.on_queue("dlq", command)
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert dead.json("stats")["dead_lettered"] == 5
