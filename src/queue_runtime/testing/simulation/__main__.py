"""``python -m queue_runtime.testing.simulation``: run seeds, or replay one."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from .planted import PLANTED_BUGS
from .scenario import generate
from .world import simulate


def _seeds(text: str) -> range:
    first, separator, last = text.partition(":")
    try:
        seeds = range(int(first), int(last) if separator else int(first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B with whole numbers") from None
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text!r} is empty: A must be less than B")
    return seeds


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate; 0 when everything held.

    Args:
        arguments: In place of the command line's.
    """
    parser = argparse.ArgumentParser(
        prog="python -m queue_runtime.testing.simulation", description="Deterministic simulation."
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="run one seed and show the verdict and the digest")
    which.add_argument("--seeds", type=_seeds, metavar="A:B", help="run A up to, not including, B")
    parser.add_argument(
        "--trace", action="store_true", help="show the scenario and everything that happens"
    )
    parser.add_argument(
        "--plant", choices=[bug.name for bug in PLANTED_BUGS], help="with this bug planted"
    )
    options = parser.parse_args(arguments)
    seeds = options.seeds or range(options.seed, options.seed + 1)
    failed = 0
    began = time.perf_counter()
    with ExitStack() as stack:
        for bug in PLANTED_BUGS:
            if bug.name == options.plant:
                stack.enter_context(bug.plant())
        for seed in seeds:
            if options.trace:
                sys.stdout.write(f"{generate(seed)}\n")
            result = simulate(seed, trace=options.trace)
            failed += not result.ok
            if options.seed is not None or not result.ok:
                sys.stdout.write(f"{result}\n")
                sys.stdout.flush()  # whoever stops a long run has seen what failed
    seconds = time.perf_counter() - began
    sys.stdout.write(
        f"{len(seeds)} seeds, {failed} failed, {len(seeds) / seconds:.0f} per second\n"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
