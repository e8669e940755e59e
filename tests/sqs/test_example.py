"""``examples/sqs_fifo_bot.py`` runs without arguments, against the emulator it starts itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.docs.blocks import command_environment
from tests.docs.test_examples import ROOT, of, run


def test_sqs_fifo_bot(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("ministack")
    environment = command_environment(tmp_path_factory.mktemp("bin"), ROOT / "src")

    lines = run("sqs_fifo_bot", tmp_path, environment)

    assert lines[1].startswith("pull-requests.fifo: created")
    assert of(lines, "octo/site/pull_request/7") == [
        "opened",
        "synchronize: GitHub is busy, once more",
        "synchronize",
        "closed",
    ]
    assert of(lines, "octo/site/pull_request/8") == ["opened", "closed"]
    assert lines[-1] == "5 webhooks"
