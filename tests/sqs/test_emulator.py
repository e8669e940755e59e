"""The emulator behaves as SQS does where it matters to us; what of this comes from our shim is in ``README.md``.

``python tests/sqs/emulator.py --lax -- pytest tests/sqs/test_emulator.py`` shows what ministack does on its own,
and with ``QUEUE_RUNTIME_TEST_SQS_URL`` naming an account the expectations themselves are put to the test.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from queue_runtime.testing import open_tcp_proxy

from .emulator import Emulator, Failure, open_emulator, require_emulator, sqs_for_tests

EMULATOR = Path(__file__).with_name("emulator.py")


class Sqs:
    """Calls of the real SDK, one after the other."""

    def __init__(self, client: Any, runner: asyncio.Runner) -> None:
        self.client = client
        self.run = runner.run
        self.queues: list[str] = []

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        return lambda **arguments: self.run(getattr(self.client, operation)(**arguments))

    def new_queue(self, suffix: str = ".fifo", **attributes: Any) -> str:
        if suffix:
            attributes |= {"FifoQueue": "true"}
        created = self.create_queue(
            QueueName=f"test-{uuid.uuid4().hex}{suffix}",
            Attributes={name: str(value) for name, value in attributes.items()},
        )
        url: str = created["QueueUrl"]
        self.queues.append(url)
        return url

    def put(self, url: str, *bodies: str, group: str = "g") -> list[dict[str, Any]]:
        return [
            self.send_message(
                QueueUrl=url,
                MessageBody=body,
                MessageGroupId=group,
                MessageDeduplicationId=uuid.uuid4().hex,
            )
            for body in bodies
        ]

    def get(self, url: str, wait: int = 0, count: int = 10, **options: Any) -> list[dict[str, Any]]:
        answer = self.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=count,
            WaitTimeSeconds=wait,
            AttributeNames=["All"],
            **options,
        )
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        return messages

    def counts(self, url: str) -> tuple[int, int, int]:
        """Visible, in flight and delayed."""
        suffixes = ("", "NotVisible", "Delayed")
        names = [f"ApproximateNumberOfMessages{suffix}" for suffix in suffixes]
        answer = self.get_queue_attributes(QueueUrl=url, AttributeNames=names)
        visible, in_flight, delayed = (int(answer["Attributes"][name]) for name in names)
        return visible, in_flight, delayed

    def wait_visible(self, url: str, number: int) -> None:
        """Until so many are visible, without receiving them."""
        deadline = time.monotonic() + 30
        while self.counts(url)[0] != number:
            assert time.monotonic() < deadline, self.counts(url)

    def change(self, url: str, message: dict[str, Any], visibility: int) -> None:
        self.change_message_visibility(
            QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=visibility
        )

    def delete(self, url: str, *messages: dict[str, Any]) -> list[dict[str, Any]]:
        entries = [
            {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
            for number, message in enumerate(messages)
        ]
        answer = self.delete_message_batch(QueueUrl=url, Entries=entries)
        failed: list[dict[str, Any]] = answer.get("Failed", [])
        return failed

    def refused(self, call: Callable[[], object]) -> tuple[str, str]:
        """The code and the text of the error that the call ends with."""
        with pytest.raises(self.client.exceptions.ClientError) as caught:
            call()
        error = caught.value.response["Error"]
        return error["Code"], error["Message"]


def bodies(messages: list[dict[str, Any]]) -> list[str]:
    return [message["Body"] for message in messages]


def make_client(url: str) -> Any:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    parts = urllib.parse.urlsplit(url)
    options = dict(urllib.parse.parse_qsl(parts.query))
    return get_session().create_client(
        "sqs",
        region_name=parts.hostname,
        endpoint_url=options.get("endpoint_url"),
        aws_access_key_id=options.get("access_key_id"),
        aws_secret_access_key=options.get("secret_access_key"),
        config=AioConfig(retries={"total_max_attempts": 1}),
    )


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with sqs_for_tests() as running:
        yield running


@pytest.fixture(scope="module")
def connected(emulator: Emulator) -> Iterator[Sqs]:
    with asyncio.Runner() as runner:
        context = make_client(emulator.url)
        client = runner.run(context.__aenter__())
        try:
            yield Sqs(client, runner)
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture
def sqs(connected: Sqs) -> Iterator[Sqs]:
    yield connected
    while connected.queues:
        connected.delete_queue(QueueUrl=connected.queues.pop())


# --- groups ---------------------------------------------------------------------------------------


def test_a_group_is_blocked_while_its_head_is_in_flight(sqs: Sqs) -> None:
    url = sqs.new_queue()
    sqs.put(url, "a1", "a2", "a3", group="a")
    sqs.put(url, "b1", group="b")
    assert bodies(sqs.get(url, count=1)) == ["a1"]
    assert bodies(sqs.get(url)) == ["b1"]
    assert sqs.get(url) == []


def test_one_response_takes_as_much_of_a_group_as_it_can(sqs: Sqs) -> None:
    url = sqs.new_queue()
    sqs.put(url, "a1", group="a")
    sqs.put(url, "b1", group="b")
    sqs.put(url, "a2", group="a")
    assert bodies(sqs.get(url, count=2)) == ["a1", "a2"]


def test_a_delayed_head_blocks_a_tail_that_was_given_back(sqs: Sqs) -> None:
    url = sqs.new_queue()
    sqs.put(url, "1", "2", "3")
    head, *tail = sqs.get(url, wait=1)
    sqs.change(url, head, 2)
    for message in tail:
        sqs.change(url, message, 0)
    assert sqs.get(url) == []
    assert bodies(sqs.get(url, wait=10)) == ["1", "2", "3"]


def test_a_tail_in_flight_does_not_block_what_is_before_it(sqs: Sqs) -> None:
    url = sqs.new_queue()
    sqs.put(url, "1", "2", "3")
    first, _, _ = sqs.get(url, wait=1)
    sqs.change(url, first, 0)
    assert bodies(sqs.get(url, wait=1)) == ["1"]


def test_a_group_goes_on_when_all_before_is_deleted(sqs: Sqs) -> None:
    url = sqs.new_queue()
    sqs.put(url, "1", "2", "3")
    first, second = sqs.get(url, count=2, wait=1)
    assert sqs.delete(url, first) == []
    assert sqs.get(url) == []
    assert sqs.delete(url, second) == []
    assert bodies(sqs.get(url, wait=1)) == ["3"]


# --- receipts -------------------------------------------------------------------------------------


def test_an_expired_receipt_deletes_nothing_on_fifo(sqs: Sqs) -> None:
    url = sqs.new_queue(VisibilityTimeout=1)
    sqs.put(url, "x")
    (message,) = sqs.get(url, wait=1)
    sqs.wait_visible(url, 1)
    code, text = sqs.refused(
        lambda: sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    )
    assert code == "InvalidParameterValue"
    assert "The receipt handle has expired" in text
    (failed,) = sqs.delete(url, message)
    assert failed["Code"] == "ReceiptHandleIsInvalid"
    assert failed["SenderFault"] is True
    assert bodies(sqs.get(url, wait=1)) == ["x"]


def test_a_superseded_receipt_deletes_nothing(sqs: Sqs) -> None:
    url = sqs.new_queue()
    sqs.put(url, "x")
    (old,) = sqs.get(url, wait=1, VisibilityTimeout=1)
    (new,) = sqs.get(url, wait=10)
    assert new["ReceiptHandle"] != old["ReceiptHandle"]
    assert new["Attributes"]["ApproximateReceiveCount"] == "2"
    (failed,) = sqs.delete(url, old)
    assert failed["Code"] == "ReceiptHandleIsInvalid"
    assert sqs.delete(url, new) == []


@pytest.mark.parametrize("suffix", ["", ".fifo"])
def test_visibility_changes_only_in_flight(sqs: Sqs, suffix: str) -> None:
    url = sqs.new_queue(suffix)
    if suffix:
        sqs.put(url, "x")
    else:
        sqs.send_message(QueueUrl=url, MessageBody="x")
    (message,) = sqs.get(url, wait=1, VisibilityTimeout=1)
    sqs.wait_visible(url, 1)
    code, text = sqs.refused(lambda: sqs.change(url, message, 30))
    assert code == "InvalidParameterValue"
    assert "not available for visibility timeout change" in text
    entry = {"Id": "a", "ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": 30}
    answer = sqs.change_message_visibility_batch(QueueUrl=url, Entries=[entry])
    assert [failed["Code"] for failed in answer["Failed"]] == ["InvalidParameterValue"]


def test_deleting_twice_succeeds(sqs: Sqs) -> None:
    url = sqs.new_queue()
    sqs.put(url, "x")
    (message,) = sqs.get(url, wait=1)
    assert sqs.delete(url, message) == []
    assert sqs.delete(url, message) == []
    code, _ = sqs.refused(lambda: sqs.change(url, message, 30))
    assert code == "InvalidParameterValue"


def test_an_expired_receipt_deletes_on_a_standard_queue(sqs: Sqs) -> None:
    url = sqs.new_queue("")
    sqs.send_message(QueueUrl=url, MessageBody="x")
    (message,) = sqs.get(url, wait=1, VisibilityTimeout=1)
    sqs.wait_visible(url, 1)
    assert sqs.delete(url, message) == []
    assert sqs.get(url) == []


def test_a_receipt_that_never_was_is_called_invalid(sqs: Sqs) -> None:
    url = sqs.new_queue()
    code, _ = sqs.refused(lambda: sqs.delete_message(QueueUrl=url, ReceiptHandle="garbage"))
    assert code == "ReceiptHandleIsInvalid"


def test_visibility_ends_twelve_hours_after_receipt(sqs: Sqs) -> None:
    url = sqs.new_queue()
    sqs.put(url, "x")
    (message,) = sqs.get(url, wait=1)
    code, _ = sqs.refused(lambda: sqs.change(url, message, 43_201))
    assert code == "InvalidParameterValue"
    code, text = sqs.refused(lambda: sqs.change(url, message, 43_200))
    assert code == "InvalidParameterValue"
    assert "beyond the limit" in text
    sqs.change(url, message, 43_000)


# --- receiving ------------------------------------------------------------------------------------


def test_a_receive_attempt_is_replayed(sqs: Sqs) -> None:
    url = sqs.new_queue()
    sqs.put(url, "1", "2")
    first = sqs.get(url, wait=1, ReceiveRequestAttemptId="try", VisibilityTimeout=30)
    again = sqs.get(url, ReceiveRequestAttemptId="try", VisibilityTimeout=30)
    assert bodies(first) == ["1", "2"]
    assert [m["ReceiptHandle"] for m in again] == [m["ReceiptHandle"] for m in first]
    assert sqs.get(url, ReceiveRequestAttemptId="another") == []


def test_a_replay_starts_the_visibility_anew(sqs: Sqs) -> None:
    url = sqs.new_queue(VisibilityTimeout=2)
    sqs.put(url, "1")
    sqs.get(url, wait=1, ReceiveRequestAttemptId="try")
    received = time.monotonic()
    replayed = received
    while time.monotonic() - received < 1:
        replayed = time.monotonic()
        assert bodies(sqs.get(url, ReceiveRequestAttemptId="try")) == ["1"]
    assert bodies(sqs.get(url, wait=10)) == ["1"]
    assert time.monotonic() - replayed > 1.9


@pytest.mark.parametrize("touch", ["delete", "change"])
def test_an_attempt_of_which_something_was_touched_is_not_replayed(sqs: Sqs, touch: str) -> None:
    url = sqs.new_queue()
    sqs.put(url, "1", "2")
    first, _ = sqs.get(url, wait=1, ReceiveRequestAttemptId="try")
    if touch == "delete":
        sqs.delete(url, first)
    else:
        sqs.change(url, first, 60)
    code, text = sqs.refused(lambda: sqs.get(url, ReceiveRequestAttemptId="try"))
    assert code == "InvalidParameterValue"
    assert "not retryable" in text


def test_an_attempt_that_was_throttled_needs_another_id(sqs: Sqs, emulator: Emulator) -> None:
    url = sqs.new_queue()
    sqs.put(url, "x")
    emulator.fail(Failure(count=1, action="ReceiveMessage"))
    code, _ = sqs.refused(lambda: sqs.get(url, ReceiveRequestAttemptId="try"))
    assert code == "ThrottlingException"
    code, _ = sqs.refused(lambda: sqs.get(url, ReceiveRequestAttemptId="try"))
    assert code == "InvalidParameterValue"
    assert bodies(sqs.get(url, wait=1, ReceiveRequestAttemptId="again")) == ["x"]


def test_a_long_poll_ends_with_the_message_or_with_its_time(sqs: Sqs) -> None:
    url = sqs.new_queue()

    async def race() -> tuple[list[str], float]:
        polling = asyncio.create_task(
            sqs.client.receive_message(QueueUrl=url, WaitTimeSeconds=20, MaxNumberOfMessages=10)
        )
        await asyncio.wait([polling], timeout=0.2)
        assert not polling.done()
        await sqs.client.send_message(
            QueueUrl=url, MessageBody="x", MessageGroupId="g", MessageDeduplicationId="x"
        )
        sent = time.monotonic()
        return bodies((await polling)["Messages"]), time.monotonic() - sent

    received, seconds = sqs.run(race())
    assert received == ["x"]
    assert seconds < 5
    started = time.monotonic()
    assert sqs.get(url, wait=1) == []
    assert 0.9 < time.monotonic() - started < 10


def test_a_poll_whose_client_has_gone_still_claims(sqs: Sqs) -> None:
    url = sqs.new_queue()

    async def abandon() -> None:
        polling = asyncio.create_task(
            sqs.client.receive_message(QueueUrl=url, WaitTimeSeconds=5, VisibilityTimeout=60)
        )
        await asyncio.wait([polling], timeout=0.5)
        polling.cancel()
        await asyncio.wait([polling])

    sqs.run(abandon())
    sqs.put(url, "x")
    deadline = time.monotonic() + 5
    while sqs.counts(url) != (0, 1, 0):
        assert time.monotonic() < deadline
    assert sqs.get(url, wait=1) == []


@pytest.mark.parametrize(
    "options",
    [{"MaxNumberOfMessages": 11}, {"WaitTimeSeconds": 21}, {"VisibilityTimeout": 43_201}],
)
def test_a_receive_out_of_range_is_refused(sqs: Sqs, options: dict[str, int]) -> None:
    url = sqs.new_queue()
    code, _ = sqs.refused(lambda: sqs.receive_message(QueueUrl=url, **options))
    assert code == "InvalidParameterValue"


# --- dead letters ---------------------------------------------------------------------------------


def with_dead_letters(sqs: Sqs, count: int, **attributes: Any) -> tuple[str, str]:
    dead = sqs.new_queue()
    answer = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])
    arn = answer["Attributes"]["QueueArn"]
    policy = f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": {count}}}'
    return sqs.new_queue(RedrivePolicy=policy, **attributes), dead


def test_a_message_received_too_often_moves_when_it_would_be_received_again(sqs: Sqs) -> None:
    url, dead = with_dead_letters(sqs, 1)
    sqs.put(url, "1", "2")
    (first,) = sqs.get(url, count=1, wait=1)
    sqs.change(url, first, 0)
    assert sqs.counts(dead)[0] == 0
    assert bodies(sqs.get(url, wait=5)) == ["2"]
    (letter,) = sqs.get(dead, wait=5)
    assert letter["Body"] == "1"
    assert letter["MessageId"] == first["MessageId"]
    assert letter["Attributes"]["MessageGroupId"] == "g"
    assert letter["Attributes"]["MessageDeduplicationId"] == letter["MessageId"]
    assert "DeadLetterQueueSourceArn" in letter["Attributes"]


def test_a_message_behind_one_in_flight_is_not_moved_before_it(sqs: Sqs) -> None:
    url, dead = with_dead_letters(sqs, 1)
    sqs.put(url, "1", "2")
    head, tail = sqs.get(url, wait=1)
    sqs.change(url, head, 60)
    sqs.change(url, tail, 0)
    assert sqs.get(url, wait=1) == []
    assert sqs.get(dead) == []


def test_the_dead_letters_of_a_fifo_queue_go_to_a_fifo_queue(sqs: Sqs) -> None:
    other = sqs.new_queue("")
    arn = sqs.get_queue_attributes(QueueUrl=other, AttributeNames=["QueueArn"])["Attributes"]
    policy = f'{{"deadLetterTargetArn": "{arn["QueueArn"]}", "maxReceiveCount": 3}}'
    code, _ = sqs.refused(lambda: sqs.new_queue(RedrivePolicy=policy))
    assert code == "InvalidParameterValue"


# --- sending --------------------------------------------------------------------------------------


def test_a_duplicate_succeeds_and_is_not_delivered(sqs: Sqs) -> None:
    url = sqs.new_queue()
    message = {"MessageBody": "x", "MessageGroupId": "g", "MessageDeduplicationId": "same"}
    first = sqs.send_message(QueueUrl=url, **message)
    again = sqs.send_message(QueueUrl=url, **message)
    assert again["MessageId"] == first["MessageId"]
    assert again["SequenceNumber"] == first["SequenceNumber"]
    received = sqs.get(url, wait=1)
    assert bodies(received) == ["x"]
    # Deleting does not end the five minutes.
    sqs.delete(url, *received)
    sqs.send_message(QueueUrl=url, **message)
    assert sqs.get(url) == []


@pytest.mark.parametrize("parameter", ["MessageGroupId", "MessageDeduplicationId"])
@pytest.mark.parametrize("value", ["a b", "é", "x" * 129])
def test_an_id_outside_the_alphabet_is_refused(sqs: Sqs, parameter: str, value: str) -> None:
    url = sqs.new_queue()
    message = {"MessageBody": "x", "MessageGroupId": "g", "MessageDeduplicationId": "d"}
    code, text = sqs.refused(lambda: sqs.send_message(QueueUrl=url, **message | {parameter: value}))
    assert code == "InvalidParameterValue"
    assert parameter in text
    sqs.send_message(QueueUrl=url, **message | {parameter: "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"})


def test_a_fifo_message_has_no_delay_of_its_own(sqs: Sqs) -> None:
    url = sqs.new_queue(DelaySeconds=1)
    message = {"MessageBody": "x", "MessageGroupId": "g", "MessageDeduplicationId": "d"}
    code, text = sqs.refused(lambda: sqs.send_message(QueueUrl=url, DelaySeconds=5, **message))
    assert code == "InvalidParameterValue"
    assert "not valid for this queue type" in text
    sqs.send_message(QueueUrl=url, DelaySeconds=0, **message)  # as if it were not there
    assert sqs.get(url) == []
    assert bodies(sqs.get(url, wait=5)) == ["x"]


def test_fifo_parameters_are_refused_on_a_standard_queue(sqs: Sqs) -> None:
    url = sqs.new_queue("")
    code, _ = sqs.refused(
        lambda: sqs.send_message(QueueUrl=url, MessageBody="x", MessageDeduplicationId="d")
    )
    assert code == "InvalidParameterValue"
    sqs.send_message(QueueUrl=url, MessageBody="x", MessageGroupId="fair")  # since 2025


def test_fifo_parameters_are_needed_on_a_fifo_queue(sqs: Sqs) -> None:
    url = sqs.new_queue()
    code, _ = sqs.refused(lambda: sqs.send_message(QueueUrl=url, MessageBody="x"))
    assert code == "MissingParameter"
    code, _ = sqs.refused(
        lambda: sqs.send_message(QueueUrl=url, MessageBody="x", MessageGroupId="g")
    )
    assert code == "InvalidParameterValue"


@pytest.mark.parametrize("body", ["\x00", "a\x0bb", "\ufffe"])
def test_a_body_outside_the_character_set_fails_alone(sqs: Sqs, body: str) -> None:
    url = sqs.new_queue("")
    entries = [{"Id": "good", "MessageBody": "x"}, {"Id": "bad", "MessageBody": body}]
    answer = sqs.send_message_batch(QueueUrl=url, Entries=entries)
    assert [entry["Id"] for entry in answer["Successful"]] == ["good"]
    (failed,) = answer["Failed"]
    assert (failed["Id"], failed["Code"]) == ("bad", "InvalidMessageContents")


def test_an_empty_body_is_refused(sqs: Sqs) -> None:
    url = sqs.new_queue("")
    code, _ = sqs.refused(lambda: sqs.send_message(QueueUrl=url, MessageBody=""))
    assert code == "MissingParameter"


# aiohttp warns of bodies over one mebibyte, which a message with the JSON around it is.
@pytest.mark.filterwarnings("ignore:Sending a large body")
def test_a_message_may_have_a_mebibyte_with_its_attributes(sqs: Sqs) -> None:
    url = sqs.new_queue("")
    attribute = {"name": {"DataType": "String", "StringValue": "value"}}  # 4 + 6 + 5 bytes
    body = "x" * (1_048_576 - 15)
    sqs.send_message(QueueUrl=url, MessageBody=body, MessageAttributes=attribute)
    assert len(sqs.get(url, wait=1)[0]["Body"]) == len(body)
    code, text = sqs.refused(
        lambda: sqs.send_message(QueueUrl=url, MessageBody=body + "x", MessageAttributes=attribute)
    )
    assert code == "InvalidParameterValue"
    assert "shorter than 1048576 bytes" in text


# aiohttp warns of bodies over one mebibyte, which a message with the JSON around it is.
@pytest.mark.filterwarnings("ignore:Sending a large body")
def test_a_batch_may_have_a_mebibyte(sqs: Sqs) -> None:
    url = sqs.new_queue("")
    entries = [{"Id": name, "MessageBody": "x" * 524_289} for name in "ab"]
    code, _ = sqs.refused(lambda: sqs.send_message_batch(QueueUrl=url, Entries=entries))
    assert code == "AWS.SimpleQueueService.BatchRequestTooLong"


@pytest.mark.parametrize(
    ("ids", "code"),
    [
        ([], "EmptyBatchRequest"),
        ([str(number) for number in range(11)], "TooManyEntriesInBatchRequest"),
        (["a", "a"], "BatchEntryIdsNotDistinct"),
        (["a b"], "InvalidBatchEntryId"),
    ],
)
def test_a_batch_that_is_no_batch_is_refused(sqs: Sqs, ids: list[str], code: str) -> None:
    url = sqs.new_queue("")
    messages = [{"Id": name, "MessageBody": "x"} for name in ids]
    receipts = [{"Id": name, "ReceiptHandle": "x"} for name in ids]
    for call in (
        lambda: sqs.send_message_batch(QueueUrl=url, Entries=messages),
        lambda: sqs.delete_message_batch(QueueUrl=url, Entries=receipts),
    ):
        found, _ = sqs.refused(call)
        assert found == f"AWS.SimpleQueueService.{code}"


@pytest.mark.parametrize(
    "attributes",
    [
        {f"n{number}": {"DataType": "String", "StringValue": "x"} for number in range(11)},
        {"AWS.name": {"DataType": "String", "StringValue": "x"}},
        {"a b": {"DataType": "String", "StringValue": "x"}},
        {"a..b": {"DataType": "String", "StringValue": "x"}},
        {"empty": {"DataType": "String", "StringValue": ""}},
        {"text": {"DataType": "Number", "StringValue": "x"}},
        {"type": {"DataType": "Text", "StringValue": "x"}},
        {"control": {"DataType": "String", "StringValue": "\x00"}},
    ],
    ids=["eleven", "reserved", "space", "dots", "empty", "number", "type", "control"],
)
def test_an_attribute_that_is_none_is_refused(sqs: Sqs, attributes: dict[str, Any]) -> None:
    url = sqs.new_queue("")
    code, _ = sqs.refused(
        lambda: sqs.send_message(QueueUrl=url, MessageBody="x", MessageAttributes=attributes)
    )
    assert code == "InvalidParameterValue"


def test_attributes_come_as_they_went(sqs: Sqs) -> None:
    url = sqs.new_queue("")
    attributes = {
        "text": {"DataType": "String", "StringValue": "é"},
        "count": {"DataType": "Number", "StringValue": "-1.5"},
        "bytes": {"DataType": "Binary.png", "BinaryValue": b"\x00\xff"},
    }
    sqs.send_message(QueueUrl=url, MessageBody="x", MessageAttributes=attributes)
    (message,) = sqs.get(url, wait=1, MessageAttributeNames=["All"])
    assert message["MessageAttributes"] == attributes


# --- queues ---------------------------------------------------------------------------------------


def test_counts_tell_visible_in_flight_and_delayed(sqs: Sqs) -> None:
    url = sqs.new_queue("")
    for delay in (0, 0, 0, 600):
        sqs.send_message(QueueUrl=url, MessageBody="x", DelaySeconds=delay)
    assert len(sqs.get(url, wait=1, count=1)) == 1
    sqs.wait_visible(url, 2)
    assert sqs.counts(url) == (2, 1, 1)


def test_purging_takes_what_is_in_flight_and_rests_a_minute(sqs: Sqs) -> None:
    url = sqs.new_queue()
    message = {"MessageBody": "x", "MessageGroupId": "g", "MessageDeduplicationId": "same"}
    sqs.send_message(QueueUrl=url, **message)
    sqs.put(url, "2", group="g")
    sqs.get(url, wait=1, count=1)
    sqs.purge_queue(QueueUrl=url)
    sqs.wait_visible(url, 0)
    assert sqs.counts(url) == (0, 0, 0)
    # It forgets the deduplication ids as well.
    sqs.send_message(QueueUrl=url, **message)
    assert bodies(sqs.get(url, wait=1)) == ["x"]
    code, _ = sqs.refused(lambda: sqs.purge_queue(QueueUrl=url))
    assert code == "AWS.SimpleQueueService.PurgeQueueInProgress"


def test_a_queue_that_is_not_there(sqs: Sqs) -> None:
    missing = "AWS.SimpleQueueService.NonExistentQueue"
    url = sqs.new_queue() + "x"
    assert sqs.refused(lambda: sqs.get_queue_url(QueueName="not-there"))[0] == missing
    assert sqs.refused(lambda: sqs.get(url))[0] == missing
    assert sqs.refused(lambda: sqs.put(url, "x"))[0] == missing
    assert sqs.refused(lambda: sqs.counts(url))[0] == missing


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("a b", {}),
        ("x" * 81, {}),
        ("x" * 76 + ".fifo", {"FifoQueue": "true"}),
        ("no-suffix", {"FifoQueue": "true"}),
        ("suffix.fifo", {}),
    ],
)
def test_a_name_that_is_none_is_refused(sqs: Sqs, name: str, attributes: dict[str, str]) -> None:
    code, _ = sqs.refused(lambda: sqs.create_queue(QueueName=name, Attributes=attributes))
    assert code == "InvalidParameterValue"


# --- the emulator itself --------------------------------------------------------------------------


def test_requests_fail_when_asked_to(sqs: Sqs, emulator: Emulator) -> None:
    url = sqs.new_queue()
    before = emulator.calls().get("SendMessage", 0)
    emulator.fail(Failure(count=2, action="SendMessage"))
    for _ in range(2):
        assert sqs.refused(lambda: sqs.put(url, "x"))[0] == "ThrottlingException"
    sqs.put(url, "x")
    assert emulator.calls()["SendMessage"] == before + 3
    assert bodies(sqs.get(url, wait=1)) == ["x"]
    emulator.fail(Failure(count=99, code="InternalError", status=500))
    assert sqs.refused(lambda: sqs.get(url))[0] == "InternalError"
    emulator.fail()
    assert sqs.get(url) == []


async def test_a_proxy_loses_the_reply_to_the_action_that_was_meant(emulator: Emulator) -> None:
    async with open_tcp_proxy("127.0.0.1", emulator.port) as proxy:
        url = emulator.url_through(proxy.port)
        lost = proxy.cut_reply(matching=b"AmazonSQS.SendMessage\r\n")

        async def use_it() -> list[str]:
            from botocore.exceptions import EndpointConnectionError

            async with make_client(url) as client:
                name = f"test-{uuid.uuid4().hex}"
                queue = (await client.create_queue(QueueName=name))["QueueUrl"]
                # So called whenever a connection is reset, although the endpoint got the request.
                with pytest.raises(EndpointConnectionError):
                    await client.send_message(QueueUrl=queue, MessageBody="x")
                answer = await client.receive_message(QueueUrl=queue)
                await client.delete_queue(QueueUrl=queue)
                assert urllib.parse.urlsplit(queue).port == proxy.port
                return bodies(answer["Messages"])

        assert await trio.to_thread.run_sync(asyncio.run, use_it()) == ["x"]
        assert lost.has_fired
        assert proxy.statistics().exchanges == 4


def test_it_is_gone_afterwards_with_all_its_files() -> None:
    require_emulator()
    folder = Path(tempfile.gettempdir())
    before = set(folder.glob("queue-runtime-sqs-*"))
    with open_emulator() as emulator:
        assert len(set(folder.glob("queue-runtime-sqs-*")) - before) >= 1
        port = emulator.port
        with socket.create_connection(("127.0.0.1", port)):
            pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with pytest.raises(RuntimeError, match="did not start"):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            with open_emulator(port=taken.getsockname()[1]):
                pass


def test_a_command_runs_against_it() -> None:
    require_emulator()
    script = "import os, sys; print(sys.argv[1] == os.environ['QUEUE_RUNTIME_TEST_SQS_URL'])"
    command = [sys.executable, str(EMULATOR), "--lax", "--", sys.executable, "-c", script, "{url}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "True\n"


def test_it_ends_with_whoever_started_it() -> None:
    require_emulator()
    with subprocess.Popen(
        [sys.executable, str(EMULATOR)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = urllib.parse.urlsplit(process.stdout.readline())
        endpoint = dict(urllib.parse.parse_qsl(url.query))["endpoint_url"]
        port = urllib.parse.urlsplit(endpoint).port
        assert port is not None
        # Held open: it ends when the server does.
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(30)
            os.kill(process.pid, signal.SIGKILL)
            assert connection.recv(1) == b""
