"""What settlements become at SQS: deletions, changes of visibility, and moves to the dead-letter queue.

On the bridge's loop. Different kinds go side by side: whatever is still in flight blocks what lies behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, final

import attrs

from queue_runtime.errors import QueueError, Unsupported
from queue_runtime.messages import Message, QueueName

from ..envelope import Extras
from ..wire_ids import GENERATED
from .api import SqsApi
from .claims import Change, Claims, Raw
from .codec import Entry, carry_over, encode, wire_size
from .queues import Queue, Queues

__all__ = ["Burial", "Work", "Workshop", "entry_of_move"]


@final
@attrs.frozen
class Burial:
    """A message to be moved to the dead-letter queue.

    Args:
        receipt: Its receipt handle.
        message: What was sent.
        extras: Why it is dead, and what it was.
        token: The same for every try of this move, so that a repeated one leaves one dead letter.
        raw: As SQS answered it.
    """

    receipt: str
    message: Message
    extras: Extras
    token: str
    raw: Raw


@final
@attrs.frozen
class Work:
    """What is to be done in one call.

    Args:
        deletions: Receipts of messages that are done.
        changes: New visibility timeouts.
        burials: Moves to the dead-letter queue.
    """

    deletions: Sequence[str]
    changes: Sequence[Change]
    burials: Sequence[Burial]


def entry_of_move(queue: Queue, message: Message, extras: Extras, token: str, raw: Raw) -> Entry:
    """A message that goes from one queue to another, as an entry for ``queue``.

    Its deduplication id is the move's own: the user's may still be remembered there from an earlier way.
    """
    entry = encode(message, token, queue.kind, extras, max_bytes=queue.max_message_bytes)
    if wire_size(entry) > queue.max_message_bytes:
        entry = carry_over(raw, token, queue.kind)
    if "MessageDeduplicationId" in entry:
        entry["MessageDeduplicationId"] = GENERATED + token
    return entry


@final
class Workshop:
    """Settles what one receiver got from one queue."""

    def __init__(self, api: SqsApi, queues: Queues, name: QueueName, claims: Claims) -> None:
        self._api = api
        self._queues = queues
        self._name = name
        self._claims = claims
        self._graves: Claims | None = None

    async def do(self, work: Work) -> dict[str, QueueError | None]:
        """Do all of it; for each receipt, ``None`` or why not.

        Raises:
            QueueError: Every call failed.
        """
        parts: list[Awaitable[dict[str, QueueError | None]]] = []
        if work.deletions:
            parts.append(self._delete(work.deletions))
        if work.changes:
            parts.append(self._change(work.changes))
        if work.burials:
            parts.append(self._bury(work.burials))
        if len(parts) == 1:
            return await parts[0]
        answers: dict[str, QueueError | None] = {}
        failures: list[QueueError] = []
        for outcome in await asyncio.gather(*parts, return_exceptions=True):
            if isinstance(outcome, QueueError):
                failures.append(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                answers |= outcome
        if failures and not answers:
            raise failures[0]
        for receipt in _receipts(work):
            answers.setdefault(receipt, failures[0] if failures else None)
        return answers

    async def _delete(self, receipts: Sequence[str]) -> dict[str, QueueError | None]:
        return dict(zip(receipts, await self._claims.delete(receipts), strict=True))

    async def _change(self, changes: Sequence[Change]) -> dict[str, QueueError | None]:
        answers = await self._claims.change(changes)
        return {change.receipt: answer for change, answer in zip(changes, answers, strict=True)}

    async def _bury(self, burials: Sequence[Burial]) -> dict[str, QueueError | None]:
        """Confirmed there before it is deleted here: in between there may be two, never none."""
        graves = await self._dead_letter_queue()
        if graves is None:
            missing = Unsupported(
                "dead_letters",
                "sqs",
                f"queue {self._claims.queue.name} has no redrive policy; make one with queue-runtime provision, "
                "or name a queue in dead_letter_queue",
            )
            return {burial.receipt: missing for burial in burials}
        entries = [
            entry_of_move(graves.queue, burial.message, burial.extras, burial.token, burial.raw)
            for burial in burials
        ]
        answers: dict[str, QueueError | None] = {}
        stored = []
        for burial, sent in zip(burials, await graves.send(entries), strict=True):
            answers[burial.receipt] = sent.error
            if sent.error is None:
                stored.append(burial.receipt)
        if stored:
            answers |= await self._delete(stored)
        return answers

    async def _dead_letter_queue(self) -> Claims | None:
        if self._graves is None:
            queue = await self._queues.dead_letters(self._name)
            if queue is not None:
                self._graves = Claims(self._api, queue)
        return self._graves


def _receipts(work: Work) -> list[str]:
    rest: Sequence[Any] = (*work.changes, *work.burials)
    return [*work.deletions, *(part.receipt for part in rest)]
