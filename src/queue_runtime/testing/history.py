"""The one checker of the invariants I1 to I3 (and, re-exported, the records it reads).

I1
    What the broker acknowledged to the sender ends completed or in the dead-letter queue.
I2
    Per session, first starts come in send order without gaps; a redelivery resumes at the lowest unsettled one.
I3
    Never two handlers of one session at once, over all processes.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from heapq import heappop, heappush
from operator import attrgetter
from typing import Final, TypeAlias, final

from .records import (
    Completed,
    DeadLettered,
    Ended,
    HandleEnded,
    HandleStarted,
    History,
    ProcessEnded,
    ProcessPaused,
    Record,
    Recorder,
    Redriven,
    Sent,
)
from .report import Invariant, InvariantViolated, Mode, Report, Violation

__all__ = [
    "Completed",
    "DeadLettered",
    "Ended",
    "HandleEnded",
    "HandleStarted",
    "History",
    "InvariantViolated",
    "ProcessEnded",
    "ProcessPaused",
    "Record",
    "Recorder",
    "Redriven",
    "Report",
    "Sent",
    "Violation",
    "check",
]


_SETTLING: Final = (Ended.COMPLETE, Ended.DEAD_LETTER)
_NEVER: Final = -1


_LAST_STEP: Final = 0.25
"""Seconds after a process was continued in which a step that was scheduled before it stopped may still end."""


class _Track:
    """What the history says about one message. Positions are indexes into the sorted records."""

    __slots__ = (
        "acknowledgements",
        "attempts",
        "buried",
        "completed",
        "confirmed",
        "confirmed_to",
        "dead",
        "finished",
        "found_after",
        "known",
        "last_dead",
        "last_redriven",
        "last_start",
        "message",
        "number",
        "redrives",
        "session",
        "settling_end",
        "started",
        "starts",
        "where",
    )

    def __init__(self, session: str | None, message: str, where: int) -> None:
        self.session = session
        self.message = message
        self.where = where
        self.known = False
        self.number = 0
        self.attempts = 0
        self.acknowledgements = 0
        self.starts = 0
        self.started: list[int] = []
        self.buried: list[int] = []  # confirmations, not findings
        self.last_start = _NEVER
        self.settling_end = _NEVER
        self.finished = False
        self.completed = False
        self.confirmed = _NEVER
        self.confirmed_to = ""
        self.dead = 0
        self.last_dead = _NEVER
        self.found_after: tuple[int, ...] = ()
        self.redrives = 0
        self.last_redriven = _NEVER

    @property
    def name(self) -> str:
        number = f" (number {self.number})" if self.known else ""
        return f"{self.message!a}{number} of session {self.session!a}"

    @property
    def copies(self) -> int:
        """How many copies the broker may hold: an unacknowledged attempt may have been stored too."""
        return max(self.attempts, self.acknowledgements)

    @property
    def ends_dead(self) -> bool:
        """Whether the dead-letter queue is where the message was last."""
        return self.dead > self.redrives or self.last_dead > self.last_redriven


@final
class _Interval:
    """One handler's turn, in positions; ``end`` is ``None`` until known."""

    __slots__ = ("end", "outcome", "position", "start")

    def __init__(self, position: int, start: HandleStarted) -> None:
        self.position = position
        self.start = start
        self.end: int | None = None
        self.outcome: Ended | None = None


_Key: TypeAlias = tuple[str | None, str]
_ConsumerRecord: TypeAlias = HandleStarted | HandleEnded | Completed | DeadLettered | Redriven


@final
class _Checker:
    def __init__(self, history: History, mode: Mode, limit: int) -> None:
        self.records = history.records
        self.mode = mode
        self.limit = limit
        self.tracks: dict[_Key, _Track] = {}
        self.by_session: defaultdict[str, list[int]] = defaultdict(list)
        self.intervals: defaultdict[str, list[_Interval]] = defaultdict(list)
        self.pauses: defaultdict[str, list[int]] = defaultdict(list)
        self.running: dict[tuple[str, str | None, str], list[_Interval]] = {}
        self.last_of: dict[str, int] = {}
        self.gone: dict[str, int] = {}
        self.violations: defaultdict[Invariant, list[tuple[int, Violation]]] = defaultdict(list)
        self.duplicates = 0
        self.counts: defaultdict[str, int] = defaultdict(int)

    def violate(
        self, invariant: Invariant, kind: str, track: _Track, where: int, explanation: str
    ) -> None:
        self.counts[kind] += 1
        found = self.violations[invariant]
        # Sessions are walked one after the other: keep more than needed, sort, then cut.
        if len(found) < 1_000:
            at = self.records[where].at
            found.append(
                (where, Violation(invariant, kind, track.session, track.message, at, explanation))
            )

    def track(self, session: str | None, message: str, where: int) -> _Track:
        key = (session, message)
        track = self.tracks.get(key)
        if track is None:
            track = self.tracks[key] = _Track(session, message, where)
        return track

    def read(self) -> None:
        """One pass over everything: what became of each message, which handler ran from when to when."""
        for where, record in enumerate(self.records):
            if isinstance(record, Sent):
                track = self.track(record.session, record.message, where)
                if not track.known or record.number < track.number:
                    track.known, track.number = True, record.number
                track.acknowledgements += record.acknowledged
                track.attempts += not record.acknowledged
            elif isinstance(record, ProcessEnded):
                self.gone[record.process] = where
            elif isinstance(record, ProcessPaused):
                self.pauses[record.process].append(where)
            else:
                self.last_of[record.process] = where
                if record.session is not None:
                    self.by_session[record.session].append(where)
                self.read_consumer(record, self.track(record.session, record.message, where), where)
        for open_intervals in self.running.values():
            for interval in open_intervals:
                process = interval.start.process
                # A process that vanished without a word ran its handlers at least until its last one.
                end = self.gone.get(process, self.last_of[process])
                interval.end = max(end, interval.position)

    def read_consumer(self, record: _ConsumerRecord, track: _Track, where: int) -> None:
        key = (record.process, record.session, record.message)
        if isinstance(record, HandleStarted):
            track.starts += 1
            track.started.append(where)
            track.last_start = where
            if track.settling_end > track.last_redriven:
                self.duplicates += 1
            interval = _Interval(where, record)
            self.running.setdefault(key, []).append(interval)
            if record.session is not None:
                self.intervals[record.session].append(interval)
        elif isinstance(record, HandleEnded):
            open_intervals = self.running.get(key)
            if open_intervals:
                interval = open_intervals.pop(0)
                interval.end, interval.outcome = where, record.outcome
            if record.outcome in _SETTLING:
                track.settling_end = where
                track.finished = track.finished or record.outcome is Ended.COMPLETE
        elif isinstance(record, Completed):
            track.completed = True
            track.confirmed, track.confirmed_to = where, record.process
        elif isinstance(record, DeadLettered):
            self.read_dead_letter(record, track, where)
        else:
            track.redrives += 1
            track.last_redriven = where

    def read_dead_letter(self, record: DeadLettered, track: _Track, where: int) -> None:
        if record.found:
            if track.last_dead > max(track.last_start, track.last_redriven):
                return  # its confirmation is in the history already
            track.found_after += (track.last_start,)
        else:
            track.buried.append(where)
            track.confirmed, track.confirmed_to = where, record.process
        track.dead += 1
        track.last_dead = where

    def check_nothing_lost(self) -> None:
        for track in self.tracks.values():
            if not track.known:
                self.violate(
                    "I1", "never_sent", track, track.where, f"message {track.name} was never sent"
                )
                continue
            if track.completed and not track.finished:
                self.violate(
                    "I1",
                    "lost",
                    track,
                    track.confirmed,
                    f"message {track.name} was completed, but no handler had finished it",
                )
            if not track.acknowledgements or track.completed or track.ends_dead:
                continue
            if track.redrives and track.settling_end < track.last_redriven:
                end = "was redriven"
            elif track.finished:
                self.counts["unsettled"] += 1
                continue
            else:
                end = "was acknowledged to its sender"
            self.violate(
                "I1",
                "lost",
                track,
                max(track.where, track.last_start),
                f"message {track.name} {end}, and is neither completed nor dead-lettered "
                f"(started {track.starts} times)",
            )

    def check_gaps(self) -> None:
        highest: dict[str, _Track] = {}
        for track in self.tracks.values():
            if track.session is not None and track.starts and track.known:
                best = highest.setdefault(track.session, track)
                if track.number > best.number:
                    highest[track.session] = track
        for track in self.tracks.values():
            if track.session is None or track.starts or track.dead or not track.acknowledgements:
                continue
            later = highest.get(track.session)
            if later is not None and later.number > track.number:
                self.violate(
                    "I2",
                    "gap",
                    track,
                    later.last_start,
                    f"message {track.name} was never started, although the later {later.name} was",
                )

    def check_exclusion(self, session: str) -> None:
        longest: _Interval | None = None
        longest_end = _NEVER
        newest: HandleStarted | None = None
        for interval in self.intervals[session]:
            start, end = interval.start, interval.end
            track = self.tracks[session, start.message]
            assert end is not None, "read() closes every interval"
            paused = self.paused_in(interval, end)
            if longest is not None and interval.position < longest_end:
                other = longest.start
                self.violate(
                    "I3",
                    "overlap",
                    track,
                    interval.position,
                    f"message {track.name} was started in {start.process} (token {start.token}) while "
                    f"{other.message!a} was being handled in {other.process} (token {other.token}, "
                    f"from {other.at:.6f} to {self.records[longest_end].at:.6f})",
                )
            elif newest is not None and _token(start) < _token(newest):
                self.violate(
                    "I3",
                    "overlap",
                    track,
                    interval.position,
                    f"message {track.name} was started in {start.process} under token {start.token}, "
                    f"superseded by token {newest.token} of {newest.process} at {newest.at:.6f}",
                )
            if start.token is not None and (newest is None or start.token > _token(newest)):
                newest = start
            end = paused if paused is not None else end
            if end > longest_end:
                longest, longest_end = interval, end

    def paused_in(self, interval: _Interval, end: int) -> int | None:
        """Where the handler stood still for good: paused, and cancelled (killed, at its last step) when it went on."""
        cancelled = interval.outcome in (None, Ended.CANCELLED)
        start = interval.start
        for where in self.pauses.get(start.process, ()):
            if interval.position < where < end and (cancelled or self.last_step(where, start, end)):
                return where
        return None

    def last_step(self, pause: int, start: HandleStarted, end: int) -> bool:
        """Whether a turn was over but for a step that the pause found scheduled already, and had no effect.

        No deadline stops such a step, only the fence does: its settlement must not have been confirmed.
        """
        record, track = self.records[pause], self.tracks[start.session, start.message]
        assert isinstance(record, ProcessPaused), "only these are in pauses"
        if record.until is None or self.records[end].at > record.until + _LAST_STEP:
            return False
        return not (track.confirmed_to == start.process and track.confirmed > end)

    def report(self, history: History) -> Report:
        self.read()
        self.check_nothing_lost()
        self.check_gaps()
        for session in self.by_session:
            _OrderWalk(self, session).walk()
            self.check_exclusion(session)
        tracks = self.tracks.values()
        shown: list[Violation] = []
        for invariant in ("I1", "I2", "I3"):
            found = sorted(self.violations[invariant], key=_where)
            shown += [violation for _, violation in found[: self.limit]]
        starts = sum(track.starts for track in tracks)
        started = sum(1 for track in tracks if track.starts)
        return Report(
            mode=self.mode,
            sessions=len({track.session for track in tracks if track.session is not None}),
            sent=sum(1 for track in tracks if track.known),
            acknowledged=sum(1 for track in tracks if track.acknowledgements),
            started=started,
            completed=sum(1 for track in tracks if track.completed),
            dead_lettered=sum(1 for track in tracks if track.dead),
            redriven=sum(track.redrives for track in tracks),
            redeliveries=starts - started,
            duplicates=self.duplicates,
            unsettled=self.counts["unsettled"],
            lost=self.counts["lost"],
            never_sent=self.counts["never_sent"],
            gaps=self.counts["gap"],
            order_violations=self.counts["order"],
            overlaps=self.counts["overlap"],
            violations=tuple(shown),
            history=history,
        )


@final
class _OrderWalk:
    """One session's records in order, keeping the lowest message that is not settled."""

    def __init__(self, checker: _Checker, session: str) -> None:
        self.checker = checker
        self.session = session
        self.wheres = checker.by_session[session]
        # Messages without an acknowledgement have no certain place in the order, and those never started
        # are gaps or losses: neither holds anything back.
        tracks = {self.track(where): None for where in self.wheres}
        self.line = [track for track in tracks if track.starts and track.acknowledgements]
        self.line.sort(key=_number)
        self.lowest = 0
        # Found dead without ever having been started: it left the line at an unknown time before.
        self.settled = {track for track in self.line if _NEVER in track.found_after}
        # Who waits under which token for the word that a settlement was applied. Under a newer token the
        # broker has told already: it would not have delivered a later message otherwise.
        self.awaiting: defaultdict[tuple[str, int | None], set[_Track]] = defaultdict(set)
        self.tokens: dict[tuple[str, _Track], int | None] = {}
        self.redriven: list[tuple[int, str]] = []
        self.redriven_at: dict[_Track, int] = {}

    def record(self, where: int) -> _ConsumerRecord:
        record = self.checker.records[where]
        assert not isinstance(record, (Sent, ProcessEnded, ProcessPaused)), "read() sorts these out"
        return record

    def track(self, where: int) -> _Track:
        return self.checker.tracks[self.session, self.record(where).message]

    def walk(self) -> None:
        for where in self.wheres:
            record, track = self.record(where), self.track(where)
            if isinstance(record, HandleStarted):
                if track.acknowledgements:
                    self.judge(record, track, where)
                if where in track.found_after:
                    self.settle(track)
            elif isinstance(record, HandleEnded):
                if record.outcome in _SETTLING or self.is_last_failure(track, where):
                    self.handled(record, track, where)
            elif isinstance(record, (Completed, DeadLettered)):
                self.settle(track)
                token = self.tokens.get((record.process, track))
                self.awaiting[record.process, token].discard(track)
            elif track.last_start > where and track.known:
                # Started only after this record; a start that raced with it is not judged.
                # Of several copies the first may go first.
                first = self.redriven_at.get(track, where)
                self.settle(track)
                self.redriven_at[track] = first
                heappush(self.redriven, (track.number, track.message))

    def settle(self, track: _Track) -> None:
        self.settled.add(track)
        self.redriven_at.pop(track, None)

    def is_last_failure(self, track: _Track, where: int) -> bool:
        """Whether a dead-lettering followed a failed turn: it counts from the turn's end, as a completion does."""
        if track.copies > 1 and track.dead:
            return True  # one of the copies; nobody can tell which, and after which turn
        after = bisect_right(track.buried, where)
        if after == len(track.buried):
            return False
        restart = bisect_right(track.started, where)
        return restart == len(track.started) or track.buried[after] < track.started[restart]

    def handled(self, record: HandleEnded, track: _Track, where: int) -> None:
        if self.checker.mode == "pipelined":
            self.settle(track)
        elif track.last_start < where or track.copies > 1 or track.redrives:
            # Not seen again: the broker may have settled it from now on, confirmed or not.
            self.settle(track)
            if track.last_start < where < track.confirmed and track.confirmed_to == record.process:
                self.awaiting[record.process, self.tokens.get((record.process, track))].add(track)

    def judge(self, record: HandleStarted, track: _Track, where: int) -> None:
        while self.lowest < len(self.line) and self.line[self.lowest] in self.settled:
            self.lowest += 1
        lowest = self.line[self.lowest] if self.lowest < len(self.line) else track
        self.tokens[record.process, track] = record.token
        awaited = min(self.awaiting[record.process, record.token], key=_number, default=track)
        redriven = self.redriven_before(track)
        if lowest.number < track.number:
            wanted = "handled" if self.checker.mode == "pipelined" else "settled"
            reason = f"the lower {lowest.name} was {wanted}"
        elif awaited.number < track.number:
            reason = f"the settlement of the lower {awaited.name} was confirmed there"
        elif redriven is not None:
            reason = f"the lower {redriven.name}, redriven before it, was settled"
        else:
            return
        self.checker.violate(
            "I2",
            "order",
            track,
            where,
            f"message {track.name} was started in {record.process} before {reason}",
        )

    def redriven_before(self, track: _Track) -> _Track | None:
        """The lowest redriven and unsettled message, if ``track`` was redriven later and is higher."""
        tracks = self.checker.tracks
        while self.redriven and tracks[self.session, self.redriven[0][1]] not in self.redriven_at:
            heappop(self.redriven)
        mine = self.redriven_at.get(track)
        if mine is None or not self.redriven:
            return None
        first = tracks[self.session, self.redriven[0][1]]
        return first if self.redriven_at[first] < mine and first.number < track.number else None


_number = attrgetter("number")


def _token(start: HandleStarted) -> float:
    return math.inf if start.token is None else start.token


def _where(found: tuple[int, Violation]) -> int:
    return found[0]


def check(history: History | Iterable[Record], *, mode: Mode = "strict", limit: int = 10) -> Report:
    """Judge a history recorded up to a full drain.

    I1
        Every acknowledged message was completed, or is in the dead-letter queue, or was at least finished by
        a handler whose settlement nobody saw confirmed (``unsettled``). Nothing is completed that no handler
        finished, and nothing appears that was never sent.
    I2
        When a message is started - for the first time or again - every lower message of its session is
        settled: completed, or dead-lettered. A settlement counts from the end of the handler on, because a
        broker may have committed it before its reply arrived; but the process that waits for the reply must
        not start a later message under the same token before it came. A message that is delivered again was
        not settled. Redriven messages hold back only those redriven after them. A message whose sending was
        never acknowledged has no certain place in the order and is not judged.
    I3
        Handlers of one session do not overlap, and none starts under a fencing token lower than one seen. The
        turn of a killed process ends with it; a turn that a pause of its process interrupted ends with the
        pause, if it was cancelled after the pause: a stopped process cannot act. So does one that had but a
        step left, which ran when the process was continued, and whose settlement was refused.

    Messages without a session are judged by I1 alone.

    Args:
        history: What was recorded, or any iterable of records.
        mode: ``strict``; or ``pipelined``, where a later message may start as soon as the lower ones are
            handled, whether or not they are settled.
        limit: How many violations of each invariant to explain; all are counted.
    """
    if not isinstance(history, History):
        history = History(history)
    return _Checker(history, mode, limit).report(history)
