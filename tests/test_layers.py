"""The architecture as a table, and a test that holds every module to it.

Read ``LAYERS`` from top to bottom: a module imports from rows above its own, never from rows below.
``THIRD_PARTY`` then says which outside packages may be imported where. Imports inside functions count like
any other; only those under ``if TYPE_CHECKING:`` are exempt.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "queue_runtime"
SOURCE = Path(__file__).parent.parent / "src" / PACKAGE


class Layer(NamedTuple):
    """One row: a module ``queue_runtime.NAME`` or a package of that name with all that is in it."""

    name: str
    purpose: str
    uses: tuple[str, ...] | None = None
    """The only rows above that it may import; ``None`` means all of them."""


SHARED = (
    "asyncio_bridge",
    "doubtful",
    "envelope",
    "http_headers",
    "leases",
    "malformed",
    "option_checks",
    "received",
    "wire_ids",
)
"""What lies in ``providers/`` and is no provider but a help to all of them."""

VALUES = ("errors", "secret", "text", "serialization", "messages", "session_keys", "handlers")

LAYERS = (
    Layer("errors", "one root, one flat family: every failure a user can meet"),
    Layer("secret", "a value that never shows itself: repr, logs, errors"),
    Layer("text", "text from elsewhere made safe to show"),
    Layer("serialization", "JSON and typed payloads through cattrs; `problem @ path`"),
    Layer("messages", "frozen values: Message, Delivery, QueueName, SessionId, Capabilities"),
    Layer("session_keys", "strategies that derive a SessionId from a payload"),
    Layer("abc", "the ports: all that the author of a provider implements"),
    Layer("handlers", "what a user writes: handler classes and the outcomes they return"),
    Layer("policies", "pure decisions over values: no trio, no I/O, no clock of their own", VALUES),
    Layer("config", "frozen configuration values and the layered loader"),
    Layer("instrumentation", "frozen events, hooks, one file per sink; wraps the ports once"),
    Layer(
        "providers",
        "adapters to brokers; one package each, which never imports another",
        ("errors", "secret", "text", "serialization", "messages", "abc", "config"),
    ),
    Layer(
        "actors",
        "supervisor, dispatcher, sessions, breaker, settlement: they know ports, not providers",
        (*VALUES, "abc", "policies", "config", "instrumentation"),
    ),
    Layer("client", "the imperative API over one provider"),
    Layer("middleware", "composed around handlers: retry, timeout, deduplication"),
    Layer("__init__", "the public names, one page; loads no broker SDK and no terminal UI"),
    Layer("testing", "public: contract suite, fault proxies, simulation"),
    Layer("cli", "commands, built from public names only"),
    Layer("__main__", "`python -m queue_runtime`", ("cli",)),
)

THIRD_PARTY = {
    # an outside package: the layers (or `layer/part`s of them) that may import it
    "asyncio": ("providers", "testing/benchmark/raw"),
    "sqlite3": ("providers",),
    "cattrs": ("serialization", "config"),
    "yaml": ("config", "cli"),
    "structlog": ("instrumentation", "cli"),
    "opentelemetry": ("instrumentation",),
    "click": ("cli",),
    "rich": ("cli",),
    "azure": ("providers/azure", "testing/benchmark/raw/azure"),
    "aiobotocore": ("providers/sqs", "testing/benchmark/raw/sqs"),
    "botocore": ("providers/sqs",),
    "redis": ("providers/redis",),
    "nats": ("providers/nats",),
    "aiormq": ("providers/rabbitmq",),
    "confluent_kafka": ("providers/kafka",),
    "proton": ("testing/servicebus",),
    "pickle": (),
    "trio_asyncio": (),
}

# fmt: off
IMPURE = {
    "asyncio", "concurrent", "multiprocessing", "signal", "threading", "trio", "trio_util",  # waits
    "os", "pathlib", "shutil", "sqlite3", "subprocess", "tempfile",  # the machine
    "http", "selectors", "socket", "ssl", "urllib",  # the network
    "logging", "structlog", "time",
}
# fmt: on
"""What ``policies`` may not import: anything that waits, touches the outside or reads a clock."""

ORDER = {layer.name: position for position, layer in enumerate(LAYERS)}
BY_NAME = {layer.name: layer for layer in LAYERS}


# --- reading the sources ---------------------------------------------------------------------------


class Import(NamedTuple):
    line: int
    module: str
    name: str | None
    """The imported name; ``None`` when the whole module is imported."""


def modules() -> dict[str, Path]:
    """Dotted names of all modules of the package; a package's name is its ``__init__``."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below ``node`` but for the bodies of ``if TYPE_CHECKING:``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and is_type_checking(child.test):
            for other in child.orelse:
                yield other
                yield from runtime_nodes(other)
            continue
        yield child
        yield from runtime_nodes(child)


def imports(module: str, source: str, *, is_package: bool) -> Iterator[Import]:
    """Every import that happens at run time, with relative ones made absolute."""
    for node in runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                drop = node.level - is_package
                anchor = ".".join(parents[: len(parents) - drop])
                base = f"{anchor}.{base}" if base else anchor
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                if submodule in MODULES:
                    yield Import(node.lineno, submodule, None)
                else:
                    yield Import(node.lineno, base, alias.name)


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def provider_of(module: str) -> str | None:
    """The provider whose package a module belongs to; ``None`` for what all providers share."""
    parts = module.split(".")
    if layer_of(module) == "providers" and len(parts) > 2 and parts[2] not in SHARED:
        return parts[2]
    return None


# --- the rules -------------------------------------------------------------------------------------


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What a module imports against the table, one line each; empty when all is well."""
    layer = layer_of(module)
    if layer not in BY_NAME:
        return [f"{module}: no row of LAYERS is named {layer!r}; give the module its place first"]
    problems = []
    for found in imports(module, source, is_package=is_package):
        own = found.module.split(".")[0] == PACKAGE
        problem = (
            own_problem(module, layer, found) if own else outside_problem(module, layer, found)
        )
        if problem:
            what = found.module if found.name is None else f"{found.name} from {found.module}"
            problems.append(f"{module}:{found.line}: imports {what}: {problem}")
    return problems


def own_problem(module: str, layer: str, found: Import) -> str | None:
    target = layer_of(found.module)
    if target == layer:
        theirs = provider_of(found.module)
        if theirs is not None and provider_of(module) not in {theirs, None}:
            return "a provider never imports another one"
        return None
    if target not in BY_NAME:
        return f"no row of LAYERS is named {target!r}"
    if ORDER[target] > ORDER[layer]:
        return f"{target!r} is below {layer!r} in the table; imports point upwards in it"
    allowed = BY_NAME[layer].uses
    if allowed is not None and target not in allowed:
        return f"{layer!r} uses only {', '.join(allowed)}"
    if layer == "cli":
        return public_problem(found)
    return None


def public_problem(found: Import) -> str | None:
    """Why an import is not of a public name; dunder names such as ``__version__`` are public."""
    names = [*found.module.split("."), *([found.name] if found.name else [])]
    if any(name.startswith("_") and not name.endswith("__") for name in names):
        return "the command line uses public names only"
    return None


def outside_problem(module: str, layer: str, found: Import) -> str | None:
    root = found.module.split(".")[0]
    if layer == "policies" and root in IMPURE:
        return "policies are pure: they take what they need as arguments"
    places = THIRD_PARTY.get(root)
    if places is None:
        return None
    parts = module.split(".")[1:]
    here = {"/".join(parts[:length]) for length in range(1, len(parts) + 1)} or {layer}
    if here.isdisjoint(places):
        return f"only {' and '.join(places)} may" if places else "nothing here may"
    return None


# --- the tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_downwards(module: str) -> None:
    path = MODULES[module]
    found = violations(
        module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py"
    )
    assert not found, "\n".join(found)


def test_the_table_names_only_what_comes_before() -> None:
    for layer in LAYERS:
        for name in layer.uses or ():
            assert ORDER[name] < ORDER[layer.name], (layer.name, name)
    assert len(ORDER) == len(LAYERS)


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("errors", "from .messages import Message", "below"),
        ("errors", "from queue_runtime import messages", "below"),
        ("errors", "import queue_runtime", "below"),
        ("errors", "def f():\n    from queue_runtime.cli import main", "below"),
        ("policies.backoff", "import trio", "pure"),
        ("policies.backoff", "from queue_runtime.abc import Provider", "uses only"),
        ("policies.backoff", "from ..abc import Provider", "uses only"),
        ("actors.session", "from queue_runtime.providers.memory import open_provider", "uses only"),
        ("actors.session", "import asyncio", "only providers and testing/benchmark/raw may"),
        ("testing.benchmark.bare", "import asyncio", "only providers and"),
        (
            "providers.sqs.codec",
            "from queue_runtime.providers.memory import open_provider",
            "another",
        ),
        ("providers.sqs.codec", "import nats.aio", "only providers/nats may"),
        ("testing.contract.core", "from proton import Message", "only testing/servicebus may"),
        ("messages", "import pickle", "nothing here may"),
        ("cli.demo", "from queue_runtime._hidden import name", "LAYERS"),
        ("cli.demo", "from queue_runtime.client import _name", "public names"),
        ("cli.demo", "from queue_runtime.testing._suite import run", "public names"),
        ("surprise", "import json", "no row"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str, expected: str) -> None:
    (problem,) = violations(f"{PACKAGE}.{module}", source)
    assert expected in problem


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("messages", "from .errors import QueueError"),
        (
            "messages",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .abc import Lease",
        ),
        ("messages", "import typing\nif typing.TYPE_CHECKING:\n    import trio_asyncio"),
        ("policies.breaker", "from random import Random\nfrom ..messages import Message"),
        ("providers.sqs.codec", "import aiobotocore.session\nfrom ..asyncio_bridge import Bridge"),
        ("providers.sqs.codec", "from .config import SqsConfig"),
        ("testing.benchmark.raw.sqs", "import asyncio\nfrom aiobotocore.session import AioSession"),
        ("testing.servicebus.codec", "from proton import Data\nfrom .queue import Queue"),
        ("cli.demo", "from queue_runtime import __version__, open_client\nimport click, structlog"),
    ],
)
def test_a_lawful_import_passes(module: str, source: str) -> None:
    assert violations(f"{PACKAGE}.{module}", source) == []
