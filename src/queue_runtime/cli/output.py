"""What people and machines see: one way to print JSON, to ask, and to report errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, final

import click

from queue_runtime import (
    AuthenticationFailed,
    BatchTooLarge,
    ConfigurationError,
    MessageTooLarge,
    PermissionDenied,
    QueueError,
    QueueNotFound,
    SerializationError,
    Unsupported,
    ValidationError,
)
from queue_runtime.text import escape, scrub

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Failure",
    "ask",
    "console",
    "exit_code",
    "exit_code_of",
    "moment",
    "plural",
    "print_json",
    "report",
    "size",
]

_WRONG_INPUT: Final = (
    ConfigurationError,
    ValidationError,
    MessageTooLarge,
    BatchTooLarge,
    SerializationError,
    Unsupported,
)
_REFUSED: Final = (QueueNotFound, PermissionDenied, AuthenticationFailed)
_NO_FIELDS: Final[Mapping[str, Any]] = {}
_LINE: Final = 2_000
"""Characters shown of one line of an error: more would hide the rest."""


@final
class Failure(Exception):
    """Ends a command with a message and an exit code of its own.

    Args:
        message: For people; one line.
        code: The exit code.
        kind: What JSON output gives as ``error``.
        problems: Details, one line each.
        fields: More for the JSON output.
    """

    def __init__(
        self,
        message: str,
        *,
        code: int = 1,
        kind: str = "Failure",
        problems: Sequence[str] = (),
        fields: Mapping[str, Any] = _NO_FIELDS,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.kind = kind
        self.problems = tuple(problems)
        self.fields = fields


def exit_code(error: QueueError) -> int:
    """The exit code for an error of the runtime."""
    return exit_code_of(type(error), transient=error.is_transient)


def exit_code_of(kind: type[BaseException], *, transient: bool) -> int:
    """The exit code for an error of the runtime that happened in another process."""
    if issubclass(kind, _WRONG_INPUT):
        return 2
    if issubclass(kind, _REFUSED):
        return 3
    return 4 if transient else 1


def report(error: BaseException, *, as_json: bool) -> int:
    """Show ``error`` on stderr and return the exit code.

    Raises:
        BaseException: ``error`` itself, if it is none that a user can cause: a bug needs its traceback.
    """
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not as_json:
        click.echo(error.format_message(), err=True)
        return 2
    if isinstance(error, BaseExceptionGroup):
        leaves = list(_leaves(error))
        if all(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
            return 130
        expected = [leaf for leaf in leaves if isinstance(leaf, (QueueError, Failure))]
        if len(expected) < len(leaves):
            raise error
        return max([report(leaf, as_json=as_json) for leaf in expected])
    fields = _NO_FIELDS
    if isinstance(error, Failure):
        message, problems, kind, code = str(error), error.problems, error.kind, error.code
        fields = error.fields
    elif isinstance(error, QueueError):
        problems = getattr(error, "problems", ())
        text = str(error)
        message = text.partition("\n")[0] if problems else text
        kind, code = type(error).__name__, exit_code(error)
    elif isinstance(error, click.ClickException):
        message, problems, kind, code = error.format_message(), (), "UsageError", 2
        if isinstance(error, click.UsageError) and error.ctx is not None and not as_json:
            click.echo(error.ctx.get_usage(), err=True)
            problems = (f"see '{error.ctx.command_path} --help'",)
    else:
        raise error
    message = _clean(message)
    problems = tuple(_clean(problem) for problem in problems)
    if as_json:
        details = {"error": kind, "message": message, "problems": problems, **fields}
        click.echo(json.dumps(details), err=True)
    else:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
        for problem in problems:
            click.echo(f"  {problem}", err=True)
    return code


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _clean(text: str) -> str:
    """Text of an error without credentials and without anything that moves a terminal's cursor."""
    return "\n  ".join(escape(line, _LINE) for line in scrub(text).splitlines())


def print_json(value: Any) -> None:
    """One JSON value on a line of stdout."""
    click.echo(json.dumps(value, ensure_ascii=False))


def ask(question: str, *, yes: bool, as_json: bool) -> None:
    """Ask on a terminal before something that cannot be undone.

    ``--yes`` and ``--json`` (a machine is calling) answer for the user; without them somebody must be there.

    Raises:
        Failure: Nobody is there.
        click.Abort: The answer is no.
    """
    if yes or as_json:
        return
    if not sys.stdin.isatty():
        raise Failure(
            "nobody to ask: add --yes to go on without a question", code=2, kind="UsageError"
        )
    click.confirm(question, abort=True, err=True)


def console(*, stderr: bool = False) -> Console:
    """A rich console that leaves texts as they are: no markup, no emoji codes, no highlighting."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Into a file or a pipe, a table may be as wide as it needs to be.
    width = None if stream.isatty() else 200
    return Console(
        file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False
    )


def plural(count: int, noun: str) -> str:
    """``1 message``, ``2,000 messages``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def size(count: int) -> str:
    """Bytes for people."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:.1f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"


def moment(time: datetime | None) -> str | None:
    """A time of day for machines."""
    return None if time is None else time.isoformat()
