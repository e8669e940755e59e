"""``queue-runtime config``: what the configuration is, where it came from, and what is wrong with it."""

from __future__ import annotations

import click

from queue_runtime import ConfigurationError
from queue_runtime.config import explain
from queue_runtime.providers import resolve_provider

from .messages import table
from .options import Settings, shared_options
from .output import Failure, console, plural, print_json

__all__ = ["check", "config", "show"]


@click.group(
    no_args_is_help=True,
    epilog="""\b
Examples:
  queue-runtime config show
  queue-runtime config check --config production.toml
""",
)
def config() -> None:
    """Show or check the configuration."""


@config.command(
    epilog="""\b
Examples:
  queue-runtime config show
  QUEUE_URL=sqlite:///jobs.db queue-runtime config show --changed --json
"""
)
@shared_options
@click.option("--changed", is_flag=True, help="Only what is not a default.")
def show(*, settings: Settings, changed: bool) -> None:
    """Show every setting, its value and where it came from; secrets are masked."""
    found = explain(settings.load())
    if changed:
        found = [setting for setting in found if setting.origin != "default"]
    if settings.json:
        print_json({"settings": [setting._asdict() for setting in found]})
        return
    from rich.text import Text

    rows = table("setting", "value", "origin", fold=("value", "origin"))
    for setting in found:
        style = "dim" if setting.origin == "default" else ""
        rows.add_row(
            setting.path, Text(setting.value, style or "bold"), Text(setting.origin, style)
        )
    console().print(rows)


@config.command(
    epilog="""\b
Exits with 2 if there is any problem. The broker is not contacted.

\b
Example:
  queue-runtime config check --config production.toml
"""
)
@shared_options
def check(*, settings: Settings) -> None:
    """Report everything that is wrong with the configuration and the provider's options."""
    problems: tuple[str, ...] = ()
    try:
        loaded = settings.load()
        if loaded.provider is not None:
            resolve_provider(loaded.provider_source())
    except ConfigurationError as error:
        problems = error.problems or (str(error),)
    if settings.json:
        print_json({"ok": not problems, "problems": problems})
    if problems:
        raise Failure(
            f"the configuration has {plural(len(problems), 'problem')}",
            code=2,
            kind="ConfigurationError",
            problems=problems,
        )
    if not settings.json:
        click.echo("the configuration is in order")
