"""One AMQP connection that many links share. On the bridge's loop.

The SDK opens a TCP connection for every sender and receiver, reads it only while a call waits, and lets reads and
writes exclude each other: opening costs half a second, settling waits for a read to time out, and a thousand
sessions are a thousand connections polled in turn. Its client has a switch for sharing connections, which is off
and does not work. Below it, though, the SDK's AMQP engine is made for sharing: a connection carries AMQP sessions, a
session carries links. So this module takes the SDK's engine (framing, types, TLS, WebSockets, SASL) and gives it
what it lacks: one task that reads, writes that wait for nobody, and futures for what is awaited.

It is the one place that knows the SDK's inside; ``tests/providers/azure/test_adapter.py`` tells when that changes.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext, suppress
from typing import Any, Final, Protocol, TypeVar, final

import attrs
import certifi
from azure.servicebus import TransportType
from azure.servicebus._common.constants import JWT_TOKEN_SCOPE, TOKEN_TYPE_SASTOKEN
from azure.servicebus._common.utils import create_properties
from azure.servicebus._pyamqp.aio._connection_async import Connection
from azure.servicebus._pyamqp.constants import CBS_PUT_TOKEN, ConnectionState
from azure.servicebus._pyamqp.error import (
    AMQPConnectionError,
    AuthenticationException,
    ErrorCondition,
    TokenAuthFailure,
)
from azure.servicebus._pyamqp.message import Message as AmqpMessage
from azure.servicebus._pyamqp.sasl import SASLAnonymousCredential
from azure.servicebus._pyamqp.utils import utc_from_timestamp
from azure.servicebus.aio._transport._pyamqp_transport_async import PyamqpTransportAsync

from .requests import Refused, Requests
from .rights import Rights
from .shared import outcome_of
from .writing import Writing

__all__ = ["Credential", "Place", "Wire"]

T = TypeVar("T")

_TICK: Final = 5.0
"""Seconds between looks at what has to be done in time: heartbeats, a peer that fell silent."""

_IDLE: Final = 120.0
"""Seconds of silence after which the peer counts as gone; it is asked to send something sooner than that."""

_TOKEN_TYPE: Final = "jwt"  # noqa: S105 - a kind of token, not one
"""What the SDK says of every token, also of a shared access signature."""

_WINDOW: Final = 64 * 1024
"""Transfers that an AMQP session lets the peer send; as in the SDK."""

_BATCH: Final = 64
"""Frames read in one go, when they are there."""

_UNREADABLE: Final = (LookupError, TypeError, ValueError, AttributeError, struct.error)
"""What the engine raises over frames that are not as it takes for granted."""

_GOODBYE: Final = 2.0
"""Seconds for each step of closing: a peer that does not answer is left alone."""

_UNAUTHORIZED: Final = (b"amqp:unauthorized-access", b"com.microsoft:auth-failed")


class Credential(Protocol):
    """Anything that gives tokens: a credential of azure-identity, or the SDK's shared access key."""

    async def get_token(self, *scopes: str) -> Any:
        """An access token for a scope."""
        ...


@final
@attrs.frozen(kw_only=True)
class Place:
    """Where a namespace is reached, and as whom.

    Args:
        namespace: Host name; with a port only where there is no TLS (the development emulator).
        credential: Gives tokens.
        tls: Whether to use TLS, on port 5671.
        custom_endpoint: ``sb://host:port`` to connect to instead; certificates are checked for that host.
        verify: Path to the certificates of the authorities to trust; ``None``: those of certifi.
        websocket: Use AMQP over WebSockets, on port 443.
        connect_timeout: Seconds to connect in.
        timeout: Seconds in which attaching and requests have to be answered.
    """

    namespace: str
    credential: Credential = attrs.field(repr=False)
    tls: bool = True
    custom_endpoint: str | None = None
    verify: str | None = None
    websocket: bool = False
    connect_timeout: float = 10.0
    timeout: float = 30.0

    def address(self, entity: str) -> str:
        """What a link calls an entity: ``amqps`` also without TLS."""
        return f"amqps://{self.namespace}/{entity}"

    def audience(self, entity: str) -> str:
        """What a token for an entity is for."""
        return f"sb://{self.namespace}/{entity}"


@final
class Wire:
    """One connection. Made by :meth:`open`.

    Attributes:
        place: Where it leads.
        error: Why it is of no more use; ``None`` while it is.
    """

    @classmethod
    async def open(cls, place: Place) -> Wire:
        """Connect and begin to read.

        Raises:
            Exception: Whatever the SDK's engine raises; nothing is left open.
        """
        connection = _connection(place)
        try:
            async with asyncio.timeout(place.connect_timeout):
                await connection.open()
        except BaseException as error:
            await _abandon(connection)
            reason = error.__cause__
            if isinstance(error, AuthenticationException) and isinstance(reason, OSError):
                # What the engine says of a WebSocket to a custom endpoint that cannot be reached.
                raise reason from None
            raise
        # From here one task reads, and writing does not wait: nothing is left to exclude.
        connection._transport.socket_lock = nullcontext()
        _bear_with_silence(connection._transport, place.timeout)
        return cls(place, connection, Writing(connection._transport))

    def __init__(self, place: Place, connection: Any, writing: Writing) -> None:
        self.place = place
        self.error: BaseException | None = None
        self._connection = connection
        self._writing = writing
        self._loop = asyncio.get_running_loop()
        self._losers: dict[object, Callable[[BaseException], None]] = {}
        self._rights = Rights(self._token, self._put_token)
        self._requests: dict[str, asyncio.Task[Requests]] = {}
        self._tasks = [
            asyncio.create_task(self._read(), name="wire reader"),
            asyncio.create_task(self._tick(), name="wire clock"),
        ]

    @property
    def sessions(self) -> int:
        """How many AMQP sessions it carries."""
        return len(self._connection._outgoing_endpoints)

    # --- what links need ---------------------------------------------------------------------------

    async def begin(self) -> Any:
        """A new AMQP session of the SDK's engine, begun but not yet answered: frames may follow at once.

        Raises:
            Exception: The connection is gone.
        """
        self.check()
        session = self._connection.create_session(incoming_window=_WINDOW, outgoing_window=_WINDOW)
        await session.begin()
        self.check()
        return session

    def check(self) -> None:
        """Raise why the connection is of no more use, if it is."""
        if self.error is None and self._connection._error is not None:
            self._fail(self._connection._error)
        if self.error is not None:
            raise self.error

    def on_lost(self, key: object, callback: Callable[[BaseException], None] | None) -> None:
        """Call back once when the connection is lost; ``None`` takes that back."""
        if callback is None:
            self._losers.pop(key, None)
        elif self.error is not None:
            callback(self.error)
        else:
            self._losers[key] = callback

    async def room(self) -> None:
        """Wait until the peer has taken most of what was written: for who is about to write much.

        Raises:
            Exception: The connection is gone.
        """
        await self._writing.room()

    async def within(self, awaitable: Awaitable[T], timeout: float | None = None) -> T:
        """Wait for an answer.

        Raises:
            TimeoutError: It did not come in time; the place's timeout unless given.
        """
        async with asyncio.timeout(self.place.timeout if timeout is None else timeout):
            return await awaitable

    # --- rights ------------------------------------------------------------------------------------

    async def authorize(self, entity: str) -> None:
        """Show a token for an entity, unless one was shown that is still good.

        Raises:
            Exception: The credential gives none, or the broker refuses it.
        """
        await self._rights.authorize(entity)

    def right(self, entity: str) -> object:
        """What stands for the token that was shown last for an entity, for :meth:`may_try_again`."""
        return self._rights.shown(entity)

    def may_try_again(self, entity: str, error: BaseException, right: object) -> bool:
        """Whether a refusal may be about a token that has ended by the broker's clock: a new one is shown then."""
        return _is_unauthorized(error) and self._rights.doubt(entity, right)

    async def _token(self, entity: str) -> tuple[str, float]:
        credential = self.place.credential
        is_signature = getattr(credential, "token_type", None) == TOKEN_TYPE_SASTOKEN
        scope = self.place.audience(entity) if is_signature else JWT_TOKEN_SCOPE
        async with asyncio.timeout(self.place.timeout):
            given = await credential.get_token(scope)
        # The SDK's signatures are bytes.
        token = given.token.decode() if isinstance(given.token, bytes) else given.token
        return token, float(given.expires_on)

    async def _put_token(self, entity: str, token: str, expires_on: float) -> None:
        message = AmqpMessage(
            value=token,
            application_properties={
                "name": self.place.audience(entity),
                "expiration": utc_from_timestamp(expires_on),
            },
        )
        cbs = await self.requests("$cbs")
        try:
            await cbs.call(CBS_PUT_TOKEN, message, self.place.timeout, kind=_TOKEN_TYPE)
        except Refused as error:
            if error.condition:
                raise
            # A status and a description are all that such a node has to answer.
            failure: Any = TokenAuthFailure
            raise failure(error.status, error.description) from None

    # --- requests ----------------------------------------------------------------------------------

    async def manage(
        self,
        entity: str,
        operation: bytes,
        body: Mapping[str, Any],
        *,
        link: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """One request to the entity's management node; what it answers.

        Args:
            entity: The queue's path.
            operation: Such as ``com.microsoft:peek-message``.
            body: The request.
            link: Name of the link on whose behalf it is: its idle clock starts again.
            timeout: Seconds; the place's unless given.

        Raises:
            Exception: An error of the SDK; ``TimeoutError``.
        """
        await self.authorize(entity)
        requests = await self.requests(f"{entity}/$management")
        return await requests.manage(
            operation, body, self.place.timeout if timeout is None else timeout, link
        )

    async def requests(self, node: str) -> Requests:
        """The request and response links to a node; opened when first asked for."""
        task = self._requests.get(node)
        if task is None or (task.done() and _is_over(task)):
            self.check()
            task = asyncio.create_task(Requests.open(self, node), name=f"open {node}")
            self._requests[node] = task
        return await outcome_of(task)

    # --- reading -----------------------------------------------------------------------------------

    async def _read(self) -> None:
        connection = self._connection
        try:
            while connection._error is None and connection.state is not ConnectionState.END:
                # The first read waits as long as it takes; what it brings along comes without waiting.
                await connection.listen(wait=True, batch=_BATCH)
            error = connection._error
        except Exception as crash:
            error = crash
            if isinstance(crash, _UNREADABLE):
                # Such as a close whose error has no info, which the engine takes to be there.
                error = AMQPConnectionError(
                    ErrorCondition.ConnectionCloseForced,
                    description=f"The peer sent what cannot be read: {crash!r}.",
                )
                error.__cause__ = crash
        self._fail(
            error
            or AMQPConnectionError(
                ErrorCondition.ConnectionCloseForced, description="The peer closed the connection."
            )
        )

    async def _tick(self) -> None:
        connection = self._connection
        while self.error is None:
            await asyncio.sleep(_TICK)
            with suppress(Exception):
                await connection._get_remote_timeout(
                    time.time()
                )  # sends a heartbeat when it is due
            heard = connection._last_frame_received_time
            if heard is not None and time.time() - heard > _IDLE:
                self._fail(
                    AMQPConnectionError(
                        ErrorCondition.ConnectionCloseForced,
                        description=f"The peer was silent for {_IDLE:.0f} seconds.",
                    )
                )

    def _fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
            losers, self._losers = self._losers, {}
            for callback in losers.values():
                callback(error)

    async def aclose(self) -> None:
        """Say goodbye if the peer still listens, and disconnect; never fails."""
        self._fail(
            AMQPConnectionError(
                ErrorCondition.ConnectionCloseForced, description="The connection was closed."
            )
        )
        for task in self._tasks:
            task.cancel()
        for opening in self._requests.values():
            opening.cancel()
        await asyncio.gather(*self._tasks, *self._requests.values(), return_exceptions=True)
        await self._rights.aclose()
        await self._writing.aclose()
        await _abandon(self._connection)


def _is_over(task: asyncio.Task[Requests]) -> bool:
    return task.cancelled() or task.exception() is not None or task.result().is_over


def _connection(place: Place) -> Any:
    host = place.namespace
    transport: Any = PyamqpTransportAsync
    kind: Any = TransportType.AmqpOverWebsocket if place.websocket else TransportType.Amqp
    endpoint = place.custom_endpoint
    if endpoint is None and host.startswith("["):
        endpoint = f"amqp://{host}"  # only there the engine takes an address of IPv6
    if place.websocket:
        host += "/$servicebus/websocket"
    if endpoint is not None:
        endpoint += "/$servicebus/websocket"  # the engine cuts it off where it does not belong
    return Connection(
        f"{'amqps' if place.tls else 'amqp'}://{host}",
        sasl_credential=SASLAnonymousCredential(),
        ssl_opts={"ca_certs": place.verify or certifi.where()},
        idle_timeout=_IDLE,
        properties=create_properties(None, amqp_transport=transport),
        transport_type=kind,
        custom_endpoint_address=endpoint,
        socket_timeout=place.timeout,
        use_tls=place.tls,
    )


def _bear_with_silence(transport: Any, seconds: float) -> None:
    """Let what was sent be acknowledged within as long as calls take; on Linux, and by who connects by itself.

    The SDK has the system give a connection up after one second, and here all sessions would go with it.
    """
    writer = getattr(transport, "writer", None)
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if writer is not None and option is not None:
        connected = writer.transport.get_extra_info("socket")
        connected.setsockopt(socket.IPPROTO_TCP, option, math.ceil(seconds * 1_000))


async def _abandon(connection: Any) -> None:
    """Close a connection in whatever state; never fails."""
    transport = connection._transport
    # aiohttp has a WebSocket's TCP connection wait for the peer's goodbye in TLS, which may never come.
    # A TCP connection waits until the peer has taken what was written, which may be never.
    writer = getattr(transport, "writer", None) or getattr(transport.sock, "_writer", None)
    below = getattr(writer, "transport", None)
    await _attempt(connection.close)
    await _attempt(transport.close)
    # The engine forgets the HTTP client when its WebSocket was not opened.
    session = getattr(transport, "session", None)
    if session is not None:
        await _attempt(session.close)
    if below is not None:
        below.abort()
        await asyncio.sleep(0)


async def _attempt(close: Callable[[], Awaitable[None]]) -> None:
    with suppress(Exception):
        async with asyncio.timeout(_GOODBYE):
            await close()


def _is_unauthorized(error: BaseException) -> bool:
    condition = getattr(error, "condition", None)
    return condition in _UNAUTHORIZED or getattr(error, "status", None) == 401
