"""The engine on disk: the embedded broker's semantics in a file that several processes share.

See :mod:`.engine` for the contract and :mod:`.sqlite_schema` for the tables. Every changing call is one
``BEGIN IMMEDIATE`` transaction: a process that is killed at any instant leaves either all of it or nothing.
Calls that only look take no write lock, unless something is due.
"""

# ruff: noqa: D102, S608 - methods are documented in Engine; statements are put together from constants only

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, final

from queue_runtime.abc import Lease, ReceiverOptions
from queue_runtime.errors import QueueNotFound
from queue_runtime.messages import (
    Message,
    MessageId,
    MessageState,
    PeekedMessage,
    QueueName,
    QueueStats,
    SendResult,
    SessionId,
    Settlement,
)

from .engine import Grant, QueueOptions, Refusal, Signals
from .errors import lock_lost, queue_not_found, session_locked
from .sqlite_queue import OUTLOOK, QueueTransaction, lowest_id
from .sqlite_receive import (
    HAS_TURN,
    NEXT_SESSION,
    Holder,
    deliver,
    release,
    release_all,
    renew,
    settle,
    undo,
)
from .sqlite_schema import (
    HISTORY,
    MAX_INTEGER,
    MAX_SEQUENCE,
    Synchronous,
    bound_log,
    decode_history,
    decode_message,
    moment,
    open_database,
    transaction,
    translated,
)
from .sqlite_send import store

__all__ = ["SqliteEngine"]

_PEEK: Final = """
    SELECT m.id, CASE
            WHEN f.id IS NOT NULL THEN 'in_flight'
            WHEN w.id IS NULL OR w.delayed_until IS NOT NULL THEN 'delayed'
            ELSE 'ready' END,
        s.name, m.message_id, m.own_id, m.enqueued_at, m.time_to_live,
        coalesce(f.deliveries, m.deliveries), m.history, m.details, m.body
    FROM messages m CROSS JOIN sessions s ON s.id = m.lane
        LEFT JOIN flights f ON f.id = m.id
        LEFT JOIN waiting w ON w.lane = m.lane AND w.id = m.id
    WHERE m.id > ?1 AND m.id <= ?2
    UNION ALL
    SELECT id, 'scheduled', session, message_id, own_id, due, time_to_live, 0, NULL, details, body
    FROM scheduled WHERE id > ?1 AND id <= ?2
    ORDER BY 1 LIMIT ?3
"""
_PEEK_DEAD: Final = f"""
    SELECT id, 'dead_lettered', session, message_id, own_id, enqueued_at, time_to_live, deliveries,
        {HISTORY}, details, body
    FROM dead WHERE id > ? AND id <= ? ORDER BY id LIMIT ?
"""
_STATS: Final = """
    SELECT waiting, in_flight, scheduled, dead, active, locked,
        (SELECT enqueued_at FROM messages m WHERE id > ?2 AND id < ?3
            AND NOT EXISTS (SELECT 1 FROM flights f WHERE f.id = m.id) ORDER BY id LIMIT 1)
    FROM queues WHERE id = ?1
"""


@final
class _Queue:
    """What a connection remembers of a queue between calls."""

    __slots__ = ("anyone", "holders", "id", "lost", "next_timer", "version", "woken")

    def __init__(self, row: int, version: int) -> None:
        self.id = row
        self.version = version  # of the file, when the queue was last polled
        self.holders: dict[str, Holder] = {}
        self.anyone = False
        self.woken: set[str] = set()
        self.lost: list[tuple[str, int]] = []
        self.next_timer: float | None = None

    def expire(self, now: float) -> None:
        for holder in self.holders.values():
            self.lost += [(holder.id, token) for token in holder.expire(now)]

    def remember(self, done: QueueTransaction) -> None:
        """Take over what a committed transaction changed."""
        for holder, token in done.ended:
            if holder in self.holders:
                self.holders[holder].end(token)
        for holder, token, until, place, is_session in done.granted:
            self.holders[holder].grant(token, until, place, is_session)
        self.woken |= done.woken
        self.anyone = done.anyone
        self.next_timer = done.next_timer


@final
class SqliteEngine:
    """A connection to a file of queues. Opens it at once, and creates it if it does not exist.

    Args:
        path: The file; its directory must exist.
        options: The rules of this connection.
        synchronous: ``full``: what was acknowledged survives a power failure. ``normal``: the newest
            commits may be lost to a power failure, though not to a killed process.
        busy_timeout: Seconds to wait while other processes write before a call raises ``Throttled``.

    Raises:
        ConfigurationError: SQLite is too old, or the file is another application's or a newer version's.
        QueueError: The file cannot be opened: see :func:`.errors.from_sqlite`. Nothing is left open.
    """

    is_blocking: ClassVar[bool] = True
    poll_interval: ClassVar[float | None] = 0.05

    def __init__(
        self,
        path: str | Path,
        options: QueueOptions,
        *,
        synchronous: Synchronous = "full",
        busy_timeout: float = 5.0,
    ) -> None:
        self.options = options
        self._path = str(path)
        self._log = Path(f"{path}-wal").absolute()  # as the current directory may change
        self._busy_timeout = busy_timeout
        if not options.declare and not Path(self._path).exists():
            raise QueueNotFound(
                f"{self._path} does not exist and declare is false: check the path, "
                "or open with declare=true to create it"
            )
        self._db = open_database(self._path, synchronous, busy_timeout)
        self._queues: dict[QueueName, _Queue] = {}

    def close(self) -> None:
        with translated(self._path):
            self._db.close()

    def open_queue(self, queue: QueueName, now: float) -> None:
        if queue in self._queues:
            return
        with translated(self._path):
            row = self._find_queue(queue)
            if row is None:
                if not self.options.declare:
                    raise queue_not_found(queue, self._path)
                with transaction(self._db, self._busy_timeout):
                    row = self._find_queue(queue)
                    if row is None:  # nobody else was faster
                        row = self._create_queue(queue)
            known = _Queue(row, self._version())
            self._look(known)
        self._queues[queue] = known

    def _find_queue(self, queue: QueueName) -> int | None:
        row = self._db.execute("SELECT id FROM queues WHERE name = ?", (queue,)).fetchone()
        return None if row is None else int(row[0])

    def _create_queue(self, queue: QueueName) -> int:
        execute = self._db.execute
        # The prefix makes ids and receipts differ from any other queue's.
        row = execute(
            "INSERT INTO queues (name, prefix, lane) VALUES (?, ?, 0)",
            (queue, secrets.token_hex(6)),
        ).lastrowid
        assert row is not None
        lane = execute("INSERT INTO sessions (queue) VALUES (?)", (row,)).lastrowid
        execute("UPDATE queues SET lane = ? WHERE id = ?", (lane, row))
        return row

    # Transactions

    @contextlib.contextmanager
    def _changing(self, queue: QueueName, now: float) -> Iterator[QueueTransaction]:
        """A transaction on the queue, with everything due at ``now`` moved."""
        known = self._queues[queue]
        known.expire(now)
        with translated(self._path):
            with transaction(self._db, self._busy_timeout):
                work = QueueTransaction(self._db, known.id, self.options, now)
                work.advance()
                yield work
                work.finish()
            bound_log(self._db, self._log)
        known.remember(work)

    @contextlib.contextmanager
    def _looking(self, queue: QueueName, now: float) -> Iterator[int]:
        """The queue's row number, with everything due at ``now`` moved; for calls that change nothing."""
        known = self._queues[queue]
        known.expire(now)
        with translated(self._path):
            self._look(known)
            if known.next_timer is not None and known.next_timer <= now:
                self.advance(queue, now)
            yield known.id

    def _look(self, known: _Queue) -> None:
        """Learn what may have been changed by other processes."""
        anyone, *timers = self._db.execute(
            f"SELECT {OUTLOOK} FROM queues q WHERE id = ?", (known.id,)
        ).fetchone()
        known.anyone = bool(anyone)
        known.next_timer = min((timer for timer in timers if timer is not None), default=None)

    def _version(self) -> int:
        """A number that changes when another connection commits."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    # Sending

    def send(self, queue: QueueName, messages: Sequence[Message], now: float) -> list[SendResult]:
        with self._changing(queue, now) as work:
            return store(work, queue, messages)

    def cancel_scheduled(
        self, queue: QueueName, sequence_numbers: Sequence[int], now: float
    ) -> list[bool]:
        with self._changing(queue, now) as work:
            sql = "DELETE FROM scheduled WHERE id = ?"
            answers = [
                self._db.execute(sql, (work.message(number),)).rowcount == 1
                for number in sequence_numbers
            ]
            work.scheduled -= sum(answers)
        return answers

    # Receiving

    def open_holder(self, queue: QueueName, options: ReceiverOptions, now: float) -> str:
        holder = Holder(options)
        self._queues[queue].holders[holder.id] = holder
        return holder.id

    def close_holder(self, queue: QueueName, holder: str, now: float) -> None:
        known = self._queues[queue]
        gone = known.holders.get(holder)
        if gone is not None:
            if gone.locks:
                with self._changing(queue, now) as work:
                    release_all(work, gone)
            del known.holders[holder]

    def claim(self, queue: QueueName, holder: str, max_messages: int, now: float) -> list[Grant]:
        owner = self._queues[queue].holders.get(holder)
        if owner is None:
            return []
        with self._changing(queue, now) as work:
            return deliver(work, owner, max_messages)

    def unclaim(self, queue: QueueName, holder: str, grants: Sequence[Grant], now: float) -> None:
        with self._changing(queue, now) as work:
            undo(work, holder, grants)

    def accept(
        self, queue: QueueName, holder: str, session_id: SessionId | None, now: float
    ) -> Grant | None:
        owner = self._queues[queue].holders.get(holder)
        if owner is None:
            return None
        with self._changing(queue, now) as work:
            if session_id is None:
                row = self._db.execute(NEXT_SESSION, (work.queue,)).fetchone()
                if row is None:
                    return None
                lane = work.adopt(row)
            else:
                lane = work.open_lane(session_id)
                if lane.holder is not None:
                    raise session_locked(session_id)
            work.lock(lane, holder, owner.max_per_session)
            work.refresh(lane)
            assert lane.locked_until is not None
            return Grant(lane.name, lane.token, lane.locked_until, True, ())

    def settle(
        self, queue: QueueName, holder: str, settlements: Sequence[Settlement], now: float
    ) -> list[Refusal | None]:
        with self._changing(queue, now) as work:
            return settle(work, holder, settlements)

    def renew(
        self, queue: QueueName, holder: str, leases: Sequence[Lease], now: float
    ) -> list[float | None]:
        with self._changing(queue, now) as work:
            return renew(work, holder, leases)

    def release(self, queue: QueueName, holder: str, leases: Sequence[Lease], now: float) -> None:
        with self._changing(queue, now) as work:
            release(work, holder, leases)

    def get_state(self, queue: QueueName, holder: str, lease: Lease, now: float) -> bytes | None:
        with self._looking(queue, now) as row:
            found = self._db.execute(
                "SELECT state FROM sessions LEFT JOIN session_states ON lane = id"
                " WHERE queue = ? AND name = ? AND token = ? AND holder = ?",
                (row, lease.session_id, lease.token, holder),
            ).fetchone()
        if found is None:
            raise lock_lost(lease)
        state: bytes | None = found[0]
        return state

    def set_state(
        self, queue: QueueName, holder: str, lease: Lease, state: bytes | None, now: float
    ) -> None:
        with self._changing(queue, now) as work:
            lane = None if lease.session_id is None else work.find_lane(lease.session_id)
            if lane is None or not lane.is_held(holder, lease.token):
                raise lock_lost(lease)
            if state is None:
                self._db.execute("DELETE FROM session_states WHERE lane = ?", (lane.id,))
            else:
                self._db.execute(
                    "INSERT OR REPLACE INTO session_states (lane, state) VALUES (?, ?)",
                    (lane.id, state),
                )
            lane.has_state = state is not None
            work.touch(lane, moved=True)

    # Looking and operating

    def peek(
        self, queue: QueueName, max_messages: int, after: int, now: float
    ) -> list[PeekedMessage]:
        with self._looking(queue, now) as row:
            return [_peeked(found) for found in self._after(_PEEK, row, after, max_messages)]

    def peek_dead(
        self, queue: QueueName, max_messages: int, after: int, now: float
    ) -> list[PeekedMessage]:
        with self._looking(queue, now) as row:
            return [_peeked(found) for found in self._after(_PEEK_DEAD, row, after, max_messages)]

    def _after(self, sql: str, row: int, after: int, max_messages: int) -> list[tuple[Any, ...]]:
        """Up to ``max_messages`` rows above a sequence number."""
        lowest = lowest_id(row) + min(max(after, 0), MAX_SEQUENCE)
        limits = (lowest, lowest_id(row) + MAX_SEQUENCE, min(max_messages, MAX_INTEGER))
        return self._db.execute(sql, limits).fetchall()

    def purge(self, queue: QueueName, now: float) -> int:
        execute = self._db.execute
        with self._changing(queue, now) as work:
            lanes = execute(
                "SELECT lane, count(*) FROM waiting WHERE lane IN"
                " (SELECT id FROM sessions WHERE queue = ?1 UNION ALL SELECT -lane FROM queues WHERE id = ?1)"
                " GROUP BY lane",
                (work.queue,),
            ).fetchall()
            for number, count in lanes:
                execute(
                    "DELETE FROM messages WHERE id IN (SELECT id FROM waiting WHERE lane = ?)",
                    (number,),
                )
                execute("DELETE FROM waiting WHERE lane = ?", (number,))
                lane = work.lane(abs(number))
                work.count(lane, -count)
                work.refresh(lane)
            execute("DELETE FROM scheduled WHERE queue = ?", (work.queue,))
            purged: int = work.waiting + work.scheduled
            work.waiting = work.scheduled = 0
        return purged

    def stats(self, queue: QueueName, now: float) -> QueueStats:
        with self._looking(queue, now) as row:
            waiting, in_flight, scheduled, dead, active, locked, oldest = self._db.execute(
                _STATS, (row, lowest_id(row), lowest_id(row + 1))
            ).fetchone()
        return QueueStats(
            depth=waiting,
            in_flight=in_flight,
            scheduled=scheduled,
            dead_lettered=dead,
            oldest_age=None if oldest is None else max(0.0, now - oldest),
            sessions=active,
            locked_sessions=locked,
        )

    def redrive(
        self, queue: QueueName, sequence_numbers: Collection[int] | None, now: float
    ) -> int:
        with self._changing(queue, now) as work:
            found = self._dead_ids(work, sequence_numbers)
            for message in found:
                work.redrive(message)
        return len(found)

    def purge_dead(
        self, queue: QueueName, sequence_numbers: Collection[int] | None, now: float
    ) -> int:
        with self._changing(queue, now) as work:
            found = self._dead_ids(work, sequence_numbers)
            for message in found:
                work.forget_dead(message)
        return len(found)

    def _dead_ids(
        self, work: QueueTransaction, sequence_numbers: Collection[int] | None
    ) -> list[int]:
        """The ids of those dead letters that exist."""
        if sequence_numbers is None:
            rows = self._db.execute(
                "SELECT id FROM dead WHERE id > ? AND id < ?",
                (work.base, lowest_id(work.queue + 1)),
            )
            return [message for (message,) in rows.fetchall()]
        sql = "SELECT 1 FROM dead WHERE id = ?"
        return [
            message
            for message in sorted({work.message(number) for number in sequence_numbers})
            if self._db.execute(sql, (message,)).fetchone() is not None
        ]

    # Time and wake-ups

    def advance(self, queue: QueueName, now: float) -> None:
        with self._changing(queue, now):
            """Every transaction moves what is due."""

    def take_signals(self, queue: QueueName) -> Signals:
        known = self._queues[queue]
        woken, lost = known.woken, known.lost
        known.woken, known.lost = set(), []
        return Signals(known.anyone, woken, lost, known.next_timer)

    def poll(self, queue: QueueName, now: float) -> Signals | None:
        known = self._queues[queue]
        with translated(self._path):
            version = self._version()
            if version == known.version:
                return None
            known.version = version
            known.expire(now)
            self._look(known)
            known.woken.update(
                holder
                for holder in known.holders
                if self._db.execute(HAS_TURN, (known.id, holder)).fetchone() is not None
            )
        return self.take_signals(queue)


def _peeked(row: tuple[Any, ...]) -> PeekedMessage:
    number, state, session, text, own_id, enqueued_at, ttl, deliveries, history, details, body = row
    session_id = None if session is None else SessionId(session)
    message_id = MessageId(text)
    return PeekedMessage(
        decode_message(session_id, message_id if own_id else None, ttl, details, body),
        message_id,
        number & MAX_SEQUENCE,
        moment(enqueued_at),
        deliveries,
        MessageState(state),
        decode_history(history),
    )
