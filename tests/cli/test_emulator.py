"""``queue-runtime emulator azure`` serves until it is interrupted, and says what is wrong in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from queue_runtime.cli.root import INTERRUPTED

COMMAND = [sys.executable, "-m", "queue_runtime"]
MISSING = [
    package
    for package in ("proton", "azure")
    if importlib.util.find_spec(package) is None and not os.environ.get("CI")
]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here"),
    pytest.mark.skipif(sys.platform == "win32", reason="signals are different there"),
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def emulator(*arguments: str) -> Iterator[tuple[str, str]]:
    """Its connection string and its URL; interrupted in the end."""
    with subprocess.Popen(
        [*COMMAND, "emulator", "azure", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            assert running.stdout is not None
            yield running.stdout.readline().strip(), running.stdout.readline().strip()
            running.send_signal(signal.SIGINT)
            assert running.wait(30) == INTERRUPTED
            assert running.stderr is not None
            assert "Traceback" not in running.stderr.read()
        finally:
            running.kill()


def carries_a_message(url: str, queue: str) -> bool:
    sent = run("send", "--url", url, "--queue", queue, "--session", "ann", "--body", "tea")
    assert sent.returncode == 0, sent.stderr
    taken = run("receive", "--url", url, "--queue", queue, "--show-body", "--complete")
    assert taken.returncode == 0, taken.stderr
    return "tea" in taken.stdout


def test_service_bus_is_served_until_interrupted() -> None:
    with emulator("--key", "dev", "--session-queues", "orders") as (text, url):
        assert "SharedAccessKey=dev;UseDevelopmentEmulator=true" in text
        assert carries_a_message(url, "orders")


def test_it_speaks_tls_under_a_certificate_that_the_url_names() -> None:
    with emulator("--tls", "--session-queues", "orders") as (text, url):
        assert "UseDevelopmentEmulator" not in text
        assert carries_a_message(url, "orders")


def test_being_terminated_leaves_no_certificate_behind(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "emulator", "azure", "--port", "0", "--tls"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as running:
        try:
            assert running.stderr is not None
            while "Ctrl-C ends it" not in running.stderr.readline():
                assert running.poll() is None
            assert len(list(tmp_path.iterdir())) == 1
            running.terminate()
            assert running.wait(30) == 0
            assert list(tmp_path.iterdir()) == []
        finally:
            running.kill()


def test_queues_come_from_the_configuration_of_microsofts_emulator(tmp_path: Path) -> None:
    config = tmp_path / "Config.json"
    properties = {"RequiresSession": True, "LockDuration": "PT1M", "MaxDeliveryCount": 3}
    queues = [{"Name": "orders", "Properties": properties}, {"Name": "mails"}]
    config.write_text(
        json.dumps({"UserConfig": {"Namespaces": [{"Name": "sbemulatorns", "Queues": queues}]}})
    )
    with emulator("--config", str(config)) as (_, url):
        assert carries_a_message(url, "orders")
        refused = run("provision", "--url", url, "--queue", "mails")
        assert (refused.returncode, "sessions" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--port", "99999"), "0<=x<=65535"),
        (("--port", "0", "--queues", "a$b"), "the queue's name is 'a$b'"),
        (("--port", "0", "--queues", "two words"), "the queue's name is 'two words'"),
        (("--port", "0", "--queues", "a", "--session-queues", "A"), "named more than once"),
        (("--port", "0", "--lock-duration", "-1"), "-1.0 is not in the range 0<x<=300"),
        (("--port", "0", "--key", ""), "--key is empty"),
        (("--port", "0", "--lock-duration", "301"), "301.0 is not in the range 0<x<=300"),
        (("--port", "0", "--config", __file__), f"--config {__file__}: the file is no Config.json"),
        (("--port", "0", "--config", sys.executable), "can't decode"),
        (("--port", "0", "--config", "absent.json"), "absent.json"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: tuple[str, ...], said: str) -> None:
    ended = run("emulator", "azure", *arguments)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_said_with_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run("emulator", "azure", "--port", str(port))
    assert ended.returncode == 2
    assert f"port {port} of 127.0.0.1 cannot be had" in ended.stderr
    assert "choose another --port" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("package", ["proton", "wsproto"])
@pytest.mark.parametrize(
    ("start", "code"),
    [
        ("from queue_runtime.cli import main; sys.argv[1:] = ['emulator', 'azure']; main()", 2),
        ("runpy.run_module('queue_runtime.testing.servicebus', run_name='__main__')", 1),
    ],
)
def test_a_missing_package_is_named_with_the_extra(package: str, start: str, code: int) -> None:
    program = f"import runpy, sys; sys.modules[{package!r}] = None; {start}"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    expected = (
        f'error: the emulator needs {package}: pip install "queue-runtime[servicebus-emulator]"\n'
    )
    assert (ended.returncode, ended.stderr) == (code, expected)
