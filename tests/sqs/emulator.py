"""An SQS to test against: the emulator ``ministack`` as a child process on a free loopback port.

In tests: ``with sqs_for_tests() as emulator`` in a module's fixture. From the command line, for benchmarks
and examples (it runs until interrupted, or for as long as the command after ``--`` does)::

    python tests/sqs/emulator.py --port 4566
    python tests/sqs/emulator.py -- queue-runtime bench --url {url}

See ``README.md`` next to this file for what the emulator does as AWS does, and what it does not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

__all__ = [
    "URL_VARIABLE",
    "Emulator",
    "Failure",
    "open_emulator",
    "require_emulator",
    "sqs_for_tests",
]

URL_VARIABLE = "QUEUE_RUNTIME_TEST_SQS_URL"
"""Names an ``sqs://`` URL to test against instead of the emulator."""

REGION = "eu-central-1"
SERVER = Path(__file__).with_name("server.py")
START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0


@attrs.frozen(kw_only=True)
class Failure:
    """What the next ``count`` requests get instead of an answer; nothing happens at the emulator.

    Args:
        count: How many requests fail.
        action: Which, such as ``SendMessageBatch``; ``None`` for all.
        code: The error's code. AWS throttles with ``RequestThrottled`` (403) or ``ThrottlingException`` (400).
        status: The HTTP status.
        message: The error's text.
        headers: Further headers of the answer, such as ``Retry-After``.
    """

    count: int
    action: str | None = None
    code: str = "ThrottlingException"
    status: int = 400
    message: str = "Rate exceeded"
    headers: dict[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Emulator:
    """A running emulator, or the SQS that ``QUEUE_RUNTIME_TEST_SQS_URL`` names.

    ``endpoint_url`` is ``None`` for the latter; then ``fail`` and ``calls`` skip the test.
    """

    url: str
    endpoint_url: str | None = None
    region: str = REGION

    @property
    def port(self) -> int:
        """The port it listens on at 127.0.0.1."""
        port = urllib.parse.urlsplit(self.endpoint_url or "").port
        if port is None:
            pytest.skip(f"only the emulator has a local port: {URL_VARIABLE} is set")
        return port

    def url_through(self, port: int) -> str:
        """The same emulator through a proxy on a local port; skips where there is none to reach."""
        if self.endpoint_url is None:
            pytest.skip(f"only the emulator can be proxied: {URL_VARIABLE} is set")
        return sqs_url(port)

    def fail(self, *failures: Failure) -> None:
        """Replace what is to fail from now on; without arguments nothing does."""
        self._control("failures", [attrs.asdict(failure) for failure in failures])

    def calls(self) -> dict[str, int]:
        """How many requests came so far, by action; those that were made to fail count as well."""
        calls: dict[str, int] = self._control("calls")
        return calls

    def _control(self, name: str, content: Any = None) -> Any:
        if self.endpoint_url is None:
            pytest.skip(f"only the emulator can do this: {URL_VARIABLE} is set")
        request = urllib.request.Request(
            f"{self.endpoint_url}/_emulator/{name}",
            data=None if content is None else json.dumps(content).encode(),
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)


def sqs_url(port: int) -> str:
    query = urllib.parse.urlencode(
        {
            "endpoint_url": f"http://127.0.0.1:{port}",
            "access_key_id": "test",
            "secret_access_key": "test",
        }
    )
    return f"sqs://{REGION}?{query}"


@contextmanager
def open_emulator(*, port: int = 0, strict: bool = True) -> Iterator[Emulator]:
    """Run the emulator in a child process with an empty folder of its own, until the block ends.

    Args:
        port: At 127.0.0.1; 0 takes a free one.
        strict: Behave as AWS where ministack is known not to; otherwise ministack as it is.
    """
    with tempfile.TemporaryDirectory(prefix="queue-runtime-sqs-") as folder:
        command = [sys.executable, str(SERVER), "--port", str(port)]
        if not strict:
            command.append("--lax")
        # The caller's credentials, proxies and settings are none of the emulator's business.
        environment = {"HOME": folder, "TMPDIR": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        log = Path(folder) / "stderr.log"
        with (
            log.open("wb") as stderr,
            subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            ) as process,
        ):
            try:
                assert process.stdout is not None
                # Empty when the process ended, which closes the pipe.
                line = process.stdout.readline()
                if not line:
                    process.wait(STOP_TIMEOUT)
                    raise RuntimeError(f"the SQS emulator did not start:\n{log.read_text()}")
                yield Emulator(url=sqs_url(int(line)), endpoint_url=f"http://127.0.0.1:{int(line)}")
            finally:
                assert process.stdin is not None
                process.stdin.close()
                try:
                    process.wait(STOP_TIMEOUT)
                except subprocess.TimeoutExpired:
                    process.kill()


def require_emulator() -> None:
    """Skip the test where the emulator is not installed; under ``CI`` fail it instead."""
    for package in ("ministack", "aiobotocore"):
        if importlib.util.find_spec(package) is None:
            reason = f"no {package} here: install it, or name an SQS in {URL_VARIABLE}"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)


@contextmanager
def sqs_for_tests() -> Iterator[Emulator]:
    """What tests run against: the SQS of ``QUEUE_RUNTIME_TEST_SQS_URL`` when that is set, else the emulator.

    Skips where neither is there; under ``CI`` it fails instead.
    """
    given = os.environ.get(URL_VARIABLE)
    if given:
        yield Emulator(url=given, region=urllib.parse.urlsplit(given).hostname or REGION)
        return
    require_emulator()
    with open_emulator() as emulator:
        yield emulator


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description="Run the SQS emulator on loopback.",
        epilog=f"In the command, {{url}} stands for the sqs:// URL; {URL_VARIABLE} carries it too.",
    )
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--lax", action="store_true", help="ministack as it is, without our shim")
    parser.add_argument("command", nargs="*", help="run this, then stop")
    chosen = parser.parse_args(arguments)
    with open_emulator(port=chosen.port, strict=not chosen.lax) as emulator:
        if chosen.command:
            command = [part.replace("{url}", emulator.url) for part in chosen.command]
            environment = os.environ | {URL_VARIABLE: emulator.url}
            return subprocess.run(command, env=environment, check=False).returncode
        print(emulator.url, flush=True)
        try:
            sys.stdin.read()  # ends with the terminal or the process that started this one
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
