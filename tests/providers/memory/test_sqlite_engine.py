"""The engine on disk against the model; and what only a file, several connections and a kill can show."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings

from .engine_machine import EngineMachine
from queue_runtime.providers.memory.engine import Engine, QueueOptions
from queue_runtime.providers.memory.sqlite_engine import SqliteEngine


class SqliteMachine(EngineMachine):
    def make_engine(self, options: QueueOptions) -> Engine:
        self.directory = tempfile.TemporaryDirectory()
        path = Path(self.directory.name) / "machine.db"
        return SqliteEngine(path, options, synchronous="normal")

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "directory"):
            self.directory.cleanup()


TestSqliteMachine = SqliteMachine.TestCase
TestSqliteMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
