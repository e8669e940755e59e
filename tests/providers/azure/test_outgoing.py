"""Messages are built without the SDK's classes, and are what those would have put on the wire."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

pytest.importorskip("azure.servicebus", reason="pip install 'queue-runtime[azure]'")

from azure.servicebus import ServiceBusMessage, ServiceBusMessageBatch
from azure.servicebus._pyamqp.constants import LinkDeliverySettleReason
from azure.servicebus._pyamqp.error import MessageException
from azure.servicebus._transport._pyamqp_transport import PyamqpTransport

from queue_runtime.messages import Message
from queue_runtime.providers.azure.codec import encode
from queue_runtime.providers.azure.entries import NATIVE_HEADERS, Entry, in_batch, wire_size
from queue_runtime.providers.azure.outgoing import as_batch, as_message, encoded
from queue_runtime.providers.azure.outlet import _rejection

TOKEN = "0123456789abcdef" * 2
NOW = datetime(2026, 5, 4, 3, 2, 1, 987_000, tzinfo=UTC)

PLAIN = Message(b"{}")
NATIVE = {name: f"value of {name}" for name in NATIVE_HEADERS}
FULL = Message(
    b"\x00\xff" * 300,
    session_id="order-17 ü",
    message_id="m1",
    correlation_id="c1",
    content_type="application/json",
    headers={"x-one": "1", "x-two": "zwei 😀", **NATIVE},
    scheduled_at=NOW,
)


def of_sdk(entry: Entry) -> Any:
    return PyamqpTransport.to_outgoing_amqp_message(ServiceBusMessage(**entry).raw_amqp_message)


@pytest.mark.parametrize(
    "message",
    [PLAIN, Message(b"", session_id="s"), Message(b"x" * 70_000, message_id="large"), FULL],
    ids=["plain", "empty", "large", "full"],
)
def test_one_message_is_byte_for_byte_that_of_the_sdk(message: Message) -> None:
    entry = encode(message, TOKEN)

    payload = encoded(as_message(entry))

    assert payload == encoded(of_sdk(entry))
    assert len(payload) == wire_size(entry)


def test_time_to_live_travels_as_milliseconds_and_as_the_moment_it_ends() -> None:
    entry = encode(Message(b"x", time_to_live=90.0), TOKEN)
    before = int(time.time() * 1_000)

    ours, theirs = as_message(entry), of_sdk(entry)

    assert ours.header == theirs.header
    created, expires = ours.properties.creation_time, ours.properties.absolute_expiry_time
    assert before <= created <= int(time.time() * 1_000)
    assert expires - created == timedelta(seconds=90) / timedelta(milliseconds=1)
    moments = {"creation_time": 0, "absolute_expiry_time": 0}
    assert ours.properties._replace(**moments) == theirs.properties._replace(**moments)
    assert len(encoded(ours)) == len(encoded(theirs)) == wire_size(entry)


def test_a_batch_is_what_the_sdk_makes_of_the_same_messages() -> None:
    entries = [encode(Message(b"x" * size, session_id="s"), TOKEN) for size in (1, 300)]
    theirs = ServiceBusMessageBatch()
    for entry in entries:
        theirs.add_message(ServiceBusMessage(**entry))

    batch = as_batch([encoded(as_message(entry)) for entry in entries], entries[0])

    data = theirs._message[5]
    assert list(batch.data) == list(data)
    own = len(encoded(batch))
    payload_sizes = sum(in_batch(wire_size(entry)) for entry in entries)
    assert own - payload_sizes == len(encoded(as_batch([], entries[0])))


@pytest.mark.parametrize("details", [[b"amqp:not-allowed"], [b"amqp:not-allowed", b"no"], [], None])
def test_a_rejection_may_leave_out_what_it_likes(details: list[bytes] | None) -> None:
    """The SDK's own sender waits for ever when the third field of the error is missing."""
    error = _rejection(LinkDeliverySettleReason.DISPOSITION_RECEIVED, {"rejected": [details]})
    assert isinstance(error, MessageException)
    assert ("amqp:not-allowed" in str(error)) == bool(details)
