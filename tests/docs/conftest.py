"""Where the documents are, and the environment their commands run in."""

from __future__ import annotations

from pathlib import Path

import pytest

from .blocks import command_environment

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For child processes: the package from this source tree, warnings as errors, no colours."""
    return command_environment(tmp_path_factory.mktemp("bin"), ROOT / "src")
