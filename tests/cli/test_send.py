"""``send``: one message, files, and everything that can be wrong with a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from queue_runtime.cli.json_lines import BadLine, Lines, parse

from .conftest import QUEUE, Cli, lines


def test_a_file_is_sent_in_order(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text(lines(*({"body": str(n), "session": "s"} for n in range(1200))))
    result = cli.on_queue("send", "--jsonl", str(file))
    assert (result.exit_code, result.stdout) == (0, "sent 1,200 messages\n")
    shown = cli.json("peek", "--max", "2000", "--show-body")["messages"]
    assert [message["body"] for message in shown] == [str(n) for n in range(1200)]


def test_every_field_of_a_line_arrives(cli: Cli) -> None:
    line = {
        "body": "grüße",
        "session": "s",
        "id": "m",
        "headers": {"a": "b"},
        "correlation_id": "c",
        "content_type": "text/plain",
        "deduplication_id": "d",
        "ttl": 60,
    }
    assert cli.json("send", "--jsonl", "-", stdin=lines(line)) == {
        "sent": 1,
        "duplicates": 0,
        "failed": 0,
    }
    (message,) = cli.json("peek", "--show-body")["messages"]
    for key in ("body", "session", "id", "headers", "correlation_id", "content_type"):
        assert message[key] == line[key]


def test_a_delay_schedules(cli: Cli) -> None:
    cli.json("send", "--jsonl", "-", stdin=lines({"body": "", "delay": 60}))
    assert cli.json("stats")["scheduled"] == 1


def test_binary_bodies_travel_as_base64(cli: Cli) -> None:
    cli.json("send", "--jsonl", "-", stdin=lines({"body": "/wA=", "body_encoding": "base64"}))
    (message,) = cli.json("peek", "--show-body")["messages"]
    assert (message["body"], message["body_encoding"]) == ("/wA=", "base64")


def test_duplicates_are_told(cli: Cli) -> None:
    line = {"body": "x", "deduplication_id": "d"}
    assert cli.json("send", "--jsonl", "-", stdin=lines(line, line))["duplicates"] == 1
    result = cli.on_queue("send", "--jsonl", "-", stdin=lines(line))
    assert "duplicates, not stored again" in result.stdout


def test_blank_lines_and_a_missing_last_newline_do_no_harm(cli: Cli) -> None:
    result = cli.json("send", "--jsonl", "-", stdin='\n{"body": "a"}\r\n  \n{"body": "b"}')
    assert result["sent"] == 2


def test_nothing_is_sent_from_an_empty_file(cli: Cli) -> None:
    assert cli.json("send", "--jsonl", "-", stdin="")["sent"] == 0


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"nonsense", "not JSON"),
        (b'{"body": "x"', "not JSON"),
        (b'"text"', "expected an object"),
        (b"null", "expected an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"body": "x", "ttl": NaN}', "NaN is no JSON number"),
        (b'{"body": "\xff"}', "not UTF-8"),
        (b'{"body": "\\ud800"}', "surrogate"),
        (b"{}", "body is missing"),
        (b'{"body": 7}', "body must be text, got a number"),
        (b'{"body": null}', "body must be text, got null"),
        (b'{"body": "x", "sesion": "s"}', "did you mean 'session'?"),
        (
            b'{"body": "x", "session": 1, "id": []}',
            "session must be text, got a number; id must be",
        ),
        (b'{"body": "x", "session": ""}', "session id is empty"),
        (b'{"body": "x", "session": "a\\u0007b"}', "control character"),
        (b'{"body": "x", "id": "a\\nb"}', "control character"),
        (b'{"body": "x", "headers": []}', "headers must be an object"),
        (b'{"body": "x", "headers": {"a": 1}}', "header 'a' must be text"),
        (b'{"body": "x", "ttl": true}', "ttl must be a number of seconds, got true or false"),
        (b'{"body": "x", "ttl": -1}', "must be more than 0"),
        (b'{"body": "x", "ttl": 1e300}', "at most"),
        (b'{"body": "x", "delay": -1}', "at least 0"),
        (b'{"body": "x", "delay": 1e300}', "at most"),
        (b'{"body": "%", "body_encoding": "base64"}', "not base64"),
        (b'{"body": "x", "body_encoding": "rot13"}', "only 'base64' is known"),
        (b'{"body": "' + b"x" * 262_145 + b'"}', "the limit is 262144"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_bad_line_ends_it_and_those_before_are_sent(cli: Cli, bad: bytes, why: str) -> None:
    stdin = b'{"body": "1"}\n{"body": "2"}\n' + bad + b'\n{"body": "4"}\n'
    result = cli.on_queue("send", "--jsonl", "-", "--json", stdin=stdin)
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"sent": 2, "duplicates": 0, "failed": 1}
    error = json.loads(result.stderr)
    assert error["message"].startswith("line 3: ")
    assert why in error["message"]
    assert error["line"] == 3
    assert cli.json("stats")["depth"] == 2


def test_people_are_told_the_line_and_the_count(cli: Cli) -> None:
    result = cli.on_queue(
        "send", "--jsonl", "-", stdin='{"body": "secret-body"}\n{"body" "secret-body"}\n'
    )
    assert result.exit_code == 1
    assert result.stdout == "sent 1 message\n"
    assert "line 2: not JSON" in result.stderr
    assert "1 message sent before it" in result.stderr
    assert "secret-body" not in result.output


def test_a_full_queue_says_how_far_it_came(cli: Cli) -> None:
    stdin = lines(*({"body": str(n)} for n in range(5)))
    small = ("--url", "sqlite:///small.db?max_queue_size=3", "--queue", "jobs")
    result = cli("send", *small, "--jsonl", "-", "--json", stdin=stdin)
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"sent": 3, "duplicates": 0, "failed": 2}
    error = json.loads(result.stderr)
    assert (error["error"], error["line"]) == ("QueueFull", 4)
    assert cli("send", *small, "--body", "x").exit_code == 4


def test_one_message(cli: Cli) -> None:
    result = cli.json(
        "send", "--body", "hello", "--session", "s", "--id", "m", "--header", "a=b=c", "--ttl", "9"
    )
    assert (result["sent"], result["id"]) == (1, "m")
    (message,) = cli.json("peek", "--show-body")["messages"]
    assert (message["body"], message["session"], message["headers"]) == ("hello", "s", {"a": "b=c"})
    assert cli.on_queue("send", "--body", "").stdout == "sent 1 message to jobs\n"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "either --jsonl FILE or --body TEXT"),
        (("--body", "x", "--jsonl", "-"), "either --jsonl FILE or --body TEXT"),
        (("--jsonl", "-", "--session", "s"), "need --body"),
        (("--body", "x", "--header", "secret"), "NAME=TEXT"),
        (("--body", "x", "--session", "a\x07"), "control character"),
        (("--body", "x", "--ttl", "-5"), "must be more than 0"),
        (("--body", "x", "--delay", "nan"), "at least 0"),
        (("--body", "x" * 262_145), "the limit is 262144"),
        (("--jsonl", "missing.jsonl"), "missing.jsonl cannot be read: No such file"),
        (("--jsonl", "."), "cannot be read: Is a directory"),
    ],
)
def test_wrong_arguments(cli: Cli, arguments: tuple[str, ...], why: str) -> None:
    result = cli.on_queue("send", *arguments)
    assert result.exit_code == 2
    assert why in result.stderr
    assert result.stdout == ""


def test_a_queue_that_may_not_be_made(cli: Cli) -> None:
    result = cli("send", "--url", "sqlite:///q.db?declare=false", "--queue", "jobs", "--body", "x")
    assert result.exit_code == 3
    assert "does not exist" in result.stderr


def test_what_is_exported_can_be_sent_again(cli: Cli) -> None:
    line = {"body": "x", "id": "m", "dead_letter": {"reason": "Poison"}}
    assert cli.json("send", "--jsonl", "-", stdin=lines(line))["sent"] == 1


class Trickle:
    """A pipe that delivers what it is told, piece by piece."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = [*pieces, b""]

    def read(self, _size: int) -> bytes:
        return self.pieces.pop(0)


async def test_lines_are_put_together_from_pieces() -> None:
    stream: Any = Trickle(b"ab", b"c\nd\n", b"e", b"f\n\n", b"last")
    reader = Lines(stream)
    assert await reader.read() == [(1, b"abc"), (2, b"d")]
    assert await reader.read() == [(3, b"ef"), (4, b"")]
    assert await reader.read() == [(5, b"last")]
    assert await reader.read() == []
    assert await reader.read() == []


async def test_a_line_without_end_is_refused() -> None:
    megabyte = b"x" * 2**20
    stream: Any = Trickle(b"short\n", *[megabyte] * 70)
    reader = Lines(stream)
    assert await reader.read() == [(1, b"short")]
    with pytest.raises(BadLine, match="line 2: longer than"):
        await reader.read()
    assert len(stream.pieces) > 1  # not read to the end


def test_all_problems_of_a_line_are_told_at_once() -> None:
    with pytest.raises(BadLine) as caught:
        parse(7, b'{"bdy": 1, "ttl": "x"}', 100)
    assert "bdy" in str(caught.value)
    assert "body is missing" in str(caught.value)
    assert "ttl must be" in str(caught.value)
    assert caught.value.number == 7


def test_the_configuration_names_queue_and_provider(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('provider = "sqlite:///q.db"\nqueue = "jobs"\n')
    assert cli("send", "--body", "x").exit_code == 0
    assert cli.json("stats")["depth"] == 1
    assert QUEUE[1] == "sqlite:///q.db"
