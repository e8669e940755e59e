"""Starting the emulator, and what a test can ask of it while it runs."""

from __future__ import annotations

import concurrent.futures
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, final
from urllib.parse import quote

import attrs
import trio

from ...errors import ValidationError
from .authority import ALL_RIGHTS, AccessPolicy, Authority, Right
from .certificate import Certificate
from .counters import Statistics
from .entities import QueueCounts, QueueSettings
from .fault_book import Fault, FaultBook, Operation
from .namespace import Namespace
from .refusals import DETACH_FORCED, Refused, server_busy

if TYPE_CHECKING:
    import ssl

    from .server import Server

__all__ = ["Faults", "ServiceBusEmulator", "emulator_in_thread", "open_emulator"]

_HOST: Final = "127.0.0.1"
_CALL_TIMEOUT: Final = 10.0
"""Seconds until a call into the emulator's thread is given up: it takes microseconds unless something is broken."""

_MAX_CONNECTIONS: Final = 5_000
_LAST_PORT: Final = 65_535

T = TypeVar("T")


@final
class _Home:
    """Where the emulator runs; calls from other threads are carried there."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._token = trio.lowlevel.current_trio_token()

    def call(self, function: Callable[[], T]) -> T:
        """Run a function there and wait for it."""
        if threading.get_ident() == self._thread:
            return function()
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                answer.set_result(function())
            except BaseException as error:
                answer.set_exception(error)

        self._token.run_sync_soon(run)
        return answer.result(_CALL_TIMEOUT)


@final
class Faults:
    """Makes things go wrong, at once or when they come up next. Every method may be called from any thread.

    ``queue`` limits a fault to one queue with its sub-queue and nodes; without it, it is about everything. Made
    by the emulator; no public constructor.
    """

    def __init__(self, server: Server, book: FaultBook, home: _Home) -> None:
        self._server = server
        self._book = book
        self._home = home

    def refuse(
        self,
        *operations: Operation,
        count: int = 1,
        queue: str | None = None,
        condition: str = "amqp:internal-error",
        description: str = "The emulator was told to refuse.",
        status: int = 500,
    ) -> Fault:
        """Refuse the next ``count`` operations with an error; nothing happens in the queue."""
        refusal = Refused(condition, description, status)
        return self._refuse(operations, count, queue, refusal)

    def throttle(self, *operations: Operation, count: int = 1, queue: str | None = None) -> Fault:
        """Refuse the next ``count`` operations as Service Bus does above its limits: ``server-busy``."""
        return self._refuse(operations, count, queue, server_busy())

    def _refuse(
        self, operations: tuple[Operation, ...], count: int, queue: str | None, refusal: Refused
    ) -> Fault:
        chosen = frozenset(operations or Operation)
        return self._home.call(partial(self._book.refuse, chosen, count, queue, refusal))

    def lose_answer(
        self, *operations: Operation, count: int = 1, queue: str | None = None
    ) -> Fault:
        """Do the next ``count`` operations without ever answering, such as a settlement without its echo."""
        chosen = frozenset(operations or (Operation.SETTLE,))
        return self._home.call(partial(self._book.lose, chosen, count, queue))

    def stall(self, queue: str | None = None) -> Fault:
        """Accept and say nothing, until lifted: all connections, present and new, or all links of a queue.

        What clients ask for meanwhile is done when the fault is lifted, in order, but for what came from
        connections that are gone by then. Locks go on ending in time.
        """
        return self._home.call(partial(self._book.stall, queue))

    def detach(
        self,
        *,
        queue: str | None = None,
        session_id: str | None = None,
        condition: str = DETACH_FORCED,
        description: str = "The link was detached by force.",
    ) -> int:
        """End links to queues by an error, receivers and senders, or only those of a session; return how many."""
        refusal = Refused(condition, description)

        def run() -> int:
            ended = 0
            for connection in list(self._server.connections):
                for link in connection.queue_links():
                    if _is_of(link.path, queue) and (
                        session_id is None or getattr(link, "session_id", None) == session_id
                    ):
                        connection.end_link(link, refusal)
                        ended += 1
            return ended

        return self._home.call(run)

    def drop(self, *, queue: str | None = None) -> int:
        """Reset TCP connections, all or those with a link to a queue; return how many."""

        def run() -> int:
            chosen = [
                connection
                for connection in self._server.connections
                if queue is None
                or any(_is_of(link.path, queue) for link in connection.queue_links())
            ]
            for connection in chosen:
                connection.abort()
            return len(chosen)

        return self._home.call(run)

    def steal_session(self, queue: str, session_id: str) -> bool:
        """End a session's lock as if it had expired, its holder not told; return whether it was locked."""
        return self._home.call(lambda: self._server.namespace.find(queue).steal_session(session_id))

    def steal_message(self, queue: str, sequence_number: int) -> bool:
        """End a message's lock as if it had expired; return whether it was locked."""
        return self._home.call(
            lambda: self._server.namespace.find(queue).steal_message(sequence_number)
        )

    def move_time(self, seconds: float) -> None:
        """Have it be so much later for the queues than for clients; locks and messages expire accordingly."""
        self._home.call(partial(self._server.namespace.timers.move, seconds))


def _is_of(path: str, queue: str | None) -> bool:
    return queue is None or f"{path}/".lower().startswith(f"{queue.lower()}/")


@final
@attrs.frozen(kw_only=True, eq=False)
class ServiceBusEmulator:
    """A running emulator, made by :func:`open_emulator` or :func:`emulator_in_thread`; no public constructor.

    Every method may be called from any thread.

    Args:
        port: Where it listens, at 127.0.0.1.
        policy: The access policy that clients sign with.
        ca_file: What clients have to trust when it speaks TLS; else ``None``.
        faults: Makes things go wrong.
    """

    port: int
    policy: AccessPolicy
    ca_file: Path | None
    faults: Faults
    _server: Server = attrs.field(repr=False)
    _home: _Home = attrs.field(repr=False)
    _authority: Authority = attrs.field(repr=False)

    @property
    def endpoint(self) -> str:
        """The address to give as ``custom_endpoint_address`` to a client that speaks TLS."""
        return f"sb://{_HOST}:{self.port}"

    @property
    def connection_string(self) -> str:
        """For clients of this emulator; one without TLS says so, as Microsoft's own emulator does."""
        plain = "" if self.ca_file is not None else ";UseDevelopmentEmulator=true"
        return (
            f"Endpoint={self.endpoint};SharedAccessKeyName={self.policy.name};"
            f"SharedAccessKey={self.policy.key}{plain}"
        )

    @property
    def url(self) -> str:
        """For the provider ``azure`` of this project; options such as ``&sessions=false`` may follow."""
        if self.ca_file is None:
            return f"azure://?connection_string={quote(self.connection_string, safe='')}"
        # The connection string of a namespace has no port; where its connections go is said beside it.
        text = self.connection_string.replace(self.endpoint, f"sb://{_HOST}")
        ca_file = quote(str(self.ca_file), safe="/")
        return (
            f"azure://?connection_string={quote(text, safe='')}"
            f"&custom_endpoint={self.endpoint}&verify={ca_file}"
        )

    def issue_token(
        self, lifetime: float = 3_600.0, rights: Collection[Right] = ALL_RIGHTS, **claims: str
    ) -> str:
        """A JSON web token that is accepted for so many seconds; for clients that sign in by credential.

        Args:
            lifetime: Seconds; whole ones count.
            rights: What its bearer may do.
            claims: ``audience``, if it is to be another than Service Bus.
        """
        return self._home.call(
            lambda: self._authority.issue(
                self._server.namespace.timers.now() + lifetime, rights=rights, **claims
            )
        )

    def create_queue(self, name: str, settings: QueueSettings | None = None) -> None:
        """Add a queue.

        Raises:
            ValidationError: The name is taken or none that a queue can have.
        """
        chosen = settings or QueueSettings()
        self._home.call(partial(self._server.namespace.create, name, chosen))

    def counts(self, queue: str) -> QueueCounts:
        """What is in a queue."""
        return self._home.call(lambda: self._server.namespace.find(queue).counts())

    def statistics(self) -> Statistics:
        """What clients did so far."""
        return self._home.call(self._server.counters.snapshot)


@asynccontextmanager
async def open_emulator(
    queues: Mapping[str, QueueSettings] | None = None,
    *,
    port: int = 0,
    policy: AccessPolicy | None = None,
    certificate: Certificate | None = None,
    clock: Callable[[], float] = time.time,
    max_connections: int = _MAX_CONNECTIONS,
) -> AsyncIterator[ServiceBusEmulator]:
    """Run an emulator in the background of a trio program until the block ends.

    Args:
        queues: What exists from the start; more by :meth:`ServiceBusEmulator.create_queue`.
        port: At 127.0.0.1; 0 takes a free one.
        policy: How clients sign; else one with a random key.
        certificate: Speaks TLS with a certificate made now; else plain AMQP.
        clock: Wall-clock seconds since 1970.
        max_connections: Clients above so many at a time are turned away; the default is Azure's quota of AMQP
            connections to a namespace.

    Raises:
        ImportError: A package of the extra ``servicebus-emulator`` is missing.
        OSError: The port cannot be had.
        ValidationError: A queue's name is not possible, or the port no port.
    """
    try:
        from .server import Server
    except ImportError as error:
        raise ImportError(
            f'the emulator needs {error.name}: pip install "queue-runtime[servicebus-emulator]"'
        ) from error

    if not 0 <= port <= _LAST_PORT:
        raise ValidationError(f"port is {port!r}: expected a whole number from 0 to {_LAST_PORT}")

    home = _Home()
    namespace = Namespace(clock)
    for name, settings in (queues or {}).items():
        namespace.create(name, settings)
    authority = Authority(policy or AccessPolicy())
    book = FaultBook(home.call)
    with _certified(certificate) as (tls, ca_file):
        server = Server(namespace, authority, book, tls, max_connections)
        listeners, bound = await server.listen(port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run, listeners)
            try:
                yield ServiceBusEmulator(
                    port=bound,
                    policy=authority.policy,
                    ca_file=ca_file,
                    faults=Faults(server, book, home),
                    server=server,
                    home=home,
                    authority=authority,
                )
            finally:
                book.clear()
                nursery.cancel_scope.cancel()


@contextmanager
def _certified(
    certificate: Certificate | None,
) -> Iterator[tuple[ssl.SSLContext | None, Path | None]]:
    if certificate is None:
        yield None, None
        return
    with tempfile.TemporaryDirectory(prefix="servicebus-emulator-") as folder:
        yield certificate.make(Path(folder))


@contextmanager
def emulator_in_thread(
    queues: Mapping[str, QueueSettings] | None = None, **options: Any
) -> Iterator[ServiceBusEmulator]:
    """Run an emulator in a thread of its own until the block ends, for programs without trio.

    Args:
        queues: What exists from the start.
        options: Those of :func:`open_emulator`, which also says what it raises.
    """
    started: concurrent.futures.Future[ServiceBusEmulator] = concurrent.futures.Future()
    tokens: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []

    async def main() -> None:
        stop = trio.Event()
        tokens.append((trio.lowlevel.current_trio_token(), stop))
        async with open_emulator(queues, **options) as emulator:
            started.set_result(emulator)
            await stop.wait()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=run, name="servicebus-emulator", daemon=True)
    thread.start()
    try:
        yield started.result()
    finally:
        for token, stop in tokens:
            try:
                token.run_sync_soon(stop.set)
            except trio.RunFinishedError:
                pass
        thread.join()
