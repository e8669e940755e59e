"""Tables made from the code, so that they cannot differ from it; and signatures without what is nobody's business.

``options-table module.Class``
    The fields of an attrs class with their defaults and what its docstring says about them.
``environment-table``
    Every environment variable that is read.
``presets-table``
    What each preset sets.
"""

import enum
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

_ARGUMENT = re.compile(r"^    (\w+): (.*(?:\n {6,}.*)*)", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?([^`]+)`")


def meanings(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say about each of the fields, in one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        arguments = (inspect.getdoc(base) or "").partition("Args:\n")[2]
        for name, text in _ARGUMENT.findall(arguments):
            found[name] = _ROLE.sub(r"``\1``", " ".join(text.split()))
    return found


def default(field: "attrs.Attribute[Any]") -> str:
    value = field.default
    if value is attrs.NOTHING:
        return "required"
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]  # a class at run time
        if value.takes_self:
            return "see right"
        value = value.factory()
        if value == {}:
            return "empty"
        if attrs.has(type(value)):
            return "see below"
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool) or value is None:
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:.4g}`"
    return f"`{value}`" if value != "" else "empty"


class Table(SphinxDirective):
    """A directive whose content is a table that :meth:`rows` makes; cells are Markdown."""

    headings: Sequence[str]

    def rows(self) -> Iterable[Sequence[str]]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        lines = [self.headings, ["---"] * len(self.headings), *self.rows()]
        text = "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        made = self.parse_text_to_nodes(text)
        for node in made:
            if isinstance(node, nodes.table):
                node["classes"].append(self.name)
        return made


class OptionsTable(Table):
    required_arguments = 1
    headings = ("name", "default", "meaning")

    def rows(self) -> Iterator[Sequence[str]]:
        module, _, name = self.arguments[0].rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        texts = meanings(cls)
        for field in attrs.fields(cls):
            if field.name in texts and not field.metadata:
                yield f"`{field.name}`", default(field), texts[field.name]


class EnvironmentTable(Table):
    headings = ("variable", "meaning, and what it sets")

    def rows(self) -> Iterator[Sequence[str]]:
        from queue_runtime.config import ENVIRONMENT

        for variable in ENVIRONMENT:
            paths = ", ".join(f"`{path}`" for path in variable.paths)
            twin = f" (also `{variable.name}_FILE`)" if variable.secret else ""
            yield f"`{variable.name}`", f"{variable.meaning}{twin}: {paths}"


class PresetsTable(Table):
    headings = ("preset", "sets")

    def rows(self) -> Iterator[Sequence[str]]:
        from queue_runtime.config import PRESETS

        for name, settings in PRESETS.items():
            leaves = [f"`{path} = {value}`" for path, value in self.leaves(settings, "")]
            yield f"`{name}`", ", ".join(leaves)

    def leaves(self, settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in settings.items():
            if isinstance(value, Mapping):
                yield from self.leaves(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value


def hide_constructors(
    _app: Sphinx, what: str, _name: str, obj: Any, *_rest: Any
) -> tuple[str, None] | None:
    """No signature for what users do not make themselves, and for classes with their arguments listed anyway."""
    if what in ("class", "exception") and (
        attrs.has(obj)
        or issubclass(obj, enum.Enum)
        or re.search(r"[Nn]o public constructor|Made by", obj.__doc__ or "")
    ):
        return "", None
    return None


def restore_modules() -> None:
    """Undo that public names claim to live in the package itself: autodoc reads order and comments from the source."""
    homes: dict[int, tuple[Any, str]] = {}
    modules = sorted(
        (name for name in sys.modules if name.startswith("queue_runtime.")),
        key=lambda name: name.count("."),
    )
    for name in modules:  # the deepest module that lists an object is the one that defines it
        for public in getattr(sys.modules[name], "__all__", ()):
            value = getattr(sys.modules[name], public)
            if getattr(value, "__module__", None) == "queue_runtime":
                homes.setdefault(id(value), (value, ""))
            if id(value) in homes:
                homes[id(value)] = (value, name)
    for value, name in homes.values():
        value.__module__ = name


def setup(app: Sphinx) -> ExtensionMetadata:
    restore_modules()
    app.add_directive("options-table", OptionsTable)
    app.add_directive("environment-table", EnvironmentTable)
    app.add_directive("presets-table", PresetsTable)
    app.connect("autodoc-process-signature", hide_constructors)
    return {"version": "1", "parallel_read_safe": True}
