"""Tools for testing providers and programs; nothing here imports a test framework.

* :func:`check`, :class:`Recorder`, :class:`History`: what happened, and whether it was in order, one at a time
  and without loss; :func:`record_handlers`, :func:`record_settlements` have a supervisor write it down;
* :class:`FaultyProvider`, :class:`Faults`: any provider, with a bad network in front of it;
* :func:`open_tcp_proxy`, :class:`TcpFaultProxy`: the same one level lower, before any TCP server;
* :func:`contract_cases`, :func:`run_case`, :func:`run_contract`: the contract every provider has to keep.
"""

from __future__ import annotations

from .contract import Case as Case
from .contract import CaseResult as CaseResult
from .contract import ContractEnvironment as ContractEnvironment
from .contract import ContractReport as ContractReport
from .contract import ContractViolated as ContractViolated
from .contract import contract_cases as contract_cases
from .contract import run_case as run_case
from .contract import run_contract as run_contract
from .faults import NO_FAULTS as NO_FAULTS
from .faults import Faults as Faults
from .faults import FaultyProvider as FaultyProvider
from .history import Ended as Ended
from .history import History as History
from .history import InvariantViolated as InvariantViolated
from .history import Recorder as Recorder
from .history import Report as Report
from .history import Violation as Violation
from .history import check as check
from .recording import record_handlers as record_handlers
from .recording import record_settlements as record_settlements
from .tcp_proxy import TcpCut as TcpCut
from .tcp_proxy import TcpFaultProxy as TcpFaultProxy
from .tcp_proxy import TcpStatistics as TcpStatistics
from .tcp_proxy import open_tcp_proxy as open_tcp_proxy

__all__ = [
    "NO_FAULTS",
    "Case",
    "CaseResult",
    "ContractEnvironment",
    "ContractReport",
    "ContractViolated",
    "Ended",
    "Faults",
    "FaultyProvider",
    "History",
    "InvariantViolated",
    "Recorder",
    "Report",
    "TcpCut",
    "TcpFaultProxy",
    "TcpStatistics",
    "Violation",
    "check",
    "contract_cases",
    "open_tcp_proxy",
    "record_handlers",
    "record_settlements",
    "run_case",
    "run_contract",
]
