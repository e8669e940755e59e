"""Python without anything loaded: what an import brings along is seen in an interpreter of its own."""

from __future__ import annotations

import os
import subprocess
import sys

__all__ = ["run_python"]


def run_python(code: str) -> list[str]:
    """The lines that ``code`` prints in a fresh interpreter; it must succeed."""
    # Coverage of the child would import modules before we look.
    env = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return run.stdout.splitlines()
