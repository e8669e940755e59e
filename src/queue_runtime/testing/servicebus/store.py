"""What a queue keeps: messages by number, and the ids by which duplicates are known."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from heapq import heapify, heappop
from typing import Final, final

from .entities import ACTIVE, Index, Lane, Stored

__all__ = ["SeenIds", "Store"]

_SLACK: Final = 64
"""Leftovers in a heap that are not worth sweeping."""


@final
class Store:
    """The messages of a queue. Sequence numbers only grow, so the newest is always the last."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.last_number = 0
        self._messages: dict[int, Stored] = {}
        self._index = Index()

    def __len__(self) -> int:
        return len(self._messages)

    def get(self, number: int) -> Stored | None:
        """The message with this number, if there is one."""
        return self._messages.get(number)

    def add(self, message: Stored) -> None:
        """Give a message the next number, and a place in its lane."""
        self.last_number += 1
        message.sequence = self.last_number
        self._messages[message.sequence] = message
        self.size_bytes += message.content.size
        self._index.append(message.sequence)
        lane = message.lane
        lane.messages += 1
        if lane.session_id is not None:
            lane.index.append(message.sequence)

    def remove(self, message: Stored) -> None:
        """Forget a message; leftovers of it in lists and heaps are swept out when they are the majority."""
        lane = message.lane
        del self._messages[message.sequence]
        self.size_bytes -= message.content.size
        lane.messages -= 1
        self._index.sweep(self._messages, len(self._messages))
        lane.index.sweep(self._messages, lane.messages)
        if len(lane.ready) > 2 * lane.messages + _SLACK:
            lane.ready = [number for number in lane.ready if number in self._messages]
            heapify(lane.ready)

    def head(self, lane: Lane) -> Stored | None:
        """The message that is next in a lane: active and without a lock."""
        ready = lane.ready
        while ready:
            message = self._messages.get(ready[0])
            if message is not None and message.state == ACTIVE and message.lock is None:
                return message
            heappop(ready)
        return None

    def since(self, number: int, lane: Lane | None) -> Iterator[Stored]:
        """Messages from a number on, all or those of a session; nothing may change meanwhile."""
        index = self._index if lane is None else lane.index
        for each in index.since(number):
            message = self._messages.get(each)
            if message is not None:
                yield message


@final
class SeenIds:
    """Message ids of the last seconds, and the sequence numbers of their messages.

    Args:
        window: For how many seconds an id is remembered; 0: not at all.
    """

    def __init__(self, window: float) -> None:
        self.window = window
        self._seen: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def look_up(self, message_id: Hashable, number: int, now: float) -> int | None:
        """The number of the message that had this id; if none had, remember it for ``number``."""
        if not self.window or message_id is None:
            return None
        while self._seen and next(iter(self._seen.values()))[0] <= now:
            self._seen.popitem(last=False)
        seen = self._seen.get(message_id)
        if seen is not None and seen[0] > now:
            return seen[1]
        # One that has ended may stand behind those of a window that was longer once.
        self._seen.pop(message_id, None)
        self._seen[message_id] = (now + self.window, number)
        return None
