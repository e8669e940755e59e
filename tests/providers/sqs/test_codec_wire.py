"""What the codec makes is what SQS takes and gives back: hostile messages through a strict emulator."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("aiobotocore", reason="pip install 'queue-runtime[sqs]'")

from aiobotocore.session import get_session
from tests.sqs.emulator import Emulator, open_emulator

from queue_runtime.messages import Message
from queue_runtime.providers.envelope import Extras
from queue_runtime.providers.sqs.codec import QueueKind, decode, encode

from .strategies import extras_, messages


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with open_emulator() as emulator:
        yield emulator


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@asynccontextmanager
async def open_queue(emulator: Emulator, kind: QueueKind) -> AsyncIterator[tuple[Any, str]]:
    """A client, and the URL of a new queue, which is deleted afterwards."""
    async with get_session().create_client(
        "sqs",
        endpoint_url=emulator.endpoint_url,
        region_name=emulator.region,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    ) as client:
        suffix, attributes = ("", {}) if kind == "standard" else (".fifo", {"FifoQueue": "true"})
        answer = await client.create_queue(
            QueueName=f"codec-{uuid.uuid4().hex}{suffix}", Attributes=attributes
        )
        try:
            yield client, answer["QueueUrl"]
        finally:
            await client.delete_queue(QueueUrl=answer["QueueUrl"])


async def through(
    client: Any, queue_url: str, kind: QueueKind, batch: list[tuple[Message, Extras]]
) -> None:
    """Send all in one call, receive all, compare."""
    sent: dict[str, tuple[Message, Extras]] = {}
    entries = []
    for number, (message, extras) in enumerate(batch):
        entries.append({"Id": str(number), **encode(message, uuid.uuid4().hex, kind, extras)})
    answer = await client.send_message_batch(QueueUrl=queue_url, Entries=entries)
    assert answer.get("Failed", []) == []
    for accepted in answer["Successful"]:
        sent[accepted["MessageId"]] = batch[int(accepted["Id"])]
    while sent:
        answer = await client.receive_message(
            QueueUrl=queue_url,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
        )
        assert answer["Messages"]
        for raw in answer["Messages"]:
            result = decode(raw, kind)
            message, extras = sent.pop(raw["MessageId"])
            assert (result.malformed, result.message) == (None, message)
            assert result.dead_letter == extras.dead_letter
            assert result.message_id == (
                message.message_id or extras.message_id or raw["MessageId"]
            )
            assert result.delivery_count == 1
            assert (result.sequence_number is None) == (kind == "standard")
            await client.delete_message(QueueUrl=queue_url, ReceiptHandle=raw["ReceiptHandle"])


@pytest.mark.parametrize("kind", ["fifo", "standard", "holding"])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batch=st.lists(st.tuples(messages, extras_), min_size=1, max_size=10))
def test_hostile_messages_come_back(
    emulator: Emulator,
    loop: asyncio.Runner,
    kind: QueueKind,
    batch: list[tuple[Message, Extras]],
) -> None:
    # Two of one deduplication id are one message.
    batch = list(
        {pair[0].deduplication_id or number: pair for number, pair in enumerate(batch)}.values()
    )
    if kind == "standard":
        batch = [(attrs.evolve(message, session_id=None), extras) for message, extras in batch]

    async def run() -> None:
        async with open_queue(emulator, kind) as (client, queue_url):
            await through(client, queue_url, kind, batch)

    loop.run(run())
