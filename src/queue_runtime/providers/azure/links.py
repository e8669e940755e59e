"""What both kinds of link to an entity share: being attached, lost and closed. On the bridge's loop.

Each has an AMQP session of its own on the shared connection, which takes everything of it along when it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from azure.servicebus._pyamqp.aio import _link_async
from azure.servicebus._pyamqp.constants import LinkState, SessionState
from azure.servicebus._pyamqp.error import AMQPLinkError, ErrorCondition

from .wire import Wire

__all__ = ["EngineLink", "Link"]

_GOODBYE: Final = 2.0
"""Seconds to wait for the peer to confirm that a link is closed; the message locks run out by themselves."""

_HANDLE: Final = 1
"""The only link of its AMQP session."""


class Link:
    """A link; :class:`.inlet.Inlet` or :class:`.outlet.Outlet`.

    Attributes:
        error: Why it is gone; ``None`` while it is there.
        has_ended: The end of its AMQP session was sent: one more frame, and the peer would close the connection.
    """

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
        self.has_ended = False
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

    async def _end(self, why: BaseException | None = None) -> None:
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
                self.error = why or AMQPLinkError(
                    ErrorCondition.LinkDetachForced, description="The link was closed."
                )
            self._fail_waiting(self.error)

    async def _end_session(self) -> None:
        if self.has_ended:
            return
        self.has_ended = True
        with suppress(Exception):
            await self._session.end()

    async def aclose(self, why: BaseException | None = None) -> None:
        """Close the link and wait until the peer has; never fails. Who still waits for an answer is told ``why``."""
        was_lost = self.error is not None
        await self._end(why)
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


_EngineBase: Any = _link_async.Link


class EngineLink(_EngineBase):  # type: ignore[misc]  # the SDK's is not annotated
    """What a :class:`Link` changes in the SDK's link of its kind, which comes behind it among the bases."""

    def __init__(self, session: Any, handle: int, *, owner: Link, **kwargs: Any) -> None:
        super().__init__(session, handle, **kwargs)
        self._owner = owner

    async def _incoming_attach(self, frame: Any) -> None:
        if not self._owner.has_ended:  # the engine would answer
            await super()._incoming_attach(frame)

    async def _on_session_state_change(self) -> None:
        await super()._on_session_state_change()
        await self._owner.session_changed(self._session.state)
