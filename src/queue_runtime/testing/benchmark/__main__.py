"""Runs one scenario in this process: its order comes as JSON on stdin, its report leaves as JSON on stdout.

So does an error of the runtime, with an exit code of 1; any other error is a traceback on stderr.

A process per scenario keeps the peak memory of one out of the figures of the next; stdin keeps a URL's
credentials out of the process list.
"""

from __future__ import annotations

import json
import sys

import attrs

from queue_runtime.errors import QueueError

from .scenarios import Scale, run_scenario
from .workload import Workload

order = json.load(sys.stdin)
try:
    report = run_scenario(
        order["scenario"],
        order["url"],
        Workload(**order["workload"]),
        Scale(**order["scale"]),
        may_create=order["may_create"],
    )
except* QueueError as group:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, QueueError)
    details = {
        "error": type(error).__name__,
        "message": str(error),
        "problems": getattr(error, "problems", ()),
        "transient": error.is_transient,
    }
    json.dump(details, sys.stdout)
    sys.exit(1)
json.dump(attrs.asdict(report), sys.stdout)
