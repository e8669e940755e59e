"""What receivers do inside a transaction: deliver, settle, renew, release. See :mod:`.sqlite_engine`."""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, final

from queue_runtime.abc import Lease, ReceiverOptions
from queue_runtime.messages import MessageId, Settlement, SettlementAction

from .engine import FAIR_CHUNK, ClaimedMessage, Grant, Refusal
from .sqlite_lane import LANE, Lane
from .sqlite_queue import QueueTransaction
from .sqlite_schema import (
    MAX_INTEGER,
    decode_history,
    decode_message,
    moment,
)

__all__ = [
    "HAS_TURN",
    "NEXT_SESSION",
    "Holder",
    "deliver",
    "release",
    "release_all",
    "renew",
    "settle",
    "undo",
]

_TURNS: Final = f"{LANE} WHERE queue = ? AND holder IS ? AND turn IS NOT NULL ORDER BY turn"
_TURN: Final = 8
"""Where ``turn`` is in a row of :data:`.sqlite_lane.LANE`."""

HAS_TURN: Final = (
    "SELECT 1 FROM sessions WHERE queue = ? AND holder = ? AND turn IS NOT NULL LIMIT 1"
)
"""Whether there is something for a holder to take from its sessions."""

NEXT_SESSION: Final = (
    f"{LANE} WHERE queue = ? AND holder IS NULL AND turn IS NOT NULL AND name IS NOT NULL"
    " ORDER BY turn LIMIT 1"
)
"""The unlocked session whose turn it is."""

_HEADS: Final = (
    "SELECT w.id, w.delayed_until, m.message_id, m.own_id, m.enqueued_at, m.time_to_live, m.deliveries,"
    " m.history, m.details, m.body"
    " FROM waiting w CROSS JOIN messages m ON m.id = w.id"
    " WHERE w.lane = ? AND w.id > ? ORDER BY w.id LIMIT ?"
)


@final
class Holder:
    """A receiver of this connection, with the locks it has: where they are and when they expire.

    The file knows the locks too. Here they are counted, and found again when the receiver closes; and their
    end is noticed even if it was another process that found them expired.
    """

    __slots__ = (
        "auto_accept",
        "earliest",
        "id",
        "locks",
        "max_per_session",
        "max_sessions",
        "sessions",
    )

    def __init__(self, options: ReceiverOptions) -> None:
        self.id = secrets.token_hex(8)
        self.auto_accept = options.auto_accept
        self.max_sessions = options.max_sessions
        self.max_per_session = min(options.max_per_session, MAX_INTEGER)
        self.locks: dict[int, tuple[float, int]] = {}  # token: end; lane (or message) locked
        self.sessions: set[int] = set()  # tokens of the locks on sessions
        self.earliest = math.inf  # no lock ends before

    def grant(self, token: int, until: float, place: int, is_session: bool) -> None:
        """A lock was taken or renewed."""
        self.locks[token] = (until, place)
        self.earliest = min(self.earliest, until)
        if is_session:
            self.sessions.add(token)

    def end(self, token: int) -> None:
        """A lock is over."""
        self.locks.pop(token, None)
        self.sessions.discard(token)

    def expire(self, now: float) -> list[int]:
        """Forget the locks that ended by time; return their tokens."""
        if now < self.earliest:
            return []
        tokens = [token for token, (until, _) in self.locks.items() if until <= now]
        for token in tokens:
            self.end(token)
        self.earliest = min((until for until, _ in self.locks.values()), default=math.inf)
        return tokens


# Delivering


def deliver(work: QueueTransaction, owner: Holder, max_messages: int) -> list[Grant]:
    """Claim up to ``max_messages`` for the holder, in turns: see :meth:`.engine.Engine.claim`."""
    own = work.db.execute(_TURNS, (work.queue, owner.id))
    common = work.db.execute(_TURNS, (work.queue, None))
    batch = _Batch(work, owner)
    again: deque[Lane] = deque()  # had a turn in this call, and have more
    try:
        next_own, next_common = own.fetchone(), common.fetchone()
        while batch.size < max_messages:
            if not batch.may_lock:
                next_common = None
            if next_common is not None and (
                next_own is None or next_common[_TURN] < next_own[_TURN]
            ):
                lane = work.adopt(next_common)
                next_common = common.fetchone()
            elif next_own is not None:
                lane = work.adopt(next_own)
                next_own = own.fetchone()
            elif again:
                lane = again.popleft()
                if lane.name is None and not batch.may_lock:
                    continue
            else:
                break
            if batch.take(lane, min(max_messages - batch.size, FAIR_CHUNK)):
                again.append(lane)
    finally:
        # Nothing may be written to the index while it is read.
        own.close()
        common.close()
    batch.write()
    return batch.grants


@final
class _Batch:
    """The messages being delivered by one call."""

    def __init__(self, work: QueueTransaction, owner: Holder) -> None:
        self.grants: list[Grant] = []
        self.size = 0
        self._work = work
        self._owner = owner
        self._room = owner.max_sessions - len(owner.sessions)
        self._positions: dict[Lane, int] = {}  # the last message taken
        self._flights: list[tuple[Any, ...]] = []
        self._taken: list[tuple[int, int]] = []

    @property
    def may_lock(self) -> bool:
        """Whether the holder may take what is under no lock."""
        return self._room > 0 and self._owner.auto_accept

    def take(self, lane: Lane, most: int) -> bool:
        """Give a lane its turn; return whether it can have another one."""
        work = self._work
        if lane.holder is not None:
            most = min(most, lane.capacity - lane.in_flight)
        elif lane.name is not None:
            most = min(most, self._owner.max_per_session)
        heads: list[tuple[Any, ...]] = []
        has_more = False
        rows = work.db.execute(_HEADS, (lane.id, self._positions.get(lane, 0), most + 1))
        for head in rows.fetchall():
            if not lane.admits(head):
                break
            if len(heads) == most:
                has_more = True
                break
            heads.append(head)
        self._positions[lane] = heads[-1][0]
        self._taken += [(lane.id, head[0]) for head in heads]
        self.size += len(heads)
        if lane.name is None:
            self._grant_each(lane, heads)
        else:
            self._grant_together(lane, heads)
            has_more = has_more and lane.in_flight < lane.capacity
        # Behind all others, if it still has a turn.
        lane.turn = None
        work.touch(lane, moved=True)
        work.set_turn(lane, has_more)
        return has_more

    def _grant_each(self, lane: Lane, heads: Sequence[tuple[Any, ...]]) -> None:
        work, holder = self._work, self._owner.id
        until = work.now + work.options.lock_duration
        for head in heads:
            work.last_token = token = work.last_token + 1
            work.granted.append((holder, token, until, head[0], False))
            claimed = self._claim(lane, head, token, holder, until)
            self.grants.append(Grant(None, token, until, True, (claimed,)))

    def _grant_together(self, lane: Lane, heads: Sequence[tuple[Any, ...]]) -> None:
        is_new = lane.holder is None
        if is_new:
            self._work.lock(lane, self._owner.id, self._owner.max_per_session)
            self._room -= 1
        assert lane.locked_until is not None
        lane.in_flight += len(heads)
        claimed = [self._claim(lane, head, lane.token, None, None) for head in heads]
        self.grants.append(Grant(lane.name, lane.token, lane.locked_until, is_new, claimed))

    def _claim(
        self,
        lane: Lane,
        head: tuple[Any, ...],
        token: int,
        holder: str | None,
        until: float | None,
    ) -> ClaimedMessage:
        work = self._work
        number, _, text, own_id, enqueued_at, ttl, deliveries, history, details, body = head
        sequence = number - work.base
        deliveries += 1
        work.last_delivery += 1
        self._flights.append(
            (number, lane.id, work.queue, work.last_delivery, deliveries, token, holder, until)
        )
        # Skips the validation: it was a valid id when it was stored.
        message_id = str.__new__(MessageId, text)
        message = decode_message(lane.name, message_id if own_id else None, ttl, details, body)
        return (
            message,
            message_id,
            f"{work.prefix}-{sequence}-{work.last_delivery}",
            deliveries,
            moment(enqueued_at),
            sequence,
            decode_history(history),
        )

    def write(self) -> None:
        """Move the messages from ``waiting`` to ``flights``."""
        work = self._work
        work.db.executemany("DELETE FROM waiting WHERE lane = ? AND id = ?", self._taken)
        work.db.executemany(
            "INSERT INTO flights (id, lane, queue, number, deliveries, token, holder, locked_until)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            self._flights,
        )
        work.waiting -= self.size
        work.in_flight += self.size


def undo(work: QueueTransaction, holder: str, grants: Sequence[Grant]) -> None:
    """Take back deliveries whose answer nobody took: see :meth:`.engine.Engine.unclaim`."""
    for grant in grants:
        if grant.session_id is None:
            _release_single(work, holder, grant.token, work.message(grant.messages[0][5]))
            continue
        lane = work.find_lane(grant.session_id)
        if lane is None or not lane.is_held(holder, grant.token):
            continue
        if grant.is_new:
            work.unlock(lane)
            continue
        for claimed in grant.messages:
            message = work.message(claimed[5])
            if work.land(lane, message, _number(work, claimed[2], claimed[5])) is not None:
                work.restore(lane, message)


# Settling


def settle(
    work: QueueTransaction, holder: str, settlements: Sequence[Settlement]
) -> list[Refusal | None]:
    """Apply settlements: see :meth:`.engine.Engine.settle`."""
    completed: list[tuple[int]] = []
    answers = [_settle(work, holder, settlement, completed) for settlement in settlements]
    work.db.executemany("DELETE FROM messages WHERE id = ?", completed)
    return answers


def _settle(
    work: QueueTransaction, holder: str, settlement: Settlement, completed: list[tuple[int]]
) -> Refusal | None:
    delivery = settlement.delivery
    lease, sequence = delivery.lease, delivery.sequence_number
    message = work.message(sequence)
    lane: Lane | None
    if lease.session_id is None:
        lane = work.lane(work.loose)
        lock = work.db.execute(
            "SELECT token, holder FROM flights WHERE id = ? AND locked_until IS NOT NULL",
            (message,),
        ).fetchone()
    else:
        lane = work.find_lane(lease.session_id)
        lock = None if lane is None or lane.holder is None else (lane.token, lane.holder)
    if lane is None or lock is None or lock[0] != lease.token:
        return Refusal.LOCK_LOST
    if lock[1] != holder:
        return Refusal.INVALID_RECEIPT
    deliveries = work.land(lane, message, _number(work, delivery.receipt, sequence))
    if deliveries is None:
        return Refusal.INVALID_RECEIPT
    if lane.name is None:
        work.ended.append((holder, lease.token))
    action = settlement.action
    deliveries = max(deliveries, delivery.delivery_count)
    if action is SettlementAction.COMPLETE:
        completed.append((message,))
        work.count(lane, -1)
    elif action is SettlementAction.RELEASE:
        work.restore(lane, message)
    elif action is SettlementAction.ABANDON:
        work.fail(lane, message, deliveries, settlement.delay)
    else:
        work.reject(lane, message, deliveries, settlement)
    return None


def _number(work: QueueTransaction, receipt: str, sequence: int | None) -> int:
    """The number of the delivery that a receipt names; -1, which none has, if it is not for that message."""
    prefix = f"{work.prefix}-{sequence}-"
    number = receipt.removeprefix(prefix)
    is_ours = number != receipt and number.isascii() and number.isdecimal() and len(number) < 19
    return int(number) if is_ours else -1


# Leases


def renew(work: QueueTransaction, holder: str, leases: Sequence[Lease]) -> list[float | None]:
    """Renew locks: see :meth:`.engine.Engine.renew`."""
    until = work.now + work.options.lock_duration
    answers: list[float | None] = []
    for lease in leases:
        if lease.session_id is None:
            place = work.message(lease.provider_data)
            is_current = (
                work.db.execute(
                    "UPDATE flights SET locked_until = ?"
                    " WHERE id = ? AND token = ? AND holder = ? AND locked_until IS NOT NULL",
                    (until, place, lease.token, holder),
                ).rowcount
                == 1
            )
        else:
            lane = work.find_lane(lease.session_id)
            is_current = lane is not None and lane.is_held(holder, lease.token)
            place = 0 if lane is None else lane.id
            if lane is not None and is_current:
                lane.locked_until = until
                work.touch(lane, moved=True)
        if is_current:
            work.granted.append((holder, lease.token, until, place, lease.session_id is not None))
        answers.append(until if is_current else None)
    return answers


def release(work: QueueTransaction, holder: str, leases: Sequence[Lease]) -> None:
    """Free locks: see :meth:`.engine.Engine.release`."""
    for lease in leases:
        if lease.session_id is None:
            _release_single(work, holder, lease.token, work.message(lease.provider_data))
        else:
            lane = work.find_lane(lease.session_id)
            if lane is not None and lane.is_held(holder, lease.token):
                work.unlock(lane)


def release_all(work: QueueTransaction, holder: Holder) -> None:
    """Free every lock of a holder."""
    for token, (_, place) in holder.locks.items():
        if token not in holder.sessions:
            _release_single(work, holder.id, token, place)
        elif (lane := work.lane(place)).is_held(holder.id, token):
            work.unlock(lane)


def _release_single(work: QueueTransaction, holder: str, token: int, message: int) -> None:
    """Free the lock of a message without a session."""
    row = work.db.execute(
        "SELECT number FROM flights"
        " WHERE id = ? AND token = ? AND holder = ? AND locked_until IS NOT NULL",
        (message, token, holder),
    ).fetchone()
    if row is not None:
        lane = work.lane(work.loose)
        work.land(lane, message, row[0])
        work.restore(lane, message)
        work.ended.append((holder, token))
