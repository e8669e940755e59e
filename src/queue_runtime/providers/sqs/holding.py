"""Scheduled messages that SQS cannot delay itself: they wait in a FIFO queue and are forwarded when due.

On the bridge's loop. Every process that receives forwards; nothing is lost when it ends half-way, because a
message is deleted only after its copy is confirmed, and a repeated copy has the same deduplication id. (On
standard queues, which remember none, such a copy may be delivered twice.)
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, final

import attrs

from queue_runtime.errors import QueueError

from ..wire_ids import digest
from .claims import MAX_RECEIVED, Change, Claims, Raw
from .codec import decode
from .config import MAX_VISIBILITY
from .polls import Poller
from .settling import entry_of_move

__all__ = ["Forwarder"]

_HELD: Final = 30
"""Seconds that messages are ours while they are forwarded; another process goes on when we are gone."""

_NEAR: Final = 1.5
"""Seconds before its time from which a message is waited for here: SQS counts whole seconds."""

_POLL: Final = 3_600.0
"""Seconds of one call of the poller, which makes as many polls of them as it takes."""

_PAUSES: Final = (1.0, 2.0, 5.0, 15.0, 30.0)
"""Seconds between tries while SQS cannot be reached or refuses."""


@final
class Forwarder:
    """Moves what is due from a holding queue to the queue it belongs to.

    Args:
        holding: Where messages wait.
        target: Where they go.
        wait_time: Longest long poll, in seconds.
    """

    def __init__(self, holding: Claims, target: Claims, wait_time: int) -> None:
        self._holding = holding
        self._target = target
        self._wait_time = wait_time
        self._near: set[asyncio.Task[None]] = set()
        # First come, first served, so that what was due earlier also goes earlier when this runs late.
        self._in_turn = asyncio.Lock()

    async def run(self) -> None:
        """Forward until cancelled."""
        poller = Poller(self._holding, _HELD, self._wait_time)
        failures = 0
        try:
            while True:
                try:
                    claimed = await poller.receive(MAX_RECEIVED, _POLL)
                    if claimed is not None:
                        await self._sort(claimed.messages)
                    failures = 0
                except QueueError as error:
                    pause = _PAUSES[min(failures, len(_PAUSES) - 1)] * random.uniform(0.8, 1.2)
                    failures += 1
                    await asyncio.sleep(max(pause, error.retry_after or 0.0))
        finally:
            for task in self._near:
                task.cancel()
            await asyncio.gather(*self._near, return_exceptions=True)
            await poller.aclose()

    async def _sort(self, messages: Sequence[Raw]) -> None:
        """Forward what is due, wait for what nearly is, and send the rest back for as long as it takes."""
        now = datetime.now(UTC)
        later: list[Change] = []
        # By time, and those of one time as they came: sessions keep their order.
        moments: dict[float, list[Raw]] = {}
        for raw in messages:
            left = _seconds_left(raw, now)
            if left > _NEAR:
                # Rounded down: it comes back while there is a moment left to be exact.
                seconds = min(int(left), MAX_VISIBILITY - _HELD)
                later.append(Change(raw["ReceiptHandle"], seconds))
            else:
                moments.setdefault(left, []).append(raw)
        overdue: list[Raw] = []
        for left in sorted(moments):
            if left <= 0:
                overdue += moments[left]
            else:
                task = asyncio.create_task(self._forward(left, moments[left]))
                self._near.add(task)
                task.add_done_callback(self._near.discard)
        if later:
            await self._holding.change(later)
        if overdue:
            await self._forward(0.0, overdue)

    async def _forward(self, left: float, messages: Sequence[Raw]) -> None:
        """Wait, send and delete. What fails comes again when its visibility timeout is over."""
        with suppress(QueueError):
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                await self._holding.give_back([raw["ReceiptHandle"] for raw in messages])
                raise
            async with self._in_turn:
                stored = await self._send(messages)
                if stored:
                    await self._holding.delete(stored)

    async def _send(self, messages: Sequence[Raw]) -> list[str]:
        entries = []
        for raw in messages:
            received = decode(raw, "holding")
            message = received.message
            if not self._target.queue.fifo:
                message = attrs.evolve(message, session_id=None)
            token = digest("due", self._holding.queue.url, str(raw.get("MessageId")))
            extras = attrs.evolve(received.earlier, message_id=received.message_id)
            entries.append(entry_of_move(self._target.queue, message, extras, token, raw))
        sent = await self._target.send(entries)
        return [
            raw["ReceiptHandle"]
            for raw, answer in zip(messages, sent, strict=True)
            if answer.error is None
        ]


def _seconds_left(raw: Raw, now: datetime) -> float:
    """Seconds until a message is due; what does not say is due."""
    at = decode(raw, "holding").message.scheduled_at
    return 0.0 if at is None else (at - now).total_seconds()
