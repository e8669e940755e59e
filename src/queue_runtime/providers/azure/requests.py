"""Questions to a node of the broker that answers: ``$cbs`` and the management node of an entity.

On the bridge's loop. Any number of questions may be under way at the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, final

from azure.servicebus._common.constants import (
    ASSOCIATEDLINKPROPERTYNAME,
    MGMT_RESPONSE_MESSAGE_ERROR_CONDITION,
    REQUEST_RESPONSE_TIMEOUT,
)
from azure.servicebus._pyamqp.constants import (
    ManagementExecuteOperationResult,
    ManagementOpenResult,
)
from azure.servicebus._pyamqp.error import (
    AMQPException,
    AMQPLinkError,
    ErrorCondition,
)
from azure.servicebus._pyamqp.message import Message as AmqpMessage
from azure.servicebus._pyamqp.message import Properties

from .amqp import string, uint

if TYPE_CHECKING:
    from .wire import Wire

__all__ = ["Refused", "Requests"]

_CREDIT: Final = 10_000
"""Answers that the broker may send before it is told of more room: what the SDK gives once and never again."""

_NO_CONTENT: Final = (202, 204)
"""Status codes for an answer that there is nothing."""


@final
class Refused(Exception):
    """A node answered with an error.

    Args:
        status: Such as 404.
        condition: Such as ``com.microsoft:message-not-found``; ``None`` if it did not say.
        description: For people.
    """

    def __init__(self, status: int, condition: Any, description: Any) -> None:
        super().__init__(status, condition, description)
        self.status = status
        self.condition = condition
        self.description = description


@final
class Requests:
    """The links to one node. Made by :meth:`open`."""

    @classmethod
    async def open(cls, wire: Wire, node: str) -> Requests:
        """Attach to the node.

        Raises:
            Exception: The broker refuses, or does not answer.
        """
        requests = cls(wire, node)
        session = requests._session = await wire.begin()
        is_cbs = node == "$cbs"
        requests._links = session.create_request_response_link_pair(
            endpoint=node,
            on_amqp_management_open_complete=requests._opened,
            on_amqp_management_error=requests._broken,
            status_code_field=b"status-code" if is_cbs else b"statusCode",
            status_description_field=b"status-description" if is_cbs else b"statusDescription",
        )
        wire.on_lost(requests, requests._lost)
        try:
            await requests._links.open()
            await wire.within(requests._ready)
        except BaseException as error:
            requests._lost(error if isinstance(error, Exception) else ConnectionResetError())
            await requests._close()
            raise
        return requests

    def __init__(self, wire: Wire, node: str) -> None:
        self._wire = wire
        self._node = node
        self._session: Any = None
        self._links: Any = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting: set[asyncio.Future[Any]] = set()
        self._closed = False
        self.is_over = False

    async def manage(
        self, operation: bytes, body: Mapping[str, Any], timeout: float, link: str | None
    ) -> Any:
        """What a management node answers: a map, or ``None`` when it has nothing.

        Raises:
            Refused: It answers with an error.
            Exception: The links are gone; ``TimeoutError``.
        """
        properties: dict[Any, Any] = {REQUEST_RESPONSE_TIMEOUT: uint(max(1, int(timeout * 1_000)))}
        if link is not None:
            properties[ASSOCIATEDLINKPROPERTYNAME] = link
        message = AmqpMessage(
            value=dict(body),
            properties=Properties(reply_to=self._node),
            application_properties=properties,
        )
        answer = await self.call(
            string(operation.decode()),
            message,
            timeout,
            string(b"entity-mgmt"),
        )
        return None if answer is None else answer.value

    async def call(self, operation: Any, message: Any, timeout: float, kind: Any) -> Any:
        """One question; the message that answers it, ``None`` when it has no content.

        Raises:
            Refused: The node answers with an error.
            Exception: The links are gone; ``TimeoutError``.
        """
        self._wire.check()
        if self.is_over:  # since it was looked at
            raise AMQPLinkError(ErrorCondition.LinkDetachForced, description="The link was closed.")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def done(
            result: Any, status: Any, description: Any, reply: Any, error: Any = None
        ) -> None:
            if answer.done():
                return
            if result in (
                ManagementExecuteOperationResult.ERROR,
                ManagementExecuteOperationResult.LINK_CLOSED,
            ):
                answer.set_exception(error or AMQPException(ErrorCondition.UnknownError))
            elif 200 <= status <= 299:
                answer.set_result(reply if status == 200 else None)
            else:
                condition = (reply.application_properties or {}).get(
                    MGMT_RESPONSE_MESSAGE_ERROR_CONDITION, error
                )
                answer.set_exception(Refused(status, condition, description))

        self._waiting.add(answer)
        pending = None
        try:
            async with asyncio.timeout(timeout):
                await self._wire.room()
                pending = await self._links.execute_operation(
                    message, done, operation=operation, type=kind, timeout=timeout
                )
                return await answer
        except TimeoutError:
            # Nobody tells when the broker forgets these links: start afresh next time.
            self.is_over = True
            raise
        finally:
            self._waiting.discard(answer)
            if pending is not None:
                self._links.cancel_operation(pending)
            if self.is_over:
                await self._close()
            else:
                await self._give_credit()

    async def _give_credit(self) -> None:
        link = self._links._response_link
        if link.current_link_credit < _CREDIT // 2 and self._wire.error is None:
            await link.flow(link_credit=_CREDIT)

    async def _opened(self, result: Any) -> None:
        if self._ready.done():
            return
        if result == ManagementOpenResult.OK:
            self._ready.set_result(None)
        else:
            error = self._links._response_link._error or self._links._request_link._error
            self._ready.set_exception(
                error
                or AMQPLinkError(
                    ErrorCondition.LinkDetachForced,
                    description=f"The node {self._node} cannot be opened.",
                )
            )

    async def _broken(self) -> None:
        error = self._links._response_link._error or self._links._request_link._error
        self._lost(
            error
            or AMQPLinkError(ErrorCondition.LinkDetachForced, description="The link was detached.")
        )
        await self._close()

    async def _close(self) -> None:
        """Leave nothing at the broker when it is over and nobody waits for an answer any more; never fails."""
        if self._waiting or self._closed or self._wire.error is not None:
            return
        self._closed = True
        self._wire.on_lost(self, None)
        with suppress(Exception):
            await self._links.close()
        with suppress(Exception):
            await self._session.end()

    def _lost(self, error: BaseException) -> None:
        self.is_over = True
        self._wire.on_lost(self, None)
        for waiting in (self._ready, *self._waiting):
            if not waiting.done():
                waiting.set_exception(error)
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # seen
