"""What ``ministack`` lets pass and AWS does not, made to behave; ``README.md`` lists it with the sources.

The queues and messages are ministack's own (a dict per queue, a dict per message); creating, counting and
storing stays with it. Receiving, deleting and changing visibility are done here, because there it matters.
Knows the JSON protocol only, which is the one that botocore speaks.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from ministack.services import sqs

Queue = dict[str, Any]
Message = dict[str, Any]
Data = dict[str, Any]
Result = dict[str, Any]

ATTEMPT_SECONDS = 300
MAX_BATCH = 10
MAX_BYTES = 1_048_576
MAX_VISIBILITY = 43_200
PURGE_PAUSE = 60

PUNCTUATED = re.compile(r"[A-Za-z0-9!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]{1,128}")
BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
QUEUE_NAME = re.compile(r"(?=.{1,80}\Z)[A-Za-z0-9_-]+(\.fifo)?")
ATTRIBUTE_NAME = re.compile(r"(?!(?i:aws\.|amazon\.|\.))(?!.*\.\.)(?!.*\.\Z)[A-Za-z0-9_.-]{1,256}")
ATTRIBUTE_TYPE = re.compile(r"(String|Number|Binary)(\..+)?")


def invalid(parameter: str, value: object, reason: str) -> sqs._Err:
    return sqs._Err(
        "InvalidParameterValue",
        f"Value {value} for parameter {parameter} is invalid. Reason: {reason}",
    )


@dataclass
class Attempt:
    """What a receive with a ReceiveRequestAttemptId brought."""

    at: float
    visibility: int
    receipts: list[tuple[Message, str]]


@dataclass
class State:
    """What is remembered of a queue beside ministack's own."""

    receipts: dict[str, Message] = field(default_factory=dict)
    """Every handle ever given out; a deleted message is an empty dict."""
    attempts: dict[str, Attempt] = field(default_factory=dict)
    polls: list[asyncio.Future[None]] = field(default_factory=list)
    """Those waiting for a message, first come, first served."""
    purged_at: float = -PURGE_PAUSE

    def wake_one(self) -> None:
        while self.polls:
            poll = self.polls.pop(0)
            if not poll.done():
                poll.set_result(None)
                return


def state_of(queue: Queue) -> State:
    state: State = queue.setdefault("strict", State())
    return state


class StrictService:
    """Answers requests as AWS would, as far as is known."""

    def __init__(self) -> None:
        sqs._NUMERIC_ATTR_RANGES["MaximumMessageSize"] = (1024, MAX_BYTES)
        sqs._prune_dedup = prune_dedup
        self._actions: dict[str, Callable[[Data], Result | Awaitable[Result]]] = {
            "SendMessage": send_message,
            "SendMessageBatch": send_message_batch,
            "ReceiveMessage": receive_message,
            "DeleteMessage": delete_message,
            "DeleteMessageBatch": delete_message_batch,
            "ChangeMessageVisibility": change_visibility,
            "ChangeMessageVisibilityBatch": change_visibility_batch,
            "PurgeQueue": purge_queue,
        }
        self._checks: dict[str, Callable[[Data], None]] = {
            "CreateQueue": check_new_queue,
            "SetQueueAttributes": check_queue_attributes,
        }

    async def call(
        self, action: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Answer one request."""
        data: Data = json.loads(body or b"{}")
        answer: tuple[int, dict[str, str], bytes]
        try:
            if action in self._checks:
                self._checks[action](data)
            if action not in self._actions:
                content = json.dumps(data).encode()
                answer = await sqs.handle_request("POST", path, headers, content, {})
                return answer
            result = self._actions[action](data)
            if not isinstance(result, dict):
                result = await result
            answer = sqs._json_ok(result)
        except sqs._Err as error:
            answer = sqs._json_err_resp(error.code, error.message, error.status)
        return answer

    def throttled(self, action: str, body: bytes) -> None:
        """A request is about to be answered with throttling: its attempt cannot be made again."""
        data: Data = json.loads(body)
        attempt_id = data.get("ReceiveRequestAttemptId")
        if action == "ReceiveMessage" and attempt_id is not None:
            queue = sqs._get_q(data.get("QueueUrl", ""))
            state_of(queue).attempts[attempt_id] = Attempt(time.time(), 0, [({}, "")])


def prune_dedup(queue: Queue) -> None:
    """Forget the ids whose window is over; ministack copies all others each time, for every message sent."""
    now = time.time()
    ids = queue["dedup_cache"]
    while ids:
        first = next(iter(ids))  # all live equally long: the first one in is the first one out
        if ids[first]["expire"] > now:
            return
        del ids[first]


# --- queues ---------------------------------------------------------------------------------------


def check_new_queue(data: Data) -> None:
    name = data.get("QueueName", "")
    attributes = data.setdefault("Attributes", {})
    is_fifo = str(attributes.get("FifoQueue", "false")).lower() == "true"
    if not QUEUE_NAME.fullmatch(name) or is_fifo != name.endswith(".fifo"):
        raise sqs._Err(
            "InvalidParameterValue",
            "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length; "
            "the name of a FIFO queue ends with .fifo, and of no other.",
        )
    check_redrive(attributes, is_fifo=is_fifo)
    if sqs._queue_name_to_url.get(name) is None:
        attributes.setdefault("MaximumMessageSize", str(MAX_BYTES))


def check_queue_attributes(data: Data) -> None:
    queue = sqs._get_q(data.get("QueueUrl", ""))
    check_redrive(data.get("Attributes") or {}, is_fifo=queue["is_fifo"])


def check_redrive(attributes: dict[str, Any], *, is_fifo: bool) -> None:
    policy = attributes.get("RedrivePolicy")
    if not policy:
        return
    sqs._validate_redrive_policy(str(policy))
    target = json.loads(policy)["deadLetterTargetArn"]
    if target.endswith(".fifo") != is_fifo:
        raise invalid(
            "RedrivePolicy", policy, "Dead-letter queue must be same type of queue as the source."
        )


def purge_queue(data: Data) -> Result:
    queue = sqs._get_q(data.get("QueueUrl", ""))
    state = state_of(queue)
    if time.monotonic() - state.purged_at < PURGE_PAUSE:
        raise sqs._Err(
            "PurgeQueueInProgress",
            f"Only one PurgeQueue operation on {queue['name']} is allowed every 60 seconds.",
        )
    state.purged_at = time.monotonic()
    remove(queue, list(queue["messages"]))
    queue["dedup_cache"].clear()
    return {}


# --- sending --------------------------------------------------------------------------------------


def attribute_bytes(attributes: dict[str, Any]) -> int:
    total = 0
    for name, attribute in attributes.items():
        total += len(name.encode()) + len(attribute.get("DataType", "").encode())
        total += len((attribute.get("StringValue") or "").encode())
        total += len(attribute.get("BinaryValue") or "") * 3 // 4  # base64
    return total


def message_bytes(entry: Data) -> int:
    body = entry.get("MessageBody") or ""
    # Lone surrogates are refused later.
    size = len(body.encode(errors="replace"))
    return size + attribute_bytes(entry.get("MessageAttributes") or {})


def check_message(queue: Queue, entry: Data) -> None:
    limit = int(queue["attributes"]["MaximumMessageSize"])
    if message_bytes(entry) > limit:
        raise sqs._Err(
            "InvalidParameterValue",
            "One or more parameters are invalid. "
            f"Reason: Message must be shorter than {limit} bytes.",
        )
    for parameter in ("MessageGroupId", "MessageDeduplicationId"):
        value = entry.get(parameter)
        if value is not None and not PUNCTUATED.fullmatch(value):
            allowed = "can only include alphanumeric and punctuation characters. 1 to 128 in length"
            raise invalid(parameter, value, f"{parameter} {allowed}.")
    other_type = "The request include parameter that is not valid for this queue type."
    delay = entry.get("DelaySeconds")
    if delay and queue["is_fifo"]:
        raise invalid("DelaySeconds", delay, other_type)
    if delay is not None and not 0 <= int(delay) <= 900:
        raise invalid("DelaySeconds", delay, "DelaySeconds must be >= 0 and <= 900.")
    if entry.get("MessageDeduplicationId") is not None and not queue["is_fifo"]:
        raise invalid("MessageDeduplicationId", entry["MessageDeduplicationId"], other_type)
    check_attributes(entry.get("MessageAttributes") or {})


def check_attributes(attributes: dict[str, Any]) -> None:
    def refuse(text: str) -> sqs._Err:
        return sqs._Err("InvalidParameterValue", text)

    if len(attributes) > 10:
        raise refuse(
            f"Number of message attributes [{len(attributes)}] exceeds the allowed maximum [10]."
        )
    for name, attribute in attributes.items():
        data_type = attribute.get("DataType") or ""
        if not ATTRIBUTE_NAME.fullmatch(name):
            raise refuse(f"Message (user) attribute name '{name}' is invalid.")
        if len(data_type) > 256 or not ATTRIBUTE_TYPE.fullmatch(data_type):
            raise refuse(f"The message attribute '{name}' has an invalid message attribute type.")
        kind = data_type.split(".")[0]
        value = attribute.get("BinaryValue" if kind == "Binary" else "StringValue")
        if not value:
            raise refuse(
                f"Message (user) attribute '{name}' must contain a non-empty value of type '{kind}'."
            )
        if kind != "Binary" and sqs._INVALID_SQS_CHARS_RE.search(value):
            raise refuse(
                f"Message (user) attribute '{name}' has characters outside the allowed set."
            )
        if kind == "Number":
            try:
                Decimal(value)
            except InvalidOperation:
                raise refuse(
                    f"Can't cast the value of message (user) attribute '{name}' to a number."
                ) from None


def send(queue: Queue, entry: Data, url: str) -> Result:
    check_message(queue, entry)
    count = len(queue["messages"])
    result: Result = sqs._act_send_message({**entry, "QueueUrl": url}, url)
    if queue["is_fifo"] and len(queue["messages"]) > count:
        delay = int(queue["attributes"].get("DelaySeconds", "0"))
        queue["messages"][-1]["visible_at"] += delay
    state_of(queue).wake_one()
    return result


def send_message(data: Data) -> Result:
    url = data.get("QueueUrl", "")
    return send(sqs._get_q(url), data, url)


def send_message_batch(data: Data) -> Result:
    url = data.get("QueueUrl", "")
    queue = sqs._get_q(url)
    entries = checked_entries(data)
    size = sum(message_bytes(entry) for entry in entries)
    if size > MAX_BYTES:
        raise sqs._Err(
            "BatchRequestTooLong",
            f"Batch requests cannot be longer than {MAX_BYTES} bytes. You have sent {size} bytes.",
        )
    return each(entries, lambda entry: send(queue, entry, url))


# --- batches --------------------------------------------------------------------------------------


def checked_entries(data: Data) -> list[Data]:
    entries: list[Data] = data.get("Entries") or []
    if not entries:
        raise sqs._Err(
            "EmptyBatchRequest",
            "There should be at least one entry in the request.",
        )
    if len(entries) > MAX_BATCH:
        raise sqs._Err(
            "TooManyEntriesInBatchRequest",
            f"Maximum number of entries per request are 10. You have sent {len(entries)}.",
        )
    seen = set()
    for entry in entries:
        if not BATCH_ID.fullmatch(entry["Id"]):
            raise sqs._Err(
                "InvalidBatchEntryId",
                "A batch entry id can only contain alphanumeric characters, hyphens and "
                "underscores. It can be at most 80 letters long.",
            )
        if entry["Id"] in seen:
            raise sqs._Err("BatchEntryIdsNotDistinct", f"Id {entry['Id']} repeated.")
        seen.add(entry["Id"])
    return entries


def each(entries: Iterable[Data], apply: Callable[[Data], Result]) -> Result:
    successful = []
    failed = []
    for entry in entries:
        try:
            successful.append({**apply(entry), "Id": entry["Id"]})
        except sqs._Err as error:
            failed.append(
                {
                    "Id": entry["Id"],
                    "Code": error.code,
                    "Message": error.message,
                    "SenderFault": True,
                }
            )
    return {"Successful": successful, "Failed": failed}


# --- receiving ------------------------------------------------------------------------------------


def number(data: Data, queue: Queue, name: str, lowest: int, highest: int, default: str) -> int:
    value = data.get(name)
    if value is None:
        return int(queue["attributes"].get(default, "1"))
    if not lowest <= int(value) <= highest:
        raise invalid(name, value, f"Must be between {lowest} and {highest}, if provided.")
    return int(value)


async def receive_message(data: Data) -> Result:
    """As AWS: a poll whose client has gone goes on, and what it claims stays claimed."""
    url = data.get("QueueUrl", "")
    queue = sqs._get_q(url)
    wait = number(data, queue, "WaitTimeSeconds", 0, 20, "ReceiveMessageWaitTimeSeconds")
    state = state_of(queue)
    deadline = time.time() + wait
    while True:
        received, next_at = claim(queue, data)
        left = deadline - time.time()
        if received or left <= 0:
            break
        poll = asyncio.get_running_loop().create_future()
        state.polls.append(poll)
        try:
            await asyncio.wait_for(poll, max(0.001, min(left, next_at - time.time())))
        except TimeoutError:
            # It may have been woken in the same moment.
            if poll in state.polls:
                state.polls.remove(poll)
        sqs._get_q(url)  # it may have been deleted meanwhile
    if received:
        state.wake_one()  # there may be more
    return {"Messages": [render(message, data) for message in received]} if received else {}


def claim(queue: Queue, data: Data) -> tuple[list[Message], float]:
    """Take what can be received now; with the time at which there may be more."""
    now = time.time()
    state = state_of(queue)
    count = number(data, queue, "MaxNumberOfMessages", 1, 10, "")
    visibility = number(data, queue, "VisibilityTimeout", 0, MAX_VISIBILITY, "VisibilityTimeout")
    attempt_id = data.get("ReceiveRequestAttemptId") if queue["is_fifo"] else None
    if attempt_id is not None:
        replayed = replay(state, attempt_id, now)
        if replayed:
            return replayed, now
    expired: list[Message] = []
    received: list[Message] = []
    next_at = float("inf")
    limit, dead_letters = redrive_policy(queue)
    # A message may turn out to be a dead letter.
    for message in deliverable(queue, now, count if dead_letters is None else 2 * count):
        if isinstance(message, float):
            next_at = min(next_at, message)
        elif dead_letters is not None and message["receive_count"] >= limit:
            expired.append(message)
        elif len(received) < count:
            received.append(message)
    if dead_letters is not None and expired:
        bury(queue, expired, dead_letters, now)
        if not received:
            return claim(queue, data)
    for message in received:
        message["receipt_handle"] = sqs.new_uuid()
        message["visible_at"] = now + visibility
        message["received_at"] = now
        message["receive_count"] += 1
        message["changed"] = False
        if message["first_receive_at"] is None:
            message["first_receive_at"] = now
        state.receipts[message["receipt_handle"]] = message
    if attempt_id is not None and received:
        receipts = [(message, message["receipt_handle"]) for message in received]
        state.attempts[attempt_id] = Attempt(now, visibility, receipts)
    return received, next_at


def deliverable(queue: Queue, now: float, count: int) -> Iterator[Message | float]:
    """Messages that may be received, whole groups one after the other; and times at which more may be.

    On a FIFO queue a message waits for every invisible one *before* it in its group, not for those behind it.
    """
    if not queue["is_fifo"]:
        for message in queue["messages"]:
            yield message["visible_at"] if message["visible_at"] > now else message
        return
    groups: dict[str, list[Message]] = {}
    blocked = set()
    first = None
    for message in queue["messages"]:
        group = message["group_id"]
        if group in blocked:
            continue
        if message["visible_at"] > now:
            blocked.add(group)
            yield message["visible_at"]
            continue
        members = groups.setdefault(group, [])
        members.append(message)
        first = members if first is None else first
        if len(first) >= count:
            break
    for members in groups.values():
        yield from members


def replay(state: State, attempt_id: str, now: float) -> list[Message]:
    """What the same attempt brought before, its visibility started anew; refused if any of it was touched since."""
    attempt = state.attempts.get(attempt_id)
    if attempt is None or now - attempt.at > ATTEMPT_SECONDS:
        return []
    for message, receipt in attempt.receipts:
        if not is_in_flight(message, receipt, now) or message["changed"]:
            raise invalid(
                "ReceiveRequestAttemptId",
                attempt_id,
                "The receiveRequestAttemptId is not valid anymore since the receive call is not "
                "retryable.",
            )
    for message, _ in attempt.receipts:
        message["visible_at"] = now + attempt.visibility
    return [message for message, _ in attempt.receipts]


def render(message: Message, data: Data) -> Result:
    names = [*(data.get("AttributeNames") or []), *(data.get("MessageSystemAttributeNames") or [])]
    result = {
        "MessageId": message["id"],
        "ReceiptHandle": message["receipt_handle"],
        "MD5OfBody": message["md5_body"],
        "Body": message["body"],
    }
    attributes = sqs._build_sys_attrs(message, names)
    source = message.get("dead_letter_source")
    if source is not None and ("All" in names or "DeadLetterQueueSourceArn" in names):
        attributes["DeadLetterQueueSourceArn"] = source
    if attributes:
        result["Attributes"] = attributes
    wanted = data.get("MessageAttributeNames") or []
    user_attributes = sqs._filter_msg_attrs(message["message_attributes"], wanted)
    if user_attributes:
        result["MessageAttributes"] = user_attributes
        result["MD5OfMessageAttributes"] = sqs._md5_msg_attrs(user_attributes)
    return result


def redrive_policy(queue: Queue) -> tuple[int, Queue | None]:
    policy = queue["attributes"].get("RedrivePolicy")
    if not policy:
        return 0, None
    content = json.loads(policy)
    return int(content["maxReceiveCount"]), sqs._queue_by_arn(content["deadLetterTargetArn"])


def bury(queue: Queue, messages: list[Message], dead_letters: Queue, now: float) -> None:
    for message in messages:
        dead_letters["messages"].append(
            message
            | {
                "receipt_handle": None,
                "visible_at": now,
                "dedup_id": message["id"] if queue["is_fifo"] else None,
                "dead_letter_source": queue["attributes"]["QueueArn"],
            }
        )
    remove(queue, messages)
    state_of(dead_letters).wake_one()


# --- settling -------------------------------------------------------------------------------------


def is_in_flight(message: Message, receipt: str, now: float) -> bool:
    return bool(message and message["receipt_handle"] == receipt and message["visible_at"] > now)


def find(queue: Queue, receipt: str) -> Message:
    message = state_of(queue).receipts.get(receipt)
    if message is None:
        raise sqs._Err(
            "ReceiptHandleIsInvalid",
            f'The input receipt handle "{receipt}" is not a valid receipt handle.',
        )
    return message


def remove(queue: Queue, messages: list[Message]) -> None:
    gone = {message["id"] for message in messages}
    queue["messages"] = [message for message in queue["messages"] if message["id"] not in gone]
    for message in messages:
        message.clear()
    state_of(queue).wake_one()


def deletable(queue: Queue, receipt: str) -> Message | None:
    """The message to delete; ``None`` if it is gone already, or if an old receipt does nothing."""
    message = find(queue, receipt)
    if not message:
        return None
    if queue["is_fifo"] and not is_in_flight(message, receipt, time.time()):
        raise invalid("ReceiptHandle", receipt, "The receipt handle has expired.")
    return message if message["receipt_handle"] == receipt else None


def delete_message(data: Data) -> Result:
    queue = sqs._get_q(data.get("QueueUrl", ""))
    message = deletable(queue, data.get("ReceiptHandle", ""))
    if message is not None:
        remove(queue, [message])
    return {}


def delete_message_batch(data: Data) -> Result:
    queue = sqs._get_q(data.get("QueueUrl", ""))
    doomed: dict[str, Message] = {}

    def check(entry: Data) -> Result:
        try:
            message = deletable(queue, entry["ReceiptHandle"])
        except sqs._Err as error:
            if error.code == "InvalidParameterValue":
                # Another code than in an answer to DeleteMessage.
                raise sqs._Err("ReceiptHandleIsInvalid", "The receipt handle has expired") from None
            raise
        if message is not None:
            doomed[message["id"]] = message
        return {}

    result = each(checked_entries(data), check)
    if doomed:
        remove(queue, list(doomed.values()))
    return result


def change(queue: Queue, entry: Data) -> Result:
    now = time.time()
    receipt = entry.get("ReceiptHandle", "")
    visibility = number(entry, queue, "VisibilityTimeout", 0, MAX_VISIBILITY, "VisibilityTimeout")
    message = find(queue, receipt)
    if not is_in_flight(message, receipt, now):
        raise invalid(
            "ReceiptHandle",
            receipt,
            "Message does not exist or is not available for visibility timeout change.",
        )
    if now + visibility - message["received_at"] > MAX_VISIBILITY:
        raise invalid(
            "VisibilityTimeout",
            visibility,
            f"Total VisibilityTimeout for the message is beyond the limit [{MAX_VISIBILITY} seconds]",
        )
    message["visible_at"] = now + visibility
    message["changed"] = True
    state_of(queue).wake_one()
    return {}


def change_visibility(data: Data) -> Result:
    return change(sqs._get_q(data.get("QueueUrl", "")), data)


def change_visibility_batch(data: Data) -> Result:
    queue = sqs._get_q(data.get("QueueUrl", ""))
    return each(checked_entries(data), lambda entry: change(queue, entry))
