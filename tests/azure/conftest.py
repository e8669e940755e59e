"""What these tests need that not everybody has: the SDK, and the engine that the emulator runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .emulator_process import EmulatorProcess, emulator_process
from .given import is_there

NEEDS = {
    "test_wire.py": ("proton",),
    "test_engine.py": ("proton",),
    "test_server.py": ("proton",),
    "test_emulator.py": ("proton", "azure.servicebus"),
    "test_administration.py": ("proton", "azure.servicebus", "cryptography"),
    "test_conformance.py": ("azure.servicebus",),
    "test_identity.py": ("proton", "azure.servicebus", "azure.identity"),
    "test_machine.py": ("proton", "azure.servicebus"),
    "test_memory.py": ("proton", "azure.servicebus"),
    "test_faults.py": ("proton", "azure.servicebus"),
    "test_broker_faults.py": ("proton", "azure.servicebus"),
    "test_bad_input.py": ("proton", "azure.servicebus"),
    "test_bench.py": ("proton", "azure.servicebus"),
    "test_cancelling.py": ("proton", "azure.servicebus"),
    "test_dead_letters.py": ("proton", "azure.servicebus"),
    "test_close_frame.py": ("proton", "azure.servicebus"),
    "test_switching.py": ("proton", "azure.servicebus"),
    "test_token_refresh.py": ("proton", "azure.servicebus"),
    "test_tries.py": ("proton", "azure.servicebus"),
    "test_websocket.py": ("proton", "azure.servicebus", "wsproto"),
}


MISSING = {
    file: [package for package in packages if not is_there(package)]
    for file, packages in NEEDS.items()
}
IN_CI = bool(os.environ.get("CI"))
collect_ignore = [] if IN_CI else [file for file, packages in MISSING.items() if packages]


def pytest_report_header() -> list[str]:
    """Say why files are left out; under CI nothing is, and their imports fail."""
    return [
        f"tests/azure/{file} is left out: no {', '.join(packages)} here (see tests/azure/README.md)"
        for file, packages in MISSING.items()
        if packages and not IN_CI
    ]


@pytest.fixture(scope="module")
def emulator() -> Iterator[EmulatorProcess]:
    """One for the tests of a file, in a process of its own; without TLS."""
    with emulator_process() as running:
        yield running


@pytest.fixture(params=[True, False], ids=["sessions", "plain"])
def sessions(request: pytest.FixtureRequest) -> bool:
    """Whether the test's queue has sessions; both are tested."""
    return bool(request.param)
