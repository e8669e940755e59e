"""What the tests of the command line share: a clean directory, a queue in it, and a way to call commands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result

from queue_runtime.cli import root

QUEUE = ("--url", "sqlite:///q.db", "--queue", "jobs")
"""Options of the queue most tests use."""


class Cli:
    """Calls commands in this process."""

    def __call__(self, *arguments: str, stdin: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(root, arguments, input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def on_queue(self, *arguments: str, stdin: str | bytes | None = None) -> Result:
        """``command …`` on the queue of the test."""
        words = 2 if arguments[0] in ("dlq", "config") else 1
        return self(*arguments[:words], *QUEUE, *arguments[words:], stdin=stdin)

    def json(self, *arguments: str, stdin: str | bytes | None = None) -> Any:
        """What a command that succeeds prints with ``--json``."""
        result = self.on_queue(*arguments, "--json", stdin=stdin)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("QUEUE_", "AZURE_", "AWS_"))]:
        monkeypatch.delenv(name)
    yield Cli()
    structlog.reset_defaults()


@pytest.fixture
def module(cli: Cli, tmp_path: Path) -> Iterator[Callable[[str, str], None]]:
    """Writes a module of the user's into the current directory, and forgets it afterwards."""
    names: list[str] = []
    path = list(sys.path)

    def write(name: str, source: str) -> None:
        names.append(name)
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")

    yield write
    sys.path[:] = path
    for name in names:
        sys.modules.pop(name, None)


def lines(*objects: Any) -> str:
    """JSON lines."""
    return "".join(json.dumps(line) + "\n" for line in objects)
