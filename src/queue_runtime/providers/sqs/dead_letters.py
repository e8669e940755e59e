"""The dead-letter queue that belongs to a queue: looked at, redriven and purged by receiving from it.

SQS has no way to look without receiving. So everything that can be had is received, held for the length of the
call, acted on in order, and the rest given back. Of one session of a FIFO queue, SQS hands out ten messages at
a time and no more while they are held: looking shows the ten oldest dead letters of each session. Redriving and
purging all take the next ten when these are gone.
"""

# ruff: noqa: D102 - the methods are documented where they are declared, in queue_runtime.abc

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Final, final

import attrs

from queue_runtime.abc import DeadLetters
from queue_runtime.messages import DeadLetterInfo, MessageState, PeekedMessage

from ..asyncio_bridge import AsyncioBridge
from ..wire_ids import digest
from .claims import MAX_RECEIVED, MOVED_FROM, Claims, Raw
from .codec import Received, decode
from .settling import entry_of_move

__all__ = ["MAX_DELIVERY_COUNT_EXCEEDED", "Graveyard", "SqsDeadLetters"]

MAX_DELIVERY_COUNT_EXCEEDED: Final = "MaxDeliveryCountExceeded"
"""Reason of what SQS moved itself: it leaves no other trace."""

_HELD: Final = 120
"""Seconds that dead letters are ours during a call; they are given back at its end."""

_MOST: Final = 10_000
"""Most dead letters held at a time; more are neither shown nor found by number."""

_SEEN_FOR: Final = 60.0
"""Seconds that what was seen serves for further pages."""


@final
@attrs.frozen(eq=False)
class _Letter:
    """A dead letter in hand."""

    raw: Raw
    received: Received
    number: int

    @property
    def receipt(self) -> str:
        return self.received.receipt

    @property
    def place(self) -> tuple[str, int]:
        """Where it goes among the redriven: by session, then as it was first sent."""
        earlier = self.received.earlier.sequence_number
        return self.received.message.session_id or "", self.number if earlier is None else earlier


@final
class Graveyard:
    """The work on a dead-letter queue. On the bridge's loop.

    Args:
        graves: The dead-letter queue.
        source: The queue it belongs to.
    """

    def __init__(self, graves: Claims, source: Claims) -> None:
        self._graves = graves
        self._source = source

    async def look(self) -> list[PeekedMessage]:
        """What can be seen, in sequence order."""
        held = await self._collect()
        await self._graves.give_back([letter.receipt for letter in held])
        held.sort(key=lambda letter: letter.number)
        return [self._peeked(letter) for letter in held]

    async def redrive(self, numbers: Collection[int] | None) -> int:
        """Send them back, confirmed, in each session's order; then delete them here. Return how many."""
        return await self._act(numbers, redrives=True)

    async def purge(self, numbers: Collection[int] | None) -> int:
        """Delete them; return how many."""
        return await self._act(numbers, redrives=False)

    async def _act(self, numbers: Collection[int] | None, *, redrives: bool) -> int:
        if numbers is not None and not numbers:
            return 0
        done = 0
        while True:
            held = await self._collect()
            chosen = [letter for letter in held if numbers is None or letter.number in numbers]
            chosen.sort(key=lambda letter: letter.place)
            finished: set[str] = set()
            try:
                for start in range(0, len(chosen), MAX_RECEIVED):
                    batch = chosen[start : start + MAX_RECEIVED]
                    stored = await self._send_back(batch) if redrives else batch
                    await self._delete(stored)
                    finished.update(letter.receipt for letter in stored)
                    done += len(stored)
            finally:
                rest = [letter.receipt for letter in held if letter.receipt not in finished]
                if rest:
                    await self._graves.give_back(rest)
            if numbers is not None or not finished:
                return done

    async def _send_back(self, batch: Sequence[_Letter]) -> Sequence[_Letter]:
        entries = [
            entry_of_move(
                self._source.queue,
                letter.received.message,
                attrs.evolve(
                    letter.received.earlier,
                    message_id=letter.received.message_id,
                    dead_letter=self._info(letter),
                ),
                digest("redrive", self._graves.queue.url, str(letter.raw.get("MessageId"))),
                letter.raw,
            )
            for letter in batch
        ]
        answers = await self._source.send(entries)
        stored = [
            letter for letter, answer in zip(batch, answers, strict=True) if answer.error is None
        ]
        for answer in answers:
            if answer.error is not None:
                await self._delete(stored)
                raise answer.error
        return stored

    async def _delete(self, letters: Sequence[_Letter]) -> None:
        if letters:
            for error in await self._graves.delete([letter.receipt for letter in letters]):
                if error is not None:
                    raise error

    async def _collect(self) -> list[_Letter]:
        """Receive until nothing more comes."""
        held: dict[str, _Letter] = {}
        try:
            while len(held) < _MOST:
                # A look without waiting would ask some of SQS's servers only.
                messages = await self._graves.receive(MAX_RECEIVED, _HELD, 1)
                if not messages:
                    break
                for raw in messages:
                    received = decode(raw, self._graves.queue.kind)
                    held[received.receipt] = _Letter(raw, received, _number(raw, received))
        except BaseException:
            await self._graves.give_back(list(held))
            raise
        return list(held.values())

    def _peeked(self, letter: _Letter) -> PeekedMessage:
        received = letter.received
        info = self._info(letter)
        return PeekedMessage(
            received.message,
            received.message_id,
            letter.number,
            received.earlier.enqueued_at or received.enqueued_at,
            info.delivery_count,
            MessageState.DEAD_LETTERED,
            info,
        )

    def _info(self, letter: _Letter) -> DeadLetterInfo:
        received = letter.received
        if received.dead_letter is not None and not _moved_by_sqs(letter.raw):
            return received.dead_letter
        before = received.dead_letter
        limit = self._source.queue.max_delivery_count
        return DeadLetterInfo(
            reason=MAX_DELIVERY_COUNT_EXCEEDED,
            description="moved by SQS: it was received as often as the redrive policy allows",
            dead_lettered_at=received.enqueued_at,
            first_failed_at=None if before is None else before.first_failed_at,
            delivery_count=received.delivery_count if limit is None else limit,
        )


def _moved_by_sqs(raw: Raw) -> bool:
    return MOVED_FROM in (raw.get("Attributes") or {})


def _number(raw: Raw, received: Received) -> int:
    """The sequence number of a dead letter: SQS's own; on standard queues one made of its time and id."""
    if received.sequence_number is not None:
        return received.sequence_number
    milliseconds = int(received.enqueued_at.timestamp() * 1_000)
    return (milliseconds << 20) | int(digest(str(raw.get("MessageId")))[:5], 16)


@final
class SqsDeadLetters(DeadLetters):
    """The dead letters of one queue. Made by :meth:`.provider.SqsProvider.open_dead_letters`."""

    def __init__(self, bridge: AsyncioBridge, graveyard: Graveyard) -> None:
        self._bridge = bridge
        self._graveyard = graveyard
        self._seen: list[PeekedMessage] = []
        self._seen_at = float("-inf")

    async def peek(self, max_messages: int, after: int = 0) -> list[PeekedMessage]:
        # Further pages of what was just looked at, which may be thousands of calls.
        if after == 0 or time.monotonic() > self._seen_at + _SEEN_FOR:
            self._seen = await self._bridge.run(self._graveyard.look)
            self._seen_at = time.monotonic()
        page = [letter for letter in self._seen if letter.sequence_number > after][:max_messages]
        if not page:
            self._forget()
        return page

    async def redrive(self, sequence_numbers: Collection[int] | None = None) -> int:
        self._forget()
        return await self._bridge.run(self._graveyard.redrive, _as_set(sequence_numbers))

    async def purge(self, sequence_numbers: Collection[int] | None = None) -> int:
        self._forget()
        return await self._bridge.run(self._graveyard.purge, _as_set(sequence_numbers))

    def _forget(self) -> None:
        self._seen = []
        self._seen_at = float("-inf")


def _as_set(numbers: Collection[int] | None) -> frozenset[int] | None:
    return None if numbers is None else frozenset(numbers)
