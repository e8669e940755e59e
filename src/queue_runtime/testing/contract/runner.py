"""Running cases: one at a time for a test framework, or all of them with a report."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterable
from typing import final
from unittest import SkipTest

import attrs
import trio

from .bench import Bench
from .core import CASES, Case, ContractEnvironment

__all__ = ["CaseResult", "ContractReport", "Verdict", "contract_cases", "run_case", "run_contract"]


def contract_cases() -> list[Case]:
    """Every case. ``str(case)`` is its name, good as a test's id."""
    return list(CASES.values())


def _lone_error(group: BaseException) -> BaseException:
    """What a group of groups holds if it is a single error; nurseries wrap each of theirs."""
    while isinstance(group, BaseExceptionGroup) and len(group.exceptions) == 1:
        group = group.exceptions[0]
    return group


def _skipped(reason: str) -> BaseException:
    """What the test framework in charge takes for a skipped test."""
    pytest = sys.modules.get("pytest")  # never imported by us
    return SkipTest(reason) if pytest is None else pytest.skip.Exception(reason)


async def run_case(case: Case, environment: ContractEnvironment) -> None:
    """Run one case against a fresh connection and a fresh queue, for a test framework.

    Args:
        case: One of :func:`contract_cases`.
        environment: The broker.

    Raises:
        ContractViolated: The provider does not keep this part of the contract.
        unittest.SkipTest: The case does not apply; the text says why. Where pytest is loaded, its own way to
            say so is used.
        trio.TooSlowError: The case did not end in time.
    """
    try:
        await _run(case, environment)
    except SkipTest as skipped:
        raise _skipped(str(skipped)) from None


async def _run(case: Case, environment: ContractEnvironment) -> None:
    open_provider = environment.open_provider
    if environment.open_unhurried is not None and not case.waits:
        open_provider = environment.open_unhurried
    provider = await open_provider()
    bench = Bench(environment, provider, open_provider)
    try:
        reason = case.reason_to_skip(provider.capabilities, environment)
        if reason is not None:
            raise SkipTest(reason)
        with trio.fail_after(environment.case_timeout):
            await case.run(bench)
    except BaseExceptionGroup as group:
        raise _lone_error(group) from group
    finally:
        with trio.CancelScope(shield=True):
            with trio.move_on_after(environment.patience):
                await bench.aclose()
            with trio.move_on_after(environment.patience):
                await provider.aclose()


class Verdict(enum.Enum):
    """What came of a case."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@final
@attrs.frozen
class CaseResult:
    """One case's outcome.

    Args:
        case: The case.
        verdict: What came of it.
        seconds: How long it took.
        error: What it raised; ``None`` when it passed.
    """

    case: Case
    verdict: Verdict
    seconds: float
    error: Exception | None = None

    def __str__(self) -> str:
        detail = "" if self.error is None else f": {type(self.error).__name__}: {self.error}"
        if isinstance(self.error, SkipTest):
            detail = f": {self.error}"
        return f"{self.verdict.value:7} {self.seconds:6.2f} s  {self.case}{detail}"


@final
@attrs.frozen
class ContractReport:
    """The outcomes of a run.

    Args:
        results: One per case, in the order of the cases.
    """

    results: tuple[CaseResult, ...]

    def of(self, verdict: Verdict) -> tuple[CaseResult, ...]:
        """The results with this verdict."""
        return tuple(result for result in self.results if result.verdict is verdict)

    @property
    def ok(self) -> bool:
        """Whether no case failed and at least one passed."""
        return bool(self.of(Verdict.PASSED)) and not self.of(Verdict.FAILED)

    def __str__(self) -> str:
        counts = ", ".join(f"{len(self.of(verdict))} {verdict.value}" for verdict in Verdict)
        return "\n".join([counts, *map(str, self.of(Verdict.FAILED))])


async def run_contract(
    environment: ContractEnvironment,
    cases: Iterable[Case] | None = None,
    *,
    concurrency: int = 1,
    on_result: Callable[[CaseResult], None] | None = None,
) -> ContractReport:
    """Run cases and report; a failing case does not stop the others.

    Args:
        environment: The broker.
        cases: Which ones; ``None``: all.
        concurrency: How many of the cases that mostly wait may run at the same time. The others run alone.
        on_result: Called after each case, to show progress.
    """
    chosen = contract_cases() if cases is None else list(cases)
    results: dict[str, CaseResult] = {}
    limiter = trio.CapacityLimiter(max(1, concurrency))

    async def run(case: Case) -> None:
        async with limiter:
            began = trio.current_time()
            error: Exception | None = None
            try:
                await _run(case, environment)
            except Exception as raised:
                error = raised
            verdict = Verdict.PASSED if error is None else Verdict.FAILED
            if isinstance(error, SkipTest):
                verdict = Verdict.SKIPPED
            result = CaseResult(case, verdict, trio.current_time() - began, error)
            results[case.name] = result
            if on_result is not None:
                on_result(result)

    for case in chosen:
        if not case.waits:
            await run(case)
    async with trio.open_nursery() as nursery:
        for case in chosen:
            if case.waits:
                nursery.start_soon(run, case)
    return ContractReport(tuple(results[case.name] for case in chosen))
