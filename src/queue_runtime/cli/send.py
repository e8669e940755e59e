"""``queue-runtime send``: one message, or a file of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, final

import attrs
import click

from queue_runtime import Message, QueueClient, QueueError, QueueName

from .json_lines import BadLine, Lines, build, parse
from .options import Settings, run_async, shared_options
from .output import Failure, console, exit_code, plural, print_json

__all__ = ["send"]

_BATCH: Final = 500
"""Messages in one call of the client: enough to share a transaction, few enough to show progress."""


@final
@attrs.define
class _Tally:
    """What became of the messages so far."""

    sent: int = 0
    duplicates: int = 0
    failed: int = 0


@click.command(
    epilog="""\b
A line of FILE is an object: {"body": "text", "session": "text", "id": "text", "headers": {}}.
Only body is needed; correlation_id, content_type, deduplication_id (text), ttl and delay
(seconds) may be there too, and "body_encoding": "base64" for bodies that are not text.
What 'dlq export' writes can be sent again as it is.

\b
A line that is no message ends the command: the lines before it are sent, the count says so,
and the exit code is 1.

\b
Examples:
  queue-runtime send --url sqlite:///jobs.db --queue jobs --jsonl jobs.jsonl
  tail -f jobs.jsonl | queue-runtime send --url sqlite:///jobs.db --queue jobs --jsonl -
  queue-runtime send --url sqlite:///jobs.db --queue jobs --body hello --session customer-7
"""
)
@shared_options
@click.option("--jsonl", metavar="FILE", help="Send each line of FILE; '-' reads standard input.")
@click.option("--body", metavar="TEXT", help="Send one message with this body.")
@click.option("--session", metavar="ID", help="With --body: the session, which keeps its order.")
@click.option("--id", "message_id", metavar="ID", help="With --body: the message's id.")
@click.option(
    "--header",
    "headers",
    metavar="NAME=TEXT",
    multiple=True,
    help="With --body: a header; repeatable.",
)
@click.option("--correlation-id", metavar="ID", help="With --body: what the message belongs to.")
@click.option("--content-type", metavar="TYPE", help="With --body: its MIME type.")
@click.option(
    "--deduplication-id", metavar="ID", help="With --body: drop it if this was seen lately."
)
@click.option("--ttl", type=float, metavar="SECONDS", help="With --body: when it expires.")
@click.option(
    "--delay", type=float, metavar="SECONDS", help="With --body: deliver it that much later."
)
def send(*, settings: Settings, jsonl: str | None, body: str | None, **fields: Any) -> None:
    """Send one message, or a file of them, in order.

    Exits with 0 only when the broker has acknowledged every message.
    """
    if (jsonl is None) == (body is None):
        raise click.UsageError("give either --jsonl FILE or --body TEXT")
    if body is not None:
        run_async(_send_one, settings, _message(body, **fields))
        return
    if any(fields.values()):
        raise click.UsageError(
            "options of a single message need --body; with --jsonl they are keys"
        )
    assert jsonl is not None
    with _opened(jsonl) as stream:
        _send_file(settings, stream)


def _message(body: str, *, session: str | None, headers: tuple[str, ...], **fields: Any) -> Message:
    pairs = {}
    for header in headers:
        name, equals, text = header.partition("=")
        if not equals:
            raise click.UsageError("a header is NAME=TEXT, and one of those given has no '='")
        pairs[name] = text
    # Bytes of the command line that are not UTF-8 arrive as lone surrogates and go out as they came.
    return build(body.encode(errors="surrogateescape"), session_id=session, headers=pairs, **fields)


async def _send_one(settings: Settings, message: Message) -> None:
    async with settings.connect() as (client, queue):
        result = await client.send(queue, message)
    if settings.json:
        print_json(
            {
                "sent": 1,
                "failed": 0,
                "duplicates": int(result.duplicate),
                "id": result.message_id,
                "sequence_number": result.sequence_number,
            }
        )
    else:
        known = " (a duplicate: not stored again)" if result.duplicate else ""
        click.echo(f"sent 1 message to {queue}{known}")


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = Path(name).open("rb")  # noqa: SIM115 - closed below; only opening it is explained
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise Failure(f"{name} cannot be read: {reason}", code=2, kind="FileError") from None
    with stream:
        yield stream


def _send_file(settings: Settings, stream: BinaryIO) -> None:
    tally = _Tally()
    failure: Failure | None = None
    try:
        with _progress(settings, stream, tally) as on_bytes:
            run_async(_send_lines, settings, Lines(stream, on_bytes), tally)
    except BadLine as error:
        tally.failed += 1
        failure = Failure(
            f"{error}. {_rest(tally, error.number)}",
            kind="BadLine",
            fields={"line": error.number, **_counts(tally)},
        )
    except _Refused as error:
        failure = Failure(
            f"line {error.number}: {error.error}. {_rest(tally, error.number)}",
            code=1 if tally.sent else exit_code(error.error),
            kind=type(error.error).__name__,
            fields={"line": error.number, **_counts(tally)},
        )
    except OSError as error:
        failure = Failure(
            f"reading failed: {error.strerror}. {plural(tally.sent, 'message')} sent before",
            kind="FileError",
            fields=_counts(tally),
        )
    except KeyboardInterrupt:
        click.echo(f"interrupted: {plural(tally.sent, 'message')} sent", err=True)
        raise
    if settings.json:
        print_json(_counts(tally))
    else:
        known = (
            f" ({tally.duplicates:,} of them duplicates, not stored again)"
            if tally.duplicates
            else ""
        )
        click.echo(f"sent {plural(tally.sent, 'message')}{known}")
    if failure is not None:
        raise failure


def _counts(tally: _Tally) -> dict[str, int]:
    return attrs.asdict(tally)


def _rest(tally: _Tally, number: int) -> str:
    before = f"{plural(tally.sent, 'message')} sent before it"
    return f"{before}; nothing from line {number} on was" if tally.failed <= 1 else before


@final
class _Refused(Exception):
    """The broker did not take a message."""

    def __init__(self, number: int, error: QueueError) -> None:
        super().__init__(str(error))
        self.number = number
        self.error = error


async def _send_lines(settings: Settings, lines: Lines, tally: _Tally) -> None:
    async with settings.connect() as (client, queue):
        limit = client.capabilities.max_message_bytes
        while chunk := await lines.read():
            batch: list[tuple[int, Message]] = []
            bad: BadLine | None = None
            for number, line in chunk:
                if line and not line.isspace():
                    try:
                        batch.append((number, parse(number, line, limit)))
                    except BadLine as error:
                        bad = error
                        break
            for start in range(0, len(batch), _BATCH):
                await _send_batch(client, queue, batch[start : start + _BATCH], tally)
            if bad is not None:
                raise bad


async def _send_batch(
    client: QueueClient, queue: QueueName, batch: list[tuple[int, Message]], tally: _Tally
) -> None:
    results = await client.send_batch(queue, [message for _, message in batch])
    refused: _Refused | None = None
    for (number, _), result in zip(batch, results, strict=True):
        if result.error is None:
            tally.sent += 1
            tally.duplicates += result.duplicate
        else:
            tally.failed += 1
            refused = refused or _Refused(number, result.error)
    if refused is not None:
        raise refused


@contextmanager
def _progress(
    settings: Settings, stream: BinaryIO, tally: _Tally
) -> Iterator[Callable[[int], object] | None]:
    """A bar on a terminal; by bytes, since the number of lines is not known."""
    if settings.json or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Task as ProgressTask
    from rich.text import Text

    class Sent(ProgressColumn):
        """Drawn from the tally, which moves more often than chunks are read."""

        def render(self, task: ProgressTask) -> Text:
            return Text(f"{tally.sent:,} sent")

    total: int | None = None
    if stream.seekable() and not stream.isatty():
        total = stream.seek(0, 2)
        stream.seek(0)
    columns = (
        SpinnerColumn(),
        Sent(),
        *(() if total is None else (BarColumn(), TimeRemainingColumn())),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("sending", total=total)

        def on_bytes(count: int) -> None:
            progress.advance(task, count)

        yield on_bytes
