"""One client's AMQP connection, without I/O: bytes in, bytes out, on the engine of python-qpid-proton."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, final

from proton import Collector, Event, ProtonException, Transport
from proton import Connection as ProtonConnection

from .authority import Authority, Grants, Right, entity_path
from .counters import Counters
from .entities import Consumer
from .fault_book import FaultBook, Operation
from .frames import MessageFormats
from .links import Inlet, Malformed, Node, Outlet, attempt, decoded, refuse_link
from .namespace import Namespace
from .refusals import Refused, token_ended
from .requests import CBS, MANAGEMENT, ReplyNode, RequestNode
from .timers import Timer

__all__ = ["Connection"]

_MAX_FRAME: Final = 65_536
_IDLE_TIMEOUT: Final = 240.0
"""Seconds without a frame after which the service gives a connection up."""

_SESSION_WINDOW: Final = 1 << 24
"""Bytes a client may send on a session before they are processed."""

_logger = logging.getLogger(__name__)


@final
class Connection:
    """The server's side of one connection.

    Args:
        namespace: The queues.
        authority: Who checks tokens.
        faults: What goes wrong.
        counters: What is counted.
        wake: Called when there may be something to write.
        abort: Resets the transport below.
    """

    def __init__(
        self,
        namespace: Namespace,
        authority: Authority,
        faults: FaultBook,
        counters: Counters,
        *,
        wake: Callable[[], None],
        abort: Callable[[], None],
    ) -> None:
        self.namespace = namespace
        self.faults = faults
        self.counters = counters
        self.wake = wake
        self.abort = abort
        self._grants = Grants(authority)
        self._expiries: dict[str, Timer] = {}
        self._formats = MessageFormats()
        self._links: set[Any] = set()  # those not freed: the engine frees a session's links with it
        self._nodes: dict[Any, Node] = {}
        self._replies: dict[tuple[Any, str], Any] = {}
        self._receivers: dict[str, Outlet] = {}
        self._lost = False
        self._encoded: list[bytes] = []  # to be written
        self._transport = Transport(Transport.SERVER)
        self._transport.max_frame_size = _MAX_FRAME
        self._transport.idle_timeout = _IDLE_TIMEOUT
        self._transport.sasl().allowed_mechs("ANONYMOUS")
        self._connection = ProtonConnection()
        self._connection.container = "service-bus-emulator"
        self._collector = Collector()
        self._connection.collect(self._collector)
        self._transport.bind(self._connection)
        counters.connections += 1
        counters.open_connections += 1

    # Bytes

    def receive(self, data: bytes) -> None:
        """Process what came from the client."""
        stall = self.faults.stall_of("")
        if stall is not None:
            stall.hold(partial(self.receive, data))
        else:
            self._do(partial(self._receive, data))

    def _receive(self, data: bytes) -> None:
        counted = self._formats.dispositions
        self._formats.feed(data)
        self.counters.disposition_frames += self._formats.dispositions - counted
        view = memoryview(data)
        while view and (capacity := self._transport.capacity()) > 0:
            size = min(capacity, len(view))
            # What was sent before goes before: the engine would keep it when its credit is taken back now.
            self._flush()
            try:
                self._transport.push(bytes(view[:size]))
            except ProtonException:  # no AMQP: what the engine has to say about it is to be written
                break
            view = view[size:]
            self._run()
        self.wake()

    def output(self) -> bytes:
        """What is to be written now."""
        stall = self.faults.stall_of("")
        if stall is not None:
            stall.hold(self.wake)
            return b""
        self._do(self._write)
        chunks, self._encoded = self._encoded, []
        return b"".join(chunks)

    def _write(self) -> None:
        self._run()
        self._flush()

    def _flush(self) -> None:
        while (pending := self._transport.pending()) > 0:
            self._encoded.append(bytes(self._transport.peek(pending)))
            self._transport.pop(pending)

    @property
    def is_done(self) -> bool:
        """Whether nothing will be written any more."""
        return self._lost or (not self._encoded and self._transport.pending() < 0)

    def tick(self, now: float) -> None:
        """Keep an idle connection alive, or end it when the client did not; ``now`` is monotonic seconds."""
        if self.faults.stall_of("") is None:
            self._do(partial(self._tick, now))

    def _tick(self, now: float) -> None:
        self._transport.tick(now)
        self._run()
        self.wake()

    def _do(self, call: Callable[[], None]) -> None:
        """Use the engine, while it is there.

        Whoever caused it, another client or the time: an error ends this connection and no other.
        """
        if self._lost:
            return
        try:
            call()
        except Malformed as problem:
            _logger.info("a connection to the emulator ends by what its client wrote: %s", problem)
            self.abort()
        except Exception:
            _logger.exception("a connection to the emulator ends by an error of the emulator's")
            self.abort()

    def lose(self) -> None:
        """The transport below is gone."""
        if self._lost:
            return
        self._lost = True
        for node in list(self._nodes.values()):
            self._forget(node, closed=False)
        for timer in self._expiries.values():
            self.namespace.timers.cancel(timer)
        self._replies.clear()
        self._links.clear()
        self._transport.unbind()
        self._connection.free()
        self._collector.release()
        # Here and now: left to the garbage collector, proton's objects would be freed in any thread.
        del self._transport, self._connection, self._collector
        self.counters.open_connections -= 1

    # Events

    def _run(self) -> None:
        while (event := self._collector.peek()) is not None:
            handle = _HANDLERS.get(event.type)
            if handle is not None:
                handle(self, event)
            self._collector.pop()

    def _on_connection_open(self, event: Any) -> None:
        event.connection.open()

    def _on_connection_close(self, event: Any) -> None:
        event.connection.close()

    def _on_session_open(self, event: Any) -> None:
        event.session.incoming_capacity = _SESSION_WINDOW
        event.session.open()

    def _on_session_close(self, event: Any) -> None:
        self._end_session(event.session)

    def _end_session(self, session: Any) -> None:
        links = [link for link in self._links if link.session == session]
        for link in links:
            stall = self.faults.stall_of(_path_of(link))
            if stall is not None:  # what its links wait for comes first
                stall.hold(partial(self._do, partial(self._end_session, session)))
                stall.hold(self.wake)
                return
        for link in links:
            node = self._nodes.get(link)
            if node is not None:
                self._forget(node)
        self._links.difference_update(links)
        session.close()
        session.free()

    def _on_link_open(self, event: Any) -> None:
        link = event.link
        path = _path_of(link)
        self._links.add(link)
        self.counters.links += 1
        self._perform(link, path, partial(self._attach, link, path))

    def _attach(self, link: Any, path: str) -> None:
        refusal = attempt(partial(self._open, link, path))
        if refusal is None:
            return
        node = self._nodes.get(link)
        if node is not None:
            self._forget(node)
        self.counters.refused_links += 1
        refuse_link(link, refusal)

    def _open(self, link: Any, path: str) -> None:
        node = self._nodes[link] = self._node(link, path)
        self.counters.open_links += 1
        node.attach()

    def _node(self, link: Any, path: str) -> Inlet | Outlet | RequestNode | ReplyNode:
        if path == CBS or path.lower().endswith(MANAGEMENT):
            if not link.is_sender:
                return RequestNode(self, link, path)
            self._replies[link.session, path] = link
            return ReplyNode(link, path)
        self.faults.check(Operation.ATTACH, path)
        self.authorize(path, Right.LISTEN if link.is_sender else Right.SEND)
        queue = self.namespace.find(path)
        if not link.is_sender:
            return Inlet(self, link, path, queue)
        outlet = self._receivers[link.name] = Outlet(self, link, path, queue)
        return outlet

    def _on_link_close(self, event: Any) -> None:
        link = event.link
        self._perform(link, _path_of(link), partial(self._detach, link))

    def _detach(self, link: Any) -> None:
        node = self._nodes.get(link)
        if node is not None:
            self._forget(node)
        link.close()
        self._links.discard(link)
        link.free()

    def _forget(self, node: Node, *, closed: bool = True) -> None:
        if self._nodes.pop(node.link, None) is None:
            return
        self.counters.open_links -= 1
        if isinstance(node, Outlet):
            self._receivers.pop(node.link.name, None)
        elif isinstance(node, ReplyNode):
            self._replies.pop((node.link.session, node.path), None)
        node.on_gone(closed=closed)
        node.link = None

    def _on_flow(self, event: Any) -> None:
        link = event.link

        def tell() -> None:
            node = self._nodes.get(link)
            if node is not None:
                node.on_flow()

        self._perform(link, _path_of(link), tell)

    def _on_delivery(self, event: Any) -> None:
        delivery = event.delivery
        link = delivery.link

        def tell() -> None:
            node = self._nodes.get(link)
            if node is not None:
                node.on_delivery(delivery)

        self._perform(link, _path_of(link), tell)

    # What the nodes ask for

    def perform(self, node: Node, call: Callable[[], None]) -> None:
        """Do what concerns a node: now, once its stall is lifted, or never if it is gone by then."""
        link = node.link

        def unless_gone() -> None:
            if self._nodes.get(link) is node:
                call()

        self._perform(link, node.path, unless_gone)

    def _perform(self, link: Any, path: str, call: Callable[[], None]) -> None:
        stall = self.faults.stall_of(path)
        if stall is not None:
            stall.hold(partial(self._perform, link, path, call))
            return
        # To the engine, a link that was freed with its session is no link, and touching it a crash.
        if link in self._links:
            self._do(call)
            self.wake()

    def next_format(self, link: str) -> int:
        """The message format of the next delivery on a link."""
        return self._formats.take(link)

    def reply_link(self, node: RequestNode) -> Any:
        """The link on which the client wants its replies, if it has opened one."""
        return self._replies.get((node.link.session, node.path))

    def consumer(self, link: str) -> Consumer | None:
        """Who receives on the link of this name."""
        outlet = self._receivers.get(link)
        return None if outlet is None else outlet.consumer

    def put_token(self, token: Any, audience: str) -> None:
        """Take in a token; what it allows ends when it expires.

        Raises:
            Refused: It is not valid.
        """
        timers = self.namespace.timers
        expires_at = self._grants.put(token, audience, timers.now())
        path = entity_path(audience)
        previous = self._expiries.pop(path, None)
        if previous is not None:
            timers.cancel(previous)
        self._expiries[path] = timers.at(expires_at, self._do, self._end_unauthorized)

    def authorize(self, path: str, right: Right) -> None:
        """Refuse what no token of the connection allows.

        Raises:
            Refused: So.
        """
        self._grants.check(path, right, self.namespace.timers.now())

    def _end_unauthorized(self) -> None:
        for node in self.queue_links():
            right = Right.LISTEN if isinstance(node, Outlet) else Right.SEND
            if attempt(partial(self.authorize, node.path, right)) is not None:
                self.end_link(node, token_ended(node.link.name, right.value, node.path))

    # What faults need

    def queue_links(self) -> Iterator[Inlet | Outlet]:
        """Links to queues, open or waiting for a session; without those that end while others are looked at."""
        for link, node in list(self._nodes.items()):
            if isinstance(node, (Inlet, Outlet)) and self._nodes.get(link) is node:
                yield node

    def end_link(self, node: Node, refusal: Refused) -> None:
        """End a link as the service does for reasons of its own."""
        link = node.link
        self._forget(node, closed=False)
        refuse_link(link, refusal)
        self.wake()


def _path_of(link: Any) -> str:
    """What a client's link is about.

    Raises:
        Malformed: Its address or its name is no text.
    """
    terminus = link.remote_source if link.is_sender else link.remote_target
    _, address = decoded(lambda: (link.name, terminus.address))
    return entity_path(address)


_HANDLERS: Final[dict[Any, Callable[[Connection, Any], None]]] = {
    Event.CONNECTION_REMOTE_OPEN: Connection._on_connection_open,
    Event.CONNECTION_REMOTE_CLOSE: Connection._on_connection_close,
    Event.SESSION_REMOTE_OPEN: Connection._on_session_open,
    Event.SESSION_REMOTE_CLOSE: Connection._on_session_close,
    Event.LINK_REMOTE_OPEN: Connection._on_link_open,
    Event.LINK_REMOTE_CLOSE: Connection._on_link_close,
    Event.LINK_REMOTE_DETACH: Connection._on_link_close,
    Event.LINK_FLOW: Connection._on_flow,
    Event.DELIVERY: Connection._on_delivery,
}
