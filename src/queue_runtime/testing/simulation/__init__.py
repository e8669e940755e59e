"""Deterministic simulation: the real actors, many nodes, one broker, a bad network, simulated time.

One seed decides the messages, the handlers, the configuration, every fault and the order in which tasks run,
so a run that fails can be had again::

    python -m queue_runtime.testing.simulation --seed 17 --trace

* ``scenario`` draws what is to happen; ``world`` lets it happen and judges; ``nodes`` are the processes;
* ``broker`` is the embedded broker in memory, watched; ``scheduler`` makes trio repeat itself;
* ``planted`` breaks the real code on purpose, to show that the simulation would notice.
"""

from __future__ import annotations

from .planted import PLANTED_BUGS as PLANTED_BUGS
from .planted import PlantedBug as PlantedBug
from .planted import hunt as hunt
from .scenario import Scenario as Scenario
from .scenario import generate as generate
from .scheduler import deterministic as deterministic
from .scheduler import run_deterministically as run_deterministically
from .world import Finding as Finding
from .world import SimulationResult as SimulationResult
from .world import simulate as simulate

__all__ = [
    "PLANTED_BUGS",
    "Finding",
    "PlantedBug",
    "Scenario",
    "SimulationResult",
    "deterministic",
    "generate",
    "hunt",
    "run_deterministically",
    "simulate",
]
