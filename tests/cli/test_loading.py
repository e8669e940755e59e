"""What ``run`` says about handlers and instruments that are none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from queue_runtime import ConfigurationError
from queue_runtime.cli.loading import load_handler, load_instrument

from .conftest import Cli

SOURCE = """
import functools
from queue_runtime import SessionHandler

class Good(SessionHandler):
    async def handle(self, delivery): ...

class Plain:
    async def handle(self, delivery): ...

class Nested:
    class Inner(Good): ...

async def function(delivery): ...

def factory():
    return Good()

partial = functools.partial(Good)

class NoHandle: ...

class SyncHandle:
    def handle(self, delivery): ...

class NeedsArguments(Good):
    def __init__(self, client, *, password): ...

class TooFew:
    async def handle(self): ...

class TooMany:
    async def handle(self, delivery, context): ...

async def no_delivery(): ...

def sync_function(delivery): ...

class Counting:
    def __call__(self, event): ...

counting = Counting()

def makes_text():
    return "text"

def fails():
    raise RuntimeError("no database")

instance = Good()
number = 7
"""


@pytest.fixture
def bot(module: Callable[[str, str], None]) -> None:
    module("a_bot", SOURCE)


@pytest.mark.usefixtures("bot")
@pytest.mark.parametrize(
    "name", ["Good", "Plain", "Nested.Inner", "function", "factory", "partial"]
)
def test_handlers(name: str) -> None:
    assert callable(load_handler(f"a_bot:{name}"))


@pytest.mark.usefixtures("bot")
@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("a_bot", "expected module:Name"),
        ("a_bot:", "expected module:Name"),
        (":Good", "expected module:Name"),
        ("a_bot.py:Good", "there is no module 'a_bot.py'"),
        ("a-bot:Good", "expected module:Name"),
        ("a_bo:Good", "did you mean 'a_bot'?"),
        ("a_bot.inner:Good", "there is no module 'a_bot.inner'"),
        ("a_bot:Goood", "did you mean 'Good'?"),
        ("a_bot:Nested.Outer", "'Nested' has no 'Outer'"),
        ("a_bot:xyz", "there is: Good, "),
        ("a_bot:NoHandle", "NoHandle is not a handler"),
        ("a_bot:SyncHandle", "async def"),
        ("a_bot:NeedsArguments", "cannot be called without arguments"),
        ("a_bot:TooFew", "its parameters are (self)"),
        ("a_bot:TooMany", "its parameters are (self, delivery, context)"),
        ("a_bot:no_delivery", "its parameters are ()"),
        ("a_bot:sync_function", "needs 'async def'"),
        ("a_bot:makes_text", "it returned str"),
        ("a_bot:fails", "RuntimeError: no database"),
        ("a_bot:instance", "instance given"),
        ("a_bot:number", "7 is not a handler"),
        ("queue_runtime:SessionHandler", "is not a handler"),
    ],
)
def test_what_is_no_handler(reference: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_handler(reference)
    assert why in str(caught.value)


@pytest.mark.usefixtures("bot")
@pytest.mark.parametrize("name", ["sync_function", "counting"])
def test_instruments(name: str) -> None:
    assert callable(load_instrument(f"a_bot:{name}"))


@pytest.mark.usefixtures("bot")
@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("a_bot", "names no instrument: expected module:Name"),
        ("a_bot:sync_funktion", "did you mean 'sync_function'?"),
        ("a_bot:function", "cannot wait"),
        ("a_bot:Counting", "got the class Counting"),
        ("a_bot:number", "got int"),
        ("a_bot:factory", "its parameters are ()"),
    ],
)
def test_what_is_no_instrument(reference: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_instrument(reference)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import no_such_package_here", "No module named 'no_such_package_here'"),
        ("def f():\n    raise ValueError('oh no')\nf()", "ValueError: oh no"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported(
    cli: Cli, module: Callable[[str, str], None], source: str, text: str
) -> None:
    module("a_broken_bot", source)
    result = cli.on_queue("run", "--handler", "a_broken_bot:Bot")
    assert result.exit_code == 2
    assert "importing module 'a_broken_bot' failed" in result.stderr
    assert text in result.stderr
    assert "a_broken_bot.py" in result.stderr
    for foreign in ("importlib", "loading.py", "Traceback"):
        assert foreign not in result.stderr


def test_the_users_frames_are_shown(cli: Cli, module: Callable[[str, str], None]) -> None:
    module(
        "a_deep_bot",
        "def inner():\n    raise ValueError('x')\ndef outer():\n    inner()\nouter()\n",
    )
    shown = cli.on_queue("run", "--handler", "a_deep_bot:Bot").stderr
    frames = [line for line in shown.splitlines() if "a_deep_bot.py:" in line]
    assert [frame.partition(" in ")[2] for frame in frames] == [
        "<module>: outer()",
        "outer: inner()",
        "inner: raise ValueError('x')",
    ]
