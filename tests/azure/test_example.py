"""``examples/azure_sessions.py`` runs without arguments, against the emulator it starts itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.blocks import command_environment
from tests.docs.test_examples import ROOT, of, run

from .given import require


def test_azure_sessions(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    require("azure.servicebus", "proton")
    environment = command_environment(tmp_path_factory.mktemp("bin"), ROOT / "src")

    lines = run("azure_sessions", tmp_path, environment)

    assert of(lines, "ann") == [
        "opened with {}",
        "{'tea': 2}",
        "{'tea': 2, 'cups': 6}",
        "opened with {'tea': 2, 'cups': 6}",
        "{'tea': 1, 'cups': 6}",
    ]
    assert of(lines, "bob") == [
        "opened with {}",
        "the warehouse is busy, nails once more",
        "{'nails': 500}",
        "{'nails': 500, 'saw': 1}",
        "opened with {'nails': 500, 'saw': 1}",
        "{'nails': 500, 'saw': 1, 'glue': 1}",
    ]
    assert [line for line in lines if line.endswith("changes")] == ["4 changes", "2 changes"]


def test_a_lone_argument_is_not_ignored(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "azure_sessions.py"), "azure://shop-dev"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "usage: python examples/azure_sessions.py [URL QUEUE]\n"
