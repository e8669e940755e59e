"""The engine in memory: the reference of the embedded broker's semantics. See :mod:`.engine` for the contract."""

# ruff: noqa: D102 - the methods are documented where they are declared, in Engine

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import ClassVar, Final, final

from queue_runtime.abc import Lease, ReceiverOptions
from queue_runtime.messages import (
    Message,
    MessageState,
    PeekedMessage,
    QueueName,
    QueueStats,
    SendResult,
    SessionId,
    Settlement,
    SettlementAction,
)

from .engine import FAIR_CHUNK, ClaimedMessage, Grant, QueueOptions, Refusal, Signals
from .errors import lock_lost, queue_not_found, session_locked
from .heap_lane import (
    DEAD,
    DELAYED,
    IN_FLIGHT,
    READY,
    SCHEDULED,
    Entry,
    Holder,
    Lane,
    Lock,
)
from .heap_queue import HeapQueue
from .heap_send import store

__all__ = ["HeapEngine", "HeapStore"]

_COMPLETE: Final = SettlementAction.COMPLETE
_STATES: Final = {
    READY: MessageState.READY,
    DELAYED: MessageState.DELAYED,
    SCHEDULED: MessageState.SCHEDULED,
    IN_FLIGHT: MessageState.IN_FLIGHT,
    DEAD: MessageState.DEAD_LETTERED,
}


@final
class HeapStore:
    """The queues of one broker in memory, shared by its connections."""

    def __init__(self) -> None:
        self.queues: dict[QueueName, HeapQueue] = {}


@final
class HeapEngine:
    """A connection to a :class:`HeapStore`. Signals go to whichever connection asks first.

    Args:
        store: The queues.
        options: The rules of this connection.
    """

    is_blocking: ClassVar[bool] = False
    poll_interval: ClassVar[float | None] = None

    def __init__(self, store: HeapStore, options: QueueOptions) -> None:
        self.options = options
        self._queues = store.queues

    def _at(self, queue: QueueName, now: float) -> HeapQueue:
        """The queue, with everything due at ``now`` moved."""
        found = self._queues[queue]
        found.advance(now, self.options)
        return found

    def open_queue(self, queue: QueueName, now: float) -> None:
        if queue not in self._queues:
            if not self.options.declare:
                raise queue_not_found(queue, "this process's memory")
            self._queues[queue] = HeapQueue()

    def close(self) -> None:
        """Nothing to close: the store lives as long as somebody refers to it."""

    # Sending

    def send(self, queue: QueueName, messages: Sequence[Message], now: float) -> list[SendResult]:
        return store(self._at(queue, now), queue, messages, self.options, now)

    def cancel_scheduled(
        self, queue: QueueName, sequence_numbers: Sequence[int], now: float
    ) -> list[bool]:
        q = self._at(queue, now)
        found = [q.scheduled.pop(number, None) for number in sequence_numbers]
        for entry in found:
            if entry is not None:
                q.forget(entry)
        return [entry is not None for entry in found]

    # Receiving

    def open_holder(self, queue: QueueName, options: ReceiverOptions, now: float) -> str:
        holder = Holder(secrets.token_hex(8), options)
        self._queues[queue].holders[holder.id] = holder
        return holder.id

    def close_holder(self, queue: QueueName, holder: str, now: float) -> None:
        q = self._at(queue, now)
        gone = q.holders.pop(holder, None)
        if gone is not None:
            for lock in list(gone.locks.values()):
                q.release(lock, now, self.options)

    def claim(self, queue: QueueName, holder: str, max_messages: int, now: float) -> list[Grant]:
        q = self._at(queue, now)
        owner = q.holders.get(holder)
        grants: list[Grant] = []
        if owner is None:
            return grants
        until = now + self.options.lock_duration
        common, own = q.ring, owner.ring
        left = max_messages
        while left > 0:
            lane: Lane | None = next(iter(own)) if own else None
            if common and owner.auto_accept and owner.sessions < owner.max_sessions:
                other = next(iter(common))
                if lane is None or other.stamp < lane.stamp:
                    lane = other
            if lane is None:
                break
            # Out of its ring first, so that `refresh` puts it behind the others.
            del (own if lane.ring is own else common)[lane]
            lane.ring = None
            chunk = min(left, FAIR_CHUNK)
            if lane is q.loose:
                for _ in range(chunk):
                    lock = q.lock(lane, owner, until)
                    taken = self._take(q, lock, 1)
                    grants.append(Grant(None, lock.token, until, True, taken))
                    left -= 1
                    if lane.head is None:
                        break
            else:
                held = lane.lock
                lock = q.lock(lane, owner, until) if held is None else held
                room = owner.max_per_session - len(lock.in_flight)
                taken = self._take(q, lock, min(room, chunk))
                grants.append(Grant(lane.session_id, lock.token, lock.until, held is None, taken))
                left -= len(taken)
            q.refresh(lane)
        return grants

    def _take(self, q: HeapQueue, lock: Lock, most: int) -> list[ClaimedMessage]:
        """Deliver from the head of the lock's lane, which is deliverable."""
        lane, in_flight = lock.lane, lock.in_flight
        barrier, prefix, number = lane.barrier, q.prefix, q.delivery
        taken: list[ClaimedMessage] = []
        entry = lane.head
        while (
            entry is not None
            and len(taken) < most
            and entry.state == READY
            and entry.sequence < barrier
        ):
            sequence = entry.sequence
            following = entry.next
            entry.next = None
            entry.state = IN_FLIGHT
            entry.count = count = entry.count + 1
            number += 1
            entry.receipt = receipt = f"{prefix}-{sequence}-{number}"
            in_flight[sequence] = entry
            taken.append(
                (
                    entry.message,
                    entry.message_id,
                    receipt,
                    count,
                    entry.enqueued_at,
                    sequence,
                    entry.dead_letter,
                )
            )
            entry = following
        lane.head = entry
        lane.hint = None
        if entry is None:
            lane.tail = None
        else:
            entry.previous = None
        q.delivery = number
        q.waiting -= len(taken)
        q.in_flight += len(taken)
        return taken

    def unclaim(self, queue: QueueName, holder: str, grants: Sequence[Grant], now: float) -> None:
        q = self._at(queue, now)
        for grant in reversed(grants):
            lock = q.locks.get(grant.token)
            if lock is None or lock.holder.id != holder:
                continue
            for claimed in reversed(grant.messages):
                entry = lock.in_flight.get(claimed[5])
                if entry is not None and entry.receipt == claimed[2]:
                    self._restore(q, lock, entry, now)
            if grant.is_new:
                q.release(lock, now, self.options)
            else:
                q.refresh(lock.lane)

    def _restore(self, q: HeapQueue, lock: Lock, entry: Entry, now: float) -> None:
        del lock.in_flight[entry.sequence]
        q.in_flight -= 1
        entry.count -= 1
        q.requeue(entry, now, self.options)

    def accept(
        self, queue: QueueName, holder: str, session_id: SessionId | None, now: float
    ) -> Grant | None:
        q = self._at(queue, now)
        owner = q.holders.get(holder)
        if owner is None:
            return None
        if session_id is None:
            found = next((lane for lane in q.ring if lane is not q.loose), None)
            if found is None:
                return None
            lane = found
        else:
            lane = q.lane(session_id)
            if lane.lock is not None:
                raise session_locked(session_id)
        lock = q.lock(lane, owner, now + self.options.lock_duration)
        q.refresh(lane)
        return Grant(lane.session_id, lock.token, lock.until, True, ())

    def settle(
        self, queue: QueueName, holder: str, settlements: Sequence[Settlement], now: float
    ) -> list[Refusal | None]:
        q = self._at(queue, now)
        owner = q.holders.get(holder)
        locks, loose = q.locks, q.loose
        outcomes: list[Refusal | None] = []
        for settlement in settlements:
            delivery = settlement.delivery
            lock = locks.get(delivery.lease.token)
            if lock is None:
                outcomes.append(Refusal.LOCK_LOST)
                continue
            in_flight = lock.in_flight
            entry = in_flight.get(delivery.sequence_number)  # type: ignore[arg-type]  # None is not found
            if entry is None or entry.receipt != delivery.receipt or lock.holder is not owner:
                outcomes.append(Refusal.INVALID_RECEIPT)
                continue
            lane = entry.lane
            if settlement.action is _COMPLETE:
                del in_flight[entry.sequence]
                q.in_flight -= 1
                q.count_out(lane)
                q.forget(entry)
            else:
                self._give_back(q, lock, entry, settlement, now)
            outcomes.append(None)
            if lane is loose:
                q.end(lock)
                q.refresh(lane)
            elif lane.ring is None or settlement.action is not _COMPLETE:
                q.refresh(lane)
        q.sweep()
        return outcomes

    def _give_back(
        self, q: HeapQueue, lock: Lock, entry: Entry, settlement: Settlement, now: float
    ) -> None:
        """Apply what is not ``COMPLETE``."""
        if settlement.action is SettlementAction.RELEASE:
            self._restore(q, lock, entry, now)
            return
        del lock.in_flight[entry.sequence]
        q.in_flight -= 1
        entry.count = max(entry.count, settlement.delivery.delivery_count)
        if settlement.action is SettlementAction.ABANDON:
            q.fail(entry, now, self.options, settlement.delay)
        else:
            if entry.first_failed_at is None:
                entry.first_failed_at = datetime.fromtimestamp(now, UTC)
            q.bury(entry, settlement.reason, settlement.description, now, halt=settlement.halt)

    def renew(
        self, queue: QueueName, holder: str, leases: Sequence[Lease], now: float
    ) -> list[float | None]:
        q = self._at(queue, now)
        until = now + self.options.lock_duration
        answers: list[float | None] = []
        for lease in leases:
            lock = q.locks.get(lease.token)
            if lock is None or lock.holder.id != holder:
                answers.append(None)
            else:
                lock.until = until
                answers.append(until)
        return answers

    def release(self, queue: QueueName, holder: str, leases: Sequence[Lease], now: float) -> None:
        q = self._at(queue, now)
        for lease in leases:
            lock = q.locks.get(lease.token)
            if lock is not None and lock.holder.id == holder:
                q.release(lock, now, self.options)

    def get_state(self, queue: QueueName, holder: str, lease: Lease, now: float) -> bytes | None:
        return self._lane_under(queue, holder, lease, now).state

    def set_state(
        self, queue: QueueName, holder: str, lease: Lease, state: bytes | None, now: float
    ) -> None:
        self._lane_under(queue, holder, lease, now).state = state

    def _lane_under(self, queue: QueueName, holder: str, lease: Lease, now: float) -> Lane:
        lock = self._at(queue, now).locks.get(lease.token)
        if lock is None or lock.holder.id != holder:
            raise lock_lost(lease)
        return lock.lane

    # Looking and operating

    def peek(
        self, queue: QueueName, max_messages: int, after: int, now: float
    ) -> list[PeekedMessage]:
        return [_peeked(entry) for entry in self._at(queue, now).stored_after(after, max_messages)]

    def peek_dead(
        self, queue: QueueName, max_messages: int, after: int, now: float
    ) -> list[PeekedMessage]:
        return [_peeked(entry) for entry in self._at(queue, now).dead_after(after, max_messages)]

    def purge(self, queue: QueueName, now: float) -> int:
        q = self._at(queue, now)
        lanes: dict[Lane, None] = {}
        purged = 0
        for entry in q.index:
            if entry.state in (READY, DELAYED):
                lanes[entry.lane] = None
                q.count_out(entry.lane)
            elif entry.state != SCHEDULED:
                continue
            purged += 1
            entry.previous = entry.next = None
            q.forget(entry)
        q.scheduled.clear()
        q.waiting = 0
        for lane in lanes:
            lane.head = lane.tail = lane.hint = None
            q.tidy(lane)
        q.sweep()
        return purged

    def stats(self, queue: QueueName, now: float) -> QueueStats:
        q = self._at(queue, now)
        oldest = q.oldest()
        return QueueStats(
            depth=q.waiting,
            in_flight=q.in_flight,
            scheduled=len(q.scheduled),
            dead_lettered=len(q.dead),
            oldest_age=None if oldest is None else max(0.0, now - oldest.enqueued_at.timestamp()),
            sessions=q.active,
            locked_sessions=q.session_locks,
        )

    def redrive(
        self, queue: QueueName, sequence_numbers: Collection[int] | None, now: float
    ) -> int:
        q = self._at(queue, now)
        entries = q.exhume(sequence_numbers)
        for entry in entries:
            q.redrive(entry, now, self.options)
        return len(entries)

    def purge_dead(
        self, queue: QueueName, sequence_numbers: Collection[int] | None, now: float
    ) -> int:
        q = self._at(queue, now)
        entries = q.exhume(sequence_numbers)
        for entry in entries:
            q.forget(entry)
            q.tidy(entry.lane)
        q.sweep()
        return len(entries)

    # Time and wake-ups

    def advance(self, queue: QueueName, now: float) -> None:
        self._at(queue, now)

    def take_signals(self, queue: QueueName) -> Signals:
        q = self._queues[queue]
        woken, lost = q.woken, q.lost
        if woken:
            q.woken = set()
        if lost:
            q.lost = []
        return Signals(bool(q.ring), woken, lost, q.next_timer())

    def poll(self, queue: QueueName, now: float) -> Signals | None:
        """``None``: nobody but this process changes its memory."""


def _peeked(entry: Entry) -> PeekedMessage:
    return PeekedMessage(
        entry.message,
        entry.message_id,
        entry.sequence,
        entry.enqueued_at,
        entry.count,
        _STATES[entry.state],
        entry.dead_letter,
    )
