"""``python -m queue_runtime.testing.contract URL``: prove a provider against the contract, from the command line."""

from __future__ import annotations

import argparse
import sys
from functools import partial

import trio

from ...errors import ConfigurationError
from ...providers import resolve_provider
from . import CaseResult, ContractEnvironment, Verdict, contract_cases, run_contract

HINT = """
Give the URL a short lock and few deliveries, so that the cases about expiry and dead letters are not skipped,
such as sqlite:////tmp/contract.db?lock_duration=1&max_delivery_count=3
"""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m queue_runtime.testing.contract", description=__doc__, epilog=HINT
    )
    parser.add_argument("url", help="the provider's URL; every case uses a queue of its own there")
    parser.add_argument(
        "--only", metavar="TEXT", help="run only the cases whose name contains TEXT"
    )
    parser.add_argument(
        "--exact", action="store_true", help="hold the provider to the embedded broker's semantics"
    )
    parser.add_argument(
        "--concurrency", type=int, default=1, help="run so many of the waiting cases at once"
    )
    parser.add_argument("--tolerance", type=float, default=1.0, help="seconds things may be late")
    return parser.parse_args()


def _show(result: CaseResult) -> None:
    sys.stdout.write(f"{result}\n")
    sys.stdout.flush()


async def _main(arguments: argparse.Namespace) -> int:
    factory, config = resolve_provider(arguments.url)
    environment = ContractEnvironment(
        open_provider=partial(factory.open, config),
        child_url=arguments.url,
        exact=arguments.exact,
        tolerance=arguments.tolerance,
        empty_tolerance=max(0.1, arguments.tolerance / 10),
    )
    cases = [case for case in contract_cases() if (arguments.only or "") in case.name]
    report = await run_contract(
        environment, cases, concurrency=arguments.concurrency, on_result=_show
    )
    sys.stdout.write(f"\n{report}\n")
    if any(result.verdict is Verdict.SKIPPED for result in report.results):
        sys.stdout.write(HINT)
    return 0 if report.ok else 1


if __name__ == "__main__":
    try:
        sys.exit(trio.run(_main, _arguments()))
    except ConfigurationError as error:
        sys.exit(f"error: {error}")
