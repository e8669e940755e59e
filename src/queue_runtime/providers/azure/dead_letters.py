"""The dead-letter sub-queue of a queue: looked at, redriven and purged."""

# ruff: noqa: D102 - the methods are documented where they are declared, in queue_runtime.abc

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, final

import attrs

from queue_runtime.abc import DeadLetters
from queue_runtime.errors import MessageTooLarge, QueueError, ValidationError
from queue_runtime.messages import Message, PeekedMessage

from ..asyncio_bridge import AsyncioBridge
from ..envelope import Extras
from ..wire_ids import digest
from .api import AzureApi
from .browsing import Catch, dead_letters_of, peek, peeked
from .codec import Received, decode, encode
from .entries import Entry
from .ids import with_lone_session
from .inlet import Arrival
from .sender import Exit, Outgoing

__all__ = ["AzureDeadLetters", "Graveyard"]

_MOST: Final = 2_000
"""Dead letters held at a time: they are put in order, moved, and then come the next."""

_MOST_HELD: Final = 5 * _MOST
"""Dead letters held at a time to get at others behind them."""

_CHUNK: Final = 100
"""Dead letters sent back before they are deleted: what a failure in between leaves twice."""

_TOLD: Final = 10
"""Numbers of dead letters that an error names."""


@final
@attrs.frozen(eq=False)
class _Letter:
    """A dead letter in hand."""

    arrival: Arrival
    received: Received

    @property
    def place(self) -> tuple[str, int]:
        """Where it goes among the redriven: by session, then as it was first sent."""
        earlier = self.received.earlier.sequence_number
        here = self.received.enqueued_sequence_number
        return self.received.session or "", here if earlier is None else earlier


@final
class Graveyard:
    """The work on a dead-letter sub-queue. On the bridge's loop."""

    def __init__(self, api: AzureApi, entity: str) -> None:
        self._api = api
        self._entity = entity
        self._graves = dead_letters_of(entity)
        self._exit = Exit(api, entity)
        self._turn = asyncio.Lock()  # who looks for one letter holds others as well

    async def look(self, count: int, after: int) -> list[PeekedMessage]:
        """Dead letters in sequence order."""
        found = await peek(self._api, self._graves, count, after, dead=True)
        return [peeked(received, dead=True) for received in found]

    async def redrive(self, numbers: Collection[int] | None) -> int:
        """Send them back, confirmed, in each session's order; then delete them here. Return how many.

        Raises:
            ValidationError: Some cannot be sent: what a foreign sender wrote may be larger as we have to write it.
                The others were moved.
            QueueError: A call failed; calling again goes on.
        """
        async with self._turn:
            try:
                return await self._act(numbers, redrives=True)
            finally:
                await self._exit.aclose()

    async def purge(self, numbers: Collection[int] | None) -> int:
        """Delete them; return how many."""
        async with self._turn:
            return await self._act(numbers, redrives=False)

    async def _act(self, numbers: Collection[int] | None, *, redrives: bool) -> int:
        if numbers is not None and not numbers:
            return 0
        done = 0
        stuck: dict[int, QueueError] = {}
        last = await self._last() if numbers is None else max(numbers)
        while there := await self._numbers(numbers, last, stuck):
            catch = Catch(self._api, self._graves)
            await catch.open()
            held: dict[int, _Letter] = {}
            finished: set[int] = set()
            try:
                await self._collect(catch, there, held)
                chosen = [held[number] for number in held if number in there]
                chosen.sort(key=lambda letter: letter.place)
                for start in range(0, len(chosen), _CHUNK):
                    chunk = chosen[start : start + _CHUNK]
                    if redrives:
                        chunk = await self._send_back(chunk, stuck)
                    await catch.complete([letter.arrival for letter in chunk])
                    finished.update(letter.received.sequence_number for letter in chunk)
            finally:
                await catch.close()
            done += len(finished)
            if not finished and len(held) >= _MOST_HELD:
                raise ValidationError(
                    f"{len(there)} of the dead letters, number {min(there)} first, are behind {len(held)} others, "
                    f"and no more are held at a time: redrive or purge those before them; {done} are done"
                )
            if not finished:
                break
        if stuck:
            raise _told(stuck, done) from next(iter(stuck.values()))
        return done

    async def _last(self) -> int:
        """The highest number that is there. What comes later is another letter, if of the same message."""
        last = 0
        while True:
            page = await peek(self._api, self._graves, _MOST, last, dead=True)
            if page:
                last = page[-1].sequence_number
            if len(page) < _MOST:
                return last

    async def _numbers(
        self, wanted: Collection[int] | None, last: int, stuck: Collection[int]
    ) -> set[int]:
        """Those of ``wanted`` up to ``last`` that are there; about as many as are held at a time, at most."""
        there: set[int] = set()
        after = 0
        while len(there) < _MOST and after < last:
            page = await peek(self._api, self._graves, _MOST, after, dead=True)
            if not page:
                break
            after = page[-1].sequence_number
            numbers = {each.sequence_number for each in page if each.sequence_number <= last}
            there |= numbers if wanted is None else numbers.intersection(wanted)
            there.difference_update(stuck)
        return there

    async def _collect(self, catch: Catch, there: set[int], held: dict[int, _Letter]) -> None:
        missing = set(there)

        def enough(arrivals: Sequence[Arrival]) -> bool:
            for arrival in arrivals[len(held) :]:
                received = decode(arrival.message, sessions=self._api.config.sessions, dead=True)
                held[received.sequence_number] = _Letter(arrival, received)
                missing.discard(received.sequence_number)
            return not missing

        # What was not asked for lies in between and has to be taken too.
        enough_and_more: Callable[[Sequence[Arrival]], bool] = enough
        enough(await catch.take(enough_and_more, _MOST_HELD))

    async def _send_back(
        self, letters: Sequence[_Letter], stuck: dict[int, QueueError]
    ) -> list[_Letter]:
        """Send those that can be sent, and return them; why others cannot becomes known to ``stuck``."""
        limit = await self._exit.limit()
        good: list[_Letter] = []
        ready: list[Outgoing] = []
        for letter in letters:
            try:
                ready += await self._exit.prepare([self._entry(letter.received, limit)])
            except (MessageTooLarge, ValidationError) as error:
                stuck[letter.received.sequence_number] = error
            else:
                good.append(letter)
        for answer in await self._exit.send(ready):
            if answer is not None:
                raise answer
        return good

    def _entry(self, received: Received, limit: int) -> Entry:
        token = digest("redrive", self._graves, str(received.sequence_number))
        earlier = received.earlier
        extras = Extras(
            message_id=received.message_id,
            dead_letter=received.dead_letter,
            enqueued_at=earlier.enqueued_at or received.enqueued_at,
            sequence_number=earlier.sequence_number or received.enqueued_sequence_number,
        )
        entry = encode(
            _now(received.message),
            token,
            deduplicates=self._api.config.deduplication,
            extras=extras,
            max_bytes=limit,
        )
        return with_lone_session(entry, token) if self._api.config.sessions else entry


def _told(stuck: Mapping[int, QueueError], done: int) -> ValidationError:
    numbers = ", ".join(map(str, list(stuck)[:_TOLD]))
    more = "" if len(stuck) <= _TOLD else f" and {len(stuck) - _TOLD} more"
    return ValidationError(
        f"{len(stuck)} dead letters cannot be sent back and stay: number {numbers}{more}; {done} were. "
        f"The first: {next(iter(stuck.values()))}"
    )


def _now(message: Message) -> Message:
    """The message without its schedule, which it has met."""
    return attrs.evolve(message, scheduled_at=None)


@final
class AzureDeadLetters(DeadLetters):
    """The dead letters of one queue. Made by :meth:`.provider.AzureProvider.open_dead_letters`."""

    def __init__(self, bridge: AsyncioBridge, graveyard: Graveyard) -> None:
        self._bridge = bridge
        self._graveyard = graveyard

    async def peek(self, max_messages: int, after: int = 0) -> list[PeekedMessage]:
        return await self._bridge.run(self._graveyard.look, max_messages, after)

    async def redrive(self, sequence_numbers: Collection[int] | None = None) -> int:
        return await self._bridge.run(self._graveyard.redrive, _as_set(sequence_numbers))

    async def purge(self, sequence_numbers: Collection[int] | None = None) -> int:
        return await self._bridge.run(self._graveyard.purge, _as_set(sequence_numbers))


def _as_set(numbers: Collection[int] | None) -> frozenset[int] | None:
    return None if numbers is None else frozenset(numbers)
