"""The emulator makes nothing of the engine's crash, whatever clients and faults do; see ``engine_rounds.py``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from proton import Endpoint, Message

from queue_runtime.testing.servicebus.entities import QueueSettings
from queue_runtime.testing.servicebus.namespace import Namespace
from queue_runtime.testing.servicebus.refusals import Refused

from .raw_client import Edge

CHILD = Path(__file__).with_name("engine_rounds.py")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "rounds"), [("stalls", 150)])
def test_nothing_crashes_it(name: str, rounds: int, seed: int) -> None:
    """In a child with the garbage collector at work, as what is wrong here would end the process."""
    ended = subprocess.run(
        [sys.executable, str(CHILD), name, str(seed), str(rounds)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture
def edge() -> Edge:
    namespace = Namespace()
    namespace.create("q", QueueSettings())
    return Edge(namespace)


def test_the_end_of_a_session_waits_for_what_its_links_asked_during_a_stall(edge: Edge) -> None:
    """Ended before them, it would take the links with it: the engine frees them together."""
    client = edge.connect()
    client.authorize()
    sender = client.link("out", "q")
    with edge.faults.stall("q"):
        client.send(sender, Message("x"))
        sender.close()
        client.session.close()
        client.pump()
        assert edge.namespace.find("q").counts().active == 0
        assert client.session.state & Endpoint.REMOTE_ACTIVE
    client.pump()
    assert client.session.state & Endpoint.REMOTE_CLOSED
    assert edge.namespace.find("q").counts().active == 1
    assert edge.counters.open_links == 0
    client.close()


def test_credit_granted_during_a_stall_counts_after_it(edge: Edge) -> None:
    client = edge.connect()
    client.authorize()
    client.send(client.link("out", "q"), Message("x"))
    with edge.faults.stall("q"):
        receiver = client.link("in", "q", receives=True, credit=1)
        assert client.received(receiver) is None
    client.pump()
    assert client.received(receiver) is not None
    client.close()


def test_a_link_ended_by_force_during_a_stall_does_nothing_after_it(edge: Edge) -> None:
    client = edge.connect()
    client.authorize()
    sender = client.link("out", "q")
    with edge.faults.stall("q"):
        client.send(sender, Message("x"))
        for node in client.server.queue_links():
            client.server.end_link(node, Refused("amqp:link:detach-forced", "by force"))
    client.pump()
    assert client.is_refused(sender) == "amqp:link:detach-forced"
    assert edge.namespace.find("q").counts().active == 0
    assert not client.is_aborted
    client.close()


def test_two_stalls_of_a_queue_are_both_lifted_before_it_goes_on(edge: Edge) -> None:
    client = edge.connect()
    client.authorize()
    sender = client.link("out", "q")
    first, second = edge.faults.stall("q"), edge.faults.stall("q")
    client.send(sender, Message("x"))
    first.lift()
    client.pump()
    assert edge.namespace.find("q").counts().active == 0
    second.lift()
    client.pump()
    assert edge.namespace.find("q").counts().active == 1
    client.close()
