"""``queue-runtime emulator azure`` serves until it is interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from queue_runtime.cli.root import INTERRUPTED


@pytest.mark.skipif(sys.platform == "win32", reason="signals are different there")
def test_service_bus_is_served_until_interrupted() -> None:
    pytest.importorskip("proton")
    pytest.importorskip("azure.servicebus")
    command = [sys.executable, "-m", "queue_runtime"]
    with subprocess.Popen(
        [
            *command,
            "emulator",
            "azure",
            "--port",
            "0",
            "--key",
            "dev",
            "--session-queues",
            "orders",
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            assert running.stdout is not None
            text = running.stdout.readline().strip()
            assert "SharedAccessKey=dev;UseDevelopmentEmulator=true" in text
            encoded = text.replace("=", "%3D").replace(";", "%3B")
            url = f"azure://?connection_string={encoded}"
            sent = subprocess.run(
                [
                    *(*command, "send", "--url", url, "--queue", "orders"),
                    *("--session", "ann", "--body", "tea"),
                ],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert sent.returncode == 0, sent.stderr
            running.send_signal(signal.SIGINT)
            assert running.wait(30) == INTERRUPTED
        finally:
            running.kill()
