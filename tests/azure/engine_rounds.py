"""What could crash the engine, many times over; to be run in a process of its own, as a crash would end it.

``python engine_rounds.py NAME SEED ROUNDS``: ends with 0 when nothing went wrong. The garbage collector runs between
any two steps: what is freed too early or twice shows by it.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from proton import Delivery, Endpoint, Message
from tests.azure.raw_client import Edge, RawClient

from queue_runtime.testing.servicebus.connection import Connection
from queue_runtime.testing.servicebus.entities import QueueSettings
from queue_runtime.testing.servicebus.fault_book import Fault, Operation
from queue_runtime.testing.servicebus.namespace import Namespace
from queue_runtime.testing.servicebus.refusals import Refused, server_busy

__all__ = ["ROUNDS"]

QUEUES = ("q", "s")
SESSIONS = ("a", "b", None)


def new_edge() -> Edge:
    namespace = Namespace()
    namespace.create("q", QueueSettings(lock_duration=30))
    namespace.create("s", QueueSettings(requires_session=True, lock_duration=30))
    return Edge(namespace)


class Peer:
    """A client that does anything at any time, but nothing that its own engine forbids."""

    def __init__(
        self, edge: Edge, rng: random.Random, sizes: tuple[int, ...] = (1, 100_000)
    ) -> None:
        self.sizes = sizes
        self.client = RawClient(edge)
        self.client.authorize()
        self.rng = rng
        self.links: list[Any] = []
        self.number = 0

    def step(self) -> None:
        actions: list[Callable[[], None]] = [self.attach, self.send, self.settle, self.close_link]
        weights = [4, 4, 4, 2]
        self.rng.choices([*actions, self.end_session], [*weights, 1])[0]()
        self.client.pump()

    def attach(self) -> None:
        rng, client = self.rng, self.client
        if client.session.state & Endpoint.LOCAL_CLOSED:
            client.session = client.connection.session()
            client.session.open()
        self.number += 1
        queue = rng.choice(QUEUES)
        options: dict[str, Any] = {"receives": rng.random() < 0.6, "credit": rng.randint(1, 3)}
        if queue == "s" and options["receives"]:
            options["session"] = rng.choice(SESSIONS)
        self.links.append(client.link(f"l{self.number}", queue, **options))

    def send(self) -> None:
        for link in self.links:
            if link.is_sender and link.state & Endpoint.REMOTE_ACTIVE and link.credit > 0:
                self.number += 1
                message = Message("x" * self.rng.choice(self.sizes))
                message.group_id = self.rng.choice("ab")
                self.client.send(link, message, f"t{self.number}")

    def settle(self) -> None:
        for link in self.links:
            while link.is_receiver and (received := self.client.received(link)) is not None:
                self.rng.choice((self.complete, self.forget, self.ignore))(received[0])

    def complete(self, delivery: Any) -> None:
        delivery.update(self.rng.choice((Delivery.ACCEPTED, Delivery.RELEASED, Delivery.MODIFIED)))
        if self.rng.random() < 0.5:
            self.client.pump()
            delivery.settle()

    def forget(self, delivery: Any) -> None:
        delivery.settle()

    def ignore(self, delivery: Any) -> None:
        pass

    def close_link(self) -> None:
        if self.links:
            link = self.links.pop(self.rng.randrange(len(self.links)))
            link.close() if self.rng.random() < 0.8 else link.detach()

    def end_session(self) -> None:
        if self.rng.random() < 0.5:
            for link in self.links:
                link.close()
        self.links.clear()
        self.client.session.close()

    def leave(self) -> None:
        if self.rng.random() < 0.5:
            self.client.connection.close()
            self.client.pump()
        self.links.clear()
        assert not self.client.is_aborted
        self.client.close()


def provoke(edge: Edge, rng: random.Random, stalls: list[Fault], peers: list[Peer]) -> None:
    """Make something go wrong."""
    queue = rng.choice(QUEUES)
    match rng.randrange(7):
        case 0:
            stalls.append(edge.faults.stall(rng.choice((None, *QUEUES))))
        case 1 | 2 if stalls:
            stalls.pop(rng.randrange(len(stalls))).lift()
        case 3:
            edge.faults.refuse(frozenset({rng.choice(list(Operation))}), 1, queue, server_busy())
        case 4:
            edge.faults.lose(frozenset({Operation.SETTLE}), 1, queue)
        case 5:
            edge.namespace.find("s").steal_session(rng.choice("ab"))
        case 6:
            server = rng.choice(peers).client.server
            for node in server.queue_links():
                server.end_link(node, Refused("amqp:link:detach-forced", "by force"))


def stalls(rng: random.Random, rounds: int) -> None:
    """Clients come, use queues and go, while queues stall and links are ended."""
    for _ in range(rounds):
        edge = new_edge()
        peers = [Peer(edge, rng) for _ in range(3)]
        held: list[Fault] = []
        for _ in range(40):
            peer = rng.choice(peers)
            if rng.random() < 0.05 and not held:
                peer.leave()
                peers.remove(peer)
                peers.append(Peer(edge, rng))
            elif rng.random() < 0.3:
                provoke(edge, rng, held, peers)
            else:
                peer.step()
            gc.collect()
        rng.shuffle(peers)
        for peer in peers:
            peer.leave()
            gc.collect()
            if held and rng.random() < 0.5:
                held.pop().lift()
                gc.collect()
        for stall in held:
            stall.lift()
        del peer, peers, held
        gc.collect()
        assert (edge.counters.open_links, edge.counters.open_connections) == (0, 0)


def conversation(edge: Edge, rng: random.Random) -> bytes:
    """All that a client writes who does a little of everything."""
    peer = Peer(edge, rng, (1, 300))
    client = peer.client
    for _ in range(5):
        peer.step()
    if client.session.state & Endpoint.LOCAL_CLOSED:
        client.session = client.connection.session()
        client.session.open()
    requests = client.link("requests", "q/$management")
    client.link("replies", "q/$management", receives=True, credit=5)
    for operation, body in (
        ("renew-lock", {"lock-tokens": []}),
        ("peek-message", {"from-sequence-number": 1, "message-count": 3}),
        ("schedule-message", {"messages": [{"message": Message("x").encode()}]}),
    ):
        request = Message(body=body, id=1)
        request.properties = {"operation": f"com.microsoft:{operation}"}
        client.send(requests, request, operation)
    client.connection.close()
    client.pump()
    peer.leave()
    return bytes(client.written)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A conversation with a few bytes changed, doubled or left out, or of nothing but noise."""
    if rng.random() < 0.1:
        return rng.choice((b"AMQP\x00\x01\x00\x00", b"", data[:40])) + rng.randbytes(500)
    broken = bytearray(data[: rng.randrange(len(data))])
    for _ in range(rng.choice((0, 0, 1, 1, 2, 5))):
        if broken:
            at = rng.randrange(len(broken))
            match rng.randrange(3):
                case 0:
                    broken[at] = rng.randrange(256)
                case 1:
                    del broken[at : at + rng.randint(1, 8)]
                case 2:
                    broken[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(broken)


def noise(rng: random.Random, rounds: int) -> None:
    """Bytes that no client would write, in parts cut anywhere, beside a client that goes on working."""
    edge = new_edge()
    bystander = RawClient(edge)
    bystander.authorize()
    sender = bystander.link("bystander", "q")
    for number in range(rounds):
        if number % 50 == 0:
            said = conversation(edge, rng)
        server = Connection(
            edge.namespace,
            edge.authority,
            edge.faults,
            edge.counters,
            wake=lambda: None,
            abort=lambda: None,
        )
        data = memoryview(mutated(said, rng))
        while data:
            size = rng.randint(1, rng.choice((8, 100, 10_000)))
            server.receive(bytes(data[:size]))
            server.output()
            data = data[size:]
        gc.collect()
        server.tick(1.0)
        server.output()
        server.lose()
        del server
        gc.collect()
        delivery = bystander.send(sender, Message("x"), f"b{number}")
        assert delivery.remote_state == Delivery.ACCEPTED
        delivery.settle()
    bystander.close()
    assert (edge.counters.open_links, edge.counters.open_connections) == (0, 0)


@final
class Problems(logging.Handler):
    """Ends the process by what the emulator logs as an error of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)
        os._exit(1)


ROUNDS: dict[str, Callable[[random.Random, int], None]] = {"noise": noise, "stalls": stalls}

if __name__ == "__main__":
    faulthandler.enable()
    logging.getLogger().addHandler(Problems(logging.ERROR))
    gc.collect()
    gc.freeze()  # so that each collection looks at little
    ROUNDS[sys.argv[1]](random.Random(int(sys.argv[2])), int(sys.argv[3]))
