"""The dead-letter queue of one queue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Final, final

from ..abc import DeadLetters
from ..messages import PeekedMessage
from ._checks import check_positive
from .calls import Calls

__all__ = ["DeadLetterClient"]

_PAGE: Final = 500
"""Dead letters looked at in one call."""


@final
class DeadLetterClient:
    """The dead-letter queue of one queue. Made by :meth:`QueueClient.dead_letters`."""

    def __init__(self, calls: Calls, port: DeadLetters) -> None:
        self._calls = calls
        self._port = port

    async def list(self, *, max_messages: int = 100, after: int = 0) -> list[PeekedMessage]:
        """Dead letters in sequence order; page on with ``after`` (the last sequence number seen)."""
        check_positive("max_messages", max_messages)
        return await self._calls(self._port.peek, max_messages, after)

    async def find(
        self,
        *,
        message_ids: Collection[str] | None = None,
        session_id: str | None = None,
        reason: str | None = None,
    ) -> AsyncIterator[PeekedMessage]:
        """Every dead letter that fits all that is given, in sequence order, page by page."""
        after = 0
        while page := await self.list(max_messages=_PAGE, after=after):
            for letter in page:
                if (
                    (message_ids is None or letter.message_id in message_ids)
                    and (session_id is None or letter.message.session_id == session_id)
                    and (
                        reason is None
                        or (letter.dead_letter is not None and letter.dead_letter.reason == reason)
                    )
                ):
                    yield letter
            after = page[-1].sequence_number

    async def redrive(self, sequence_numbers: Collection[int] | None = None) -> int:
        """Move dead letters back, each session's in its original order; return how many. ``None``: all."""
        return await self._calls(self._port.redrive, sequence_numbers)

    async def purge(self, sequence_numbers: Collection[int] | None = None) -> int:
        """Delete dead letters for good; return how many. ``None``: all."""
        return await self._calls(self._port.purge, sequence_numbers)
