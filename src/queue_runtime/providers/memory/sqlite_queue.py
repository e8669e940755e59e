"""One transaction on one queue of the file: its counters, the lanes it touches, and every move of a message.

:class:`QueueTransaction` mirrors :class:`.heap_queue.HeapQueue`: the same moves, on rows instead of lists. Lanes
are read once, changed in Python and written once at the end, however many of their messages move.
"""

# ruff: noqa: S608 - statements are put together from constants only

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, final

from queue_runtime.messages import Settlement

from .engine import (
    MAX_DELIVERY_COUNT_EXCEEDED,
    MAX_DESCRIPTION,
    TIME_TO_LIVE_EXPIRED,
    QueueOptions,
)
from .sqlite_lane import LANE, Lane
from .sqlite_schema import HISTORY, MAX_SEQUENCE, SEQUENCE_BITS, storable

__all__ = ["OUTLOOK", "QueueTransaction", "lowest_id"]

OUTLOOK: Final = """
    EXISTS (SELECT 1 FROM sessions WHERE queue = q.id AND holder IS NULL AND turn IS NOT NULL),
    (SELECT locked_until FROM sessions WHERE queue = q.id AND locked_until IS NOT NULL
        ORDER BY locked_until LIMIT 1),
    (SELECT locked_until FROM flights WHERE queue = q.id AND locked_until IS NOT NULL
        ORDER BY locked_until LIMIT 1),
    (SELECT due FROM scheduled WHERE queue = q.id ORDER BY due LIMIT 1),
    (SELECT delayed_until FROM waiting WHERE queue = q.id AND delayed_until IS NOT NULL
        ORDER BY delayed_until LIMIT 1),
    (SELECT expires_at FROM waiting WHERE queue = q.id AND expires_at IS NOT NULL
        ORDER BY expires_at LIMIT 1)
"""
"""Whether unlocked work is deliverable, then the earliest timer of each kind: one step into an index each."""

_COUNTERS: Final = (
    "lane, prefix, last_sequence, last_token, last_delivery, last_turn,"
    " waiting, in_flight, scheduled, dead, active, locked"
)
_OPEN: Final = f"SELECT {_COUNTERS}, {OUTLOOK} FROM queues q WHERE id = ?"
_CLOSE: Final = f"SELECT {OUTLOOK} FROM queues q WHERE id = ?"

_BURY: Final = """
    INSERT INTO dead (id, session, message_id, own_id, enqueued_at, time_to_live, deliveries, first_failed_at,
        dead_lettered_at, reason, description, halting, details, body)
    SELECT id, ?, message_id, own_id, enqueued_at, time_to_live, deliveries, first_failed_at,
        ?, ?, ?, ?, details, body FROM messages WHERE id = ?
"""
_REDRIVE: Final = f"""
    INSERT INTO messages (id, lane, message_id, own_id, enqueued_at, time_to_live, expires_at, first_failed_at,
        history, details, body)
    SELECT id, ?, message_id, own_id, enqueued_at, time_to_live, ?, first_failed_at,
        {HISTORY}, details, body FROM dead WHERE id = ?
"""
_ENQUEUE_SCHEDULED: Final = """
    INSERT INTO messages (id, lane, message_id, own_id, enqueued_at, time_to_live, expires_at, details, body)
    SELECT ?, ?, message_id, own_id, due, time_to_live, ?, details, body FROM scheduled WHERE id = ?
"""


def lowest_id(queue: int) -> int:
    """The id that a message with sequence number 0 of the queue would have."""
    return queue << SEQUENCE_BITS


@final
class QueueTransaction:
    """The state of one queue inside a write transaction that the caller began and will end.

    Args:
        db: The connection.
        queue: The queue's row number.
        options: The rules of the connection.
        now: The time.
    """

    def __init__(
        self, db: sqlite3.Connection, queue: int, options: QueueOptions, now: float
    ) -> None:
        self.db = db
        self.queue = queue
        self.options = options
        self.now = now
        self.base = lowest_id(queue)
        row = db.execute(_OPEN, (queue,)).fetchone()
        (
            self.loose,
            self.prefix,
            self.last_sequence,
            self.last_token,
            self.last_delivery,
            self.last_turn,
            self.waiting,
            self.in_flight,
            self.scheduled,
            self.dead,
            self.active,
            self.locked,
        ) = row[:12]
        self._stored = row[2:12]
        self.anyone: bool = bool(row[12])
        self._timers: Sequence[float | None] = row[13:]
        self._lanes: dict[int, Lane] = {}
        self._named: dict[str, Lane] = {}
        self._dirty: dict[int, Lane] = {}
        # What the connection has to remember once the transaction is committed.
        self.woken: set[str] = set()
        self.granted: list[tuple[str, int, float, int, bool]] = []
        self.ended: list[tuple[str, int]] = []

    @property
    def next_timer(self) -> float | None:
        """When something is due next, as of the beginning or of :meth:`finish`."""
        return min((timer for timer in self._timers if timer is not None), default=None)

    def finish(self) -> None:
        """Write everything that was kept back."""
        self.flush()
        counters = (
            self.last_sequence,
            self.last_token,
            self.last_delivery,
            self.last_turn,
            self.waiting,
            self.in_flight,
            self.scheduled,
            self.dead,
            self.active,
            self.locked,
        )
        if counters != self._stored:
            self.db.execute(
                "UPDATE queues SET last_sequence = ?, last_token = ?, last_delivery = ?, last_turn = ?,"
                " waiting = ?, in_flight = ?, scheduled = ?, dead = ?, active = ?, locked = ? WHERE id = ?",
                (*counters, self.queue),
            )
        self.anyone, *self._timers = self.db.execute(_CLOSE, (self.queue,)).fetchone()

    # Lanes

    def adopt(self, row: tuple[Any, ...]) -> Lane:
        """The lane of a row of :data:`LANE`, as changed so far."""
        lane = self._lanes.get(row[0])
        if lane is None:
            lane = self._lanes[row[0]] = Lane(*row)
            if lane.name is not None:
                self._named[lane.name] = lane
        return lane

    def lane(self, lane_id: int) -> Lane:
        """An existing lane by its row number."""
        lane = self._lanes.get(lane_id)
        if lane is None:
            lane = self.adopt(self.db.execute(f"{LANE} WHERE id = ?", (lane_id,)).fetchone())
        return lane

    def find_lane(self, name: str) -> Lane | None:
        """The lane of a session, if anything is known about it."""
        lane = self._named.get(name)
        if lane is None:
            row = self.db.execute(
                f"{LANE} WHERE queue = ? AND name = ?", (self.queue, name)
            ).fetchone()
            if row is not None:
                lane = self.adopt(row)
        return lane

    def open_lane(self, name: str | None) -> Lane:
        """The lane of a session (or of the messages without one); made if need be, to be changed by the caller."""
        if name is None:
            return self.lane(self.loose)
        lane = self.find_lane(name)
        if lane is None:
            cursor = self.db.execute(
                "INSERT INTO sessions (queue, name) VALUES (?, ?)", (self.queue, name)
            )
            lane = self.adopt((cursor.lastrowid, name))
        return lane

    def touch(self, lane: Lane, *, moved: bool = False) -> None:
        """The lane is to be written at the end; ``moved``: with its lock, turn and flags."""
        self._dirty[lane.id] = lane
        if moved:
            lane.has_moved = True

    def refresh(self, lane: Lane) -> None:
        """Something changed that may decide whether the lane can be delivered."""
        lane.is_stale = True
        self._dirty[lane.id] = lane

    def set_turn(self, lane: Lane, deliverable: bool) -> None:
        """Queue the lane up behind all others, unless it waits for its turn already; or take it out."""
        lane.is_stale = False
        if not deliverable:
            if lane.turn is not None:
                lane.turn = None
                self.touch(lane, moved=True)
        elif lane.turn is None:
            self.last_turn = lane.turn = self.last_turn + 1
            self.touch(lane, moved=True)
            if lane.holder is not None:
                self.woken.add(lane.holder)

    def _find_turn(self, lane: Lane) -> None:
        head = None
        if lane.holder is None or lane.in_flight < lane.capacity:
            head = self.db.execute(
                "SELECT id, delayed_until FROM waiting WHERE lane = ? ORDER BY id LIMIT 1",
                (lane.id,),
            ).fetchone()
        self.set_turn(lane, head is not None and lane.admits(head))

    def flush(self) -> None:
        """Write the lanes, and forget sessions about which there is nothing left to know."""
        gone: list[tuple[int]] = []
        moved: list[tuple[Any, ...]] = []
        counted: list[tuple[int, int, int]] = []
        for lane in list(self._dirty.values()):
            if lane.is_stale:
                self._find_turn(lane)
            if (
                lane.name is not None
                and lane.messages == 0
                and lane.holder is None
                and lane.halted_by is None
                and not lane.has_state
            ):
                gone.append((lane.id,))
                del self._lanes[lane.id], self._named[lane.name]
            elif lane.has_moved:
                moved.append(
                    (
                        lane.token,
                        lane.holder,
                        lane.locked_until,
                        lane.capacity,
                        lane.in_flight,
                        lane.messages,
                        lane.turn,
                        lane.halted_by,
                        lane.has_state,
                        lane.id,
                    )
                )
                lane.has_moved = False
            else:
                counted.append((lane.in_flight, lane.messages, lane.id))
        self._dirty.clear()
        execute = self.db.executemany
        if moved:
            execute(
                "UPDATE sessions SET token = ?, holder = ?, locked_until = ?, capacity = ?, in_flight = ?,"
                " messages = ?, turn = ?, halted_by = ?, has_state = ? WHERE id = ?",
                moved,
            )
        if counted:
            # Leaves the indexes alone.
            execute("UPDATE sessions SET in_flight = ?, messages = ? WHERE id = ?", counted)
        if gone:
            execute("DELETE FROM sessions WHERE id = ?", gone)

    def count(self, lane: Lane, change: int) -> None:
        """So many messages more (or fewer) of the lane are waiting or in flight."""
        before = lane.messages
        lane.messages = before + change
        self._dirty[lane.id] = lane
        if lane.name is not None:
            self.active += (lane.messages > 0) - (before > 0)

    # Locks

    def lock(self, lane: Lane, holder: str, capacity: int) -> None:
        """Lock a session that has no lock."""
        self.last_token = lane.token = self.last_token + 1
        lane.holder = holder
        lane.locked_until = self.now + self.options.lock_duration
        lane.capacity = capacity
        lane.turn = None
        self.locked += 1
        self.touch(lane, moved=True)
        self.granted.append((holder, lane.token, lane.locked_until, lane.id, True))

    def unlock(self, lane: Lane) -> None:
        """The session's lock is over. Everything in flight under it returns, as not tried."""
        flights = self.db.execute(
            "DELETE FROM flights WHERE lane = ? AND locked_until IS NULL RETURNING id", (lane.id,)
        ).fetchall()
        self.in_flight -= len(flights)
        lane.in_flight = 0
        for (message,) in flights:
            self.restore(lane, message)
        assert lane.holder is not None
        self.ended.append((lane.holder, lane.token))
        self.locked -= 1
        lane.holder = lane.locked_until = lane.turn = None
        self.touch(lane, moved=True)
        self.refresh(lane)

    def _expire_lock(self, lane: Lane) -> None:
        lowest = self.db.execute(
            "SELECT id, number FROM flights WHERE lane = ? AND locked_until IS NULL"
            " ORDER BY id LIMIT 1",
            (lane.id,),
        ).fetchone()
        if lowest is not None:
            deliveries = self.land(lane, *lowest)
            assert deliveries is not None
            self.fail(lane, lowest[0], deliveries)
        self.unlock(lane)

    # Moves of a message

    def message(self, sequence: int | None) -> int:
        """The id of a sequence number; for what cannot be one, an id that no message has."""
        is_possible = isinstance(sequence, int) and 0 < sequence <= MAX_SEQUENCE
        return self.base + sequence if sequence and is_possible else self.base

    def land(self, lane: Lane, message: int, number: int) -> int | None:
        """End a flight; return how often its message was delivered, or ``None`` if there is no such flight.

        The caller decides what becomes of the message.
        """
        row = self.db.execute(
            "DELETE FROM flights WHERE id = ? AND lane = ? AND number = ? RETURNING deliveries",
            (message, lane.id, number),
        ).fetchone()
        if row is None:
            return None
        self.in_flight -= 1
        if lane.name is not None:
            if lane.in_flight == lane.capacity:
                self.refresh(lane)
            lane.in_flight -= 1
            self.touch(lane)
        return int(row[0])

    def restore(self, lane: Lane, message: int) -> None:
        """Put a landed message back to its place; it was not tried. Its row never learnt of the delivery."""
        (expires_at,) = self.db.execute(
            "SELECT expires_at FROM messages WHERE id = ?", (message,)
        ).fetchone()
        self._requeue(lane, message, expires_at)

    def fail(self, lane: Lane, message: int, deliveries: int, delay: float = 0.0) -> None:
        """Put a landed message back to its place, or dead-letter it if this was the last delivery allowed."""
        expires_at = self._record_failure(message, deliveries)
        if deliveries >= self.options.delivery_limit:
            limit = self.options.max_delivery_count
            text = f"delivered {deliveries} times, the limit is {limit}"
            self._bury(lane, message, MAX_DELIVERY_COUNT_EXCEEDED, text)
        else:
            self._requeue(lane, message, expires_at, delay)

    def reject(self, lane: Lane, message: int, deliveries: int, word: Settlement) -> None:
        """Dead-letter a landed message by its handler's word."""
        self._record_failure(message, deliveries)
        self._bury(lane, message, word.reason, word.description, halt=word.halt)

    def _record_failure(self, message: int, deliveries: int) -> float | None:
        """Keep the count of deliveries and the time of the first failure; return when the message expires."""
        row = self.db.execute(
            "UPDATE messages SET deliveries = ?, first_failed_at = coalesce(first_failed_at, ?)"
            " WHERE id = ? RETURNING expires_at",
            (deliveries, self.now, message),
        ).fetchone()
        return None if row[0] is None else float(row[0])

    def _requeue(
        self, lane: Lane, message: int, expires_at: float | None, delay: float = 0.0
    ) -> None:
        if expires_at is not None and expires_at <= self.now:
            self._expire(lane, message)
            return
        self.waiting += 1
        is_apart = delay > 0 and lane.name is None
        self.db.execute(
            "INSERT INTO waiting (lane, id, queue, delayed_until, expires_at) VALUES (?, ?, ?, ?, ?)",
            (
                # A delayed message without a session holds nobody up: it waits beside its lane.
                -lane.id if is_apart else lane.id,
                message,
                self.queue,
                self.now + delay if delay > 0 else None,
                expires_at,
            ),
        )
        self.refresh(lane)

    def _bury(
        self, lane: Lane, message: int, reason: str, description: str, *, halt: bool = False
    ) -> None:
        is_halting = halt and lane.name is not None
        self.db.execute(
            _BURY,
            (
                lane.name,
                self.now,
                storable(reason),
                storable(description[:MAX_DESCRIPTION]),
                is_halting,
                message,
            ),
        )
        self.db.execute("DELETE FROM messages WHERE id = ?", (message,))
        self.dead += 1
        self.count(lane, -1)
        if is_halting and (lane.halted_by is None or message < lane.halted_by):
            lane.halted_by = message
            self.touch(lane, moved=True)
        self.refresh(lane)

    def _expire(self, lane: Lane, message: int) -> None:
        """A message that is neither in flight nor waiting any more has outlived its time."""
        if self.options.dead_letter_expired:
            self._bury(lane, message, TIME_TO_LIVE_EXPIRED, "nobody took it in time")
        else:
            self.db.execute("DELETE FROM messages WHERE id = ?", (message,))
            self.count(lane, -1)
            self.refresh(lane)

    # Dead letters

    def redrive(self, message: int) -> None:
        """Move a dead letter back to its place among the waiting."""
        session, own_ttl = self.db.execute(
            "SELECT session, time_to_live FROM dead WHERE id = ?", (message,)
        ).fetchone()
        lane = self.open_lane(session)
        expires_at = self.expiry(own_ttl, self.now)
        self.db.execute(_REDRIVE, (lane.id, expires_at, message))
        self.forget_dead(message)
        self.count(lane, 1)
        self._requeue(lane, message, expires_at)

    def forget_dead(self, message: int) -> None:
        """Delete a dead letter; it halts its session no more."""
        session, is_halting = self.db.execute(
            "DELETE FROM dead WHERE id = ? RETURNING session, halting", (message,)
        ).fetchone()
        self.dead -= 1
        if is_halting:
            lane = self.open_lane(session)
            (lane.halted_by,) = self.db.execute(
                "SELECT min(id) FROM dead WHERE halting = 1 AND session = ? AND id > ? AND id < ?",
                (session, self.base, lowest_id(self.queue + 1)),
            ).fetchone()
            self.touch(lane, moved=True)
            self.refresh(lane)

    # Time

    def expiry(self, own_ttl: float | None, enqueued_at: float) -> float | None:
        """When a message that is enqueued expires; ``None``: never."""
        ttl = self.options.default_time_to_live if own_ttl is None else own_ttl
        return None if ttl is None else enqueued_at + ttl

    def advance(self) -> None:
        """Move everything due.

        Kind by kind, which gives what the order of their times would give: the end of a lock or of a delay,
        and a schedule, only ever lead to an expiry, and that comes last.
        """
        next_timer = self.next_timer
        if next_timer is None or next_timer > self.now:
            return
        session_locks, single_locks, due, delays, lives = (
            timer is not None and timer <= self.now for timer in self._timers
        )
        execute, key = self.db.execute, (self.queue, self.now)
        if session_locks:
            sql = f"{LANE} WHERE queue = ? AND locked_until <= ? ORDER BY locked_until"
            for row in execute(sql, key).fetchall():
                self._expire_lock(self.adopt(row))
        if single_locks:
            sql = (
                "DELETE FROM flights WHERE queue = ? AND locked_until <= ?"
                " RETURNING lane, id, deliveries, holder, token"
            )
            for lane, message, deliveries, holder, token in execute(sql, key).fetchall():
                self.ended.append((holder, token))
                self.in_flight -= 1
                self.fail(self.lane(lane), message, deliveries)
        if due:
            self._enqueue_due()
        if delays:
            sql = "SELECT lane, id FROM waiting WHERE queue = ? AND delayed_until <= ?"
            for lane, message in execute(sql, key).fetchall():
                execute(
                    "UPDATE waiting SET lane = ?, delayed_until = NULL WHERE lane = ? AND id = ?",
                    (abs(lane), lane, message),
                )
                self.refresh(self.lane(abs(lane)))
        if lives:
            sql = "DELETE FROM waiting WHERE queue = ? AND expires_at <= ? RETURNING lane, id"
            for lane, message in sorted(execute(sql, key).fetchall(), key=lambda row: int(row[1])):
                self.waiting -= 1
                self._expire(self.lane(abs(lane)), message)
        self.flush()

    def _enqueue_due(self) -> None:
        rows = self.db.execute(
            "SELECT id, session, due, time_to_live FROM scheduled WHERE queue = ? AND due <= ?"
            " ORDER BY due, id",
            (self.queue, self.now),
        ).fetchall()
        for name, session, due, own_ttl in rows:
            lane = self.open_lane(session)
            self.last_sequence += 1
            message = self.base + self.last_sequence
            expires_at = self.expiry(own_ttl, due)
            self.db.execute(_ENQUEUE_SCHEDULED, (message, lane.id, expires_at, name))
            self.db.execute("DELETE FROM scheduled WHERE id = ?", (name,))
            self.count(lane, 1)
            self._requeue(lane, message, expires_at)
        self.scheduled -= len(rows)
