"""What ``import queue_runtime`` costs, and that every public name is listed and documented."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest

import queue_runtime

from .fresh_python import run_python

SOURCE = Path(__file__).parent.parent / "src" / "queue_runtime"

NOT_LOADED = {
    "aiobotocore",
    "aiormq",
    "asyncio",
    "azure",
    "botocore",
    "click",
    "confluent_kafka",
    "nats",
    "opentelemetry",
    "redis",
    "rich",
    "sqlite3",
    "structlog",  # loads asyncio and, where it is installed, rich
    "trio_asyncio",
    "yaml",
}
"""Broker SDKs, the terminal UI, and what only a part of the users needs."""


def test_import_loads_nothing_optional() -> None:
    code = (
        "import json, sys\n"
        "before = set(sys.modules)\n"
        "import queue_runtime\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))\n"
    )
    [printed] = run_python(code)
    loaded = {name.split(".")[0] for name in json.loads(printed)}
    assert "queue_runtime" in loaded
    assert loaded & NOT_LOADED == set()


# --- __all__ -----------------------------------------------------------------------------------------


def dotted(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def public_files() -> list[Path]:
    """Modules without an underscore in their path."""
    return [
        path
        for path in sorted(SOURCE.rglob("*.py"))
        if not any(part.startswith("_") for part in dotted(path).split("."))
    ]


def must_have_all(path: Path) -> bool:
    """The package, and each module and package right under it; deeper ones may be internal."""
    return dotted(path).count(".") <= 1


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those under ``if`` and ``try`` included, ``if TYPE_CHECKING`` not."""
    for statement in body:
        if isinstance(statement, ast.If):
            if "TYPE_CHECKING" not in ast.unparse(statement.test):
                yield from statements(statement.body)
            yield from statements(statement.orelse)
        elif isinstance(statement, ast.Try):
            for block in (statement.body, statement.orelse, statement.finalbody):
                yield from statements(block)
            for handler in statement.handlers:
                yield from statements(handler.body)
        else:
            yield statement


def names_in(target: ast.expr) -> Iterator[str]:
    for node in ast.walk(target):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def exported(tree: ast.Module) -> set[str]:
    """Public names that a module defines, or re-exports in the form ``X as X``."""
    names: set[str] = set()
    for statement in statements(tree.body):
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(statement.name)
            case ast.Assign(value=ast.Call(func=ast.Name(id="TypeVar" | "ParamSpec"))):
                pass
            case ast.Assign():
                for target in statement.targets:
                    names.update(names_in(target))
            case ast.AnnAssign():
                names.update(names_in(statement.target))
            case ast.ImportFrom() | ast.Import():
                names.update(a.name for a in statement.names if a.asname == a.name)
            case _:
                pass
    return {name for name in names if not name.startswith("_")}


def declared(tree: ast.Module) -> list[str] | None:
    """The literal ``__all__`` of a module, or ``None``."""
    for statement in tree.body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id="__all__")], value=value)
                | ast.AnnAssign(target=ast.Name(id="__all__"), value=ast.expr() as value)
            ):
                names = ast.literal_eval(value)
                assert isinstance(names, list | tuple)
                return list(names)
            case _:
                pass
    return None


@pytest.mark.parametrize("path", public_files(), ids=dotted)
def test_all_is_what_a_module_exports(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = declared(tree)
    if names is None:
        assert not must_have_all(path), f"{dotted(path)} has no literal __all__"
        return
    assert len(names) == len(set(names)), "a name stands twice"
    public = {name for name in names if not name.startswith("_")}
    imported = {
        alias.asname or alias.name
        for statement in statements(tree.body)
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    found = exported(tree)
    assert found - public == set(), "public names that __all__ lacks"
    assert public - found - imported == set(), "__all__ names what is not there"


# --- the names of the root ----------------------------------------------------------------------------

ROOT_NAMES: list[str] = list(getattr(queue_runtime, "__all__", []))


def documented_members(cls: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties written in the class itself."""
    for name, member in vars(cls).items():
        if not name.startswith("_") and isinstance(
            member, FunctionType | property | classmethod | staticmethod
        ):
            yield name, member


def test_the_root_has_names() -> None:
    assert ROOT_NAMES, "queue_runtime.__all__ is missing or empty"


@pytest.mark.parametrize("name", ROOT_NAMES)
def test_public_name(name: str) -> None:
    value = getattr(queue_runtime, name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return
    assert value.__module__ == "queue_runtime", f"tracebacks would say {value.__module__}.{name}"
    assert value.__doc__, f"{name} has no docstring"
    if inspect.isclass(value):
        bare = [
            member
            for member, _ in documented_members(value)
            if not inspect.getdoc(getattr(value, member))
        ]
        assert not bare, f"{name}: no docstring on {', '.join(bare)}"
