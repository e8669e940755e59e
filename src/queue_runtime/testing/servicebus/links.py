"""The links of clients to queues: outlets, on which they receive, and inlets, on which they send."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol, TypeVar, final
from uuid import UUID

from proton import (
    Condition,
    Delivery,
    Endpoint,
    Link,
    PropertyDict,
    Terminus,
    symbol,
    ulong,
)

from .codec import BATCH_FORMAT, decode_transfer, encode_stored, owned
from .counters import Counters
from .entities import MAX_BATCH_BYTES, Consumer, Outcome, Stored
from .fault_book import FaultBook, Operation
from .namespace import Namespace
from .queue import Queue
from .refusals import Refused, message_too_large

__all__ = [
    "Host",
    "Inlet",
    "Malformed",
    "Node",
    "Outlet",
    "attempt",
    "condition_of",
    "decoded",
    "open_link",
    "refuse_link",
    "take_delivery",
]

_INLET_CREDIT: Final = 1_000
"""Transfers a client may have under way; the service grants as many."""

_SESSION_WAIT: Final = 60.0
"""Seconds for which a receiver waits for a session when it does not say; the service's default for operations."""

_SESSION_FILTER: Final = "com.microsoft:session-filter"
_TICKS_TO_1970: Final = 621_355_968_000_000_000
_TICKS_PER_SECOND: Final = 10_000_000


T = TypeVar("T")


@final
class Malformed(Exception):
    """What a client wrote is no AMQP: nothing that comes after it on the connection could be relied on."""


def decoded(read: Callable[[], T]) -> T:
    """What a client wrote, decoded by the engine.

    Raises:
        Malformed: It cannot be. The engine looks into filters, properties and bodies no sooner than it is asked,
            and then raises whatever Python makes of them: a map's key may be a list, a string no UTF-8.
    """
    try:
        return read()
    except Exception as error:
        raise Malformed(str(error)) from error


class Host(Protocol):
    """What a link needs of its connection."""

    namespace: Namespace
    faults: FaultBook
    counters: Counters

    def wake(self) -> None:
        """There is something to write."""

    def perform(self, node: Node, call: Callable[[], None]) -> None:
        """Do what concerns a node: now, once its stall is lifted, or never if it is gone by then."""

    def next_format(self, link: str) -> int:
        """The message format of the next delivery on a link."""

    def end_link(self, node: Node, refusal: Refused) -> None:
        """End a link as the service does for reasons of its own."""


class Node:
    """What is behind a link, whichever way it goes."""

    def __init__(self, link: Any, path: str) -> None:
        self.link = link
        self.path = path

    def attach(self) -> None:
        """Open the link, at once or later.

        Raises:
            Refused: It cannot be.
        """
        raise NotImplementedError

    def on_delivery(self, delivery: Any) -> None:
        """Something about a delivery has changed."""
        raise NotImplementedError

    def on_flow(self) -> None:
        """The client has granted credit, or withdrawn it."""

    def on_gone(self, *, closed: bool) -> None:
        """The link is no more; whether the client closed it."""


def condition_of(refusal: Refused) -> Any:
    """A refusal as an AMQP error.

    It always has an info map: proton trims trailing nulls, and an error list without its third element hangs a
    send of azure-servicebus 7.15.
    """
    info = {symbol("com.microsoft:tracking-id"): "emulator"}
    return Condition(refusal.condition, refusal.description, info)


def attempt(call: Callable[[], None]) -> Refused | None:
    """Why a call was refused, if it was.

    Without its traceback: that would tie proton's objects into a cycle, for the garbage collector to free in
    whichever thread it happens to run, while the engine is at work in this one.
    """
    try:
        call()
    except Refused as refusal:
        return refusal.with_traceback(None)
    return None


def open_link(link: Any, max_message_bytes: int | None = None) -> None:
    """Answer an attach with what it asked for."""
    link.source.copy(link.remote_source)
    link.target.copy(link.remote_target)
    link.snd_settle_mode = link.remote_snd_settle_mode
    link.rcv_settle_mode = link.remote_rcv_settle_mode
    if max_message_bytes is not None:
        link.max_message_size = max_message_bytes
    link.open()


def refuse_link(link: Any, refusal: Refused) -> None:
    """End a link with an error; one that is not open yet by an attach without terminus, as AMQP has it."""
    if link.state & Endpoint.LOCAL_UNINIT:
        if link.is_sender:
            link.target.copy(link.remote_target)
            link.source.type = Terminus.UNSPECIFIED
        else:
            link.source.copy(link.remote_source)
            link.target.type = Terminus.UNSPECIFIED
        link.open()
    if link.state & Endpoint.LOCAL_ACTIVE:
        link.condition = condition_of(refusal)
        link.close()


def take_delivery(host: Host, node: Node, delivery: Any, limit: int, credit: int) -> bytes | None:
    """The encoded message of a delivery, once it is complete, and credit for another; else ``None``.

    A message above ``limit`` bytes ends the link as soon as it is seen to be: until it is complete, the engine
    keeps what has come of it.
    """
    link = node.link
    if not delivery.readable:
        return None
    if delivery.partial:
        if delivery.pending > limit:
            host.end_link(node, message_too_large(delivery.pending, limit))
        return None
    is_aborted = delivery.aborted
    raw = b"" if is_aborted else bytes(link.recv(delivery.pending) or b"")
    link.advance()
    if link.credit < credit // 2:
        link.flow(credit - link.credit)
    if is_aborted:
        host.next_format(link.name)
        delivery.settle()
        return None
    return raw


def _session_filter(link: Any) -> tuple[bool, str | None]:
    """Whether a receiver wants a session, and which."""
    data = link.remote_source.filter
    data.rewind()
    if not data.next():
        return False, None
    filters = decoded(data.get_object)
    if not isinstance(filters, dict):
        return False, None
    key = symbol(_SESSION_FILTER)
    if key not in filters:
        return False, None
    wanted = filters[key]
    wanted = getattr(wanted, "value", wanted)  # described, by some clients
    return True, None if wanted is None else str(wanted)


@final
class Outlet(Node):
    """A client's receiver on a queue, with or without a session."""

    def __init__(self, host: Host, link: Any, path: str, queue: Queue) -> None:
        super().__init__(link, path)
        self._host = host
        self._queue = queue
        self.session_id: str | None = None
        self.settles = link.remote_snd_settle_mode != Link.SND_SETTLED
        self.consumer = Consumer(self, settles=self.settles)

    def attach(self) -> None:
        """Open the link, at once or when the session comes.

        Raises:
            Refused: The queue has sessions and the receiver wants none, or the reverse; or somebody else holds
                the session.
        """
        wants_session, session_id = _session_filter(self.link)
        if wants_session != self._queue.requires_session:
            has = "requires sessions" if self._queue.requires_session else "has no sessions"
            wants = "wants a session" if wants_session else "wants none"
            raise Refused("amqp:not-allowed", f"The queue {has}, the receiver {wants}.")
        if not wants_session:
            self._queue.attach(self.consumer)
            open_link(self.link, self._queue.settings.max_message_bytes)
            return
        properties = decoded(lambda: self.link.remote_properties) or {}
        milliseconds = properties.get(symbol("com.microsoft:timeout"))
        timeout = milliseconds / 1_000 if isinstance(milliseconds, int) else _SESSION_WAIT
        self._queue.accept(self.consumer, session_id, timeout)

    # Told by the queue

    def granted(self, session_id: str, until: float) -> None:
        """The session is the client's."""
        self.session_id = session_id
        self._host.perform(self, partial(self._open, session_id, until))

    def _open(self, session_id: str, until: float) -> None:
        link = self.link
        link.source.copy(link.remote_source)
        link.source.filter.clear()
        link.source.filter.put_object({symbol(_SESSION_FILTER): session_id})
        link.target.copy(link.remote_target)
        link.snd_settle_mode = link.remote_snd_settle_mode
        link.rcv_settle_mode = link.remote_rcv_settle_mode
        link.max_message_size = self._queue.settings.max_message_bytes
        ticks = round(until * _TICKS_PER_SECOND) + _TICKS_TO_1970
        link.properties = PropertyDict({symbol("com.microsoft:locked-until-utc"): ticks})
        link.open()

    def lost(self, refusal: Refused) -> None:
        """The session is not, or no more."""
        self._host.perform(self, partial(self._host.end_link, self, refusal))

    def deliver(self, message: Stored, token: UUID | None) -> None:
        """Send a message."""
        self._host.perform(self, partial(self._send, encode_stored(message), token))

    def _send(self, encoded: bytes, token: UUID | None) -> None:
        delivery = self.link.delivery((token or uuid.uuid4()).bytes_le)
        self.link.stream(encoded)
        self.link.advance()
        if token is None:
            delivery.settle()
        else:
            delivery.token = token
        self._host.counters.messages_out += 1

    # Told by the client

    def on_flow(self) -> None:
        """The client can take more, or wants an end of it."""
        link = self.link
        self._queue.flow(self.consumer, link.credit)
        if link.drain_mode:
            self._queue.flow(self.consumer, 0, drained=True)
            link.drained()
            self._host.wake()

    def on_delivery(self, delivery: Any) -> None:
        """The client has settled a message, or wants to."""
        token = getattr(delivery, "token", None)
        state = delivery.remote_state
        if token is None or not delivery.updated or not (state or delivery.settled):
            return
        delivery.token = None  # what it says later is about nothing
        if not state:  # the client forgets the message, which stays locked
            delivery.settle()
            return
        self._host.counters.dispositions += 1
        refusal = attempt(partial(self._settle, delivery, state, token))
        if self._host.faults.loses_answer(Operation.SETTLE, self.path):
            return
        if not delivery.settled:
            _echo(delivery, state, refusal)
        delivery.settle()

    def _settle(self, delivery: Any, state: Any, token: UUID) -> None:
        self._host.faults.check(Operation.SETTLE, self.path)
        if state == Delivery.ACCEPTED:
            self._queue.settle([token], Outcome.COMPLETED, self.consumer)
        elif state == Delivery.REJECTED:
            error = decoded(lambda: delivery.remote.condition)
            info = _words((error and error.info) or {})
            self._queue.settle(
                [token],
                Outcome.DEAD_LETTERED,
                self.consumer,
                reason=info.pop("DeadLetterReason", None),
                description=info.pop("DeadLetterErrorDescription", None),
                properties=info,
            )
        elif state == Delivery.MODIFIED:
            properties = decoded(lambda: delivery.remote.annotations) or {}
            self._queue.settle(
                [token],
                Outcome.DEFERRED if delivery.remote.undeliverable else Outcome.ABANDONED,
                self.consumer,
                properties=_words(properties),
            )
        else:
            self._queue.settle([token], Outcome.RELEASED, self.consumer)

    def on_gone(self, *, closed: bool) -> None:
        """The receiver is no more."""
        self._queue.detach(self.consumer, closed=closed)


def _words(properties: Mapping[Any, Any]) -> dict[str, Any]:
    """Properties that a settlement sets, by names that are text."""
    return {str(name): owned(value) for name, value in properties.items()}


def _echo(delivery: Any, state: Any, refusal: Refused | None) -> None:
    """Tell the client that its outcome was applied, or why not."""
    if refusal is not None:
        delivery.local.condition = condition_of(refusal)
        state = Delivery.REJECTED
    elif state == Delivery.MODIFIED:
        delivery.local.failed = delivery.remote.failed
        delivery.local.undeliverable = delivery.remote.undeliverable
    delivery.update(state)


@final
class Inlet(Node):
    """A client's sender to a queue."""

    def __init__(self, host: Host, link: Any, path: str, queue: Queue) -> None:
        super().__init__(link, path)
        self._host = host
        self._queue = queue

    def attach(self) -> None:
        """Open the link and grant credit."""
        limit = self._queue.settings.max_message_bytes
        most = ulong(min(limit, MAX_BATCH_BYTES))
        self.link.properties = PropertyDict({symbol("com.microsoft:max-message-batch-size"): most})
        open_link(self.link, limit)
        self.link.flow(_INLET_CREDIT)

    def on_delivery(self, delivery: Any) -> None:
        """A message or a batch has come, at least in part."""
        limit = self._queue.settings.max_message_bytes
        raw = take_delivery(self._host, self, delivery, limit, _INLET_CREDIT)
        if raw is None:
            return
        message_format = self._host.next_format(self.link.name)
        self._host.counters.transfers_in += 1
        refusal = attempt(partial(self._send, raw, message_format))
        if self._host.faults.loses_answer(Operation.SEND, self.path):
            return
        if refusal is not None:
            delivery.local.condition = condition_of(refusal)
        delivery.update(Delivery.ACCEPTED if refusal is None else Delivery.REJECTED)
        delivery.settle()

    def _send(self, raw: bytes, message_format: int) -> None:
        self._host.faults.check(Operation.SEND, self.path)
        limit = self._queue.settings.max_message_bytes
        if message_format == BATCH_FORMAT:
            limit = min(limit, MAX_BATCH_BYTES)
        if len(raw) > limit:
            raise message_too_large(len(raw), limit)
        contents = decode_transfer(raw, message_format)
        self._queue.send(contents)
        self._host.counters.messages_in += len(contents)
