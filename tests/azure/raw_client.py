"""A second AMQP client, on proton, that talks to a connection of the emulator in memory: what no SDK would do."""

from __future__ import annotations

from typing import Any

from proton import Collector, Connection, Event, Link, Message, Terminus, Transport, symbol

from queue_runtime.testing.servicebus.authority import AccessPolicy, Authority
from queue_runtime.testing.servicebus.connection import Connection as ServerConnection
from queue_runtime.testing.servicebus.counters import Counters
from queue_runtime.testing.servicebus.fault_book import FaultBook
from queue_runtime.testing.servicebus.namespace import Namespace


class Edge:
    """An emulator without a network."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.authority = Authority(AccessPolicy("k", "secret"))
        self.faults = FaultBook(lambda function: function())
        self.counters = Counters()

    def connect(self) -> RawClient:
        return RawClient(self)


class RawClient:
    """One connection: everything that can happen has happened when a method returns."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.is_aborted = False
        self.written = bytearray()
        self.server = ServerConnection(
            edge.namespace,
            edge.authority,
            edge.faults,
            edge.counters,
            wake=lambda: None,
            abort=self._abort,
        )
        self.transport = Transport(Transport.CLIENT)
        self.transport.sasl().allowed_mechs("ANONYMOUS")
        self.connection = Connection()
        self.connection.hostname = "test"
        self.collector = Collector()
        self.connection.collect(self.collector)
        self.transport.bind(self.connection)
        self.connection.open()
        self.session = self.connection.session()
        self.session.open()
        self.pump()

    def _abort(self) -> None:
        self.is_aborted = True

    def pump(self) -> None:
        """Carry bytes both ways until there are none."""
        moved = True
        while moved:
            while event := self.collector.peek():
                self._handle(event)
                self.collector.pop()
            moved = self.tell()
            if data := self.server.output():
                view = memoryview(data)
                while view and (room := self.transport.capacity()) > 0:
                    self.transport.push(bytes(view[:room]))
                    view = view[room:]
                moved = True

    def tell(self) -> bool:
        """Carry bytes to the emulator, and none back; whether there were any."""
        moved = False
        while (pending := self.transport.pending()) > 0:
            data = bytes(self.transport.peek(pending))
            self.transport.pop(pending)
            self.written += data
            self.server.receive(data)
            moved = True
        return moved

    def _handle(self, event: Any) -> None:
        if event.type == Event.LINK_REMOTE_CLOSE and event.link.state & Link.LOCAL_ACTIVE:
            event.link.close()

    def link(self, name: str, address: str, *, receives: bool = False, **options: Any) -> Any:
        link = self.session.receiver(name) if receives else self.session.sender(name)
        link.source.address = link.target.address = address
        if "session" in options:
            link.source.filter.put_object(
                {symbol("com.microsoft:session-filter"): options["session"]}
            )
        if options.get("settled"):
            link.snd_settle_mode = Link.SND_SETTLED
        link.open()
        if receives and options.get("credit"):
            link.flow(options["credit"])
        self.pump()
        return link

    def close_link(self, link: Any) -> None:
        link.close()
        self.pump()
        link.free()

    def send(self, link: Any, message: Any, tag: str = "t") -> Any:
        delivery = link.delivery(tag)
        link.stream(message if isinstance(message, bytes) else message.encode())
        link.advance()
        self.pump()
        return delivery

    def received(self, link: Any) -> tuple[Any, bytes] | None:
        """The next delivery on a link, as it came."""
        delivery = link.current
        if delivery is None or delivery.partial:
            return None
        raw = bytes(link.recv(delivery.pending) or b"")
        link.advance()
        return delivery, raw

    def authorize(self, path: str = "", token: str | None = None) -> Any:
        """Put a token; the reply's properties."""
        requests = self.link(f"cbs-out-{path}", "$cbs")
        replies = self.link(f"cbs-in-{path}", "$cbs", receives=True, credit=5)
        now = self.edge.namespace.timers.now()
        body = self.edge.authority.issue(now + 3_600) if token is None else token
        request = Message(body=body, id=1)
        request.properties = {
            "operation": "put-token",
            "type": "jwt",
            "name": f"amqps://test/{path}",
        }
        self.send(requests, request)
        properties = self.reply(replies).properties
        self.close_link(requests)
        self.close_link(replies)
        return properties

    def reply(self, link: Any) -> Any:
        received = self.received(link)
        assert received is not None
        received[0].settle()
        message = Message()
        message.decode(received[1])
        return message

    def is_refused(self, link: Any) -> str | None:
        """The condition with which a link was ended."""
        condition = link.remote_condition
        return None if condition is None else str(condition.name)

    def is_open(self, link: Any) -> bool:
        terminus = link.remote_source if link.is_receiver else link.remote_target
        return bool(link.state & Link.REMOTE_ACTIVE and terminus.type != Terminus.UNSPECIFIED)

    def close(self) -> None:
        self.server.lose()
        self.transport.unbind()
        self.connection.free()
        self.collector.release()
