"""The root command: a table of commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, NoReturn, final

import click

from queue_runtime import __version__
from queue_runtime.config.structuring import did_you_mean, shown

from .output import report

__all__ = ["COMMANDS", "INTERRUPTED", "RootGroup", "main", "root"]

INTERRUPTED: Final = 130
"""What shells report for a process ended by Ctrl-C."""


class _Entry(NamedTuple):
    module: str
    attribute: str
    summary: str


def _entry(module: str, attribute: str, summary: str) -> _Entry:
    return _Entry(f"queue_runtime.cli.{module}", attribute, summary)


COMMANDS: Final = {
    "demo": _entry("demo", "demo", "Watch real GitHub webhooks flow through session actors."),
    "run": _entry("run", "run", "Handle a queue's messages with a handler of yours."),
    "send": _entry("send", "send", "Send one message, or a file of them."),
    "receive": _entry("receive", "receive", "Take messages and show them."),
    "peek": _entry("inspect", "peek", "Look at stored messages without taking them."),
    "stats": _entry("inspect", "stats", "Show how a queue stands."),
    "purge": _entry("inspect", "purge", "Delete every waiting and scheduled message for good."),
    "dlq": _entry("dead_letters", "dlq", "Work with dead letters: list, show, export, redrive, purge."),
    "provision": _entry("provision", "provision", "Create a queue where the broker wants it beforehand."),
    "config": _entry("config", "config", "Show or check the configuration."),
    "emulator": _entry("emulator", "emulator", "Run a broker's emulator, for development."),
    "bench": _entry("bench", "bench", "Measure throughput, latency and memory."),
}  # fmt: skip
"""Every command with where it lives and its line in the help, so that showing the help imports none of them."""

_EPILOG: Final = """\b
Examples:
  queue-runtime demo
  queue-runtime send --url sqlite:///jobs.db --queue jobs --jsonl jobs.jsonl
  queue-runtime run --url sqlite:///jobs.db --queue jobs --handler bot:PullRequest
  queue-runtime stats --url sqlite:///jobs.db --queue jobs --json

\b
Exit codes:
    0  everything asked for was done
    1  a part was not done, or something else failed
    2  the command line, the configuration or a value is wrong
    3  the queue does not exist, or the broker refuses the credentials
    4  the broker cannot be reached or is busy; try again later
  130  interrupted
"""


@final
class RootGroup(click.Group):
    """Imports a command when it is called, and turns every expected error into one message on stderr."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command of that name, imported now."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            ctx.fail(f"no command {shown(cmd_name)}{did_you_mean(cmd_name, COMMANDS)}")
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a command and exit; see the package's docstring for the exit codes."""
        arguments = list(sys.argv[1:] if args is None else args)
        before_dashes = arguments[: arguments.index("--")] if "--" in arguments else arguments
        as_json = "--json" in before_dashes
        try:
            # Returns the code of ctx.exit(), or what the command returned.
            code = super().main(
                arguments,
                prog_name=prog_name,
                complete_var=complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except (KeyboardInterrupt, EOFError):
            sys.exit(INTERRUPTED)
        except click.Abort as error:
            click.echo("Aborted.", err=True)
            sys.exit(INTERRUPTED if isinstance(error.__cause__, KeyboardInterrupt) else 1)
        except BaseException as error:
            sys.exit(report(error, as_json=as_json))
        sys.exit(code if isinstance(code, int) else 0)


root: Final = RootGroup(
    name="queue-runtime",
    help="Reliable, strictly ordered message processing on any broker.",
    epilog=_EPILOG,
    params=[],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
"""The command ``queue-runtime``."""
click.version_option(__version__, prog_name="queue-runtime")(root)


def main() -> None:
    """What the installed script and ``python -m queue_runtime`` call."""
    root.main(prog_name="queue-runtime")
