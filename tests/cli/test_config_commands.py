"""``config show`` and ``config check``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Cli

CANARY = "hunter2-canary"


def test_show_tells_values_and_origins(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('queue = "jobs"\n[supervisor]\nmax_sessions = 7\n')
    result = cli("config", "show", "--json")
    settings = {s["path"]: (s["value"], s["origin"]) for s in json.loads(result.stdout)["settings"]}
    assert settings["queue"] == ("jobs", "config.toml")
    assert settings["supervisor.max_sessions"] == ("7", "config.toml")
    assert settings["supervisor.max_in_flight"][1] == "default"
    shown = cli("config", "show", "--changed").stdout
    assert "max_sessions" in shown
    assert "max_in_flight" not in shown


def test_secrets_are_masked_everywhere(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///q.db?password={CANARY}"
    monkeypatch.setenv("AZURE_CLIENT_SECRET", CANARY)
    monkeypatch.setenv("QUEUE_URL", f"amqp://user:{CANARY}@host/vhost")
    output = ""
    for arguments in (
        ("config", "show"),
        ("config", "show", "--json"),
        ("config", "check"),
        ("config", "check", "--json"),
        ("config", "show", "--url", url),
        ("config", "check", "--url", url),
        ("stats", "--queue", "q"),
        ("stats", "--queue", "q", "--json"),
        ("stats", "--queue", "q", "--url", url),
        ("send", "--queue", "q", "--url", f"sqlite://{CANARY}@host/x", "--body", "x"),
    ):
        output += cli(*arguments).output
    assert "***" in output
    assert CANARY not in output


def test_check_is_quiet_when_all_is_well(cli: Cli) -> None:
    result = cli.on_queue("config", "check")
    assert (result.exit_code, result.stdout) == (0, "the configuration is in order\n")
    assert cli.json("config", "check") == {"ok": True, "problems": []}
    assert cli("config", "check").exit_code == 0


def test_check_reports_everything_at_once(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('queue = "no good"\nunknown = 1\n[supervisor]\nmax_sessions = "many"\n')
    result = cli("config", "check", "--config", str(file), "--json")
    assert result.exit_code == 2
    problems = json.loads(result.stdout)["problems"]
    assert len(problems) == 3
    assert any("supervisor.max_sessions" in problem for problem in problems)
    shown = cli("config", "check", "--config", str(file)).stderr
    assert all(problem in shown for problem in problems)


def test_check_looks_at_the_providers_options(cli: Cli) -> None:
    result = cli("config", "check", "--url", "sqlite:///q.db?lock_duration=abc&lock_durations=1")
    assert result.exit_code == 2
    assert "2 problems" in result.stderr
    assert not Path("q.db").exists()


def test_a_file_that_cannot_be_read(cli: Cli) -> None:
    result = cli("stats", "--config", "missing.toml", "--url", "memory://", "--queue", "q")
    assert result.exit_code == 2
    assert "missing.toml" in result.stderr
