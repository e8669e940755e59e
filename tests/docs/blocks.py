"""Runs the code blocks of a Markdown document, from top to bottom, in one folder.

========================= =====================================================================================
block                     what happens
========================= =====================================================================================
``python``                is executed; names stay for the blocks below
``output``                is what the ``python`` block above it has to print
``console``               ``$`` lines are executed by a shell; the lines below each are what it has to print
anything with ``:caption:`` is written to a file of that name, and not executed
========================= =====================================================================================

``…`` in expected output stands for any text. A command may fail only if ``$ echo $?`` follows it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser
from sybil.parsers.myst.lexers import DirectiveLexer

TIMEOUT: Final = 60.0
"""Seconds after which a command has failed."""

_PRINTED: Final = "__printed__"
"""Where a document's namespace keeps what its last Python block printed."""

_python = PythonEvaluator()


class Mismatch(AssertionError):
    """A document promises other output than there is."""


def _compare(expected: str, actual: str, example: Example, what: str) -> None:
    pattern = re.escape(_plain(expected)).replace(re.escape("…"), ".*?")
    if re.fullmatch(pattern, _plain(actual), re.DOTALL) is None:
        raise Mismatch(
            f"{example.path}:{example.line}: {what}\nexpected:\n{expected}\n\nprinted:\n{actual}"
        )


def _plain(text: str) -> str:
    """Without empty lines, and every gap and rule as short as it can be: tables vary in width."""
    lines = (re.sub(r"[ ─]{2,}", " ", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _run_python(example: Example) -> None:
    printed = io.StringIO()
    example.namespace.setdefault("__name__", "__main__")
    with contextlib.redirect_stdout(printed):
        _python(example)
    example.namespace[_PRINTED] = printed.getvalue()


def _check_output(example: Example) -> None:
    _compare(example.parsed, example.namespace[_PRINTED], example, "the block above it prints")


def _run_console(environment: Mapping[str, str], example: Example) -> None:
    status = 0
    for prompt in re.split(r"^\$ ", example.parsed, flags=re.MULTILINE)[1:]:
        command, _, expected = prompt.partition("\n")
        while command.endswith("\\"):
            more, _, expected = expected.partition("\n")
            command = f"{command}\n{more}"
        if command == "echo $?":
            _compare(expected, str(status), example, "status of the command above")
            status = 0
            continue
        assert not status, f"{example.path}:{example.line}: a command above {command!r} failed"
        done = subprocess.run(
            ["bash", "-c", command],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            env=environment,
        )
        _compare(expected, done.stdout, example, command)
        status = done.returncode
    assert not status, f"{example.path}:{example.line}: the last command failed"


def _write_file(example: Example) -> None:
    path = Path(example.region.lexemes["options"]["caption"])
    assert not path.is_absolute()
    path.write_text(example.parsed, encoding="utf-8")


def _captioned(document: Document) -> Iterable[Region]:
    for region in DirectiveLexer("code-block")(document):
        assert "caption" in region.lexemes["options"], (
            f"{document.path}: a code-block has no caption"
        )
        region.parsed = region.lexemes["source"]
        region.evaluator = _write_file
        yield region


def run_document(path: Path, folder: Path, environment: Mapping[str, str]) -> int:
    """Run every block of the document in ``folder``; return how many there are."""
    sybil = Sybil(
        parsers=[
            CodeBlockParser("python", _run_python),
            CodeBlockParser("output", _check_output),
            CodeBlockParser("console", partial(_run_console, environment)),
            _captioned,
        ],
        encoding="utf-8",
    )
    count = 0
    with contextlib.chdir(folder):
        for example in sybil.parse(path).examples():
            example.evaluate()
            count += 1
    return count


def command_environment(folder: Path, source: Path) -> dict[str, str]:
    """Environment in which ``queue-runtime``, ``python`` and ``pytest`` are those of this test run.

    Args:
        folder: Where small scripts of these names are put.
        source: The folder of the package, which need not be installed.
    """
    for name, module in (("queue-runtime", "queue_runtime"), ("pytest", "pytest"), ("python", "")):
        script = folder / name
        arguments = f"-m {module}" if module else ""
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        script.chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("QUEUE_")}
    return {
        **inherited,
        "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(source),
        "PYTHONWARNINGS": "error",
        "PYTHONIOENCODING": "utf-8",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",  # so that stdout and stderr come in their order
    }
