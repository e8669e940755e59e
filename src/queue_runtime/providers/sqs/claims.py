"""Calls about messages of one queue, in batches of ten, side by side where order allows. On the bridge's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final, TypeAlias, final

import attrs

from queue_runtime.errors import (
    InvalidReceipt,
    LockLost,
    ProviderError,
    QueueError,
)

from .api import SqsApi
from .batches import MAX_ENTRIES, plan
from .codec import Entry, wire_size
from .errors import Call, from_entry
from .queues import Queue

__all__ = ["MAX_RECEIVED", "MOVED_FROM", "Change", "Claims", "Raw", "Sent", "not_held"]

Raw: TypeAlias = Mapping[str, Any]
"""A message as ``ReceiveMessage`` answers it."""

MAX_RECEIVED: Final = MAX_ENTRIES
"""Most messages in one answer to ``ReceiveMessage``."""

_SYSTEM_ATTRIBUTES: Final = (
    "ApproximateReceiveCount",
    "SentTimestamp",
    "MessageGroupId",
    "SequenceNumber",
)
"""What deliveries are made of; asking for more costs bytes and parsing."""

MOVED_FROM: Final = "DeadLetterQueueSourceArn"
"""The system attribute of a message that SQS itself moved to a dead-letter queue."""


@final
@attrs.frozen
class Change:
    """A new visibility timeout for a message in flight.

    Args:
        receipt: Its receipt handle.
        seconds: Whole ones; 0: deliver it again at once.
        key: Changes with the same key are made in the order given.
    """

    receipt: str
    seconds: int
    key: Hashable = None


@final
@attrs.frozen
class Sent:
    """What SQS said to one entry.

    Args:
        sqs_id: SQS's own id of the message; empty when it was refused.
        sequence_number: Its position, on FIFO queues.
        error: Why it was refused; ``None`` when it is stored.
    """

    sqs_id: str = ""
    sequence_number: int | None = None
    error: QueueError | None = None


def not_held(error: QueueError | None) -> bool:
    """Whether SQS says that a receipt is good no more: the message is gone, visible or somebody else's."""
    return isinstance(error, (InvalidReceipt, LockLost))


@final
class Claims:
    """Sends to, receives from and settles in one queue.

    Args:
        api: The client.
        queue: The queue.
        more: Further system attributes to ask for with each message.
    """

    def __init__(self, api: SqsApi, queue: Queue, more: Sequence[str] = ()) -> None:
        self.queue = queue
        self._attributes = (*_SYSTEM_ATTRIBUTES, *more)
        self._api = api

    async def receive(
        self, count: int, visibility: int, wait: int, attempt: str | None = None
    ) -> list[Raw]:
        """One ``ReceiveMessage``.

        Args:
            count: Most messages, 1 to 10.
            visibility: Seconds they are ours.
            wait: Seconds SQS waits for one; 0 looks once, on standard queues at some of its servers only.
            attempt: Repeating the call with the same id brings the same messages, on FIFO queues.

        Raises:
            QueueError: Messages may have been claimed all the same.
        """
        parameters: dict[str, Any] = {
            "QueueUrl": self.queue.url,
            "MaxNumberOfMessages": count,
            "VisibilityTimeout": visibility,
            "WaitTimeSeconds": wait,
            "MessageSystemAttributeNames": self._attributes,
            "MessageAttributeNames": ("All",),
        }
        if attempt is not None and self.queue.fifo:
            parameters["ReceiveRequestAttemptId"] = attempt
        answer = await self._api.call("ReceiveMessage", self.queue.name, parameters, wait=wait)
        messages: list[Raw] = answer.get("Messages") or []
        return messages

    async def delete(self, receipts: Sequence[str]) -> list[QueueError | None]:
        """Delete messages in flight; for each, ``None`` or why not.

        Raises:
            QueueError: Every call failed.
        """
        entries = [{"ReceiptHandle": receipt} for receipt in receipts]
        return _errors(await self._in_batches("DeleteMessageBatch", entries))

    async def change(self, changes: Sequence[Change]) -> list[QueueError | None]:
        """Change visibility timeouts; for each, ``None`` or why not.

        Raises:
            QueueError: Every call failed.
        """
        entries = [
            {"ReceiptHandle": change.receipt, "VisibilityTimeout": change.seconds}
            for change in changes
        ]
        keys = [change.key for change in changes]
        return _errors(await self._in_batches("ChangeMessageVisibilityBatch", entries, keys))

    async def give_back(self, receipts: Sequence[str]) -> list[QueueError | None]:
        """Make messages visible, the last first: those behind a message in flight wait for it."""
        changes = [Change(receipt, 0, key=self) for receipt in reversed(receipts)]
        return (await self.change(changes))[::-1]

    async def send(self, entries: Sequence[Entry]) -> list[Sent]:
        """Send, keeping the order within each group: after a refusal nothing more of its group goes out.

        Raises:
            QueueError: Every call failed; something may be stored all the same.
        """
        sizes = [wire_size(entry) for entry in entries]
        keys = [entry.get("MessageGroupId") for entry in entries] if self.queue.fifo else None
        return [
            Sent(error=said)
            if isinstance(said, QueueError)
            else Sent(str(said.get("MessageId") or ""), _number(said.get("SequenceNumber")))
            for said in await self._in_batches("SendMessageBatch", entries, keys, sizes)
        ]

    async def _in_batches(
        self,
        operation: str,
        entries: Sequence[Mapping[str, Any]],
        keys: Sequence[Hashable | None] | None = None,
        sizes: Sequence[int] | None = None,
    ) -> list[Mapping[str, Any] | QueueError]:
        """What SQS said to each entry; entries with the same key keep their order."""
        keys = keys or [None] * len(entries)
        sizes = sizes or [0] * len(entries)
        answers: list[Mapping[str, Any] | QueueError] = [_UNSAID] * len(entries)
        answered = False
        failure: QueueError | None = None

        async def follow(chain: Sequence[Sequence[int]]) -> None:
            nonlocal answered, failure
            refused: dict[Hashable, QueueError] = {}
            for batch in chain:
                going = []
                for position in batch:
                    before = refused.get(keys[position])
                    if before is None:
                        going.append(position)
                    else:
                        answers[position] = _held_back(before)
                if not going:
                    continue
                said: Sequence[Mapping[str, Any] | QueueError]
                try:
                    said = await self._batch(
                        operation,
                        [entries[position] for position in going],
                        sum(sizes[position] for position in going),
                    )
                    answered = True
                except QueueError as error:
                    failure = failure or error
                    said = [error] * len(going)
                for position, answer in zip(going, said, strict=True):
                    answers[position] = answer
                    if isinstance(answer, QueueError) and keys[position] is not None:
                        refused[keys[position]] = answer

        chains = plan(keys, sizes, self.queue.max_batch_bytes)
        if len(chains) == 1:
            await follow(chains[0])
        else:
            async with asyncio.TaskGroup() as group:
                for chain in chains:
                    group.create_task(follow(chain))
        if failure is not None and not answered:
            raise failure
        return answers

    async def _batch(
        self, operation: str, entries: Sequence[Mapping[str, Any]], size: int
    ) -> list[Mapping[str, Any] | QueueError]:
        parameters = {
            "QueueUrl": self.queue.url,
            "Entries": [{"Id": str(number), **entry} for number, entry in enumerate(entries)],
        }
        count = len(entries)
        answer = await self._api.call(
            operation, self.queue.name, parameters, size=size, count=count
        )
        said: list[Mapping[str, Any] | QueueError] = [_UNSAID] * count
        for entry in answer.get("Successful") or ():
            said[int(entry["Id"])] = entry
        for entry in answer.get("Failed") or ():
            number = int(entry["Id"])
            own_size = wire_size(entries[number]) if size else 0
            call = Call(operation=operation, queue=self.queue.name, size=own_size, count=count)
            said[number] = from_entry(entry, call)
        return said


_UNSAID: Final = ProviderError(
    "SQS's answer to a batch does not mention one of its entries",
    code="Unmentioned",
    transient=True,
)


def _held_back(before: QueueError) -> QueueError:
    error = ProviderError(
        f"not tried, to keep the order: an entry before it was refused: {before}",
        code="HeldBack",
        transient=before.is_transient,
        retry_after=before.retry_after,
    )
    error.__cause__ = before
    return error


def _errors(answers: Sequence[object]) -> list[QueueError | None]:
    return [answer if isinstance(answer, QueueError) else None for answer in answers]


def _number(value: object) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None
