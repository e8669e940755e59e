"""The directive ``click-help``: the help of every command of ``queue-runtime``, each in a section of its own."""

from collections.abc import Iterator

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

WIDTH = 86
"""Columns that fit the page."""


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Every command below (and with) ``command``: how it is called, and its help."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, child(below, name, context))


def child(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    return click.Context(
        command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH
    )


class ClickHelp(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        from queue_runtime.cli import root

        sections: list[nodes.Node] = []
        for path, text in commands(root, child(root, "queue-runtime", None)):
            section = nodes.section(ids=[nodes.make_id(path)], names=[path])
            section += nodes.title("", "", nodes.literal("", path))
            section += nodes.literal_block(text, text, language="text")
            self.state.document.note_implicit_target(section, section)
            sections.append(section)
        return sections


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("click-help", ClickHelp)
    return {"version": "1", "parallel_read_safe": True}
