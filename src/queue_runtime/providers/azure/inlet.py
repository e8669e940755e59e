"""The link that messages come in by, and are settled on. On the bridge's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, final

import attrs
from azure.servicebus._common.constants import (
    DATETIMEOFFSET_EPOCH,
    OPERATION_TIMEOUT,
    SESSION_FILTER,
    SESSION_LOCKED_UNTIL,
)
from azure.servicebus._pyamqp.aio import _receiver_async
from azure.servicebus._pyamqp.constants import ReceiverSettleMode, Role, SenderSettleMode
from azure.servicebus._pyamqp.error import MessageException
from azure.servicebus._pyamqp.receiver import check_disposition_outcome, outcome_name

from queue_runtime.errors import InvalidReceipt

from .amqp import source as source_of
from .amqp import uint
from .links import EngineLink, Link
from .shared import look
from .wire import Wire

__all__ = ["ANY_SESSION", "Arrival", "Inlet", "means_no_session", "settled_before"]

ANY_SESSION: Final = object()
"""Asks for the next session that has messages and no holder."""

_DRAIN: Final = 1.0
"""Seconds to wait for what is on its way when nobody wants it any more; what comes later comes again."""


def means_no_session(error: BaseException) -> bool:
    """Whether :data:`ANY_SESSION` was refused because there is none to be had."""
    return getattr(error, "condition", None) == b"com.microsoft:timeout"


def settled_before() -> InvalidReceipt:
    """The refusal of a settlement that has nothing to settle, as when whoever asked first never heard the answer."""
    return InvalidReceipt("this delivery was settled before; nothing changed")


@final
@attrs.frozen(eq=False)
class Arrival:
    """A message that came in.

    Args:
        delivery_id: Its number on the link's AMQP session.
        tag: Its lock token: 16 bytes, a UUID in little-endian order.
        message: As the SDK's engine decodes it.
    """

    delivery_id: int
    tag: bytes
    message: Any


@final
class Inlet(Link):
    """Messages come in by it, as many as there is credit for, and are settled on it.

    Attributes:
        session_id: The session it was granted; ``None``: it has none.
        locked_until: When the session's lock ends if it is not renewed, in seconds since 1970.
    """

    @classmethod
    async def open(
        cls,
        wire: Wire,
        entity: str,
        on_message: Callable[[Inlet, Arrival], None],
        on_lost: Callable[[BaseException], None],
        *,
        credit: int,
        session: object = None,
        wait: float = 0.0,
    ) -> Inlet:
        """Attach to a queue.

        Args:
            wire: The connection.
            entity: The queue's path.
            on_message: Called with each message.
            on_lost: Called once with the reason when the link is gone without being closed.
            credit: Messages that may come at first.
            session: A session's id, :data:`ANY_SESSION`, or ``None`` for a queue without sessions.
            wait: Seconds the broker may wait for :data:`ANY_SESSION`.

        Raises:
            Exception: An error of the SDK's engine; ``TimeoutError``.
        """
        await wire.authorize(entity)
        inlet = cls(wire, entity, on_lost)
        inlet._on_message = on_message
        source: Any = wire.place.address(entity)
        properties: dict[Any, Any] = {}
        if session is not None:
            wanted = None if session is ANY_SESSION else session
            source = source_of(source, {SESSION_FILTER: wanted})
        if session is ANY_SESSION:
            properties[OPERATION_TIMEOUT] = uint(max(1, int(wait * 1_000)))
        await wire.within(
            inlet._attach(
                _ReceiverLink,
                source_address=source,
                link_credit=credit,
                send_settle_mode=SenderSettleMode.Unsettled,
                rcv_settle_mode=ReceiverSettleMode.Second,
                on_transfer=inlet._arrived,
                properties=properties or None,
            ),
            wire.place.timeout + wait,
        )
        if session is not None:
            frame = inlet._attached.result()
            name = frame.source.filters[SESSION_FILTER]
            inlet.session_id = name.decode() if isinstance(name, bytes) else str(name)
            ticks = (frame.properties or {}).get(SESSION_LOCKED_UNTIL)
            if ticks:
                inlet.locked_until = (ticks - DATETIMEOFFSET_EPOCH) / 10_000_000
        return inlet

    def __init__(self, wire: Wire, entity: str, on_lost: Callable[[BaseException], None]) -> None:
        super().__init__(wire, entity, on_lost)
        self.session_id: str | None = None
        self.locked_until: float | None = None
        self._on_message: Callable[[Inlet, Arrival], None]
        self._settling: dict[int, tuple[str, asyncio.Future[None]]] = {}
        self._drained: asyncio.Future[None] | None = None

    @property
    def credit(self) -> int:
        """How many more messages may come."""
        return int(self._link.current_link_credit)

    async def set_credit(self, credit: int) -> None:
        """Let ``credit`` more messages come from now on, instead of what was left.

        Those on their way come all the same. Never fails: a link that cannot be written to is lost.
        """
        if self.error is None and credit != self.credit:
            await self._flow(credit)

    async def take_back_credit(self) -> asyncio.Future[None]:
        """Ask for nothing any more.

        Credit that is only lowered to nothing leaves what the broker has fetched for it already, which then comes
        with the next credit, before what was given back meanwhile. Drained, it says when there is nothing such.

        Returns:
            A future that is done when nothing is on its way any more: what was, has come, or the link is gone.
        """
        if self._drained is None or self._drained.done():
            self._drained = asyncio.get_running_loop().create_future()
            if self.error is None and self.credit > 0:
                await self._flow(self.credit, drain=True)
            else:
                self._drained.set_result(None)
        return self._drained

    @property
    def is_draining(self) -> bool:
        """Whether something may still be on its way for credit that was taken back."""
        return self._drained is not None and not self._drained.done()

    async def drain(self) -> None:
        """As :meth:`take_back_credit`, and wait for it a while. Never fails."""
        await asyncio.wait((await self.take_back_credit(),), timeout=_DRAIN)

    async def _flow(self, credit: int, *, drain: bool = False) -> None:
        try:
            await self._link.flow(link_credit=credit, drain=drain)
        except Exception as error:
            self._lost(error)

    def flowed(self, frame: Any) -> None:
        """The peer tells how far it is."""
        count, credit = frame[5], frame[6]
        drained = self._drained
        if drained is not None and not drained.done() and not credit and count is not None:
            self._link.delivery_count = count
            self._link.current_link_credit = 0
            drained.set_result(None)

    def is_open(self, arrival: Arrival) -> bool:
        """Whether no outcome of a message that came by it was told yet."""
        return arrival.tag in self._link._received_delivery_tags

    async def settle(self, arrivals: Sequence[tuple[Arrival, Any]]) -> list[asyncio.Future[None]]:
        """Settle messages with the given outcomes, in order, without waiting in between.

        Deliveries that follow each other and have the same outcome take one frame, as below Service Bus's SDK for
        JavaScript: ``write_dispositions`` in https://github.com/amqp/rhea/blob/main/lib/session.js

        Returns:
            For each a future that is done when the broker has echoed the outcome, or fails with the SDK's error.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[None]] = []
        run: dict[Arrival, asyncio.Future[None]] = {}
        common: Any = None
        number = 0
        for arrival, outcome in arrivals:
            before = self._settling.get(arrival.delivery_id)
            if before is not None:  # whoever asked did not wait for the answer
                told, answer = before
                futures.append(answer if told == outcome_name(outcome) else _instead(answer))
                continue
            future: asyncio.Future[None] = loop.create_future()
            future.add_done_callback(look)
            futures.append(future)
            if self.error is not None:
                future.set_exception(self.error)
                continue
            if not self.is_open(arrival):
                future.set_exception(settled_before())
                continue
            if run and (outcome is not common or arrival.delivery_id != number + 1):
                await self._tell(run, common)
                run = {}
            run[arrival] = future
            common, number = outcome, arrival.delivery_id
        if run:
            await self._tell(run, common)
        return futures

    async def _tell(self, run: dict[Arrival, asyncio.Future[None]], outcome: Any) -> None:
        """Send the outcome of deliveries whose numbers follow each other."""
        arrivals = list(run)
        first, last = arrivals[0], arrivals[-1]
        name = outcome_name(outcome)
        # Cancelled while it is written, it is told all the same.
        self._settling.update((each.delivery_id, (name, future)) for each, future in run.items())
        tags = self._link._received_delivery_tags
        tags.difference_update([each.tag for each in arrivals])
        tags.add(first.tag)  # what the engine looks for, and takes out
        try:
            await self._link._outgoing_disposition(
                first=first.delivery_id,
                last=last.delivery_id,
                delivery_tag=first.tag,
                settled=False,
                state=outcome,
                batchable=None,
            )
        except Exception as error:
            for arrival, future in run.items():
                self._settling.pop(arrival.delivery_id, None)
                tags.add(arrival.tag)
                if not future.done():
                    future.set_exception(error)
        finally:
            if first.delivery_id in self._settling:
                tags.discard(first.tag)

    def settled(self, frame: Any) -> None:
        """The peer tells what became of deliveries."""
        if frame[0] != Role.Sender or not frame[3]:
            return
        first, last, state = frame[1], frame[1] if frame[2] is None else frame[2], frame[4]
        settling = self._settling
        # The range is the peer's word: walk what is awaited when that is less.
        numbers = range(first, last + 1) if last - first < len(settling) else list(settling)
        for number in numbers:
            if first <= number <= last and (found := settling.pop(number, None)) is not None:
                expected, future = found
                if future.done():
                    continue
                try:
                    check_disposition_outcome(number, state, expected)
                except MessageException as error:
                    future.set_exception(error)
                else:
                    future.set_result(None)

    async def _arrived(self, frame: Any, message: Any) -> None:
        self._on_message(self, Arrival(frame[1], bytes(frame[2]), message))
        if self._drained is not None and self.credit <= 0 and not self._drained.done():
            self._drained.set_result(None)  # it was used up: there is nothing to answer

    def _fail_waiting(self, error: BaseException) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        settling, self._settling = self._settling, {}
        for _, future in settling.values():
            if not future.done():
                future.set_exception(error)


def _instead(first: asyncio.Future[None]) -> asyncio.Future[None]:
    """What becomes of an outcome when the first that was told is another: nothing, unless that one is refused."""
    second: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    second.add_done_callback(look)

    def conclude(first: asyncio.Future[None]) -> None:
        second.set_exception(first.exception() or settled_before())

    first.add_done_callback(conclude)
    return second


_ReceiverBase: Any = _receiver_async.ReceiverLink


@final
class _ReceiverLink(EngineLink, _ReceiverBase):  # type: ignore[misc]  # the SDK's is not annotated
    _owner: Inlet

    async def _incoming_disposition(self, frame: Any) -> None:
        self._owner.settled(frame)

    async def _incoming_flow(self, frame: Any) -> None:
        self._owner.flowed(frame)
