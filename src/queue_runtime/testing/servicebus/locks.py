"""The locks on one queue's messages."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import final
from uuid import UUID

from .entities import Consumer, Lock, Stored
from .refusals import message_lock_lost, session_lock_lost
from .timers import Timers

__all__ = ["Locks"]


@final
class Locks:
    """Locks by token. That of a session's message lasts as long as the session's own; others end by themselves.

    Args:
        timers: The time.
        duration: How long a lock lasts, in seconds.
        of_sessions: Whether the queue has sessions.
        give_back: Told of a message that was locked for too long, and is not any more.
    """

    def __init__(
        self,
        timers: Timers,
        duration: float,
        *,
        of_sessions: bool,
        give_back: Callable[[Stored], None],
    ) -> None:
        self.duration = duration
        self._timers = timers
        self._of_sessions = of_sessions
        self._give_back = give_back
        self._locks: dict[UUID, Lock] = {}

    def __len__(self) -> int:
        return len(self._locks)

    def take(self, message: Stored, consumer: Consumer | None) -> UUID:
        """Lock a message; return the lock's token."""
        lane = message.lane
        until = self._timers.now() + self.duration
        lock = message.lock = Lock(uuid.uuid4(), message, consumer, until)
        self._locks[lock.token] = lock
        if lane.session_id is None:
            lock.timer = self._timers.at(until, self.expire, lock)
        else:
            lane.locks[lock.token] = lock
        return lock.token

    def held(self, token: UUID, consumer: Consumer | None) -> Lock:
        """The lock with this token; that of a session's message only for who holds the session.

        Raises:
            Refused: There is none, or it is somebody else's.
        """
        lock = self._locks.get(token)
        if lock is None:
            raise session_lock_lost() if self._of_sessions else message_lock_lost()
        if self._of_sessions and (consumer is None or lock.consumer is not consumer):
            raise session_lock_lost()
        return lock

    def prolong(self, lock: Lock) -> float:
        """Have a lock begin anew; return when it ends."""
        lock.own_until = self._timers.now() + self.duration
        if lock.timer is not None:
            self._timers.cancel(lock.timer)
        lock.timer = self._timers.at(lock.own_until, self.expire, lock)
        return lock.own_until

    def release(self, lock: Lock) -> Stored:
        """End a lock; return its message."""
        message = lock.message
        del self._locks[lock.token]
        message.lock = None
        if lock.timer is not None:
            self._timers.cancel(lock.timer)
        else:
            del message.lane.locks[lock.token]
        return message

    def expire(self, lock: Lock) -> None:
        """End a lock that was held for too long: the delivery has failed."""
        message = self.release(lock)
        message.count += 1
        self._give_back(message)
