"""What every provider has to do, as cases that anybody can run against a provider.

With pytest::

    from queue_runtime.testing import contract_cases, run_case


    @pytest.mark.parametrize("case", contract_cases(), ids=str)
    def test_contract(case):
        trio.run(run_case, case, environment)

where ``environment`` is a :class:`ContractEnvironment`: how to open a connection, and what the broker is like.
Under pytest-trio the test may be an async function that awaits ``run_case(case, environment)``; its skips are
shown without their reasons then.
Without pytest: :func:`run_contract`, or ``python -m queue_runtime.testing.contract URL``.

The suite is two-sided. What a provider declares in its ``Capabilities`` is proven; what it does not declare must
raise ``Unsupported``. Cases that do not apply are skipped with the reason.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

from .bench import Bench, expect, expect_equal, expect_refused, expect_unsupported, skip
from .core import Case, ContractEnvironment, ContractViolated, case, unsupported_case
from .runner import CaseResult, ContractReport, Verdict, contract_cases, run_case, run_contract

__all__ = [
    "Bench",
    "Case",
    "CaseResult",
    "ContractEnvironment",
    "ContractReport",
    "ContractViolated",
    "Verdict",
    "case",
    "contract_cases",
    "expect",
    "expect_equal",
    "expect_refused",
    "expect_unsupported",
    "run_case",
    "run_contract",
    "skip",
    "unsupported_case",
]

_TOPICS: Final = (
    "roundtrip",
    "receive",
    "receipts",
    "sessions",
    "ordering",
    "dead_letters",
    "scheduling",
    "expiry",
    "deduplication",
    "batches",
    "queues",
    "hostile",
    "closing",
    "load",
    "processes",
)

# Importing a topic registers its cases; the order here is the order of the suite.
for _topic in _TOPICS:
    import_module(f"{__name__}.{_topic}")
