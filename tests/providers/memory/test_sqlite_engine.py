"""The engine on disk against the model; and what only a file, several connections and a kill can show."""

from __future__ import annotations

import contextlib
import os
import random
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from queue_runtime.abc import Lease, ReceiverOptions
from queue_runtime.errors import (
    ConfigurationError,
    ConnectionFailed,
    LockLost,
    ProviderError,
    QueueFull,
    QueueNotFound,
    SessionLocked,
    Throttled,
)
from queue_runtime.messages import (
    Delivery,
    Message,
    MessageState,
    QueueName,
    Settlement,
    SettlementAction,
)
from queue_runtime.providers.memory.engine import (
    FAIR_CHUNK,
    Engine,
    Grant,
    QueueOptions,
    Refusal,
)
from queue_runtime.providers.memory.sqlite_engine import SqliteEngine
from queue_runtime.providers.memory.sqlite_schema import (
    APPLICATION_ID,
    LOG_LIMIT,
    SCHEMA_VERSION,
    check_library,
    open_database,
)

from .engine_machine import EngineMachine

QUEUE = QueueName("orders")
NOW = 1_700_000_000.0
COMPLETE = SettlementAction.COMPLETE


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def deliveries(grants: list[Grant]) -> list[Delivery]:
    """What a provider makes of grants."""
    found = []
    for session, token, until, _, messages in grants:
        place = messages[0][5] if session is None and messages else None
        lease = Lease(session, token, 0.0, at(until), place)
        for message, message_id, receipt, count, enqueued, sequence, history in messages:
            found.append(
                Delivery(message, message_id, receipt, lease, count, enqueued, sequence, history)
            )
    return found


def settle(
    engine: Engine, holder: str, found: list[Delivery], now: float = NOW, **how: Any
) -> list[Refusal | None]:
    how.setdefault("action", COMPLETE)
    return engine.settle(QUEUE, holder, [Settlement(d, **how) for d in found], now)


def bodies(grants: list[Grant]) -> list[bytes]:
    return [d.body for d in deliveries(grants)]


def check_file(path: Path) -> None:
    """Everything in the file that depends on something else agrees with it."""
    db = sqlite3.connect(path)
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert not db.execute("SELECT id FROM waiting INTERSECT SELECT id FROM flights").fetchall()
        placed = "SELECT id, abs(lane) FROM waiting UNION ALL SELECT id, lane FROM flights"
        stored = "SELECT id, lane FROM messages"
        assert sorted(db.execute(placed)) == sorted(db.execute(stored))
        assert not db.execute("SELECT id FROM messages INTERSECT SELECT id FROM dead").fetchall()
        for lane, name, messages, in_flight, holder, halted_by in db.execute(
            "SELECT id, name, messages, in_flight, holder, halted_by FROM sessions"
        ):
            flights = db.execute("SELECT count(*) FROM flights WHERE lane = ?", (lane,)).fetchone()[
                0
            ]
            (total,) = db.execute(
                "SELECT count(*) FROM messages WHERE lane = ?", (lane,)
            ).fetchone()
            assert messages == total
            assert in_flight == (0 if name is None else flights)
            assert holder is not None or name is None or flights == 0
            barrier = db.execute(
                "SELECT min(id) FROM dead WHERE halting AND session = ? AND id >> 44 ="
                " (SELECT queue FROM sessions WHERE id = ?)",
                (name, lane),
            ).fetchone()[0]
            assert halted_by == barrier
        for queue, *counters in db.execute(
            "SELECT id, waiting, in_flight, scheduled, dead, active, locked FROM queues"
        ):
            assert counters == [
                db.execute(sql, (queue,)).fetchone()[0]
                for sql in (
                    "SELECT count(*) FROM waiting WHERE queue = ?",
                    "SELECT count(*) FROM flights WHERE queue = ?",
                    "SELECT count(*) FROM scheduled WHERE queue = ?",
                    "SELECT count(*) FROM dead WHERE id >> 44 = ?",
                    "SELECT count(*) FROM sessions WHERE queue = ? AND name NOT NULL AND messages > 0",
                    "SELECT count(*) FROM sessions WHERE queue = ? AND holder NOT NULL",
                )
            ]
    finally:
        db.close()


class SqliteMachine(EngineMachine):
    def make_engine(self, options: QueueOptions) -> Engine:
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "machine.db"
        return SqliteEngine(self.path, options, synchronous="normal")

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "directory"):
            check_file(self.path)
            self.directory.cleanup()


TestSqliteMachine = SqliteMachine.TestCase
TestSqliteMachine.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)


Opener = Callable[..., SqliteEngine]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "queues.db"
    yield path
    if path.exists():
        check_file(path)


@pytest.fixture
def connect(path: Path) -> Iterator[Opener]:
    """Opens connections to the file, with the queue; they are closed at the end."""
    engines: list[SqliteEngine] = []

    def connect(
        synchronous: Any = "normal", busy_timeout: float = 5.0, **options: Any
    ) -> SqliteEngine:
        engine = SqliteEngine(
            path, QueueOptions(**options), synchronous=synchronous, busy_timeout=busy_timeout
        )
        engines.append(engine)
        engine.open_queue(QUEUE, NOW)
        return engine

    yield connect
    for engine in engines:
        engine.close()


# Several connections


def test_takeover_fences_the_stale_holder(connect: Opener) -> None:
    old, new = connect(), connect()
    holder, heir = (e.open_holder(QUEUE, ReceiverOptions(), NOW) for e in (old, new))
    old.send(QUEUE, [Message(b"%d" % n, session_id="s") for n in range(3)], NOW)
    (grant,) = old.claim(QUEUE, holder, 2, NOW)
    first, second = deliveries([grant])
    old.set_state(QUEUE, holder, first.lease, b"half", NOW)

    # Locked: neither delivered, nor accepted, nor settled or released by another holder.
    assert new.claim(QUEUE, heir, 10, NOW + 29) == []
    with pytest.raises(SessionLocked):
        new.accept(QUEUE, heir, grant.session_id, NOW + 29)
    assert settle(new, heir, [first], NOW + 29) == [Refusal.INVALID_RECEIPT]
    assert new.renew(QUEUE, heir, [first.lease], NOW + 29) == [None]
    new.release(QUEUE, heir, [first.lease], NOW + 29)

    # Expired: the lowest keeps its count, the one behind it gets its back.
    (taken,) = new.claim(QUEUE, heir, 10, NOW + 30)
    assert taken.token > grant.token
    assert [(d.body, d.delivery_count) for d in deliveries([taken])] == [
        (b"0", 2),
        (b"1", 1),
        (b"2", 1),
    ]
    assert settle(old, holder, [first, second], NOW + 30) == [Refusal.LOCK_LOST] * 2
    assert old.renew(QUEUE, holder, [first.lease], NOW + 30) == [None]
    with pytest.raises(LockLost):
        old.set_state(QUEUE, holder, first.lease, b"stale", NOW + 30)
    lease = deliveries([taken])[0].lease
    assert new.get_state(QUEUE, heir, lease, NOW + 30) == b"half"
    assert settle(new, heir, deliveries([taken]), NOW + 30) == [None] * 3
    # It was the other connection that found the lock expired; still its holder is told.
    assert (holder, grant.token) in old.take_signals(QUEUE).lost
    assert not new.take_signals(QUEUE).lost


def test_single_locks_are_fenced_too(connect: Opener) -> None:
    old, new = connect(), connect()
    holder, heir = (e.open_holder(QUEUE, ReceiverOptions(), NOW) for e in (old, new))
    old.send(QUEUE, [Message(b"0"), Message(b"1")], NOW)
    kept, lost = deliveries(old.claim(QUEUE, holder, 2, NOW))
    assert new.claim(QUEUE, heir, 2, NOW + 20) == []
    assert new.renew(QUEUE, heir, [kept.lease], NOW + 20) == [None]
    assert old.renew(QUEUE, holder, [kept.lease], NOW + 20) == [NOW + 50]
    (again,) = deliveries(new.claim(QUEUE, heir, 2, NOW + 40))
    assert (again.body, again.delivery_count) == (b"1", 2)
    assert settle(old, holder, [kept, lost], NOW + 40) == [None, Refusal.LOCK_LOST]
    # Settled: its lock is over, whoever asks.
    assert settle(old, holder, [kept], NOW + 40) == [Refusal.LOCK_LOST]
    assert settle(old, holder, [again], NOW + 40) == [Refusal.INVALID_RECEIPT]
    old.release(QUEUE, holder, [again.lease], NOW + 40)
    assert settle(new, heir, [again], NOW + 40) == [None]
    assert old.stats(QUEUE, NOW + 40).depth == 0


@pytest.mark.parametrize("session", ["s", None])
def test_receipts_of_another_queue_or_of_nobody_change_nothing(
    connect: Opener, session: str | None
) -> None:
    engine, other = connect(), QueueName("other")
    engine.open_queue(other, NOW)
    engine.open_queue(other, NOW)
    holder = engine.open_holder(QUEUE, ReceiverOptions(), NOW)
    foreign_holder = engine.open_holder(other, ReceiverOptions(), NOW)
    for queue in (QUEUE, other):  # the same tokens and numbers in both
        engine.send(queue, [Message(b"x", session_id=session)], NOW)
    (mine,) = deliveries(engine.claim(QUEUE, holder, 1, NOW))
    (foreign,) = deliveries(engine.claim(other, foreign_holder, 1, NOW))
    assert (mine.sequence_number, mine.lease.token) == (
        foreign.sequence_number,
        foreign.lease.token,
    )
    assert settle(engine, holder, [foreign]) == [Refusal.INVALID_RECEIPT]
    prefix = mine.receipt.rpartition("-")[0]
    for receipt in (
        "",
        "-1",
        f"{prefix}-",
        f"{prefix}-²",
        f"{prefix}-{'9' * 30}",
        mine.receipt + "0",
    ):
        forged = Delivery(mine.message, mine.message_id, receipt, mine.lease, 1, at(NOW), 1)
        assert settle(engine, holder, [forged]) == [Refusal.INVALID_RECEIPT]
    for sequence in (None, 0, -1, 1 << 44, 1 << 80):
        forged = Delivery(
            mine.message, mine.message_id, mine.receipt, mine.lease, 1, at(NOW), sequence
        )
        assert settle(engine, holder, [forged]) != [None]
    assert engine.cancel_scheduled(QUEUE, [-1, 0, 1, 1 << 80], NOW) == [False] * 4
    assert engine.redrive(QUEUE, [-1, 0, 1, 1 << 80], NOW) == 0
    assert engine.peek(QUEUE, 1 << 80, 1 << 80, NOW) == []
    assert len(engine.peek(QUEUE, 1 << 80, -(1 << 80), NOW)) == 1
    assert settle(engine, holder, [mine]) == [None]
    assert engine.stats(other, NOW).in_flight == 1


def test_poll_sees_other_connections_only(connect: Opener) -> None:
    here, there = connect(), connect()
    holder = here.open_holder(QUEUE, ReceiverOptions(), NOW)
    assert here.poll(QUEUE, NOW) is None
    here.send(QUEUE, [Message(b"0", session_id="s")], NOW)
    here.take_signals(QUEUE)
    assert here.poll(QUEUE, NOW) is None

    seen = there.poll(QUEUE, NOW)
    assert seen is not None
    assert (seen.anyone, seen.next_timer) == (True, None)
    (grant,) = here.claim(QUEUE, holder, 1, NOW)
    here.take_signals(QUEUE)
    assert here.poll(QUEUE, NOW) is None

    # A message for a session held here.
    there.send(QUEUE, [Message(b"1", session_id="s")], NOW)
    seen = here.poll(QUEUE, NOW)
    assert seen is not None
    assert (seen.anyone, set(seen.holders), seen.next_timer) == (False, {holder}, NOW + 30)
    assert here.poll(QUEUE, NOW) is None

    # The other process finds the lock expired.
    there.advance(QUEUE, NOW + 30)
    seen = here.poll(QUEUE, NOW + 30)
    assert seen is not None
    assert (seen.anyone, list(seen.lost)) == (True, [(holder, grant.token)])


def test_only_looking_takes_no_write_lock(connect: Opener, path: Path) -> None:
    engine = connect(busy_timeout=0.0)
    holder = engine.open_holder(QUEUE, ReceiverOptions(), NOW)
    engine.send(QUEUE, [Message(b"0", session_id="s")], NOW)
    (grant,) = engine.claim(QUEUE, holder, 1, NOW)
    (delivery,) = deliveries([grant])
    writer = sqlite3.connect(path, isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        assert engine.stats(QUEUE, NOW).in_flight == 1
        assert [p.state for p in engine.peek(QUEUE, 10, 0, NOW)] == [MessageState.IN_FLIGHT]
        assert engine.peek_dead(QUEUE, 10, 0, NOW) == []
        assert engine.get_state(QUEUE, holder, delivery.lease, NOW) is None
        with pytest.raises(Throttled, match=r"queues\.db.*busy_timeout"):
            engine.stats(QUEUE, NOW + 30)  # a lock is due
        with pytest.raises(Throttled):
            engine.send(QUEUE, [Message(b"1")], NOW)
    finally:
        writer.close()
    assert engine.send(QUEUE, [Message(b"1")], NOW)[0].sequence_number == 2


def test_a_writer_waits_for_another(connect: Opener, path: Path) -> None:
    engine = connect(busy_timeout=30.0)
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.05, writer.execute, ("COMMIT",))
    timer.start()
    try:
        assert engine.send(QUEUE, [Message(b"0")], NOW)[0].error is None
    finally:
        timer.join()
        writer.close()
    assert engine.stats(QUEUE, NOW).depth == 1


def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    for attempt in range(8):
        file = tmp_path / f"{attempt}.db"
        results = open_at_once(file, 4)
        assert sorted(results, key=str) == [1, 2, 3, 4]
        check_file(file)


def open_at_once(file: Path, count: int) -> list[object]:
    """What as many threads got for opening the file and sending a message."""
    barrier = threading.Barrier(count)
    results: list[object] = []

    def opener() -> None:
        barrier.wait()
        try:
            with contextlib.closing(SqliteEngine(file, QueueOptions())) as engine:
                engine.open_queue(QUEUE, NOW)
                results.append(engine.send(QUEUE, [Message(b"x")], NOW)[0].sequence_number)
        except BaseException as error:  # shown by the assertion
            results.append(error)

    threads = [threading.Thread(target=opener) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_create_one_queue(connect: Opener) -> None:
    first, second = connect(), connect()
    queue = QueueName("new")

    def interfere(statement: str) -> None:
        if statement == "BEGIN IMMEDIATE":
            second.open_queue(queue, NOW)

    first._db.set_trace_callback(interfere)
    first.open_queue(queue, NOW)
    first._db.set_trace_callback(None)
    first.send(queue, [Message(b"0")], NOW)
    assert second.stats(queue, NOW).depth == 1


def test_declare_false_wants_an_existing_queue(connect: Opener) -> None:
    engine = connect()
    strict = SqliteEngine(engine._path, QueueOptions(declare=False))
    try:
        strict.open_queue(QUEUE, NOW)
        with pytest.raises(QueueNotFound, match=r"queue nobody does not exist in .*queues\.db"):
            strict.open_queue(QueueName("nobody"), NOW)
    finally:
        strict.close()


# What is kept


def test_every_field_comes_back(connect: Opener) -> None:
    engine = connect()
    message = Message(
        bytes(range(256)) * 40,
        session_id="Ünïcode ✓ ' \" ; -- %",
        headers={"traceparent": "00-ab", "x": "\x00 '\n"},
        message_id="own",
        correlation_id="c",
        content_type="application/json",
        time_to_live=60.5,
        scheduled_at=at(NOW - 1.25),
        deduplication_id="d",
    )
    (result,) = engine.send(QUEUE, [message], NOW)
    assert (result.message_id, result.sequence_number) == ("own", 1)
    assert engine.send(QUEUE, [message], NOW)[0].duplicate
    engine.close()
    engine = connect()
    holder = engine.open_holder(QUEUE, ReceiverOptions(), NOW)
    (delivery,) = deliveries(engine.claim(QUEUE, holder, 1, NOW))
    assert delivery.message == message
    assert delivery.enqueued_at == at(NOW)
    (peeked,) = engine.peek(QUEUE, 1, 0, NOW)
    assert (peeked.message, peeked.message_id, peeked.delivery_count) == (message, "own", 1)
    assert settle(
        engine,
        holder,
        [delivery],
        NOW + 0.1,
        action=SettlementAction.DEAD_LETTER,
        reason="Bad\ud800",
        description="\udfff" + "x" * 5_000,
    ) == [None]
    (dead,) = engine.peek_dead(QUEUE, 9, 0, NOW + 0.1)
    assert dead.message == message
    assert dead.dead_letter is not None
    assert dead.dead_letter.reason == "Bad\\ud800"
    assert dead.dead_letter.description == "\\udfff" + "x" * 4_095
    assert dead.dead_letter.dead_lettered_at == dead.dead_letter.first_failed_at == at(NOW + 0.1)
    assert engine.redrive(QUEUE, None, NOW + 0.2) == 1
    (again,) = deliveries(engine.claim(QUEUE, holder, 1, NOW + 0.2))
    assert (again.message, again.dead_letter, again.delivery_count) == (
        message,
        dead.dead_letter,
        1,
    )


def test_a_message_without_an_id_gets_one_and_stays_without(connect: Opener) -> None:
    engine = connect()
    holder = engine.open_holder(QUEUE, ReceiverOptions(), NOW)
    (sent,) = engine.send(QUEUE, [Message(b"", scheduled_at=at(NOW + 5))], NOW)
    assert sent.message_id
    (peeked,) = engine.peek(QUEUE, 1, 0, NOW)
    assert (peeked.state, peeked.message_id) == (MessageState.SCHEDULED, sent.message_id)
    (delivery,) = deliveries(engine.claim(QUEUE, holder, 1, NOW + 5))
    assert (delivery.message_id, delivery.message.message_id) == (sent.message_id, None)
    assert delivery.sequence_number == 2


def test_halting_and_state_survive_a_restart(connect: Opener) -> None:
    engine = connect()
    holder = engine.open_holder(QUEUE, ReceiverOptions(), NOW)
    engine.send(QUEUE, [Message(b"%d" % n, session_id="s") for n in range(3)], NOW)
    found = deliveries(engine.claim(QUEUE, holder, 2, NOW))
    engine.set_state(QUEUE, holder, found[0].lease, b"kept", NOW)
    settle(engine, holder, found, action=SettlementAction.DEAD_LETTER, reason="R", halt=True)
    engine.close_holder(QUEUE, holder, NOW)
    engine.close()

    engine = connect()
    holder = engine.open_holder(QUEUE, ReceiverOptions(), NOW)
    assert engine.claim(QUEUE, holder, 9, NOW) == []
    assert engine.redrive(QUEUE, [1], NOW) == 1
    # Behind the second one, which still halts.
    assert bodies(engine.claim(QUEUE, holder, 9, NOW)) == [b"0"]
    assert engine.purge_dead(QUEUE, None, NOW) == 1
    (grant,) = engine.claim(QUEUE, holder, 9, NOW)
    assert bodies([grant]) == [b"2"]
    (delivery,) = deliveries([grant])
    assert engine.get_state(QUEUE, holder, delivery.lease, NOW) == b"kept"


def test_a_session_with_nothing_left_is_forgotten(connect: Opener, path: Path) -> None:
    engine = connect()
    holder = engine.open_holder(QUEUE, ReceiverOptions(), NOW)
    for n in range(5):
        engine.send(QUEUE, [Message(b"", session_id=f"s{n}")], NOW)
    found = deliveries(engine.claim(QUEUE, holder, 9, NOW))
    engine.set_state(QUEUE, holder, found[0].lease, b"state", NOW)
    settle(engine, holder, found)
    engine.close_holder(QUEUE, holder, NOW)
    names = engine._db.execute("SELECT name FROM sessions WHERE name NOT NULL").fetchall()
    assert names == [("s0",)]
    tokens = {d.lease.token for d in found}
    holder = engine.open_holder(QUEUE, ReceiverOptions(), NOW)
    grant = engine.accept(QUEUE, holder, found[1].session_id, NOW)
    assert grant is not None
    assert grant.token > max(tokens)


def test_lock_of_a_lost_session_is_not_released_for_its_heir(connect: Opener) -> None:
    old, new = connect(lock_duration=10.0), connect(lock_duration=100.0)
    holder, heir = (e.open_holder(QUEUE, ReceiverOptions(), NOW) for e in (old, new))
    old.send(QUEUE, [Message(b"0", session_id="s"), Message(b"1")], NOW)
    assert len(old.claim(QUEUE, holder, 9, NOW)) == 2
    assert len(new.claim(QUEUE, heir, 9, NOW + 10)) == 2
    # The clock of the first process is behind: it does not know yet.
    old.close_holder(QUEUE, holder, NOW + 9)
    assert old.stats(QUEUE, NOW + 9).in_flight == 2
    assert old.stats(QUEUE, NOW + 9).locked_sessions == 1


def test_unclaim_leaves_what_is_not_its_own(connect: Opener) -> None:
    engine = connect()
    holder, other = (engine.open_holder(QUEUE, ReceiverOptions(), NOW) for _ in range(2))
    sent = [Message(b"0", session_id="s"), Message(b"1", session_id="s"), Message(b"2")]
    engine.send(QUEUE, sent[:1], NOW)
    first = engine.claim(QUEUE, holder, 9, NOW)
    engine.send(QUEUE, sent[1:], NOW)
    second = engine.claim(QUEUE, holder, 9, NOW)
    assert sorted(bodies(second)) == [b"1", b"2"]
    engine.unclaim(QUEUE, other, first + second, NOW)
    assert engine.stats(QUEUE, NOW).in_flight == 3
    settle(engine, holder, [d for d in deliveries(second) if d.body == b"1"])
    engine.unclaim(QUEUE, holder, second, NOW)
    assert engine.stats(QUEUE, NOW).in_flight == 1
    engine.unclaim(QUEUE, holder, first, NOW)
    assert engine.stats(QUEUE, NOW).locked_sessions == 0
    assert [d.delivery_count for d in deliveries(engine.claim(QUEUE, holder, 9, NOW))] == [1, 1]


def test_sessions_take_turns_beside_a_hot_one(connect: Opener) -> None:
    engine = connect()
    holder = engine.open_holder(QUEUE, ReceiverOptions(max_per_session=1_000), NOW)
    engine.send(QUEUE, [Message(b"", session_id="hot") for _ in range(100)], NOW)
    engine.send(QUEUE, [Message(b"") for _ in range(100)], NOW)
    engine.send(QUEUE, [Message(b"", session_id=f"cold{n}") for n in range(5)], NOW)
    grants = engine.claim(QUEUE, holder, 60, NOW)
    order = [grant.session_id for grant in grants for _ in grant.messages]
    turn = ["hot"] * FAIR_CHUNK + [None] * FAIR_CHUNK
    assert order[: 2 * FAIR_CHUNK + 5] == [*turn, *(f"cold{n}" for n in range(5))]
    assert order[2 * FAIR_CHUNK + 5 :] == (turn * 3)[:39]
    assert [grant.is_new for grant in grants if grant.session_id == "hot"] == [
        True,
        False,
        False,
        False,
    ]
    # The next call goes on where this one ended, and newcomers queue up behind.
    engine.send(QUEUE, [Message(b"", session_id="late")], NOW)
    grants = engine.claim(QUEUE, holder, 2 * FAIR_CHUNK + 1, NOW)
    order = [grant.session_id for grant in grants for _ in grant.messages]
    assert order == [None] * FAIR_CHUNK + ["hot"] * FAIR_CHUNK + ["late"]


def test_a_full_holder_leaves_messages_without_a_session(connect: Opener) -> None:
    engine = connect()
    holder = engine.open_holder(QUEUE, ReceiverOptions(max_sessions=1), NOW)
    engine.send(QUEUE, [Message(b"") for _ in range(20)], NOW)
    engine.send(QUEUE, [Message(b"", session_id="s") for _ in range(3)], NOW)
    order = [grant.session_id for grant in engine.claim(QUEUE, holder, 99, NOW)]
    assert order == [None] * FAIR_CHUNK + ["s"]
    assert engine.claim(QUEUE, holder, 99, NOW) == []


def test_a_burst_over_the_limit_is_stored_in_part(connect: Opener) -> None:
    engine = connect(max_queue_size=3)
    results = engine.send(QUEUE, [Message(b"", session_id="s") for _ in range(5)], NOW)
    assert [type(r.error) for r in results] == [type(None)] * 3 + [QueueFull] * 2
    assert engine.stats(QUEUE, NOW).depth == 3


# Crashes

WORKER = """
import os, random, sys, time
from types import SimpleNamespace
from queue_runtime.abc import ReceiverOptions
from queue_runtime.messages import Message, QueueName, Settlement, SettlementAction
from queue_runtime.providers.memory.engine import QueueOptions
from queue_runtime.providers.memory.sqlite_engine import SqliteEngine

def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

path, name = sys.argv[1:]
queue, dice = QueueName("orders"), random.Random(name)
engine = SqliteEngine(path, QueueOptions(lock_duration=0.05, max_delivery_count=0), busy_timeout=30.0)
engine.open_queue(queue, time.time())
holder = engine.open_holder(queue, ReceiverOptions(), time.time())
number = 0
while True:
    batch = []
    for _ in range(dice.randint(1, 20)):
        number += 1
        session = dice.choice([None, "a", "b", "c", "d"])
        batch.append(Message(b"x" * dice.choice([10, 9_000]), session_id=session, message_id=f"{name}-{number}"))
    for result in engine.send(queue, batch, time.time()):
        tell("sent", result.message_id)
    settlements = []
    for grant in engine.claim(queue, holder, dice.randint(1, 30), time.time()):
        lease = SimpleNamespace(session_id=grant.session_id, token=grant.token)
        for claimed in grant.messages:
            delivery = SimpleNamespace(
                message_id=claimed[1], receipt=claimed[2], sequence_number=claimed[5],
                lease=lease, delivery_count=claimed[3],
            )
            action = SettlementAction.COMPLETE if dice.random() < 0.8 else SettlementAction.DEAD_LETTER
            settlements.append(Settlement(delivery, action))
    for settlement in settlements:
        tell("try", settlement.delivery.message_id)
    for settlement, refusal in zip(settlements, engine.settle(queue, holder, settlements, time.time())):
        if refusal is None:
            tell(settlement.action.value, settlement.delivery.message_id)
"""


def test_a_killed_process_loses_nothing_acknowledged(path: Path) -> None:
    dice = random.Random(5)
    told: dict[str, set[str]] = {
        "sent": set(),
        "try": set(),
        "complete": set(),
        "dead_letter": set(),
    }
    for attempt in range(4):
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(path), f"{attempt}{which}"],
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            for which in "ab"
        ]
        for worker in workers:
            assert worker.stdout is not None
            for _ in range(dice.randint(20, 1_500)):
                word, message = worker.stdout.readline().decode().split()
                told[word].add(message)
        for worker in workers:
            worker.kill()
            rest, _ = worker.communicate()
            # The last line may be cut off where the process was.
            for line in rest.decode().splitlines(keepends=True):
                if line.endswith("\n"):
                    word, message = line.split()
                    told[word].add(message)

        check_file(path)
        engine = SqliteEngine(path, QueueOptions(max_delivery_count=0))
        engine.open_queue(QUEUE, NOW)
        stored = [str(m.message_id) for m in engine.peek(QUEUE, 1_000_000, 0, NOW)]
        dead = [str(m.message_id) for m in engine.peek_dead(QUEUE, 1_000_000, 0, NOW)]
        engine.close()
        assert len(stored) == len(set(stored))
        assert not set(stored) & set(dead)
        assert not told["complete"] & (set(stored) | set(dead))
        assert told["dead_letter"] <= set(dead)
        # What is gone was completed, though perhaps nobody lived to tell.
        assert told["sent"] - set(stored) - set(dead) <= told["try"]
    assert len(told["complete"]) > 100


def test_what_a_killed_process_held_comes_back(connect: Opener, path: Path) -> None:
    dead = SqliteEngine(path, QueueOptions())
    dead.open_queue(QUEUE, NOW)
    holder = dead.open_holder(QUEUE, ReceiverOptions(), NOW)
    dead.send(QUEUE, [Message(b"0", session_id="s"), Message(b"1", session_id="s")], NOW)
    assert len(bodies(dead.claim(QUEUE, holder, 9, NOW))) == 2
    dead.close()  # without releasing anything
    engine = connect()
    heir = engine.open_holder(QUEUE, ReceiverOptions(), NOW)
    assert engine.take_signals(QUEUE).next_timer == NOW + 30
    assert engine.claim(QUEUE, heir, 9, NOW + 29.9) == []
    found = deliveries(engine.claim(QUEUE, heir, 9, NOW + 30))
    assert [(d.body, d.delivery_count) for d in found] == [(b"0", 2), (b"1", 1)]


def test_a_full_disk_stores_nothing_of_the_batch(connect: Opener) -> None:
    engine = connect()
    engine.send(QUEUE, [Message(b"small")], NOW)
    (pages,) = engine._db.execute("PRAGMA page_count").fetchone()
    engine._db.execute(f"PRAGMA max_page_count = {pages + 20}")
    with pytest.raises(QueueFull, match="disk is full"):
        engine.send(QUEUE, [Message(b"x" * 50_000, session_id="s") for _ in range(10)], NOW)
    assert engine.stats(QUEUE, NOW).depth == 1
    engine._db.execute("PRAGMA max_page_count = 1000000")
    (result,) = engine.send(QUEUE, [Message(b"x" * 50_000, session_id="s")], NOW)
    assert result.sequence_number == 2


# Costs


@pytest.fixture
def busy(connect: Opener) -> SqliteEngine:
    """A queue where everything a call can meet is there."""
    engine = connect(deduplication_window=10.0)
    holder = engine.open_holder(QUEUE, ReceiverOptions(), NOW)
    engine.send(QUEUE, [Message(b"", session_id="s", time_to_live=100.0), Message(b"")], NOW)
    engine.claim(QUEUE, holder, 9, NOW)
    return engine


def test_every_statement_uses_an_index(busy: SqliteEngine) -> None:
    statements: set[str] = set()
    busy._db.set_trace_callback(statements.add)
    now, options = NOW, ReceiverOptions()
    for round_ in range(3):
        holder = busy.open_holder(QUEUE, options, now)
        sent = [
            Message(b"", session_id=session, deduplication_id=f"{round_}{n}", time_to_live=ttl)
            for n, (session, ttl) in enumerate(
                [("a", None), (None, None), ("b", 50.0), ("c", None)] * 3
            )
        ]
        busy.send(QUEUE, [*sent, sent[0], Message(b"", scheduled_at=at(now + 5))], now)
        found = deliveries(busy.claim(QUEUE, holder, 10, now))
        for action in SettlementAction:
            settle(busy, holder, found[:2], now, action=action, delay=2.0, halt=True)
            del found[:2]
        leases = [d.lease for d in found]
        for lease in leases[:1]:
            busy.set_state(QUEUE, holder, lease, b"state", now)
            busy.get_state(QUEUE, holder, lease, now)
            busy.set_state(QUEUE, holder, lease, None, now)
        busy.renew(QUEUE, holder, leases, now)
        busy.release(QUEUE, holder, leases[:1], now)
        grants = busy.claim(QUEUE, holder, 2, now)
        busy.unclaim(QUEUE, holder, grants, now)
        busy.accept(QUEUE, holder, None, now)
        busy.cancel_scheduled(QUEUE, [5], now)
        busy.peek(QUEUE, 5, 0, now)
        busy.peek_dead(QUEUE, 5, 0, now)
        busy.stats(QUEUE, now)
        busy.redrive(QUEUE, None, now)
        now += 40.0
        busy.advance(QUEUE, now)
        busy.close_holder(QUEUE, holder, now)
        busy.poll(QUEUE, now)
    busy.purge(QUEUE, now)
    busy.purge_dead(QUEUE, [1, 2, 3], now)
    busy.purge_dead(QUEUE, None, now)
    busy._db.set_trace_callback(None)
    plans = {
        statement: [row[3] for row in busy._db.execute(f"EXPLAIN QUERY PLAN {statement}")]
        for statement in statements
        if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)", statement)
    }
    assert len(plans) > 100
    for statement, plan in plans.items():
        for step in plan:
            assert not step.startswith("SCAN") or step == "SCAN CONSTANT ROW", (statement, plan)
            assert "AUTOMATIC" not in step, (statement, plan)
            assert "TEMP B-TREE" not in step, (statement, plan)


def steps(engine: SqliteEngine, call: Callable[[], Any]) -> int:
    """How many instructions of SQLite's machine a call takes, in hundreds."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return 0

    engine._db.set_progress_handler(tick, 100)
    call()
    engine._db.set_progress_handler(None, 100)
    return count


def test_costs_do_not_grow_with_what_lies_around(connect: Opener) -> None:
    engine = connect(lock_duration=1_000.0)
    holder = engine.open_holder(QUEUE, ReceiverOptions(), NOW)
    names = [f"s{n}" for n in range(20)]
    batch = [Message(b"", session_id=name, time_to_live=500.0) for name in names * 10]

    def work() -> None:
        engine.send(QUEUE, batch, NOW)
        for _ in range(4):
            found = deliveries(engine.claim(QUEUE, holder, 50, NOW))
            assert len(found) == 50
            assert settle(engine, holder, found[:40]) == [None] * 40
            engine.renew(QUEUE, holder, [d.lease for d in found[:5]], NOW)
            settle(engine, holder, found[40:], action=SettlementAction.ABANDON)
        engine.stats(QUEUE, NOW)
        engine.peek(QUEUE, 10, 100, NOW)
        engine.peek_dead(QUEUE, 10, 10, NOW)
        engine.poll(QUEUE, NOW)

    work()
    before = steps(engine, work)
    # Deep sessions, dead letters, scheduled messages, idle sessions: with state, with a lock, halted, delayed.
    for _ in range(30):
        engine.send(QUEUE, batch, NOW)
    other = engine.open_holder(QUEUE, ReceiverOptions(), NOW)
    idle = [Message(b"", session_id=f"idle{n}") for n in range(2_000)]
    engine.send(QUEUE, idle, NOW)
    engine.send(QUEUE, idle, NOW)
    engine.send(QUEUE, [Message(b"", scheduled_at=at(NOW + 90)) for _ in range(2_000)], NOW)
    while found := [
        d for d in deliveries(engine.claim(QUEUE, other, 400, NOW)) if d.session_id in names
    ]:
        settle(engine, other, found, action=SettlementAction.RELEASE)
        if len(found) == 400:
            break
    holding = deliveries(engine.claim(QUEUE, other, 1_500, NOW))
    for start, how in enumerate(
        (
            {"action": SettlementAction.DEAD_LETTER, "halt": True},
            {"action": SettlementAction.ABANDON, "delay": 400.0},
            {"action": SettlementAction.DEAD_LETTER},
        )
    ):
        settle(engine, other, holding[start::3], **how)
    after = steps(engine, work)
    print(before, after)
    assert before > 50
    assert after <= 1.2 * before


def test_the_log_stays_bounded_under_churn(connect: Opener, path: Path) -> None:
    engine = connect()
    holder = engine.open_holder(QUEUE, ReceiverOptions(), NOW)
    log, written, largest = Path(f"{path}-wal"), 0, 0
    while written < 3 * LOG_LIMIT:
        engine.send(QUEUE, [Message(b"x" * 200_000) for _ in range(20)], NOW)
        settle(engine, holder, deliveries(engine.claim(QUEUE, holder, 20, NOW)))
        written += 4_000_000
        largest = max(largest, log.stat().st_size)
    assert largest <= LOG_LIMIT
    assert path.stat().st_size < LOG_LIMIT


def test_a_log_that_a_reader_made_grow_is_emptied_after_it(connect: Opener, path: Path) -> None:
    engine = connect()
    log = Path(f"{path}-wal")
    reader = sqlite3.connect(path, isolation_level=None)
    try:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM messages").fetchone()
        while log.stat().st_size <= LOG_LIMIT:
            engine.send(QUEUE, [Message(b"x" * 250_000) for _ in range(40)], NOW)
        engine.send(QUEUE, [Message(b"")], NOW)
        assert log.stat().st_size > LOG_LIMIT
    finally:
        reader.close()
    engine.send(QUEUE, [Message(b"")], NOW)
    assert log.stat().st_size == 0


def test_a_log_that_somebody_moved_does_not_fail_a_commit(tmp_path: Path) -> None:
    path = tmp_path / "queues.db"
    with contextlib.closing(SqliteEngine(path, QueueOptions())) as engine:
        engine.open_queue(QUEUE, NOW)
        Path(f"{path}-wal").rename(tmp_path / "elsewhere")
        assert engine.send(QUEUE, [Message(b"")], NOW)[0].error is None
        assert engine.stats(QUEUE, NOW).depth == 1


# Opening and closing


@pytest.mark.parametrize(("word", "value"), [("full", 2), ("normal", 1)])
def test_durability_is_as_asked(connect: Opener, word: str, value: int) -> None:
    engine = connect(synchronous=word)
    assert engine._db.execute("PRAGMA synchronous").fetchone() == (value,)
    assert engine._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_full_is_the_default(path: Path) -> None:
    engine = SqliteEngine(path, QueueOptions())
    assert engine._db.execute("PRAGMA synchronous").fetchone() == (2,)
    engine.close()


def test_closing_twice_is_fine_and_using_it_afterwards_is_not(path: Path) -> None:
    engine = SqliteEngine(path, QueueOptions())
    engine.open_queue(QUEUE, NOW)
    engine.close()
    engine.close()
    for call in (
        lambda: engine.send(QUEUE, [Message(b"")], NOW),
        lambda: engine.stats(QUEUE, NOW),
        lambda: engine.poll(QUEUE, NOW),
    ):
        with pytest.raises(ProviderError, match="closed database"):
            call()


def test_an_old_library_is_refused() -> None:
    check_library((3, 37, 0))
    with pytest.raises(ConfigurationError, match=r"SQLite 3\.36\.0.*3\.37\.0 or later.*memory://"):
        check_library((3, 36, 0))


def make(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (
            [f"PRAGMA application_id = {APPLICATION_ID}", "PRAGMA user_version = 99"],
            rf"queues\.db has schema version 99, this version of queue-runtime reads {SCHEMA_VERSION}: install",
        ),
        (
            ["CREATE TABLE theirs (x)"],
            "another application's SQLite database .*1 tables.*another path",
        ),
        (["PRAGMA application_id = 7"], r"application id 0x7.*expected 0x51525431"),
        (["PRAGMA user_version = 1"], "another application's"),
    ],
)
def test_a_file_of_something_else_is_left_alone(
    tmp_path: Path, statements: list[str], message: str
) -> None:
    path = tmp_path / "queues.db"
    make(path, *statements)
    content = path.read_bytes()
    with pytest.raises(ConfigurationError, match=message):
        SqliteEngine(path, QueueOptions())
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["queues.db"]


def test_a_file_without_a_log_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"journal mode is 'memory'.*memory://"):
        SqliteEngine(":memory:", QueueOptions())


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary, " * 1_000)
    with pytest.raises(ProviderError, match="not an SQLite database: check the path") as caught:
        SqliteEngine(path, QueueOptions())
    assert caught.value.code == "SQLITE_NOTADB"


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "queues.db"):
        with pytest.raises(ConnectionFailed, match="check that the directory exists"):
            SqliteEngine(path, QueueOptions())


@pytest.mark.parametrize("intact", [1, 30])
def test_a_damaged_file(path: Path, tmp_path: Path, connect: Opener, intact: int) -> None:
    engine = connect()
    engine.send(QUEUE, [Message(b"x" * 3_000, session_id="s") for _ in range(200)], NOW)
    engine.close()
    damaged = tmp_path / "damaged.db"
    content, pages = path.read_bytes(), intact * 4_096
    damaged.write_bytes(content[:pages] + b"\xff" * (len(content) - pages))
    with pytest.raises(ProviderError, match="damaged: restore it from a backup") as caught:
        look_at(damaged)
    assert caught.value.code.startswith("SQLITE_CORRUPT")


@pytest.mark.parametrize("lock", ["BEGIN EXCLUSIVE", "BEGIN; SELECT count(*) FROM sqlite_master"])
def test_a_new_file_that_somebody_keeps_locked(tmp_path: Path, lock: str) -> None:
    path = tmp_path / "queues.db"
    path.touch()
    db = sqlite3.connect(path, isolation_level=None)
    try:
        for statement in lock.split(";"):
            db.execute(statement).fetchall()
        with pytest.raises(Throttled, match="busy_timeout"):
            SqliteEngine(path, QueueOptions(), busy_timeout=0.02)
    finally:
        db.close()
    SqliteEngine(path, QueueOptions()).close()


def test_a_failed_creation_leaves_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "queues.db"
    make(path, "PRAGMA journal_mode = WAL")
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(Throttled):
            open_database(str(path), "full", 0.0)
    finally:
        db.close()
    assert tables_of(path) == 0
    open_database(str(path), "full", 0.0).close()
    assert tables_of(path) > 5


def look_at(path: Path) -> None:
    with contextlib.closing(SqliteEngine(path, QueueOptions())) as engine:
        engine.open_queue(QUEUE, NOW)
        engine.peek(QUEUE, 1_000, 0, NOW)


def tables_of(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
