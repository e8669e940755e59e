"""Messages as the SDK's engine sends them: made from the codec's plain entries, alone and in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from azure.servicebus import ServiceBusMessage
from azure.servicebus._pyamqp._encode import encode_payload
from azure.servicebus._pyamqp.message import BatchMessage, Properties
from azure.servicebus._transport._pyamqp_transport import PyamqpTransport

from .codec import Entry

__all__ = ["PROPERTIES", "as_batch", "as_message", "encoded"]

PROPERTIES: Final = 13
"""Fields of the properties section."""


def as_message(entry: Entry) -> Any:
    """One message."""
    fields = dict(entry)
    message = ServiceBusMessage(fields.pop("body"), **fields)
    return PyamqpTransport.to_outgoing_amqp_message(message.raw_amqp_message)


def encoded(message: Any) -> bytes:
    """A message in AMQP's encoding, whose length is what the broker's limits count."""
    output = bytearray()
    encode_payload(output, message)
    return bytes(output)


def as_batch(payloads: Sequence[bytes], first: Entry) -> Any:
    """Several encoded messages as one transfer, all or none of which are stored.

    Args:
        payloads: The messages.
        first: The first of them; as in the SDK its ids stand for the batch, which partitioned queues route by.
    """
    envelope: Any = Properties(message_id=first.get("message_id"), group_id=first.get("session_id"))
    return BatchMessage(data=list(payloads), properties=envelope)
