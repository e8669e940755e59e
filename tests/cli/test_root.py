"""The root command: help, errors and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

import queue_runtime
from queue_runtime import (
    AuthenticationFailed,
    CircuitOpen,
    ConfigurationError,
    ConnectionFailed,
    InvalidReceipt,
    MessageTooLarge,
    OperationTimeout,
    PermissionDenied,
    ProviderError,
    QueueError,
    QueueFull,
    QueueNotFound,
    SessionLocked,
    Throttled,
    Unsupported,
    ValidationError,
)
from queue_runtime.cli import root
from queue_runtime.cli.output import Failure, exit_code, report
from queue_runtime.cli.root import COMMANDS

from ..fresh_python import run_python
from .conftest import Cli


def leaves() -> Iterator[tuple[str, ...]]:
    for name in COMMANDS:
        command = root.get_command(click.Context(root), name)
        yield (name,)
        if isinstance(command, click.Group):
            yield from ((name, sub) for sub in command.commands)


@pytest.mark.parametrize("words", list(leaves()), ids=" ".join)
def test_every_command_has_help_with_an_example(cli: Cli, words: tuple[str, ...]) -> None:
    result = cli(*words, "--help")
    assert result.exit_code == 0
    assert f"queue-runtime {' '.join(words)}" in result.output
    assert "Example" in result.output


def test_the_root_lists_commands_and_exit_codes(cli: Cli) -> None:
    result = cli("--help")
    assert all(f"\n  {name} " in result.output for name in COMMANDS)
    assert "Exit codes:" in result.output


def test_help_loads_neither_commands_nor_rich() -> None:
    code = (
        "import sys\n"
        "from queue_runtime.cli import main\n"
        "sys.argv[1:] = ['--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted(name for name in sys.modules\n"
        "    if name.split('.')[0] in ('rich', 'structlog', 'sqlite3')\n"
        "    or name.startswith('queue_runtime.cli.')))\n"
    )
    assert run_python(code)[-1] == "['queue_runtime.cli.output', 'queue_runtime.cli.root']"


def test_the_package_can_be_run() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "queue_runtime", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == f"queue-runtime, version {queue_runtime.__version__}\n"


def test_an_unknown_command_is_answered_with_the_nearest(cli: Cli) -> None:
    result = cli("stas")
    assert result.exit_code == 2
    assert "did you mean 'stats'?" in result.stderr


def test_a_usage_error_shows_the_usage(cli: Cli) -> None:
    result = cli("stats", "--nonsense")
    assert result.exit_code == 2
    assert "Usage: queue-runtime stats" in result.stderr
    assert "No such option" in result.stderr


def test_a_usage_error_is_json_for_machines(cli: Cli) -> None:
    result = cli("stats", "--nonsense", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stderr)["error"] == "UsageError"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (ValidationError("x"), 2),
        (MessageTooLarge(2, 1), 2),
        (Unsupported("peek", "x"), 2),
        (QueueNotFound("x"), 3),
        (AuthenticationFailed("x"), 3),
        (PermissionDenied("x"), 3),
        (ConnectionFailed("x"), 4),
        (Throttled("x"), 4),
        (OperationTimeout("x"), 4),
        (QueueFull("x"), 4),
        (SessionLocked("x"), 4),
        (CircuitOpen("x"), 4),
        (ProviderError("x", code="1", transient=True), 4),
        (ProviderError("x", code="1"), 1),
        (InvalidReceipt("x"), 1),
    ],
)
def test_exit_codes(error: QueueError, code: int) -> None:
    assert exit_code(error) == code


def test_errors_in_a_group_are_reported_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    group = ExceptionGroup(
        "", [ExceptionGroup("", [QueueNotFound("first")]), ConnectionFailed("second")]
    )
    assert report(group, as_json=False) == 4
    assert capsys.readouterr().err == "error: first\nerror: second\n"


def test_a_bug_keeps_its_traceback() -> None:
    group = ExceptionGroup("", [QueueNotFound("expected"), ZeroDivisionError()])
    with pytest.raises(ExceptionGroup):
        report(group, as_json=False)
    with pytest.raises(ZeroDivisionError):
        report(ZeroDivisionError(), as_json=False)


def test_interrupts_in_a_group_are_interrupts() -> None:
    assert report(BaseExceptionGroup("", [KeyboardInterrupt()]), as_json=False) == 130


def test_errors_show_neither_secrets_nor_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = Failure(
        "amqp://user:hunter2@host is \x1b[31mred",
        problems=["password=hunter2 \x07"],
        fields={"n": 1},
    )
    assert report(error, as_json=False) == 1
    shown = capsys.readouterr().err
    assert report(error, as_json=True) == 1
    shown += capsys.readouterr().err
    assert "hunter2" not in shown
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert json.loads(shown.splitlines()[-1])["n"] == 1
