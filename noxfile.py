"""Everything a contributor does: ``nox`` runs lint, types and all tests; ``nox -l`` lists the rest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2026.4"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True

ROOT = Path(__file__).parent
COVERAGE_DATA = ROOT / ".coverage-data"

CONTRACTS: dict[str, tuple[str, ...]] = {
    "memory": (),
    "sqlite": (),
    "sqs": ("tests/sqs", "tests/providers/sqs"),
    "azure": ("tests/azure", "tests/providers/azure", "tests/cli/test_emulator.py"),
}
"""Each name is a session ``contract-NAME`` running ``tests/contract/test_NAME.py``; later brokers join here.

The paths run in the same session, and not with the quick tests: they need the broker, or its SDK.
"""

EXTRAS = {"sqs": "sqs", "azure": "servicebus-emulator"}
"""The extra of a broker's SDK; ``test`` has the emulators."""

BUILD_TOOLS = {"azure": ("gcc",)}
"""Programs a broker's emulator is built with. Without them its session is skipped, and fails under ``CI``."""

EXAMPLES = ("tests/docs", "tests/cli/test_demo.py")
"""What runs whole programs as people would: minutes of processes that mostly wait."""

GATED = ("policies", "actors", "providers/memory")
"""Packages whose branch coverage may not fall below ``MINIMUM_COVERAGE`` per cent."""

MINIMUM_COVERAGE = 95


def contract_paths(broker: str) -> list[str]:
    return [f"tests/contract/test_{broker}.py", *CONTRACTS[broker]]


def run_tests(session: nox.Session, *pytest_args: str, extra: str | None = None) -> None:
    """Run pytest under coverage; the data stay in a folder of the session for ``coverage``."""
    data = COVERAGE_DATA / session.name
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    session.install("-e", f".[test,{extra}]" if extra else ".[test]")
    session.run(
        *("coverage", "run", "-m", "pytest", *pytest_args, *session.posargs),
        env={"COVERAGE_FILE": str(data / ".coverage")},
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and formatting."""
    session.install("ruff~=0.17.6")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict; and pyright over the file that uses the API as its users do."""
    session.install("-e", ".[lint]")
    session.run("mypy", "src", "noxfile.py", "tests/typing_example.py")
    session.run("pyright")


@nox.session
def tests(session: nox.Session) -> None:
    """The quick tests: all but examples, contract, simulation and chaos. Arguments go to pytest."""
    elsewhere = ["tests/simulation", *EXAMPLES]
    for broker in CONTRACTS:
        elsewhere += contract_paths(broker)
    run_tests(session, *(f"--ignore={path}" for path in elsewhere))


@nox.session
def examples(session: nox.Session) -> None:
    """The demo, and every example of the documentation and of ``examples/``. Arguments go to pytest."""
    run_tests(session, *EXAMPLES)


def _add_contract_session(broker: str) -> None:
    @nox.session(name=f"contract-{broker}")
    def contract(session: nox.Session) -> None:
        missing = [tool for tool in BUILD_TOOLS.get(broker, ()) if shutil.which(tool) is None]
        if missing and not os.environ.get("CI"):
            session.skip(f"{', '.join(missing)} not found: see tests/{broker}/README.md")
        run_tests(session, *contract_paths(broker), extra=EXTRAS.get(broker))

    also = " and what else needs it" if CONTRACTS[broker] else ""
    contract.__doc__ = f"The provider contract suite against {broker}://{also}."


for _broker in CONTRACTS:
    _add_contract_session(_broker)


@nox.session(requires=["tests", "examples", *(f"contract-{broker}" for broker in CONTRACTS)])
def coverage(session: nox.Session) -> None:
    """Join what the sessions above measured; fail below the gate."""
    session.install("coverage[toml]>=7.11")
    session.env["COVERAGE_FILE"] = str(COVERAGE_DATA / ".coverage")
    measured = ("tests", "examples", *(f"contract-{broker}" for broker in CONTRACTS))
    session.run(
        *("coverage", "combine", "--quiet", "--keep"),
        # A skipped session measured nothing.
        *(str(COVERAGE_DATA / name) for name in measured if (COVERAGE_DATA / name).is_dir()),
    )
    session.run("coverage", "report", "--format=total")
    for package in GATED:
        session.run(
            *("coverage", "report", f"--include=*/queue_runtime/{package}/*"),
            f"--fail-under={MINIMUM_COVERAGE}",
        )


@nox.session
def chaos(session: nox.Session) -> None:
    """Kills, stalls and cut connections, in minutes; ``QUEUE_RUNTIME_SHORT=0`` runs the long form."""
    short = os.environ.get("QUEUE_RUNTIME_SHORT", "1")
    # Without a C compiler the tests on Service Bus are skipped, and fail under CI.
    can_build = os.environ.get("CI") or all(map(shutil.which, BUILD_TOOLS["azure"]))
    session.install("-e", ".[test,sqs,servicebus-emulator]" if can_build else ".[test,sqs]")
    session.run(
        *("pytest", "-m", "chaos", "tests/chaos", *session.posargs),
        env={"QUEUE_RUNTIME_SHORT": short},
    )


@nox.session
def simulation(session: nox.Session) -> None:
    """The deterministic simulation, 1,000 seeds, and the planted bugs it has to catch. Arguments go to pytest."""
    session.install("-e", ".[test]")
    session.run("pytest", "tests/simulation", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """``queue-runtime bench`` with a table; arguments replace the default ones."""
    session.install(".")
    default = ["--url", "memory://", "--messages", "20000", "--sessions", "100", "--size", "1024"]
    session.run("queue-runtime", "bench", *(session.posargs or default))


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation; warnings are errors."""
    session.install("-e", ".[docs]")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")
