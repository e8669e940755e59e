"""The checker against histories made by hand: what is allowed passes, every kind of violation is caught."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest

from queue_runtime.abc import Lease
from queue_runtime.errors import SerializationError
from queue_runtime.messages import (
    DeadLetterInfo,
    Delivery,
    Message,
    MessageId,
    MessageState,
    PeekedMessage,
    SessionId,
    SettlementAction,
)
from queue_runtime.testing.history import (
    Completed,
    DeadLettered,
    Ended,
    HandleEnded,
    HandleStarted,
    History,
    InvariantViolated,
    ProcessEnded,
    ProcessPaused,
    Record,
    Recorder,
    Redriven,
    Report,
    Sent,
    check,
)


class Story:
    """Records written in the order they are told, one time unit apart."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._clock = count()

    @property
    def now(self) -> float:
        return float(next(self._clock))

    def send(self, *messages: str, session: str | None = "s", acknowledged: bool = True) -> Story:
        for message in messages:
            number = int(message.rstrip("abc"))
            self.records.append(Sent(session, message, number, False, self.now))
            if acknowledged:
                self.records.append(Sent(session, message, number, True, self.now))
        return self

    def start(
        self, message: str, process: str = "p", session: str | None = "s", token: int | None = None
    ) -> Story:
        self.records.append(HandleStarted(process, session, message, self.now, token))
        return self

    def end(
        self,
        message: str,
        process: str = "p",
        session: str | None = "s",
        outcome: Ended = Ended.COMPLETE,
    ) -> Story:
        self.records.append(HandleEnded(process, session, message, self.now, outcome))
        return self

    def complete(self, message: str, process: str = "p", session: str | None = "s") -> Story:
        self.records.append(Completed(process, session, message, self.now))
        return self

    def handle(self, *messages: str, process: str = "p", session: str | None = "s") -> Story:
        for message in messages:
            self.start(message, process, session).end(message, process, session)
            self.complete(message, process, session)
        return self

    def fail(
        self,
        message: str,
        process: str = "p",
        session: str | None = "s",
        outcome: Ended = Ended.RETRY,
    ) -> Story:
        return self.start(message, process, session).end(message, process, session, outcome)

    def dead(self, message: str, process: str = "p", session: str | None = "s") -> Story:
        self.records.append(DeadLettered(process, session, message, self.now))
        return self

    def found(self, *messages: str, session: str | None = "s") -> Story:
        for message in messages:
            self.records.append(DeadLettered("operator", session, message, self.now, found=True))
        return self

    def redrive(self, *messages: str, session: str | None = "s") -> Story:
        for message in messages:
            self.records.append(Redriven("operator", session, message, self.now))
        return self

    def killed(self, process: str) -> Story:
        self.records.append(ProcessEnded(process, self.now))
        return self

    def paused(self, process: str, until: float | None = None) -> Story:
        self.records.append(ProcessPaused(process, self.now, until))
        return self

    def strict(self) -> Report:
        return check(self.records)

    def pipelined(self) -> Report:
        return check(self.records, mode="pipelined")


def kinds(report: Report) -> dict[str, int]:
    """The counts that are not zero."""
    counts = {
        "lost": report.lost,
        "never_sent": report.never_sent,
        "gaps": report.gaps,
        "order": report.order_violations,
        "overlaps": report.overlaps,
    }
    return {kind: number for kind, number in counts.items() if number}


# --- what is allowed ---------------------------------------------------------------------------------------


def test_nothing_happened() -> None:
    report = check([])
    assert report.ok
    assert report.sent == report.started == 0


def test_a_clean_run() -> None:
    story = Story().send("1", "2", "3").send("1", session="t").handle("1", "2")
    report = story.handle("1", session="t").handle("3").strict()
    assert report.ok
    assert (report.sent, report.acknowledged, report.started, report.completed) == (4, 4, 4, 4)
    assert (report.sessions, report.duplicates, report.redeliveries, report.unsettled) == (
        2,
        0,
        0,
        0,
    )
    report.raise_for_violations()


def test_sessions_are_independent() -> None:
    story = Story().send("1", "2").send("1", "2", session="t")
    story.start("1").start("1", session="t").end("1", session="t").complete("1", session="t")
    story.handle("2", session="t").end("1").complete("1").handle("2")
    assert story.strict().ok


def test_a_retry_resumes_at_the_failed_message() -> None:
    report = (
        Story().send("1", "2").fail("1").fail("1", outcome=Ended.RAISED).handle("1", "2").strict()
    )
    assert report.ok
    assert (report.redeliveries, report.duplicates) == (2, 0)


def test_dead_lettering_lets_the_next_one_go() -> None:
    story = Story().send("1", "2").fail("1", outcome=Ended.DEAD_LETTER).dead("1").handle("2")
    report = story.found("1").strict()
    assert report.ok
    assert report.dead_lettered == 1


def test_a_dead_letter_found_at_the_end_was_moved_after_its_last_start() -> None:
    assert Story().send("1", "2").fail("1").fail("1").handle("2").found("1").strict().ok


def test_a_message_that_expired_unseen_is_no_gap() -> None:
    assert Story().send("1", "2").handle("2").found("1").strict().ok


def test_settlement_unconfirmed_because_the_process_was_killed() -> None:
    story = (
        Story().send("1", "2").start("1", "a").end("1", "a").killed("a").handle("2", process="b")
    )
    report = story.strict()
    assert report.ok
    assert report.unsettled == 1
    assert (report.completed, report.done) == (report.acknowledged - 1, report.acknowledged)


def test_settlement_confirmed_late_to_a_process_that_lost_the_session() -> None:
    story = Story().send("1", "2").start("1", "a").end("1", "a")
    assert story.start("2", "b").complete("1", "a").end("2", "b").complete("2", "b").strict().ok


def test_redelivery_after_a_kill_before_the_settlement() -> None:
    story = Story().send("1", "2").start("1", "a").end("1", "a").killed("a")
    report = story.handle("1", "2", process="b").strict()
    assert report.ok
    assert (report.duplicates, report.unsettled) == (1, 0)


def test_killed_while_handling() -> None:
    assert Story().send("1").start("1", "a").killed("a").handle("1", process="b").strict().ok


def test_a_process_that_vanished_unannounced_ran_until_its_last_record() -> None:
    story = (
        Story()
        .send("1")
        .send("1", session="t")
        .start("1", "a")
        .handle("1", process="a", session="t")
    )
    assert story.handle("1", process="b").strict().ok


def test_a_paused_handler_cancelled_after_the_takeover() -> None:
    story = Story().send("1").start("1", "a", token=1).paused("a").start("1", "b", token=2)
    story.end("1", "a", outcome=Ended.CANCELLED).end("1", "b").complete("1", "b")
    assert story.strict().ok


def test_a_process_killed_while_paused() -> None:
    story = Story().send("1").start("1", "a").paused("a").start("1", "b").killed("a")
    assert story.end("1", "b").complete("1", "b").strict().ok


def test_redriven_messages_may_come_after_later_ones() -> None:
    story = Story().send("1", "2", "3").fail("1", outcome=Ended.DEAD_LETTER).dead("1").handle("2")
    report = story.redrive("1").handle("1", "3").strict()
    assert report.ok
    assert (report.redriven, report.duplicates) == (1, 0)


def test_a_redriven_message_holds_back_only_those_redriven_after_it() -> None:
    story = Story().send("1", "2", "3").found("1", "2").redrive("1", "2")
    story.start("3").end("3").complete("3").handle("1", "2")
    assert story.strict().ok
    later = Story().send("1", "2").found("1", "2").redrive("2").redrive("1").handle("2", "1")
    assert later.strict().ok


def test_redriven_twice_and_dead_again() -> None:
    story = (
        Story().send("1", "2").fail("1").handle("2").found("1").redrive("1").fail("1").found("1")
    )
    report = story.redrive("1").fail("1").found("1").strict()
    assert report.ok
    assert report.redriven == 2


def test_a_start_that_races_with_the_record_of_its_redrive() -> None:
    story = Story().send("1", "2").found("1", "2").start("1").redrive("1", "2")
    assert story.end("1").complete("1").handle("2").strict().ok


def test_an_unacknowledged_message_may_be_there_or_not() -> None:
    story = Story().send("1").send("2", acknowledged=False).send("3").handle("1", "3")
    assert story.strict().ok
    assert Story().send("1", acknowledged=False).send("2").handle("2", "1").strict().ok


def test_a_send_repeated_after_a_lost_acknowledgement() -> None:
    story = Story().send("1", acknowledged=False).send("1", "2").handle("1", "2", "1")
    report = story.strict()
    assert report.ok
    assert (report.sent, report.duplicates) == (2, 1)


def test_sessionless_messages_have_no_order_and_may_overlap() -> None:
    story = Story().send("1", "2", session=None).start("2", session=None).start("1", session=None)
    story.end("1", session=None).complete("1", session=None)
    assert story.end("2", session=None).complete("2", session=None).strict().ok


def test_pipelined_runs_ahead_of_the_settlement() -> None:
    story = (
        Story().send("1", "2").start("1").end("1").start("2").end("2").complete("1").complete("2")
    )
    assert story.pipelined().ok
    assert kinds(story.strict()) == {"order": 1}


def test_pipelined_redelivery_of_handled_messages() -> None:
    story = (
        Story()
        .send("1", "2")
        .start("1", "a")
        .end("1", "a")
        .start("2", "a")
        .end("2", "a")
        .killed("a")
    )
    report = story.handle("1", "2", process="b").pipelined()
    assert report.ok
    assert report.duplicates == 2


# --- I1 ------------------------------------------------------------------------------------------------------


def test_lost_without_a_trace() -> None:
    report = Story().send("1", "2").handle("1").strict()
    assert kinds(report) == {"lost": 1}
    assert report.violations[0].message == "2"


def test_lost_after_a_failed_handler() -> None:
    assert kinds(Story().send("1").fail("1").strict()) == {"lost": 1}


def test_lost_on_the_way_to_the_dead_letter_queue() -> None:
    assert kinds(Story().send("1").fail("1", outcome=Ended.DEAD_LETTER).strict()) == {"lost": 1}


def test_lost_without_a_session() -> None:
    assert kinds(Story().send("1", session=None).strict()) == {"lost": 1}


def test_lost_after_a_redrive() -> None:
    story = Story().send("1").fail("1", outcome=Ended.DEAD_LETTER).dead("1").redrive("1")
    report = story.strict()
    assert kinds(report) == {"lost": 1}
    assert "redriven" in report.violations[0].explanation


def test_completed_before_it_was_handled() -> None:
    story = Story().send("1").complete("1").start("1").killed("p")
    report = story.strict()
    assert kinds(report) == {"lost": 1}
    assert "no handler" in report.violations[0].explanation


def test_never_sent() -> None:
    report = Story().send("1").handle("1", "9").handle("7", session=None).strict()
    assert kinds(report) == {"never_sent": 2}


# --- I2 ------------------------------------------------------------------------------------------------------


def test_a_gap() -> None:
    report = Story().send("1", "2", "3").handle("1", "3").strict()
    assert kinds(report) == {"lost": 1, "gaps": 1}


def test_first_starts_out_of_order() -> None:
    report = Story().send("1", "2", "3").handle("2", "1", "3").strict()
    assert kinds(report) == {"order": 1}
    violation = report.violations[0]
    assert (violation.invariant, violation.session, violation.message) == ("I2", "s", "2")


def test_the_next_one_started_while_the_failed_one_waits() -> None:
    story = Story().send("1", "2", "3").fail("1").handle("2").handle("1").handle("3")
    assert kinds(story.strict()) == {"order": 1}
    assert kinds(story.pipelined()) == {"order": 1}


def test_redelivery_skips_the_lowest_unsettled() -> None:
    story = Story().send("1", "2").start("1", "a").end("1", "a").start("2", "a").killed("a")
    report = story.handle("2", "1", process="b").strict()
    assert kinds(report) == {"order": 2}


def test_the_next_one_started_before_the_settlement_was_confirmed() -> None:
    story = (
        Story().send("1", "2").start("1").end("1").start("2").complete("1").end("2").complete("2")
    )
    report = story.strict()
    assert kinds(report) == {"order": 1}
    assert "confirmed" in report.violations[0].explanation


def test_a_failed_message_overtaken_and_dead_lettered_by_word_later() -> None:
    story = Story().send("1", "2").fail("1").handle("2")
    story.fail("1", outcome=Ended.DEAD_LETTER).dead("1")
    assert kinds(story.strict()) == {"order": 1}


def test_redriven_out_of_order() -> None:
    story = Story().send("1", "2").found("1", "2").redrive("1", "2").handle("2", "1")
    assert kinds(story.strict()) == {"order": 1}


def test_a_whole_session_reversed() -> None:
    messages = [str(number) for number in range(1, 6)]
    assert kinds(Story().send(*messages).handle(*reversed(messages)).strict()) == {"order": 4}


# --- I3 ------------------------------------------------------------------------------------------------------


def test_two_processes_at_once() -> None:
    story = Story().send("1").start("1", "a").start("1", "b").end("1", "a").end("1", "b")
    report = story.complete("1", "b").strict()
    assert kinds(report) == {"overlaps": 1}
    assert "in a" in report.violations[0].explanation


def test_two_messages_at_once_in_one_process() -> None:
    story = (
        Story().send("1", "2").start("1").start("2").end("1").end("2").complete("1").complete("2")
    )
    assert kinds(story.strict()) == {"order": 1, "overlaps": 1}


def test_a_short_turn_inside_a_long_one() -> None:
    story = (
        Story()
        .send("1")
        .start("1", "a")
        .start("1", "b")
        .end("1", "b")
        .start("1", "c")
        .end("1", "c")
    )
    assert kinds(story.end("1", "a").complete("1", "a").strict()) == {"overlaps": 2}


def test_a_killed_process_is_not_alive_before_its_end() -> None:
    story = (
        Story()
        .send("1")
        .start("1", "a")
        .start("1", "b")
        .killed("a")
        .end("1", "b")
        .complete("1", "b")
    )
    assert kinds(story.strict()) == {"overlaps": 1}


def test_a_paused_handler_that_finished_all_the_same() -> None:
    story = Story().send("1").start("1", "a").paused("a").start("1", "b").end("1", "a")
    assert kinds(story.end("1", "b").complete("1", "b").strict()) == {"overlaps": 1}


def test_the_last_step_of_a_paused_handler() -> None:
    story = Story().send("1").start("1", "a", token=1).paused("a", until=1e6)
    story.start("1", "b", token=2).end("1", "b").complete("1", "b").end("1", "a")
    assert story.strict().ok
    assert kinds(story.complete("1", "a").strict()) == {"overlaps": 1}


def test_more_than_the_last_step_of_a_paused_handler() -> None:
    story = Story().send("1").start("1", "a", token=1).paused("a", until=-1.0)
    story.start("1", "b", token=2).end("1", "b").complete("1", "b").end("1", "a")
    assert kinds(story.strict()) == {"overlaps": 1}


def test_a_superseded_token() -> None:
    story = Story().send("1").start("1", "a", token=2).end("1", "a", outcome=Ended.RETRY)
    story.start("1", "b", token=1).end("1", "b").complete("1", "b")
    report = story.strict()
    assert kinds(report) == {"overlaps": 1}
    assert "superseded" in report.violations[0].explanation


def test_equal_times_keep_the_order_of_the_record() -> None:
    good: list[Record] = [
        Sent("s", "1", 1, True, 0.0),
        Sent("s", "2", 2, True, 0.0),
        HandleStarted("a", "s", "1", 0.0),
        HandleEnded("a", "s", "1", 0.0),
        Completed("a", "s", "1", 0.0),
        HandleStarted("a", "s", "2", 0.0),
        HandleEnded("a", "s", "2", 0.0),
        Completed("a", "s", "2", 0.0),
    ]
    assert check(good).ok
    bad = [*good[:3], good[5], good[3], good[4], *good[6:]]
    assert kinds(check(bad)) == {"order": 1, "overlaps": 1}


# --- the report ----------------------------------------------------------------------------------------------


def test_the_report_reads_well_and_is_bounded() -> None:
    messages = [str(number) for number in range(1, 51)]
    report = check(Story().send(*messages).handle("50").records, limit=3)
    assert (report.lost, report.gaps) == (49, 49)
    assert [violation.invariant for violation in report.violations] == ["I1"] * 3 + ["I2"] * 3
    text = str(report)
    assert text.startswith("INVARIANTS VIOLATED")
    assert "lost 49" in text
    assert "message '1' (number 1) of session 's'" in text
    assert "and 92 more" in text
    with pytest.raises(InvariantViolated, match="gaps 49"):
        report.raise_for_violations()


def test_hostile_ids_are_escaped_in_the_text() -> None:
    records = [Sent("s\u202e\x1b[31m", "m\n", 1, True, 0.0)]
    text = str(check(records))
    assert "\\u202e\\x1b[31m" in text
    assert "m\\n" in text
    assert "\x1b" not in text


def test_digests_differ_with_the_history_only() -> None:
    one = Story().send("1").handle("1")
    same = Story().send("1").handle("1")
    other = Story().send("1").fail("1").handle("1")
    assert one.strict().digest() == same.strict().digest()
    assert one.strict().digest() != other.strict().digest()
    assert one.strict().digest() != one.pipelined().digest()


def test_digest_is_the_same_in_another_process() -> None:
    program = (
        "from queue_runtime.testing.history import *\n"
        "print(check([Sent('s', '1', 1, True, 0.0), HandleStarted('p', 's', '1', 0.5)]).digest())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    here = check([Sent("s", "1", 1, True, 0.0), HandleStarted("p", "s", "1", 0.5)]).digest()
    assert printed.stdout.strip() == here


# --- recording -----------------------------------------------------------------------------------------------


def delivery(message_id: str, session: str | None = "s", token: int = 1) -> Delivery:
    session_id = None if session is None else SessionId(session)
    now = datetime.now(UTC)
    return Delivery(
        Message(b"", session_id=session_id),
        MessageId(message_id),
        "receipt",
        Lease(session_id, token, 1.0, now),
        1,
        now,
    )


def peeked(message_id: str, session: str | None = "s") -> PeekedMessage:
    session_id = None if session is None else SessionId(session)
    now = datetime.now(UTC)
    return PeekedMessage(
        Message(b"", session_id=session_id),
        MessageId(message_id),
        1,
        now,
        1,
        MessageState.DEAD_LETTERED,
        DeadLetterInfo("r", "", now, None, 1),
    )


def record_everything(recorder: Recorder) -> None:
    recorder.sending("s", "1", 1)
    recorder.sent("s", "1", 1)
    recorder.started(delivery("1", token=7))
    recorder.ended(delivery("1"), Ended.RETRY)
    recorder.settled(delivery("1"), SettlementAction.ABANDON)
    recorder.started(delivery("1"))
    recorder.ended(delivery("1"), Ended.DEAD_LETTER)
    recorder.settled(delivery("1"), SettlementAction.DEAD_LETTER)
    recorder.found_dead(peeked("1"))
    recorder.redriven(peeked("1"))
    recorder.started(delivery("1"))
    recorder.ended(delivery("1"))
    recorder.settled(delivery("1"), SettlementAction.COMPLETE)
    recorder.process_paused("q")
    recorder.process_ended("q")


def ticking() -> Iterator[float]:
    return map(float, count())


def test_recorder_writes_down_what_it_is_told() -> None:
    clock = ticking()
    recorder = Recorder("p", clock=lambda: next(clock))
    record_everything(recorder)
    assert recorder.history().records == (
        Sent("s", "1", 1, False, 0.0),
        Sent("s", "1", 1, True, 1.0),
        HandleStarted("p", "s", "1", 2.0, 7, 1),
        HandleEnded("p", "s", "1", 3.0, Ended.RETRY),
        HandleStarted("p", "s", "1", 4.0, 1, 1),
        HandleEnded("p", "s", "1", 5.0, Ended.DEAD_LETTER),
        DeadLettered("p", "s", "1", 6.0),
        DeadLettered("p", "s", "1", 7.0, found=True),
        Redriven("p", "s", "1", 8.0),
        HandleStarted("p", "s", "1", 9.0, 1, 1),
        HandleEnded("p", "s", "1", 10.0),
        Completed("p", "s", "1", 11.0),
        ProcessPaused("q", 12.0),
        ProcessEnded("q", 13.0),
    )
    assert len(recorder) == len(recorder.history()) == 14


def test_files_of_several_processes_are_merged(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("producer.jsonl", "a.jsonl", "b.jsonl")]
    clock = ticking()
    with (
        Recorder("producer", path=paths[0], clock=lambda: next(clock)) as producer,
        Recorder("a", path=paths[1], clock=lambda: next(clock)) as a,
        Recorder("b", path=paths[2], clock=lambda: next(clock)) as b,
    ):
        producer.sent("s", "1", 1)
        producer.sent("s", "2", 2)
        for recorder, number in ((a, "1"), (b, "2")):
            recorder.started(delivery(number))
            recorder.ended(delivery(number))
            recorder.settled(delivery(number), SettlementAction.COMPLETE)
        merged = History.merge(recorder.history() for recorder in (b, a, producer))
    loaded = History.load(paths)
    assert loaded == merged
    assert loaded.digest() == merged.digest()
    assert check(loaded).ok


def test_dump_and_load_give_the_same_history(tmp_path: Path) -> None:
    recorder = Recorder("p")
    record_everything(recorder)
    recorder.history().dump(tmp_path / "history.jsonl")
    assert History.load([tmp_path / "history.jsonl"]) == recorder.history()


def test_the_torn_last_line_of_a_killed_process_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "killed.jsonl"
    with Recorder("p", path=path) as recorder:
        recorder.sent("s", "1", 1)
        recorder.sent("s", "2", 2)
    path.write_bytes(path.read_bytes()[:-5])
    assert [record.message for record in History.load([path]) if isinstance(record, Sent)] == ["1"]


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b"1", b"{}", b'{"record":"sent"}', b'{"record":"nothing"}', b"\xff", b""],
)
def test_a_file_that_is_no_history(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "bad.jsonl"
    good = json.dumps({"record": "process_ended", "process": "p", "at": 1.0}).encode()
    path.write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    with pytest.raises(SerializationError) as caught:
        History.load([path])
    assert f"{path}:2" in str(caught.value)


# --- many records --------------------------------------------------------------------------------------------


def random_history(seed: int, sessions: int, messages: int) -> list[Record]:
    """A legal history: random sessions, failures, kills and unconfirmed settlements."""
    chance = random.Random(seed)
    story = Story()
    waiting: dict[str, list[str]] = {}
    for name in (f"s{number}" for number in range(sessions)):
        waiting[name] = [str(number) for number in range(1, messages + 1)]
        story.send(*waiting[name], session=name)
    processes = count()
    process = f"p{next(processes)}"
    while waiting:
        session = chance.choice(list(waiting))
        message = waiting[session][0]
        story.start(message, process, session)
        fate = chance.random()
        if fate < 0.1:
            story.end(message, process, session, Ended.RETRY)
            continue
        if fate < 0.15:
            story.killed(process)
            process = f"p{next(processes)}"
            continue
        if fate < 0.2:
            story.end(message, process, session, Ended.DEAD_LETTER).dead(message, process, session)
        else:
            story.end(message, process, session)
            if fate < 0.25:
                story.killed(process)
                process = f"p{next(processes)}"
            else:
                story.complete(message, process, session)
        waiting[session].pop(0)
        if not waiting[session]:
            del waiting[session]
    return story.records


@pytest.mark.parametrize("seed", range(20))
def test_random_legal_histories_pass_and_shuffled_starts_do_not(seed: int) -> None:
    records = random_history(seed, sessions=5, messages=20)
    report = check(records)
    assert report.ok, str(report)
    assert report.acknowledged == 100
    chance = random.Random(seed)
    firsts = [
        (index, record)
        for index, record in enumerate(records)
        if isinstance(record, HandleStarted) and record.message != "20"
    ]
    index, start = chance.choice(firsts)
    later = str(int(start.message) + 1)
    records.insert(index, HandleEnded("intruder", start.session, later, start.at))
    records.insert(index, HandleStarted("intruder", start.session, later, start.at))
    assert check(records).order_violations >= 1


def test_the_cost_is_linear() -> None:
    def cost(messages: int) -> float:
        records = random_history(1, sessions=1, messages=messages)
        history = History(records)
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            assert check(history).ok
            best = min(best, time.process_time() - began)
        return best / len(records)

    assert cost(8_000) < 5 * cost(1_000)
