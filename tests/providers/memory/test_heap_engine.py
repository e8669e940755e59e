"""The engine in memory against the model; what the model leaves open; and that costs stay flat."""

from __future__ import annotations

from hypothesis import settings

from .engine_machine import EngineMachine
from queue_runtime.providers.memory.engine import Engine, QueueOptions
from queue_runtime.providers.memory.heap_engine import HeapEngine, HeapStore


class HeapMachine(EngineMachine):
    def make_engine(self, options: QueueOptions) -> Engine:
        return HeapEngine(HeapStore(), options)


TestHeapMachine = HeapMachine.TestCase
TestHeapMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
