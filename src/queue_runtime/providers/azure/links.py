"""Links of an entity: one that messages come in by, one that they go out by. On the bridge's loop.

Each has an AMQP session of its own on the shared connection, which takes everything of it along when it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, final

import attrs
from azure.servicebus._common.constants import (
    DATETIMEOFFSET_EPOCH,
    DEADLETTERNAME,
    OPERATION_TIMEOUT,
    RECEIVER_LINK_DEAD_LETTER_ERROR_DESCRIPTION,
    RECEIVER_LINK_DEAD_LETTER_REASON,
    SESSION_FILTER,
    SESSION_LOCKED_UNTIL,
)
from azure.servicebus._pyamqp.aio import _receiver_async, _sender_async
from azure.servicebus._pyamqp.constants import (
    OUTGOING_WINDOW,
    LinkDeliverySettleReason,
    LinkState,
    ReceiverSettleMode,
    Role,
    SenderSettleMode,
    SessionState,
)
from azure.servicebus._pyamqp.error import (
    AMQPError,
    AMQPLinkError,
    ErrorCondition,
    MessageException,
)
from azure.servicebus._pyamqp.outcomes import Accepted, Modified, Rejected, Released
from azure.servicebus._pyamqp.receiver import check_disposition_outcome, outcome_name

from queue_runtime.errors import InvalidReceipt

from .amqp import source as source_of
from .amqp import uint
from .wire import Wire

__all__ = [
    "ABANDONED",
    "ANY_SESSION",
    "COMPLETED",
    "RELEASED",
    "Arrival",
    "Inlet",
    "Outlet",
    "dead_lettered",
]

ANY_SESSION: Final = object()
"""Asks for the next session that has messages and no holder."""

COMPLETED: Final = Accepted()
ABANDONED: Final = Modified(
    delivery_failed=True, undeliverable_here=False, message_annotations=None
)
RELEASED: Final = Released()

_GOODBYE: Final = 2.0
"""Seconds to wait for the peer to confirm that a link is closed; the message locks run out by themselves."""

_DRAIN: Final = 1.0
"""Seconds to wait for what is on its way when nobody wants it any more; what comes later comes again."""

_FIRST: Final = asyncio.FIRST_COMPLETED

_HANDLE: Final = 1
"""The only link of its AMQP session."""


def dead_lettered(reason: str, description: str) -> Any:
    """The outcome of a message that goes to the dead-letter queue."""
    return Rejected(
        error=AMQPError(
            condition=DEADLETTERNAME,
            description=description,
            info={
                RECEIVER_LINK_DEAD_LETTER_REASON: reason,
                RECEIVER_LINK_DEAD_LETTER_ERROR_DESCRIPTION: description,
            },
        )
    )


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


class _Attached:
    """What both kinds of link share: being attached, lost and closed."""

    def __init__(self, wire: Wire, entity: str, on_lost: Callable[[BaseException], None]) -> None:
        self._wire = wire
        self._entity = entity
        self._on_lost = on_lost
        loop = asyncio.get_running_loop()
        self._attached: asyncio.Future[Any] = loop.create_future()
        self._detached: asyncio.Future[None] = loop.create_future()
        self._session: Any = None
        self._link: Any = None
        self._closing = False
        self.error: BaseException | None = None

    @property
    def wire(self) -> Wire:
        """The connection it is on."""
        return self._wire

    @property
    def name(self) -> str:
        """The link's name, unique."""
        return str(self._link.name)

    async def _attach(self, link_type: Any, **kwargs: Any) -> None:
        """Begin an AMQP session and attach in one go; returns when the peer has attached.

        Cancelled, it closes what the peer may just be granting.
        """
        wire = self._wire
        session = self._session = await wire.begin()
        kwargs = {
            "network_trace": False,
            "network_trace_params": dict(session.network_trace_params),
            "on_attach": self._when_attached,
            "on_link_state_change": self._when_changed,
            "max_message_size": 0,
            **kwargs,
        }
        link = self._link = link_type(session, _HANDLE, owner=self, **kwargs)
        session.links[link.name] = link
        session._output_handles[_HANDLE] = link
        wire.on_lost(self, self._lost)
        try:
            await link.attach()
            await self._attached
        except BaseException:
            await self._end()
            raise

    async def _when_attached(self, frame: Any) -> None:
        if not self._attached.done():
            self._attached.set_result(frame)

    async def _when_changed(self, _: Any, state: Any) -> None:
        if state not in (LinkState.DETACHED, LinkState.ERROR):
            return
        if self._closing:
            if not self._detached.done():
                self._detached.set_result(None)
        elif (
            self._link._error is not None
        ):  # otherwise the reason follows: a refusal is told in two frames
            self._lost(self._link._error)
            await self._end()

    async def session_changed(self, state: Any) -> None:
        """The AMQP session of the link began; or it ended, perhaps without being asked to."""
        if self._closing:
            if state is SessionState.MAPPED:
                await self._end_session()
        elif state in (
            SessionState.END_RCVD,
            SessionState.DISCARDING,
            SessionState.UNMAPPED,
        ):
            self._lost(
                AMQPLinkError(
                    ErrorCondition.LinkDetachForced, description="The AMQP session was ended."
                )
            )

    def _lost(self, error: BaseException) -> None:
        if self.error is not None:
            return
        self.error = error
        self._wire.on_lost(self, None)
        if not self._detached.done():
            self._detached.set_result(None)
        self._fail_waiting(error)
        if not self._attached.done():
            self._attached.set_exception(error)
        elif not self._closing:
            self._on_lost(error)

    def _fail_waiting(self, error: BaseException) -> None:
        raise NotImplementedError

    async def _end(self) -> None:
        """Detach and end the AMQP session, without waiting."""
        if not self._closing:
            self._closing = True
            self._wire.on_lost(self, None)
            if self._wire.error is None:
                with suppress(Exception):
                    await self._link.detach(close=True)
                # Ended before it is answered, some peers forget which session their answer is for.
                if self._session.state is not SessionState.BEGIN_SENT:
                    await self._end_session()
            if self.error is None:
                self.error = AMQPLinkError(
                    ErrorCondition.ClientError, description="The link was closed."
                )
            self._fail_waiting(self.error)

    async def _end_session(self) -> None:
        with suppress(Exception):
            await self._session.end()

    async def aclose(self) -> None:
        """Close the link and wait until the peer has; never fails."""
        was_lost = self.error is not None
        await self._end()
        if not was_lost and self._wire.error is None:
            self._wire.on_lost(self, self._disconnected)
            try:
                await asyncio.wait((self._detached,), timeout=_GOODBYE)
            finally:
                self._wire.on_lost(self, None)

    def _disconnected(self, _: BaseException) -> None:
        """The peer will not confirm any more that the link is closed."""
        if not self._detached.done():
            self._detached.set_result(None)


@final
class Inlet(_Attached):
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

        Those on their way come all the same.
        """
        if self.error is None and credit != self.credit:
            await self._link.flow(link_credit=credit)

    async def drain(self) -> None:
        """Take back all credit and wait until nothing is on its way any more; what was, has come. Never fails."""
        if self.error is not None or self.credit <= 0:
            return
        self._drained = asyncio.get_running_loop().create_future()
        with suppress(Exception):
            await self._link.flow(link_credit=self.credit, drain=True)
            await asyncio.wait((self._drained, self._detached), timeout=_DRAIN, return_when=_FIRST)

    def flowed(self, frame: Any) -> None:
        """The peer tells how far it is."""
        count, credit = frame[5], frame[6]
        if self._drained is not None and not credit and count is not None:
            self._link.delivery_count = count
            self._link.current_link_credit = 0
            if not self._drained.done():
                self._drained.set_result(None)

    async def settle(self, arrivals: Sequence[tuple[Arrival, Any]]) -> list[asyncio.Future[None]]:
        """Settle messages with the given outcomes, in order, without waiting in between.

        Returns:
            For each a future that is done when the broker has echoed the outcome, or fails with the SDK's error.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[None]] = []
        for arrival, outcome in arrivals:
            before = self._settling.get(arrival.delivery_id)
            if before is not None:  # whoever asked did not wait for the answer
                futures.append(before[1])
                continue
            future: asyncio.Future[None] = loop.create_future()
            future.add_done_callback(_look)
            futures.append(future)
            if self.error is not None:
                future.set_exception(self.error)
                continue
            if arrival.tag not in self._link._received_delivery_tags:
                future.set_exception(InvalidReceipt("this delivery was settled before"))
                continue
            self._settling[arrival.delivery_id] = outcome_name(outcome), future
            try:
                await self._link._outgoing_disposition(
                    first=arrival.delivery_id,
                    last=None,
                    delivery_tag=arrival.tag,
                    settled=False,
                    state=outcome,
                    batchable=None,
                )
            except Exception as error:
                self._settling.pop(arrival.delivery_id, None)
                if not future.done():
                    future.set_exception(error)
        return futures

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
        settling, self._settling = self._settling, {}
        for _, future in settling.values():
            if not future.done():
                future.set_exception(error)


@final
class Outlet(_Attached):
    """Messages go out by it.

    Attributes:
        max_message_size: Largest message the peer takes, in bytes; 0 if it did not say.
    """

    @classmethod
    async def open(
        cls, wire: Wire, entity: str, on_lost: Callable[[BaseException], None]
    ) -> Outlet:
        """Attach to a queue. Raises as :meth:`Inlet.open`."""
        await wire.authorize(entity)
        outlet = cls(wire, entity, on_lost)
        await wire.within(
            outlet._attach(
                _SenderLink,
                target_address=wire.place.address(entity),
                send_settle_mode=SenderSettleMode.Unsettled,
                rcv_settle_mode=ReceiverSettleMode.Second,
            )
        )
        outlet.max_message_size = int(outlet._link.remote_max_message_size or 0)
        return outlet

    def __init__(self, wire: Wire, entity: str, on_lost: Callable[[BaseException], None]) -> None:
        super().__init__(wire, entity, on_lost)
        self.max_message_size = 0
        self._sending: set[asyncio.Future[None]] = set()

    async def send(self, message: Any, timeout: float) -> asyncio.Future[None]:
        """Put one message, or one batch of them, on the wire.

        Returns:
            A future that is done when the broker has stored it, or fails with the SDK's error.

        Raises:
            Exception: The link is gone; nothing was sent.
        """
        if self.error is not None:
            raise self.error
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sending.add(stored)
        stored.add_done_callback(self._sending.discard)
        stored.add_done_callback(_look)  # when writing fails nobody gets to wait for it

        async def done(reason: Any, state: Any) -> None:
            if stored.done():
                return
            if (
                reason == LinkDeliverySettleReason.DISPOSITION_RECEIVED
                and state
                and "accepted" in state
            ):
                stored.set_result(None)
            else:
                stored.set_exception(_rejection(reason, state))

        # The engine counts down what it may still send and nothing ever counts up.
        self._session.outgoing_window = OUTGOING_WINDOW
        await self._link.send_transfer(message, on_send_complete=done, timeout=timeout)
        return stored

    def _fail_waiting(self, error: BaseException) -> None:
        for stored in list(self._sending):
            if not stored.done():
                stored.set_exception(error)


def _look(future: asyncio.Future[None]) -> None:
    """Nobody may be left to look at the answer."""
    if not future.cancelled():
        future.exception()


def _rejection(reason: Any, state: Any) -> Exception:
    """Why a message was not stored; the peer may leave out all but the condition."""
    try:
        details = state["rejected"][0]
    except (KeyError, IndexError, TypeError):
        details = None
    if reason == LinkDeliverySettleReason.TIMEOUT:
        return TimeoutError()
    if not details:
        return MessageException(
            ErrorCondition.UnknownError, description=f"The message was not stored: {state!r}"
        )
    condition, description, info = (*details, None, None, None)[:3]
    return MessageException(condition, description=description, info=info)


_ReceiverBase: Any = _receiver_async.ReceiverLink
_SenderBase: Any = _sender_async.SenderLink


@final
class _ReceiverLink(_ReceiverBase):  # type: ignore[misc]  # the SDK's is not annotated
    def __init__(self, session: Any, handle: int, *, owner: Inlet, **kwargs: Any) -> None:
        super().__init__(session, handle, **kwargs)
        self._owner = owner

    async def _incoming_disposition(self, frame: Any) -> None:
        self._owner.settled(frame)

    async def _incoming_flow(self, frame: Any) -> None:
        self._owner.flowed(frame)

    async def _on_session_state_change(self) -> None:
        await super()._on_session_state_change()
        await self._owner.session_changed(self._session.state)


@final
class _SenderLink(_SenderBase):  # type: ignore[misc]
    def __init__(self, session: Any, handle: int, *, owner: Outlet, **kwargs: Any) -> None:
        super().__init__(session, handle, **kwargs)
        self._owner = owner

    async def _on_session_state_change(self) -> None:
        await super()._on_session_state_change()
        await self._owner.session_changed(self._session.state)
