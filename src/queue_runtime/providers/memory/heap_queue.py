"""One queue in memory: sessions as linked lists, rings of those whose turn may come, one heap of timers.

How the costs stay flat:

* A *lane* (a session; or all messages without one) links its waiting messages in order. Taking the head,
  giving it back and removing one from the middle are a few assignments.
* A lane that can be delivered sits in exactly one *ring*, that of its holder or the common one. Idle,
  delayed and halted lanes sit in none, so nobody looks at them.
* Timers lie in one heap. A timer that no longer matters is recognised when it comes up, and swept out with
  the others when they are the majority.
* Rings are ``OrderedDict``s: taking the first key of a plain ``dict`` over and over walks the holes that
  earlier deletions left, which is quadratic.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from heapq import heapify, heappop, heappush
from typing import Any, Final, final

from queue_runtime.messages import DeadLetterInfo, Message, MessageId, SessionId

from .engine import (
    MAX_DELIVERY_COUNT_EXCEEDED,
    MAX_DESCRIPTION,
    TIME_TO_LIVE_EXPIRED,
    QueueOptions,
)
from .heap_lane import (
    DEAD,
    DELAYED,
    GONE,
    IN_FLIGHT,
    READY,
    SCHEDULED,
    Entry,
    Holder,
    Lane,
    Lock,
    Ring,
)

__all__ = ["HeapQueue"]

# Kinds of timers.
_LOCK_EXPIRES: Final = 0
_DELAY_ENDS: Final = 1
_FALLS_DUE: Final = 2
_LIFE_ENDS: Final = 3

_NOTHING: Final = Message(b"")
_SLACK: Final = 1_024
"""Leftovers that are not worth sweeping."""


@final
class HeapQueue:
    """The state of one queue and every change of it. What callers see of it is :class:`HeapEngine`'s part."""

    def __init__(self) -> None:
        self.prefix = secrets.token_hex(6)  # makes ids and receipts differ from any other queue's
        self.sequence = 0
        self.token = 0
        self.delivery = 0
        self.loose = Lane(None)
        self.lanes: dict[SessionId, Lane] = {}
        self.holders: dict[str, Holder] = {}
        self.locks: dict[int, Lock] = {}
        self.session_locks = 0
        self.ring: Ring = OrderedDict()
        self.dead: dict[int, Entry] = {}
        self.scheduled: dict[int, Entry] = {}
        self.waiting = 0
        self.in_flight = 0
        self.active = 0  # sessions with messages waiting or in flight
        self.seen: OrderedDict[str | None, tuple[MessageId, float]] = OrderedDict()  # deduplication
        self.woken: set[str] = set()
        self.lost: list[tuple[str, int]] = []
        self.index: list[Entry] = []  # everything by sequence number, with leftovers
        self._oldest = 0  # no entry of the index before this position waits
        self._dead_order: list[int] | None = None
        self.timers: list[tuple[float, int, int, Any]] = []
        self._timer = 0
        self._timer_limit = _SLACK
        self._stamp = 0

    # Lanes and rings

    def lane(self, session_id: SessionId | None) -> Lane:
        """The lane of a session; made if need be."""
        if session_id is None:
            return self.loose
        lane = self.lanes.get(session_id)
        if lane is None:
            lane = self.lanes[session_id] = Lane(session_id)
        return lane

    def refresh(self, lane: Lane) -> None:
        """Put the lane into the ring where it belongs now, or into none."""
        head, lock, ring = lane.head, lane.lock, None
        if head is not None and head.state == READY and head.sequence < lane.barrier:
            if lock is None:
                ring = self.ring
            elif len(lock.in_flight) < lock.holder.max_per_session:
                ring = lock.holder.ring
        if ring is lane.ring:
            return
        if lane.ring is not None:
            del lane.ring[lane]
        lane.ring = ring
        if ring is not None:
            self._stamp += 1
            lane.stamp = self._stamp
            ring[lane] = None
            if lock is not None:
                self.woken.add(lock.holder.id)

    def tidy(self, lane: Lane) -> None:
        """Refresh the lane, and forget its session when nothing is left to know about it."""
        self.refresh(lane)
        if (
            lane.messages == 0
            and lane.lock is None
            and lane.state is None
            and lane.halts is None
            and lane.session_id is not None
            and self.lanes.get(lane.session_id) is lane  # a dead letter may point to an earlier one
        ):
            del self.lanes[lane.session_id]

    def _count_in(self, lane: Lane) -> None:
        lane.messages += 1
        if lane.messages == 1 and lane is not self.loose:
            self.active += 1

    def count_out(self, lane: Lane) -> None:
        """A message of the lane is neither waiting nor in flight any more."""
        lane.messages -= 1
        if lane.messages == 0 and lane is not self.loose:
            self.active -= 1

    # Entries

    def new_id(self, sequence: int) -> MessageId:
        """An id for a message that came without."""
        # Skips the validation, which a prefix of hexadecimal digits and a number cannot fail.
        return str.__new__(MessageId, f"{self.prefix}-{sequence}")

    def enqueue(
        self, message: Message, message_id: MessageId, at: datetime, now: float, ttl: float | None
    ) -> int:
        """Store a message at the end of its lane; return its sequence number."""
        self.sequence = sequence = self.sequence + 1
        lane = self.lane(message.session_id)
        entry = Entry(message, message_id, sequence, at, lane, READY)
        self.index.append(entry)
        if ttl is not None:
            self._limit_life(entry, now + ttl)
        lane.append(entry)
        self._count_in(lane)
        self.waiting += 1
        if lane.head is entry:
            self.refresh(lane)
        return sequence

    def schedule(self, message: Message, message_id: MessageId, due: float) -> int:
        """Keep a message until it is due; return the number that names it."""
        self.sequence = sequence = self.sequence + 1
        at = datetime.fromtimestamp(due, UTC)
        entry = Entry(message, message_id, sequence, at, self.loose, SCHEDULED)
        self.index.append(entry)
        self.scheduled[sequence] = entry
        entry.timer = self._set_timer(due, _FALLS_DUE, entry)
        return sequence

    def forget(self, entry: Entry) -> None:
        """Nothing but a leftover in the index remains of an entry that was taken out of everything else."""
        entry.state = GONE
        entry.message = _NOTHING

    def requeue(self, entry: Entry, now: float, options: QueueOptions, delay: float = 0.0) -> None:
        """Put an entry that is in flight no more (or was dead) back to its place; the caller tidies the lane."""
        lane = entry.lane
        entry.previous = None  # still names its neighbour from before it was delivered
        self.waiting += 1
        if entry.expires_at <= now:
            entry.state = READY
            lane.insert(entry)
            self._expire(entry, now, options)
            return
        if delay > 0:
            entry.state = DELAYED
            entry.timer = self._set_timer(now + delay, _DELAY_ENDS, entry)
            if lane is not self.loose:
                lane.insert(entry)
        else:
            entry.state = READY
            lane.insert(entry)
        index, oldest = self.index, self._oldest
        if oldest >= len(index) or index[oldest].sequence > entry.sequence:
            self._oldest = bisect_left(index, entry.sequence, key=_by_sequence)

    def fail(self, entry: Entry, now: float, options: QueueOptions, delay: float = 0.0) -> None:
        """A delivery failed: the entry waits again, or is dead-lettered if that was the last one allowed."""
        if entry.first_failed_at is None:
            entry.first_failed_at = datetime.fromtimestamp(now, UTC)
        if entry.count >= options.delivery_limit:
            text = f"delivered {entry.count} times, the limit is {options.max_delivery_count}"
            self.bury(entry, MAX_DELIVERY_COUNT_EXCEEDED, text, now)
        else:
            self.requeue(entry, now, options, delay)

    def bury(
        self, entry: Entry, reason: str, description: str, now: float, *, halt: bool = False
    ) -> None:
        """Dead-letter an entry that was taken out of everything else."""
        lane = entry.lane
        entry.state = DEAD
        entry.dead_letter = DeadLetterInfo(
            reason,
            description[:MAX_DESCRIPTION],
            datetime.fromtimestamp(now, UTC),
            entry.first_failed_at,
            entry.count,
        )
        self.dead[entry.sequence] = entry
        self._dead_order = None
        self.count_out(lane)
        if halt and lane is not self.loose:
            if lane.halts is None:
                lane.halts = set()
            lane.halts.add(entry.sequence)
            lane.barrier = min(lane.barrier, entry.sequence)

    def exhume(self, sequence_numbers: Collection[int] | None) -> list[Entry]:
        """Take dead letters (``None``: all) out of the dead-letter queue, highest first."""
        numbers: Iterable[int] = self.dead.keys() if sequence_numbers is None else sequence_numbers
        found = sorted(self.dead.keys() & set(numbers), reverse=True)
        entries = [self.dead.pop(number) for number in found]
        if entries:
            self._dead_order = None
        for entry in entries:
            entry.lane.release_hold(entry.sequence)
        return entries

    def redrive(self, entry: Entry, now: float, options: QueueOptions) -> None:
        """Put a dead letter that was taken out back to its place among the waiting."""
        # The session may have been forgotten and have come back meanwhile.
        entry.lane = lane = self.lane(entry.message.session_id)
        entry.count = 0
        ttl = self.life(entry.message, options)
        if ttl is not None:
            self._limit_life(entry, now + ttl)
        self._count_in(lane)
        self.requeue(entry, now, options)
        self.refresh(lane)

    def dead_after(self, after: int, limit: int) -> list[Entry]:
        """Dead letters by sequence number."""
        order = self._dead_order
        if order is None:
            order = self._dead_order = sorted(self.dead)
        start = bisect_left(order, after + 1)
        return [self.dead[sequence] for sequence in order[start : start + limit]]

    def stored_after(self, after: int, limit: int) -> list[Entry]:
        """Entries neither dead nor gone, by sequence number."""
        found: list[Entry] = []
        index = self.index
        for position in range(bisect_left(index, after + 1, key=_by_sequence), len(index)):
            if len(found) >= limit:
                break
            if index[position].state < DEAD:
                found.append(index[position])
        return found

    def oldest(self) -> Entry | None:
        """The waiting entry with the lowest sequence number."""
        index, position = self.index, self._oldest
        while position < len(index) and index[position].state > DELAYED:
            position += 1
        self._oldest = position
        return index[position] if position < len(index) else None

    def sweep(self) -> None:
        """Drop the leftovers from the index when they are the majority."""
        live = self.waiting + self.in_flight + len(self.scheduled) + len(self.dead)
        if len(self.index) > 2 * live + _SLACK:
            self.index = [entry for entry in self.index if entry.state != GONE]
            self._oldest = 0

    # Locks

    def lock(self, lane: Lane, holder: Holder, until: float) -> Lock:
        """A new lock on a session without one, or for one message of the lane without a session."""
        self.token = token = self.token + 1
        lock = Lock(token, holder, lane, until)
        self.locks[token] = holder.locks[token] = lock
        self._set_timer(until, _LOCK_EXPIRES, lock)
        if lane is not self.loose:
            lane.lock = lock
            holder.sessions += 1
            self.session_locks += 1
        return lock

    def end(self, lock: Lock) -> None:
        """The lock is over; the caller has taken care of what was in flight under it, and tidies the lane."""
        del self.locks[lock.token], lock.holder.locks[lock.token]
        lane = lock.lane
        if lane is not self.loose:
            lane.lock = None
            lock.holder.sessions -= 1
            self.session_locks -= 1

    def release(self, lock: Lock, now: float, options: QueueOptions) -> None:
        """End a lock; what is in flight under it was not tried."""
        self.end(lock)
        # From the highest down: each one then goes in front of the one before it.
        for _, entry in sorted(lock.in_flight.items(), reverse=True):
            entry.count -= 1
            self.in_flight -= 1
            self.requeue(entry, now, options)
        self.tidy(lock.lane)

    def _expire_lock(self, lock: Lock, now: float, options: QueueOptions) -> None:
        self.lost.append((lock.holder.id, lock.token))
        if lock.in_flight:
            lowest = lock.in_flight.pop(min(lock.in_flight))
            self.in_flight -= 1
            self.fail(lowest, now, options)
        self.release(lock, now, options)

    # Time

    def life(self, message: Message, options: QueueOptions) -> float | None:
        """Seconds the message has to live; ``None``: for ever."""
        ttl = message.time_to_live
        return options.default_time_to_live if ttl is None else ttl

    def _set_timer(self, when: float, kind: int, target: Entry | Lock) -> int:
        timers = self.timers
        if len(timers) >= self._timer_limit:
            timers[:] = [timer for timer in timers if self._matters(timer)]
            heapify(timers)
            self._timer_limit = 2 * len(timers) + _SLACK
        self._timer = number = self._timer + 1
        heappush(timers, (when, number, kind, target))
        return number

    def _limit_life(self, entry: Entry, when: float) -> None:
        entry.expires_at = when
        self._set_timer(when, _LIFE_ENDS, entry)

    def _matters(self, timer: tuple[float, int, int, Any]) -> bool:
        when, number, kind, target = timer
        if kind == _LOCK_EXPIRES:
            return target.token in self.locks
        if kind == _DELAY_ENDS:
            return bool(target.state == DELAYED and target.timer == number)
        if kind == _FALLS_DUE:
            return bool(target.state == SCHEDULED)
        return bool(target.expires_at == when and target.state in (READY, DELAYED, IN_FLIGHT))

    def next_timer(self) -> float | None:
        """When something may be due next."""
        timers = self.timers
        while timers and not self._matters(timers[0]):
            heappop(timers)
        return timers[0][0] if timers else None

    def advance(self, now: float, options: QueueOptions) -> None:
        """Move everything due, in the order of its times."""
        timers = self.timers
        while timers and timers[0][0] <= now:
            timer = heappop(timers)
            if not self._matters(timer):
                continue
            when, _, kind, target = timer
            if kind == _LOCK_EXPIRES:
                if target.until > now:  # renewed since
                    self._set_timer(target.until, _LOCK_EXPIRES, target)
                else:
                    self._expire_lock(target, now, options)
            elif kind == _DELAY_ENDS:
                target.state = READY
                if target.lane is self.loose:
                    target.lane.insert(target)
                self.refresh(target.lane)
            elif kind == _FALLS_DUE:
                del self.scheduled[target.sequence]
                message, ttl = target.message, self.life(target.message, options)
                self.forget(target)
                self.enqueue(message, target.message_id, target.enqueued_at, when, ttl)
            elif target.state != IN_FLIGHT:  # what is in flight expires when it returns
                self._expire(target, now, options)
                self.tidy(target.lane)

    def _expire(self, entry: Entry, now: float, options: QueueOptions) -> None:
        """A waiting entry has outlived its time; the caller tidies the lane."""
        lane = entry.lane
        self.waiting -= 1
        if entry.state == READY or lane is not self.loose:
            lane.remove(entry)
        if options.dead_letter_expired:
            self.bury(entry, TIME_TO_LIVE_EXPIRED, "nobody took it in time", now)
        else:
            self.count_out(lane)
            self.forget(entry)


def _by_sequence(entry: Entry) -> int:
    return entry.sequence
