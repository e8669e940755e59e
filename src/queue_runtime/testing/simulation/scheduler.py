"""Makes a trio run repeat itself exactly; the only place that reaches into trio for it.

trio runs the tasks that are ready in an order it shuffles on purpose. With its private switch
``trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING`` it first sorts them by age, and then the shuffle depends on
nothing but its private random source ``_r``: seeded, it gives the same order every time. trio keeps both for
Hypothesis' plugin and pytest-trio, and offers no public way to them. Should they vanish, :func:`deterministic`
says so, and the test of this module fails before any simulation does.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
import trio.testing

__all__ = ["deterministic", "run_deterministically"]

T = TypeVar("T")


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Within the block, trio's scheduler and the global :mod:`random` depend on ``seed`` alone.

    Everything is put back afterwards. The cyclic garbage collector rests meanwhile: it would run finalizers,
    and with them tasks, at moments of its own choosing.

    Raises:
        RuntimeError: This version of trio has no such switch.
    """
    run: Any = trio._core._run
    if not hasattr(run, "_ALLOW_DETERMINISTIC_SCHEDULING") or not hasattr(run, "_r"):
        raise RuntimeError(
            f"trio {trio.__version__} has no deterministic scheduling as known here: "
            "adapt queue_runtime.testing.simulation.scheduler"
        )
    allowed, order, numbers = (
        run._ALLOW_DETERMINISTIC_SCHEDULING,
        run._r.getstate(),
        random.getstate(),
    )
    collects = gc.isenabled()
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r.seed(seed)
    random.seed(seed)
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
        random.setstate(numbers)
        run._r.setstate(order)
        run._ALLOW_DETERMINISTIC_SCHEDULING = allowed


def run_deterministically(seed: int, main: Callable[..., Awaitable[T]], *args: Any) -> T:
    """``trio.run(main, *args)`` under a mock clock that jumps whenever nothing is left to do, by ``seed``."""
    with deterministic(seed):
        return trio.run(main, *args, clock=trio.testing.MockClock(autojump_threshold=0))
