"""Every example in README.md and docs/ works, and prints what the document says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .blocks import run_document

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
]
EXECUTED = re.compile(r"^```(python|console|output)$|^```\{code-block\}", re.MULTILINE)
LANGUAGES = {"python", "output", "console", "sh", "text", "{code-block}", "{toctree}"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if EXECUTED.search(path.read_text("utf-8"))], ids=name
)
def test_examples_work(path: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    blocks = len(EXECUTED.findall(path.read_text("utf-8")))

    assert run_document(path, tmp_path, environment) == blocks


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_no_python_is_left_out(path: Path) -> None:
    """Python that nobody runs would be in a block of another kind, such as ``py`` or none at all."""
    fences = re.findall(r"^ *```+(.*)$", path.read_text("utf-8"), re.MULTILINE)
    openings = [fence.split()[0] if fence.strip() else "" for fence in fences[::2]]

    assert "" not in openings
    plain = {kind for kind in openings if not kind.startswith("{")}
    assert plain <= LANGUAGES


def test_readme_has_the_commands_that_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    command = re.search(r"word for word: (.+)", ci)

    assert command is not None
    assert f"\n{command[1]}\n" in readme
    assert "\npython -m pip install . && queue-runtime demo\n" in readme


def test_readme_example_is_short() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)

    assert example is not None
    code = [line for line in example[1].splitlines() if line.strip()]
    assert len(code) <= 18
