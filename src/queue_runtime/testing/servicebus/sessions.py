"""The sessions of one queue: who holds which, who waits for one, and what is kept about them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import final

from .entities import Consumer, Lane
from .refusals import session_lock_lost, session_locked, wait_ended
from .store import Store
from .timers import Timers

__all__ = ["Sessions"]


@final
class Sessions:
    """Lanes by session id. Nothing walks them: free ones with messages stand in a line, and so do those who wait.

    Args:
        store: The queue's messages.
        timers: The time.
        lock_duration: How long a session stays locked, in seconds.
        feed: Gives a consumer what it can take of its session.
        give_back: Ends the locks on a session's messages, whose delivery failed or not.
    """

    def __init__(
        self,
        store: Store,
        timers: Timers,
        lock_duration: float,
        *,
        feed: Callable[[Lane, Consumer], None],
        give_back: Callable[[Lane, bool], None],
    ) -> None:
        self.locked = 0
        self.lock_duration = lock_duration
        self._store = store
        self._timers = timers
        self._feed = feed
        self._give_back = give_back
        self._lanes: dict[str, Lane] = {}
        self._available: OrderedDict[Lane, None] = OrderedDict()
        self._waiters: OrderedDict[Consumer, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lanes)

    def find(self, session_id: str) -> Lane | None:
        """The session, if there is anything to know about it."""
        return self._lanes.get(session_id)

    def lane(self, session_id: str) -> Lane:
        """The session, from now on if there was none."""
        lane = self._lanes.get(session_id)
        if lane is None:
            lane = self._lanes[session_id] = Lane(session_id)
        return lane

    def tidy(self, lane: Lane) -> None:
        """Forget a session about which there is nothing left to know."""
        if lane.session_id is None:
            return
        if lane.owner is None and self._store.head(lane) is None:
            self._available.pop(lane, None)
            if not lane.messages and lane.state is None:
                self._lanes.pop(lane.session_id, None)

    # Who gets one

    def accept(self, consumer: Consumer, session_id: str | None, timeout: float) -> None:
        """Lock a session by name, or the next one with messages; the consumer's receiver hears of it.

        Raises:
            Refused: Somebody else has the session. (That none came within ``timeout`` seconds is told to
                the receiver.)
        """
        if session_id is not None:
            lane = self.lane(session_id)
            if lane.owner is not None:
                raise session_locked(session_id)
            self._grant(lane, consumer)
        elif self._available:
            self._grant(next(iter(self._available)), consumer)
        else:
            self._waiters[consumer] = None
            end = self._timers.now() + timeout
            consumer.waiting = self._timers.at(end, self._wait_ends, consumer, timeout)

    def offer(self, lane: Lane) -> None:
        """A session that nobody holds has a message: let who waits have it."""
        if self._waiters:
            consumer, _ = self._waiters.popitem(last=False)
            self.stop_waiting(consumer)
            self._grant(lane, consumer)
        elif lane not in self._available:
            self._available[lane] = None

    def _wait_ends(self, consumer: Consumer, timeout: float) -> None:
        self.stop_waiting(consumer)
        consumer.receiver.lost(wait_ended(timeout))

    def stop_waiting(self, consumer: Consumer) -> None:
        """The consumer wants no session any more."""
        self._waiters.pop(consumer, None)
        if consumer.waiting is not None:
            self._timers.cancel(consumer.waiting)
            consumer.waiting = None

    def _grant(self, lane: Lane, consumer: Consumer) -> None:
        assert lane.session_id is not None
        self._available.pop(lane, None)
        self.locked += 1
        lane.owner = consumer
        consumer.lane = lane
        self._prolong(lane)
        consumer.receiver.granted(lane.session_id, lane.until)
        self._feed(lane, consumer)

    # How long

    def owned(self, session_id: str, consumer: Consumer | None) -> Lane:
        """The session, for who holds it.

        Raises:
            Refused: The consumer does not.
        """
        lane = self._lanes.get(session_id)
        if lane is None or consumer is None or lane.owner is not consumer:
            raise session_lock_lost()
        return lane

    def renew(self, session_id: str, consumer: Consumer | None) -> float:
        """Prolong the lock of a session that the consumer holds; return when it ends.

        Raises:
            Refused: The consumer does not hold it.
        """
        lane = self.owned(session_id, consumer)
        self._prolong(lane)
        return lane.until

    def _prolong(self, lane: Lane) -> None:
        if lane.timer is not None:
            self._timers.cancel(lane.timer)
        lane.until = self._timers.now() + self.lock_duration
        lane.timer = self._timers.at(lane.until, self._expires, lane)

    def _expires(self, lane: Lane) -> None:
        consumer = lane.owner
        self.end(lane, failed=True)
        if consumer is not None:
            consumer.receiver.lost(session_lock_lost())

    def end(self, lane: Lane, *, failed: bool) -> None:
        """Nobody holds the session any more; its locked messages go back, all before anybody can have one."""
        if lane.owner is not None:
            lane.owner.lane = None
            lane.owner = None
            self.locked -= 1
        if lane.timer is not None:
            self._timers.cancel(lane.timer)
            lane.timer = None
        self._give_back(lane, failed)
        if self._store.head(lane) is not None:
            self.offer(lane)
        self.tidy(lane)

    # What is kept

    def ids(self, state_set_after: float | None) -> list[str]:
        """Sessions with messages or a state, or those whose state was set after a time."""
        return [
            session_id
            for session_id, lane in self._lanes.items()
            if (
                lane.messages or lane.state is not None
                if state_set_after is None
                else lane.state_set_at > state_set_after
            )
        ]
