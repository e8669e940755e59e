"""``queue-runtime dlq``: list, show, export, redrive and purge dead letters."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractContextManager,
    aclosing,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from pathlib import Path
from typing import Any, Final, TextIO, TypeAlias, TypeVar, final

import attrs
import click

from queue_runtime import DeadLetterClient, PeekedMessage, QueueName
from queue_runtime.text import escape

from .json_lines import dump_dead_letter
from .messages import body_fields, message_fields, shown_body, since, table
from .options import Settings, run_async, shared_options, yes_option
from .output import Failure, ask, console, moment, plural, print_json, size

__all__ = ["dlq", "export", "list_", "purge", "redrive", "show"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_Change: TypeAlias = Callable[..., Awaitable[int]]
"""``DeadLetterClient.redrive`` or ``purge``, not bound."""

_BATCH: Final = 1_000
"""Dead letters moved or deleted in one call."""
_LISTED: Final = 100
"""Dead letters shown to people when they do not say how many."""


@final
@attrs.frozen
class _Filter:
    """Which dead letters: those that fit all that is given."""

    session: str | None
    ids: tuple[str, ...]
    reason: str | None

    @property
    def everything(self) -> bool:
        return self.session is None and not self.ids and self.reason is None

    def __str__(self) -> str:
        if self.everything:
            return "every dead letter"
        parts = [f"session {escape(self.session)}"] if self.session is not None else []
        parts += [f"reason {escape(self.reason)}"] if self.reason is not None else []
        parts += [plural(len(self.ids), "id")] if self.ids else []
        return f"the dead letters with {' and '.join(parts)}"

    def find(self, letters: DeadLetterClient) -> AsyncIterator[PeekedMessage]:
        return letters.find(
            message_ids=frozenset(self.ids) or None, session_id=self.session, reason=self.reason
        )


def _filter_options(function: _Command) -> _Command:
    """Options that choose dead letters; the command gets them as ``which``."""

    @click.option("--session", metavar="ID", help="Only those of this session.")
    @click.option("--id", "ids", metavar="ID", multiple=True, help="Only this message; repeatable.")
    @click.option("--reason", metavar="TEXT", help="Only those dead-lettered for this reason.")
    @click.option("--all", "everything", is_flag=True, help="All of them; the default.")
    @functools.wraps(function)
    def command(
        *,
        session: str | None,
        ids: tuple[str, ...],
        reason: str | None,
        everything: bool,
        **options: Any,
    ) -> Any:
        which = _Filter(session, ids, reason)
        if everything and not which.everything:
            raise click.UsageError("--all goes without --session, --id and --reason")
        return function(which=which, **options)

    return command  # type: ignore[return-value]  # the same, with the filter's options taken out


@asynccontextmanager
async def _open(settings: Settings) -> AsyncIterator[tuple[DeadLetterClient, QueueName]]:
    async with settings.connect() as (client, queue):
        yield await client.dead_letters(queue), queue


@click.group(
    no_args_is_help=True,
    epilog="""\b
Examples:
  queue-runtime dlq list --url sqlite:///jobs.db --queue jobs
  queue-runtime dlq redrive --url sqlite:///jobs.db --queue jobs --session customer-7
  queue-runtime dlq export --url sqlite:///jobs.db --queue jobs --output dead.jsonl
""",
)
def dlq() -> None:
    """Work with dead letters: list, show, export, redrive, purge."""


def _fields(letter: PeekedMessage, *, headers: bool) -> dict[str, Any]:
    info = letter.dead_letter
    fields = message_fields(letter.message, letter.message_id, letter.sequence_number)
    if not headers:
        fields = {name: fields[name] for name in ("sequence_number", "id", "session", "size")}
    return {
        **fields,
        "reason": None if info is None else info.reason,
        "description": None if info is None else info.description,
        "delivery_count": letter.delivery_count if info is None else info.delivery_count,
        "dead_lettered_at": None if info is None else moment(info.dead_lettered_at),
        "first_failed_at": None if info is None else moment(info.first_failed_at),
        "enqueued_at": moment(letter.enqueued_at),
    }


@dlq.command(
    "list",
    epilog="""\b
Examples:
  queue-runtime dlq list --url sqlite:///jobs.db --queue jobs
  queue-runtime dlq list --url sqlite:///jobs.db --queue jobs --reason SerializationFailed --json
""",
)
@shared_options
@_filter_options
@click.option(
    "--max", "most", type=click.IntRange(1), metavar="N",
    help=f"Most dead letters to list; default: {_LISTED}, with --json all.",
)  # fmt: skip
@click.option("--headers", is_flag=True, help="With --json: the headers too.")
def list_(*, settings: Settings, which: _Filter, most: int | None, headers: bool) -> None:
    """List dead letters, in order, without their bodies."""
    limit = most if most is not None else None if settings.json else _LISTED
    found: list[PeekedMessage] = run_async(_list, settings, which, limit)
    if settings.json:
        print_json({"dead_letters": [_fields(letter, headers=headers) for letter in found]})
        return
    if not found:
        click.echo("no dead letters")
        return
    rows = table(
        "number", "id", "session", "tries", "size", "failed", "reason", "description",
        right=("number", "tries", "size"), fold=("description",),
    )  # fmt: skip
    for letter in found:
        info = letter.dead_letter
        rows.add_row(
            str(letter.sequence_number),
            escape(letter.message_id),
            escape(letter.message.session_id or "-"),
            str(letter.delivery_count if info is None else info.delivery_count),
            size(letter.message.size),
            "" if info is None else since(info.dead_lettered_at),
            "" if info is None else escape(info.reason),
            "" if info is None else escape(info.description, 200),
        )
    console().print(rows)
    if len(found) == limit:
        click.echo("there may be more: see --max")


async def _list(settings: Settings, which: _Filter, limit: int | None) -> list[PeekedMessage]:
    found: list[PeekedMessage] = []
    async with _open(settings) as (letters, _), aclosing(which.find(letters)) as each:  # type: ignore[type-var]
        async for letter in each:
            found.append(letter)
            if len(found) == limit:
                break
    return found


@dlq.command(
    epilog="""\b
Examples:
  queue-runtime dlq show --url sqlite:///jobs.db --queue jobs 42
  queue-runtime dlq show --url sqlite:///jobs.db --queue jobs order-7 --show-body
"""
)
@shared_options
@click.argument("message", metavar="NUMBER|ID")
@click.option("--show-body", is_flag=True, help="Show the body, which is hidden otherwise.")
def show(*, settings: Settings, message: str, show_body: bool) -> None:
    """Show everything about one dead letter, named by its sequence number or its id."""
    letter: PeekedMessage | None = run_async(_find_one, settings, message)
    if letter is None:
        raise Failure(
            f"no dead letter has the number or id {escape(message)!r}: see 'queue-runtime dlq list'",
            code=3,
            kind="NotFound",
        )
    fields = _fields(letter, headers=True)
    if settings.json:
        print_json({**fields, **(body_fields(letter.message.body) if show_body else {})})
        return
    from rich.text import Text

    rows = table("", " ", fold=(" ",))
    rows.show_header = False
    headers = fields.pop("headers")
    for name, value in [*fields.items(), *((f"header {n}", t) for n, t in headers.items())]:
        if value not in (None, ""):
            text = size(value) if name == "size" else escape(str(value), 4_096)
            rows.add_row(Text(escape(name.replace("_", " ")), "bold"), Text(text))
    if show_body:
        rows.add_row(Text("body", "bold"), Text(shown_body(letter.message, 100_000)))
    console().print(rows)


async def _find_one(settings: Settings, wanted: str) -> PeekedMessage | None:
    async with _open(settings) as (letters, _):
        if wanted.isascii() and wanted.isdigit() and len(wanted) < 19 and int(wanted) > 0:
            page = await letters.list(max_messages=1, after=int(wanted) - 1)
            if page and page[0].sequence_number == int(wanted):
                return page[0]
        async with aclosing(letters.find(message_ids={wanted})) as found:  # type: ignore[type-var]
            async for letter in found:
                return letter
    return None


@dlq.command(
    epilog="""\b
A line holds body, id, session, headers … as 'queue-runtime send --jsonl' reads them, and under
dead_letter why and when it failed. Bodies that are not UTF-8 are base64, marked by
"body_encoding": "base64".

\b
Example:
  queue-runtime dlq export --url sqlite:///jobs.db --queue jobs --output dead.jsonl
"""
)
@shared_options
@_filter_options
@click.option(
    "--output", metavar="FILE", help="Write here, readable only by you; default, and -: stdout."
)
def export(*, settings: Settings, which: _Filter, output: str | None) -> None:
    """Write dead letters as JSON lines, bodies included; they stay where they are."""
    with _destination(output) as stream:
        count = run_async(_export, settings, which, stream)
    if settings.json:
        click.echo(f'{{"exported": {count}}}', err=True)
    else:
        click.echo(f"exported {plural(count, 'dead letter')}", err=True)


@contextmanager
def _destination(name: str | None) -> Iterator[TextIO]:
    if name is None or name == "-":
        yield sys.stdout
        return
    try:
        descriptor = os.open(Path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise Failure(f"{name} cannot be written: {reason}", code=2, kind="FileError") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        yield stream


async def _export(settings: Settings, which: _Filter, stream: TextIO) -> int:
    count = 0
    async with _open(settings) as (letters, _):
        async for letter in which.find(letters):
            click.echo(dump_dead_letter(letter), file=stream)
            count += 1
    return count


@dlq.command(
    epilog="""\b
Every session's messages go back in their original order, with their delivery counts at zero.
Asks first, unless --yes or --json is given.

\b
Examples:
  queue-runtime dlq redrive --url sqlite:///jobs.db --queue jobs
  queue-runtime dlq redrive --url sqlite:///jobs.db --queue jobs --id order-7 --yes
"""
)
@shared_options
@_filter_options
@yes_option
def redrive(*, settings: Settings, which: _Filter, yes: bool) -> None:
    """Move dead letters back into their queue, each session in its original order."""
    question = "Move {which} of {queue} back into the queue?"
    _change(settings, which, DeadLetterClient.redrive, question, "redriven", yes=yes)


@dlq.command(
    epilog="""\b
Asks first, unless --yes or --json is given.

\b
Example:
  queue-runtime dlq purge --url sqlite:///jobs.db --queue jobs --reason TimeToLiveExpired
"""
)
@shared_options
@_filter_options
@yes_option
def purge(*, settings: Settings, which: _Filter, yes: bool) -> None:
    """Delete dead letters for good."""
    question = "Delete {which} of {queue} for good?"
    _change(settings, which, DeadLetterClient.purge, question, "purged", yes=yes)


def _change(
    settings: Settings, which: _Filter, change: _Change, question: str, done: str, *, yes: bool
) -> None:
    """Ask, change, tell how many were ``done``. ``question`` has places for ``which`` and ``queue``."""
    queue = settings.queue_of(settings.load())
    ask(question.format(which=which, queue=queue), yes=yes, as_json=settings.json)
    count = run_async(_apply, settings, which, change)
    if settings.json:
        print_json({done: count})
    else:
        click.echo(f"{done} {plural(count, 'dead letter')}")


async def _apply(settings: Settings, which: _Filter, change: _Change) -> int:
    async with _open(settings) as (letters, queue):
        if which.everything:
            return await change(letters)
        numbers = [letter.sequence_number async for letter in which.find(letters)]
        count = 0
        with _progress(settings, queue, len(numbers)) as advance:
            # From the front, so that a session's order is kept also between the calls.
            for start in range(0, len(numbers), _BATCH):
                count += await change(letters, numbers[start : start + _BATCH])
                advance(min(_BATCH, len(numbers) - start))
        return count


def _progress(
    settings: Settings, queue: str, total: int
) -> AbstractContextManager[Callable[[int], object]]:
    """A bar on a terminal when there is more than one call to make."""
    if settings.json or total <= _BATCH or not sys.stderr.isatty():
        return nullcontext(lambda _count: None)
    return _bar(queue, total)


@contextmanager
def _bar(queue: str, total: int) -> Iterator[Callable[[int], object]]:
    from rich.progress import Progress

    with Progress(console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(queue, total=total)
        yield lambda count: progress.advance(task, count)
