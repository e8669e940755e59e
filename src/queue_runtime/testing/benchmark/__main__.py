"""Runs one scenario in this process: its order comes as JSON on stdin, its report leaves as JSON on stdout.

A process per scenario keeps the peak memory of one out of the figures of the next; stdin keeps a URL's
credentials out of the process list.
"""

from __future__ import annotations

import json
import sys

import attrs

from .scenarios import Scale, run_scenario
from .workload import Workload

order = json.load(sys.stdin)
report = run_scenario(
    order["scenario"],
    order["url"],
    Workload(**order["workload"]),
    Scale(**order["scale"]),
    may_create=order["may_create"],
)
json.dump(attrs.asdict(report), sys.stdout)
