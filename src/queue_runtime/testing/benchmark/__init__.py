"""The benchmark behind ``queue-runtime bench``: the runtime beside bare programs, in one run.

The machine it runs on may be small and noisy, so nothing here is a test of absolute speed: every figure
stands beside that of a hand-written program doing the same work at the same moment, and the ratio counts.
"""

from .scenarios import SCENARIOS as SCENARIOS
from .scenarios import Report as Report
from .scenarios import Row as Row
from .scenarios import Scale as Scale
from .scenarios import run_scenario as run_scenario
from .workload import Workload as Workload

__all__ = ["SCENARIOS", "Report", "Row", "Scale", "Workload", "run_scenario"]
