"""Looking at stored messages, and taking many at a time to be moved or deleted. On the bridge's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, final

from azure.servicebus._common.constants import REQUEST_RESPONSE_PEEK_OPERATION
from azure.servicebus._pyamqp._decode import decode_payload

from queue_runtime.messages import MessageState, PeekedMessage

from .amqp import integer, long
from .api import AzureApi, mapped
from .codec import Received, State, decode
from .inlet import ANY_SESSION, Arrival, Inlet, means_no_session
from .sender import Exit
from .settling import COMPLETED, RELEASED

__all__ = ["Catch", "dead_letters_of", "peek", "peeked", "purge"]

_PAGE: Final = 250
"""Messages asked for in one look; the broker cuts long answers by size anyway."""

_AT_ONCE: Final = 500
"""Messages taken before they are dealt with."""

_QUIET: Final = 0.3
"""Seconds without a message after which the broker is asked whether any is left."""

_NEXT_SESSION: Final = 0.5
"""Seconds to wait for one more session with messages."""

_STATES: Final[dict[State, MessageState]] = {
    "active": MessageState.READY,
    "scheduled": MessageState.SCHEDULED,
    "deferred": MessageState.DELAYED,
}


def dead_letters_of(entity: str) -> str:
    """The path of a queue's dead-letter sub-queue, which has no sessions."""
    return f"{entity}/$DeadLetterQueue"


async def peek(
    api: AzureApi,
    entity: str,
    count: int,
    after: int = 0,
    *,
    dead: bool = False,
    session: str | None = None,
) -> list[Received]:
    """Stored messages in sequence order with a sequence number above ``after``.

    Args:
        api: The namespace.
        entity: The queue's path.
        count: Most messages.
        after: The last number seen.
        dead: It is a dead-letter sub-queue.
        session: Only those of one session, as it is on the wire.

    Raises:
        QueueError: The broker refuses, or cannot be reached.
    """
    found: list[Received] = []
    only = {} if session is None else {"session-id": session}
    while len(found) < count:
        body = {
            "from-sequence-number": long(after + 1),
            "message-count": integer(min(_PAGE, count - len(found))),
            **only,
        }
        with mapped("peek", entity):
            answer = await api.manage(entity, REQUEST_RESPONSE_PEEK_OPERATION, body)
        if not answer or not answer[b"messages"]:
            break
        for each in answer[b"messages"]:
            raw = decode_payload(memoryview(each[b"message"]))
            received = decode(raw, sessions=api.config.sessions, peeked=True, dead=dead)
            after = max(after, received.sequence_number)
            found.append(received)
    return found


def peeked(received: Received, *, dead: bool = False) -> PeekedMessage:
    """As the ports show it. The broker does not tell what is in flight: it counts as ready."""
    info = received.dead_letter
    return PeekedMessage(
        received.message,
        received.message_id,
        received.sequence_number,
        received.enqueued_at,
        received.delivery_count if info is None or not dead else info.delivery_count,
        MessageState.DEAD_LETTERED if dead else _STATES[received.state],
        info,
    )


@final
class Catch:
    """Takes messages by one link until there are no more, and then settles them."""

    def __init__(self, api: AzureApi, entity: str) -> None:
        self._api = api
        self._entity = entity
        self._inlet: Inlet
        self._came: list[Arrival] = []
        self._open: dict[Arrival, None] = {}  # came, and not known to be deleted
        self._news = asyncio.Event()
        self._error: BaseException | None = None

    @property
    def session_id(self) -> str | None:
        """The session that was granted."""
        return self._inlet.session_id

    async def open(self, session: object = None, wait: float = 0.0) -> bool:
        """Attach; ``False`` if there is no session to be had."""
        with mapped("receive", self._entity):
            try:
                # Messages that came while this is cancelled would stay locked.
                self._inlet = await self._api.inlet(
                    self._entity,
                    self._arrived,
                    self._lost,
                    credit=0,
                    session=session,
                    wait=wait,
                )
            except Exception as error:
                if session is not None and means_no_session(error):
                    return False
                raise
        return True

    def _arrived(self, _: Inlet, arrival: Arrival) -> None:
        self._came.append(arrival)
        self._open[arrival] = None
        self._news.set()

    def _lost(self, error: BaseException) -> None:
        self._error = error
        self._news.set()

    async def take(self, enough: Callable[[Sequence[Arrival]], bool], most: int) -> list[Arrival]:
        """Messages until there are ``enough``, ``most``, or no more.

        Raises:
            QueueError: The link was lost, or the broker does not answer; what came comes again.
        """
        taken: list[Arrival] = []
        while not enough(taken) and len(taken) < most:
            if self._error is not None:
                with mapped("receive", self._entity):
                    raise self._error
            if not self._came:
                self._news.clear()
                if self._inlet.credit <= _AT_ONCE // 2:
                    await self._inlet.set_credit(_AT_ONCE)
                try:
                    async with asyncio.timeout(_QUIET):
                        await self._news.wait()
                except TimeoutError:
                    await self._drain()
                    if not self._came and self._error is None:
                        break
            taken += self._came
            self._came.clear()
        return taken

    async def has_more(self, last: int) -> bool:
        """Whether there is any message, in the granted session if there is one, with a number up to ``last``.

        Raises:
            QueueError: The broker does not answer.
        """
        found = await peek(self._api, self._entity, 1, session=self.session_id)
        return any(each.sequence_number <= last for each in found)

    async def _drain(self) -> None:
        """Wait until all has come that there is: far away, that may take a while."""
        drained = await self._inlet.take_back_credit()
        await asyncio.wait((drained,), timeout=self._api.config.operation_timeout)
        if not drained.done():
            with mapped("receive", self._entity):
                raise TimeoutError("not told in time whether there are more")

    async def complete(self, arrivals: Sequence[Arrival]) -> None:
        """Delete messages.

        Raises:
            QueueError: Of some of them the broker did not confirm it.
        """
        futures = await self._inlet.settle([(arrival, COMPLETED) for arrival in arrivals])
        if not futures:
            return
        await asyncio.wait(futures, timeout=self._api.config.operation_timeout)
        with mapped("delete", self._entity):
            for arrival, future in zip(arrivals, futures, strict=True):
                if not future.done():
                    raise TimeoutError("not confirmed in time")
                future.result()
                del self._open[arrival]

    async def close(self) -> None:
        """Give back what came and was not deleted; never fails, and cancelled, it ends first."""
        closing = asyncio.create_task(self._close())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait((closing,))
            raise

    async def _close(self) -> None:
        await self._inlet.drain()
        futures = await self._inlet.settle([(arrival, RELEASED) for arrival in self._open])
        if futures:
            await asyncio.wait(futures, timeout=self._api.config.operation_timeout)
            for future in futures:
                if future.done() and not future.cancelled():
                    future.exception()  # it comes again when its lock expires
        await self._inlet.aclose()


async def purge(api: AzureApi, entity: str) -> int:
    """Delete every message that waits or is scheduled; how many. It ends also where others go on sending.

    Raises:
        QueueError: The broker refuses, or cannot be reached; some may be deleted.
    """
    count, last = await _cancel_scheduled(api, entity)
    sessions = api.config.sessions
    fruitless: set[str | None] = set()
    while True:
        catch = Catch(api, entity)
        if not await catch.open(ANY_SESSION if sessions else None, _NEXT_SESSION):
            return count
        try:
            deleted, old = await _empty(catch, last)
        finally:
            await catch.close()
        count += deleted
        if not old and catch.session_id in fruitless:
            return count
        if not old:
            fruitless.add(catch.session_id)
        if not sessions:
            return count


async def _empty(catch: Catch, last: int) -> tuple[int, int]:
    """Delete messages until none comes, or one with a number above ``last``; how many, and how many of the others."""
    count = old = 0
    while arrivals := await catch.take(bool, _AT_ONCE):
        await catch.complete(arrivals)
        numbers = [decode(arrival.message).sequence_number for arrival in arrivals]
        count += len(numbers)
        old += sum(number <= last for number in numbers)
        # Asked for more, the broker would have to be waited for.
        if numbers[-1] > last or not await catch.has_more(last):
            break
    return count, old


async def _cancel_scheduled(api: AzureApi, entity: str) -> tuple[int, int]:
    """How many there were, and the highest number in the queue."""
    out = Exit(api, entity)
    count = last = 0
    while page := await peek(api, entity, _PAGE, last):
        last = page[-1].sequence_number
        scheduled = [each.sequence_number for each in page if each.state == "scheduled"]
        count += sum(await out.cancel(scheduled))
    return count, last
