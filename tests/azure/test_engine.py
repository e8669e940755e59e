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
@pytest.mark.parametrize(("name", "rounds"), [("stalls", 150), ("noise", 500)])
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


# --- what only a broken client writes ------------------------------------------------------------------


def test_a_message_given_up_half_way_is_forgotten(edge: Edge) -> None:
    client = edge.connect()
    client.authorize()
    sender = client.link("out", "q")
    delivery = sender.delivery("t1")
    sender.stream(Message("x").encode()[:5])
    client.pump()
    delivery.abort()
    client.pump()
    assert edge.namespace.find("q").counts().active == 0
    assert client.send(sender, Message("y"), "t2").remote_state == delivery.ACCEPTED
    assert edge.namespace.find("q").counts().active == 1
    client.close()


def test_a_message_above_the_limit_ends_its_link_before_it_is_complete(edge: Edge) -> None:
    client = edge.connect()
    client.authorize()
    sender = client.link("out", "q")
    sender.delivery("t1")
    sender.stream(b"x" * 400_000)
    client.pump()
    assert client.is_refused(sender) == "amqp:link:message-size-exceeded"
    assert edge.namespace.find("q").counts().active == 0
    client.close()


@pytest.mark.parametrize(
    "body", ["text", ["a", "list"], {"lock-tokens": 1}, {"lock-tokens": "x"}, b"bytes", 7]
)
def test_a_request_of_other_types_is_refused(edge: Edge, body: object) -> None:
    client = edge.connect()
    client.authorize()
    requests = client.link("requests", "q/$management")
    replies = client.link("replies", "q/$management", receives=True, credit=1)
    request = Message(body=body, id=1)
    request.properties = {"operation": "com.microsoft:renew-lock"}
    client.send(requests, request)
    answered = client.reply(replies).properties
    assert answered["statusCode"] in {400, 410}
    assert not client.is_aborted
    client.close()


def test_a_request_that_is_no_message_ends_its_connection(edge: Edge) -> None:
    client, other = edge.connect(), edge.connect()
    client.authorize()
    other.authorize()
    client.send(client.link("requests", "q/$management"), b"\x00\x53\x77\xa1\x01\xff")
    assert client.is_aborted
    assert not other.is_aborted
    client.close()
    other.close()


@pytest.mark.parametrize("token", ["SharedAccessSignature sr=é&se=1&skn=é&sig=é", "é.é.é", "", "."])
def test_a_token_of_any_letters_is_only_refused(edge: Edge, token: str) -> None:
    client = edge.connect()
    assert client.authorize("q", token)["status-code"] == 401
    assert not client.is_aborted
    client.close()
