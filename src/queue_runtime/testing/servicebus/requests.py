"""The nodes that answer requests: ``$cbs``, which takes tokens, and a queue's ``$management``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Protocol, final
from uuid import uuid4

from proton import UNDESCRIBED, Array, Data, Delivery, Message, int32, symbol, timestamp

from .authority import Right
from .codec import decode_transfer, encode_stored, owned
from .entities import Consumer, Outcome
from .fault_book import Operation
from .links import Host, Node, decoded, open_link, take_delivery
from .queue import Queue
from .refusals import Refused, session_lock_lost

__all__ = ["CBS", "MANAGEMENT", "ReplyNode", "RequestHost", "RequestNode"]

CBS: Final = "$cbs"
MANAGEMENT: Final = "/$management"

_CREDIT: Final = 1_000
_YEAR_9999: Final = 253_402_300_000_000
"""Milliseconds; asking for sessions whose state was set after some time above it asks for all."""

_MAX_PEEKED: Final = 256

_MAX_REQUEST: Final = 1 << 20
"""Bytes; scheduling several messages at once is the largest request, and four of the largest messages fit."""


class RequestHost(Host, Protocol):
    """What a node needs of its connection besides."""

    def reply_link(self, node: RequestNode) -> Any:
        """The link on which the client wants its replies, if it has opened one."""

    def consumer(self, link: str) -> Consumer | None:
        """Who receives on the link of this name."""

    def put_token(self, token: Any, audience: str) -> None:
        """Take in a token.

        Raises:
            Refused: It is not valid.
        """

    def authorize(self, path: str, right: Right) -> None:
        """Refuse what no token of the connection allows.

        Raises:
            Refused: So.
        """


@final
class ReplyNode(Node):
    """A link on which a client gets its replies."""

    def attach(self) -> None:
        """Open the link."""
        open_link(self.link)

    def on_delivery(self, delivery: Any) -> None:
        """The client has settled a reply."""
        if delivery.updated:
            delivery.settle()


@final
class RequestNode(Node):
    """A link on which a client makes requests."""

    def __init__(self, host: RequestHost, link: Any, path: str) -> None:
        super().__init__(link, path)
        self._host = host

    def attach(self) -> None:
        """Open the link and grant credit."""
        open_link(self.link)
        self.link.flow(_CREDIT)

    def on_delivery(self, delivery: Any) -> None:
        """A request has come, at least in part."""
        raw = take_delivery(self._host, self, delivery, _MAX_REQUEST, _CREDIT)
        if raw is None:
            return
        self._host.next_format(self.link.name)
        delivery.update(Delivery.ACCEPTED)
        delivery.settle()
        request = Message()
        decoded(partial(request.decode, raw))
        operation = Operation.TOKEN if self.path == CBS else Operation.REQUEST
        reply = self._answer(request, operation)
        if not self._host.faults.loses_answer(operation, self.path):
            self._reply(reply)

    def _answer(self, request: Any, operation: Operation) -> Any:
        reply = Message()
        reply.correlation_id = request.id
        properties = request.properties or {}
        # The two nodes spell what they say differently.
        is_token = operation is Operation.TOKEN
        status, text, error = (
            ("status-code", "status-description", "error-condition")
            if is_token
            else ("statusCode", "statusDescription", "errorCondition")
        )
        try:
            self._host.faults.check(operation, self.path)
            if is_token:
                self._host.counters.requests["put-token"] += 1
                self._host.put_token(owned(request.body), str(properties.get("name", "")))
                reply.properties = {status: int32(202), text: "Accepted"}
            else:
                body = {} if request.body is None else owned(request.body)
                code, reply.body = self._manage(properties, body)
                reply.properties = {status: int32(code), text: "OK"}
        except Refused as refusal:
            reply.properties = {
                status: int32(refusal.status),
                text: refusal.description,
                error: symbol(refusal.condition),
            }
        return reply

    def _reply(self, reply: Any) -> None:
        link = self._host.reply_link(self)
        if link is None:
            return
        delivery = link.delivery(uuid4().bytes)
        link.stream(reply.encode())
        link.advance()
        delivery.settle()
        self._host.wake()

    def _manage(self, properties: Mapping[str, Any], body: Mapping[str, Any]) -> tuple[int, Any]:
        path = self.path[: -len(MANAGEMENT)]
        name = str(properties.get("operation", "")).rpartition(":")[2]
        self._host.authorize(path, Right.SEND if name in _OF_SENDERS else Right.LISTEN)
        queue = self._host.namespace.find(path)
        self._host.counters.requests[name] += 1
        perform = _OPERATIONS.get(name)
        if perform is None:
            raise Refused("amqp:not-implemented", f"The emulator has no operation {name!r}.", 501)
        link = properties.get("associated-link-name")
        consumer = None if link is None else self._host.consumer(str(link))
        try:
            answer = perform(queue, body, consumer)
        except KeyError as error:
            raise Refused(
                "com.microsoft:argument-error", f"The request {name!r} has no {error}."
            ) from error
        except (AttributeError, TypeError, ValueError) as error:  # what Python says of other types
            raise Refused(
                "com.microsoft:argument-error", f"The request {name!r} is not as expected: {error}."
            ) from error
        return (204, None) if answer is None else (200, answer)


# Operations: each takes the queue, the request's body and who asks, and returns the reply's body; `None` if empty.

_Body = Mapping[str, Any]
_Perform = Callable[[Queue, _Body, Consumer | None], Any]


def _array(kind: int, elements: Iterable[Any]) -> Any:
    return Array(UNDESCRIBED, kind, *elements)


def _timestamp(seconds: float) -> Any:
    return timestamp(round(seconds * 1_000))


def _schedule(queue: Queue, body: _Body, _consumer: Consumer | None) -> Any:
    contents = [
        content
        for entry in body["messages"]
        for content in decode_transfer(bytes(entry["message"]), 0)
    ]
    return {"sequence-numbers": _array(Data.LONG, queue.send(contents))}


def _cancel(queue: Queue, body: _Body, _consumer: Consumer | None) -> Any:
    queue.cancel_scheduled(body["sequence-numbers"])
    return {}


def _renew(queue: Queue, body: _Body, _consumer: Consumer | None) -> Any:
    ends = queue.renew(list(body["lock-tokens"]))
    return {"expirations": _array(Data.TIMESTAMP, map(_timestamp, ends))}


def _renew_session(queue: Queue, body: _Body, consumer: Consumer | None) -> Any:
    return {"expiration": _timestamp(queue.renew_session(body["session-id"], consumer))}


def _get_state(queue: Queue, body: _Body, consumer: Consumer | None) -> Any:
    return {"session-state": queue.session_state(body["session-id"], consumer)}


def _set_state(queue: Queue, body: _Body, consumer: Consumer | None) -> Any:
    state = body.get("session-state")
    new = None if state is None else bytes(state)
    queue.set_session_state(body["session-id"], new, consumer)
    return {}


def _peek(queue: Queue, body: _Body, _consumer: Consumer | None) -> Any:
    count = min(int(body["message-count"]), _MAX_PEEKED)
    messages = queue.peek(int(body["from-sequence-number"]), count, body.get("session-id"))
    if not messages:
        return None
    return {"messages": [{"message": encode_stored(message)} for message in messages]}


def _settle(queue: Queue, body: _Body, consumer: Consumer | None) -> Any:
    status = body["disposition-status"]
    try:
        outcome = Outcome(status)
    except ValueError:
        raise Refused(
            "com.microsoft:argument-error", f"There is no disposition status {status!r}."
        ) from None
    properties = body.get("properties-to-modify") or {}
    if not isinstance(properties, dict) or not all(isinstance(name, str) for name in properties):
        raise TypeError("properties-to-modify is a map by text")
    queue.settle(
        list(body["lock-tokens"]),
        outcome,
        consumer,
        reason=body.get("deadletter-reason"),
        description=body.get("deadletter-description"),
        properties=properties,
    )
    return {}


def _receive_deferred(queue: Queue, body: _Body, consumer: Consumer | None) -> Any:
    session_id = body.get("session-id")
    if session_id is not None and queue.requires_session and consumer is None:
        raise session_lock_lost()
    received = queue.receive_deferred(
        list(body["sequence-numbers"]), consumer, settles=body.get("receiver-settle-mode") != 0
    )
    return {
        "messages": [
            {"message": encode_stored(message)} | ({} if token is None else {"lock-token": token})
            for message, token in received
        ]
    }


def _session_ids(queue: Queue, body: _Body, _consumer: Consumer | None) -> Any:
    since = int(body.get("last-updated-time", math.inf) if body.get("last-updated-time") else 0)
    skip, top = int(body.get("skip", 0)), int(body.get("top", 100))
    is_default = since == 0 or since > _YEAR_9999
    found = queue.session_ids(None if is_default else since / 1_000)[skip : skip + top]
    if not found:
        return None
    return {"skip": int32(skip + len(found)), "sessions-ids": _array(Data.STRING, found)}


_OPERATIONS: Final[Mapping[str, _Perform]] = {
    "cancel-scheduled-message": _cancel,
    "get-message-sessions": _session_ids,
    "get-session-state": _get_state,
    "peek-message": _peek,
    "receive-by-sequence-number": _receive_deferred,
    "renew-lock": _renew,
    "renew-session-lock": _renew_session,
    "schedule-message": _schedule,
    "set-session-state": _set_state,
    "update-disposition": _settle,
}

_OF_SENDERS: Final = frozenset({"cancel-scheduled-message", "schedule-message"})
"""Operations that need the right to send; all others need that to listen."""
