"""The emulator in a process of its own, and a hand to reach it.

proton's objects must be freed in the thread that uses them. Python's garbage collector runs in whichever thread
allocates, so beside the bridge's thread the emulator cannot live.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, final
from urllib.parse import urlencode, urlsplit

import attrs
import trio

__all__ = ["EmulatorProcess", "emulator_process"]


@final
class EmulatorProcess:
    """What can be asked of the emulator. Every method may be called from any thread; made by :func:`emulator_process`.

    Attributes:
        connection_string: For clients.
        endpoint: Its address, as ``sb://host:port``.
        url: For the provider; options such as ``&sessions=false`` may follow.
        ca_file: What clients have to trust when it speaks TLS; else ``None``.
        moved: Seconds by which its clock was moved.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lock = threading.Lock()
        hello = self._read()
        self.connection_string: str = hello["connection_string"]
        self.endpoint: str = hello["endpoint"]
        self.url: str = hello["url"]
        self.ca_file: str | None = hello["ca_file"]
        self.moved = 0.0

    @property
    def port(self) -> int:
        """Where it listens."""
        port = urlsplit(self.endpoint).port
        assert port is not None
        return port

    def url_with(self, port: int | None = None, **options: Any) -> str:
        """It as a provider, or a proxy before it at ``port``."""
        own = f":{self.port};"
        text = self.connection_string
        assert own in text
        text = text if port is None else text.replace(own, f":{port};")
        words = {name: str(value).lower() for name, value in options.items()}
        return f"azure://?{urlencode({'connection_string': text, **words})}"

    def create_queue(self, name: str, **settings: Any) -> None:
        """Add a queue with some ``QueueSettings``."""
        self._call("create_queue", name=name, **settings)

    def counts(self, queue: str) -> dict[str, int]:
        """What is in a queue."""
        found: dict[str, int] = self._call("counts", queue=queue)
        return found

    def statistics(self) -> dict[str, Any]:
        """What clients did so far."""
        found: dict[str, Any] = self._call("statistics")
        return found

    def issue_token(
        self,
        lifetime: float = 3_600.0,
        rights: Sequence[str] = ("Listen", "Send", "Manage"),
        **claims: str,
    ) -> str:
        """A token that is accepted for so many seconds; rights by the names that Azure gives them."""
        return str(self._call("issue_token", lifetime=lifetime, rights=list(rights), **claims))

    def fault(self, name: str, *operations: str, **options: Any) -> Any:
        """One of the emulator's ``Faults`` by name; operations by the names of ``Operation``."""
        return self._call("fault", name=name, operations=operations, **options)

    def move_time(self, seconds: float) -> None:
        """Have it be so much later for the queues."""
        self.fault("move_time", seconds=seconds)
        self.moved += seconds

    def lift_faults(self) -> None:
        """End every fault that lasts."""
        self._call("lift_faults")

    def _call(self, call: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
            self._process.stdin.flush()
            answer = self._read()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the emulator has ended with {self._process.wait(10)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def emulator_process(*, tls: bool = False) -> Iterator[EmulatorProcess]:
    """Run an emulator in a child process until the block ends."""
    process = subprocess.Popen(
        [sys.executable, __file__, *(["--tls"] if tls else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield EmulatorProcess(process)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


# --- in the child --------------------------------------------------------------------------------------


async def _serve(*, tls: bool) -> None:
    from queue_runtime.testing.servicebus import (
        Certificate,
        Fault,
        Operation,
        QueueSettings,
        Right,
        open_emulator,
    )

    async with open_emulator(certificate=Certificate() if tls else None) as emulator:
        lasting: list[Fault] = []

        def answer(request: dict[str, Any]) -> Any:
            match request.pop("call"):
                case "create_queue":
                    emulator.create_queue(request.pop("name"), QueueSettings(**request))
                    return None
                case "counts":
                    return attrs.asdict(emulator.counts(request["queue"]))
                case "statistics":
                    return attrs.asdict(emulator.statistics())
                case "issue_token":
                    rights = [Right(name) for name in request.pop("rights")]
                    return emulator.issue_token(rights=rights, **request)
                case "lift_faults":
                    while lasting:
                        lasting.pop().lift()
                    return None
                case "fault":
                    operations = [Operation[name] for name in request.pop("operations")]
                    fault = getattr(emulator.faults, request.pop("name"))(*operations, **request)
                    if isinstance(fault, Fault):
                        lasting.append(fault)
                        return None
                    return fault
                case other:
                    raise ValueError(other)

        ca_file = None if emulator.ca_file is None else str(emulator.ca_file)
        _say(
            connection_string=emulator.connection_string,
            endpoint=emulator.endpoint,
            url=emulator.url,
            ca_file=ca_file,
        )
        rest = b""
        # No thread: see above.
        async with trio.lowlevel.FdStream(os.dup(0)) as requests:
            async for part in requests:
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    try:
                        _say(value=answer(json.loads(line)))
                    except Exception as error:  # for the other side to raise
                        _say(error=repr(error))


def _say(**words: Any) -> None:
    print(json.dumps(words, default=str), flush=True)


if __name__ == "__main__":
    trio.run(lambda: _serve(tls="--tls" in sys.argv))
