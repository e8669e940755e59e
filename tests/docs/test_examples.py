"""The programs in examples/ run without arguments, without warnings, and print what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"


def run(name: str, folder: Path, environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        check=False,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert list(folder.iterdir()) == []
    return done.stdout.splitlines()


def of(lines: list[str], start: str) -> list[str]:
    """What stands behind ``start`` on the lines that begin with it."""
    return [line.removeprefix(start).strip(" :") for line in lines if line.startswith(start)]


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    # Examples that need a broker are tested with it.
    for path in (ROOT / "tests").glob("*/test_example.py"):
        tested |= set(re.findall(r"^def test_(\w+)", path.read_text("utf-8"), re.MULTILINE))

    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


def test_github_bot(tmp_path: Path, environment: dict[str, str]) -> None:
    lines = run("github_bot", tmp_path, environment)

    assert of(lines, "octo/site/pull_request/7") == [
        "welcome! looking for reviewers of 'Change 7'",
        "new commits: approvals start again",
        "approved twice: ready to merge",
        "done, thank you",
    ]
    assert of(lines, "octo/site/pull_request/8") == [
        "a draft; I will wait",
        "welcome! looking for reviewers of 'Change 8'",
        "done, thank you",
    ]
    assert lines[-1] == "10 webhooks in 3 sessions"


def test_session_state(tmp_path: Path, environment: dict[str, str]) -> None:
    lines = run("session_state", tmp_path, environment)

    assert of(lines, "alice") == [
        "opened with 0",
        "closed with 70 (drained)",
        "opened with 70",
        "closed with 75 (drained)",
    ]
    assert of(lines, "bob") == [
        "opened with 0",
        "closed with 50 (drained)",
        "opened with 50",
        "closed with 75 (drained)",
    ]


def test_retries_and_dead_letters(tmp_path: Path, environment: dict[str, str]) -> None:
    lines = run("retries_and_dead_letters", tmp_path, environment)

    assert of(lines, "alice pays") == [
        "10: failed, attempt 1",
        "10: failed, attempt 2",
        "10: done",
        "13: set aside",
        "20: done",
        "13: done",
    ]
    assert of(lines, "bob pays") == ["40: not yet", "40: done", "50: done"]
    assert "  alice: CardExpired: ask the customer for another card" in lines
    assert "  bob: SerializationFailed: expected int, got a string @ $.amount" in lines
    assert lines[-1] == "still dead-lettered: 1"


def test_embed_in_trio(tmp_path: Path, environment: dict[str, str]) -> None:
    lines = run("embed_in_trio", tmp_path, environment)

    assert any(line.endswith(" thermometers, healthy: True") for line in lines)
    assert sum(line.endswith("hot!") for line in lines) == 3
    assert lines[-1] == "drained after 30 readings"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are different there")
def test_graceful_shutdown(tmp_path: Path, environment: dict[str, str]) -> None:
    lines = run("graceful_shutdown", tmp_path, environment)

    terminated = lines.index("SIGTERM: no new work, finish what runs")
    assert sorted(lines[:terminated]) == ["family: first begins", "holidays: first begins"]
    assert sorted(lines[terminated + 1 : -1]) == [
        "family: first is done",
        "holidays: first is done",
    ]
    assert lines[-1] == "completed 2, for the next process 4, still locked 0"
