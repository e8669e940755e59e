"""``demo``: the whole of it, and its parts."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live

from queue_runtime.cli.demo_board import Board, WorkerRow
from queue_runtime.cli.demo_events import FORM, by_pull_request, failures, load
from queue_runtime.cli.demo_handler import Story, tell
from queue_runtime.cli.demo_view import TerminalView, open_view
from queue_runtime.cli.output import Failure

from .conftest import Cli, lines

KEYS = {
    "messages",
    "sessions",
    "completed",
    "dead_lettered",
    "redriven",
    "order_violations",
    "overlaps",
    "messages_per_second",
}


def run_demo(*arguments: str) -> tuple[list[str], dict[str, Any]]:
    run = subprocess.run(
        [sys.executable, "-m", "queue_runtime", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    shown = run.stdout.splitlines()
    return shown[:-1], json.loads(shown[-1])


def test_the_webhooks_survive_failures_a_kill_and_a_redrive() -> None:
    shown, result = run_demo("--json")
    assert shown == []
    assert set(result) >= KEYS
    assert result["messages"] == result["completed"] == 329
    assert (result["dead_lettered"], result["redriven"]) == (1, 1)
    assert (result["lost"], result["order_violations"], result["overlaps"]) == (0, 0, 0)
    assert result["workers_killed"] == 1
    # A turn that the kill ended did not fail, and its message comes with a higher delivery count.
    expected = sum(failures(message.message_id or "") for message in load(None))
    assert expected - 3 <= result["retries"] <= expected
    assert result["sessions"] == 26
    assert result["messages_per_second"] > 0


def event(number: int, name: str = "pull_request", action: str = "opened") -> dict[str, Any]:
    repository = {"name": "repo", "owner": {"login": "owner"}}
    request = {"number": number, "merged": action == "closed"}
    return {
        "event": name,
        "payload": {"action": action, "repository": repository, "pull_request": request},
    }


def test_events_of_ones_own_told_line_by_line(cli: Cli, tmp_path: Path) -> None:
    assert cli is not None  # changes to the temporary directory
    actions = ("opened", "labeled", "synchronize", "closed")
    (tmp_path / "events.jsonl").write_text(
        lines(*(event(number, action=action) for action in actions for number in range(6)))
    )
    shown, result = run_demo(
        "--events", "events.jsonl", "--url", "sqlite:///own.db?lock_duration=1"
    )
    assert (result["messages"], result["completed"], result["sessions"]) == (24, 24, 6)
    assert (result["dead_lettered"], result["redriven"], result["lost"]) == (1, 1, 0)
    text = "\n".join(shown)
    for part in ("24 webhooks published for 6 sessions", "dead-lettered by worker", "redriven"):
        assert part in text
    assert "owner/repo/pull_request/3" in text
    # The redriven message came last in its session; the other stories end as they were sent.
    assert text.count("labeled → synchronize → merged") >= 5
    assert "✔ nothing lost" in text
    assert Path("own.db").exists()


def test_an_interrupt_leaves_no_process_behind(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "queue_runtime", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            pids = [int(process.stdout.readline().split("process ")[1].rstrip(")\n")) for _ in "12"]
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "holds no event"),
        (b"nonsense\n", "line 1: not JSON"),
        (lines(event(1)).encode() + b"[]\n", "line 2: expected"),
        (b'{"event": "x"}\n', "line 1: expected"),
        (b'{"event": "a\\u0007", "payload": {}}\n', "line 1: message id"),
        (b'{"event": "x", "payload": {"sender": {"login": []}}}\n', "line 1: field 'sender.login'"),
        (b"\x1f\x8bnonsense", "cannot be read"),
        (gzip.compress(b"x" * 10_000)[:-9], "cannot be read"),
    ],
)
def test_files_that_hold_no_events(cli: Cli, tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "events"
    file.write_bytes(content)
    result = cli("demo", "--events", str(file), "--json")
    assert result.exit_code == 2
    assert why in json.loads(result.stderr)["message"]
    assert result.stdout == ""


def test_a_missing_file_and_a_broker_for_one_process(cli: Cli) -> None:
    assert "No such file" in cli("demo", "--events", "missing").stderr
    result = cli("demo", "--url", "memory://")
    assert result.exit_code == 2
    assert "multi_process" in result.stderr


def test_the_projects_own_events() -> None:
    messages = load(None)
    assert len(messages) == 329
    assert len({message.message_id for message in messages}) == 329
    (poison,) = [message for message in messages if message.content_type == FORM]
    assert "/pull_request/" in (poison.session_id or "")
    assert sum(message.session_id is None for message in messages) == 4
    assert 10 < sum(failures(message.message_id or "") > 0 for message in messages) < 40


def test_gzipped_events_are_the_same(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_text(lines(event(1), event(2)))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert load(plain) == load(packed)


@pytest.mark.parametrize(
    ("payload", "key"),
    [
        ({"pull_request": {"number": 7}}, "o/r/pull_request/7"),
        ({"issue": {"number": 7, "pull_request": {"url": "…"}}}, "o/r/pull_request/7"),
        ({"issue": {"number": 7}}, "o/r/issue/7"),
        ({"discussion": {"number": 7}}, "o/r/discussion/7"),
        ({}, "o/r"),
    ],
)
def test_sessions_within_a_repository(payload: dict[str, Any], key: str) -> None:
    repository = {"name": "r", "owner": {"login": "o"}}
    assert by_pull_request({**payload, "repository": repository}) == key


def test_sessions_without_a_repository() -> None:
    sender = {"sender": {"login": "me"}}
    assert by_pull_request({**sender, "organization": {"login": "us"}}) == "organization/us"
    assert by_pull_request(sender) == "sender/me"
    assert by_pull_request({"issue": "odd", "zen": "…"}) is None


def test_a_story_travels_as_bytes_and_forgets_its_beginning() -> None:
    story = Story.load(None)
    for number in range(10):
        story = story.with_chapter(f"chapter {number}", f"m{number}")
    story = story.with_chapter("closed", "m10").with_chapter("edited", "m11")
    assert (story.events, story.verdict, story.last) == (12, "closed", "m11")
    assert len(story.chapters) < 12
    assert Story.load(story.dump()) == story


@pytest.mark.parametrize(
    ("name", "payload", "words"),
    [
        ("pull_request", {"action": "closed", "pull_request": {"merged": True}}, "merged"),
        ("pull_request", {"action": "closed", "pull_request": {"merged": False}}, "closed"),
        ("pull_request", {"action": "ready_for_review"}, "ready for review"),
        ("pull_request", {}, "changed"),
        ("pull_request_review", {"review": {"state": "changes_requested"}}, "changes requested"),
        ("pull_request_review", {"review": None}, "reviewed"),
        ("issue_comment", {"action": "created"}, "comment created"),
        ("issues", {"action": ["odd"]}, "changed"),
        ("check_run", {"action": "completed"}, "check run completed"),
        ("push", {}, "push"),
    ],
)
def test_events_in_words(name: str, payload: dict[str, Any], words: str) -> None:
    assert tell(name, payload) == words


async def board_with_a_takeover(folder: Path) -> Board:
    """A board of two workers: the first was killed at message m1 of session s, the second took it over."""
    board = Board(lambda *_: None)
    for name in ("worker-1", "worker-2"):
        board.workers[name] = WorkerRow(name, folder / name)
    board.sent("s")
    board.sent("s")
    board.sent(None)

    def write(worker: str, record: str, message: str, **more: str) -> None:
        with (folder / worker).open("a") as file:
            fields = {"record": record, "session": "s", "message": message, **more}
            file.write(json.dumps(fields) + "\n")

    write("worker-1", "handle_started", "m0")
    write("worker-1", "handle_ended", "m0", outcome="raised")
    write("worker-1", "handle_started", "m0")
    write("worker-1", "handle_ended", "m0", outcome="complete")
    write("worker-1", "completed", "m0")
    write("worker-1", "handle_started", "m1")
    board.update()
    assert board.workers["worker-1"].current == {"s": "m1"}
    board.killed(board.workers["worker-1"])
    write("worker-2", "handle_started", "m1")
    write("worker-2", "handle_ended", "m1", outcome="raised")
    write("worker-2", "dead_lettered", "m1")
    with (folder / "worker-2").open("a") as file:
        file.write('{"record": "compl')
    board.update()
    return board


async def test_the_board_counts_what_the_workers_wrote(tmp_path: Path) -> None:
    board = await board_with_a_takeover(tmp_path)
    assert (board.total, board.completed, board.retried, board.dead_lettered) == (3, 1, 1, 1)
    row = board.sessions["s"]
    assert (row.total, row.done, row.worker) == (2, 1, "worker-2")
    assert [text for _, text, _ in board.log] == [
        "worker-2 took over s at m1 (delivered again)",
        "m1 of s dead-lettered by worker-2",
    ]


@pytest.mark.parametrize(("width", "height"), [(120, 40), (80, 24)])
async def test_the_picture_fits_the_terminal(tmp_path: Path, width: int, height: int) -> None:
    board = await board_with_a_takeover(tmp_path)
    for number in range(30):
        board.sent(f"a-rather-long-owner/a-rather-long-repository/pull_request/{number}")
        board.say(f"line {number}")
    screen = Console(width=width, height=height, file=(tmp_path / "screen").open("w"), record=True)
    with Live(console=screen, auto_refresh=False) as live:
        screen.print(TerminalView(screen, live).picture(board))
    shown = screen.export_text().rstrip().splitlines()
    screen.file.close()
    assert len(shown) < height
    assert max(map(len, shown)) <= width
    text = "\n".join(shown)
    for part in ("1/33 handled", "1 retried", "1 dead-lettered", "worker-2", "line 29"):
        assert part in text


def test_machines_see_nothing_but_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    with open_view(as_json=True) as view:
        view.tell(1.0, "something", "")
    assert capsys.readouterr().out == ""


def test_failures_name_the_file() -> None:
    with pytest.raises(Failure, match="missing cannot be read"):
        load(Path("missing"))
