"""What the checker found: violations with their explanations, and counts of everything."""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias, final

import attrs

from .records import History

__all__ = ["Invariant", "InvariantViolated", "Mode", "Report", "Violation"]

Invariant: TypeAlias = Literal["I1", "I2", "I3"]
"""Which promise."""

Mode: TypeAlias = Literal["strict", "pipelined"]
"""Whether a message waits for the settlement of the one before it, or only for its handling."""


class InvariantViolated(AssertionError):
    """A history breaks an invariant; the text is the report."""


@final
@attrs.frozen
class Violation:
    """One thing that must not happen, and did.

    Args:
        invariant: ``I1``, ``I2`` or ``I3``.
        kind: ``lost``, ``never_sent``, ``gap``, ``order`` or ``overlap``.
        session: The session concerned; ``None`` for a message without one.
        message: The message concerned.
        at: When, on the history's clock.
        explanation: One sentence for people.
    """

    invariant: Invariant
    kind: str
    session: str | None
    message: str
    at: float
    explanation: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.kind} at {self.at:.6f}: {self.explanation}"


@final
@attrs.frozen(kw_only=True)
class Report:
    """What :func:`check` found.

    Args:
        mode: The settlement mode the history was judged by.
        sessions: Sessions seen.
        sent: Different messages sent, acknowledged or not.
        acknowledged: Different messages the broker acknowledged.
        started: Different messages a handler saw.
        completed: Different messages with a confirmed completion.
        dead_lettered: Different messages that were in the dead-letter queue at some time.
        redriven: Redrives.
        redeliveries: Starts beyond a message's first.
        duplicates: Those of them that came after a handler had finished the message. Allowed (delivery is at
            least once), worth watching.
        unsettled: Acknowledged messages that a handler finished and whose settlement nobody saw confirmed: a
            process was killed at the wrong moment, or the reply was lost. Allowed after a full drain.
        lost: I1: acknowledged, and neither completed nor dead-lettered; or completed without a handler having
            finished it.
        never_sent: I1: handled, completed or dead-lettered without ever having been sent.
        gaps: I2: never started although a later message of the session was.
        order_violations: I2: starts that came while a lower message of the session was unsettled.
        overlaps: I3: starts that came while another handler of the session ran, or under a fencing token that
            had been superseded.
        violations: The first of each invariant, in the order of the clock.
        history_digest: Hash of every record.
    """

    mode: Mode
    sessions: int
    sent: int
    acknowledged: int
    started: int
    completed: int
    dead_lettered: int
    redriven: int
    redeliveries: int
    duplicates: int
    unsettled: int
    lost: int
    never_sent: int
    gaps: int
    order_violations: int
    overlaps: int
    violations: tuple[Violation, ...]
    _history: History = attrs.field(repr=False, eq=False, alias="history")

    @property
    def ok(self) -> bool:
        """Whether I1, I2 and I3 hold."""
        return not (
            self.lost or self.never_sent or self.gaps or self.order_violations or self.overlaps
        )

    @property
    def done(self) -> int:
        """Different messages that are over: completed, or finished by a handler and never seen again.

        A process killed between the broker's commit and its own note of it completes without a witness.
        """
        return self.completed + self.unsettled

    def digest(self) -> str:
        """A hash of the history and of this report: equal for equal runs of a deterministic simulation."""
        return hashlib.sha256(f"{self._history.digest()} {self!r}".encode()).hexdigest()

    def raise_for_violations(self) -> None:
        """Do nothing when :attr:`ok`.

        Raises:
            InvariantViolated: Otherwise, with the whole report as its text.
        """
        if not self.ok:
            raise InvariantViolated(str(self))

    def __str__(self) -> str:
        verdict = "I1, I2 and I3 hold" if self.ok else "INVARIANTS VIOLATED"
        lines = [
            f"{verdict} ({self.mode} settlement)",
            f"  sent {self.sent} ({self.acknowledged} acknowledged) in {self.sessions} sessions",
            f"  started {self.started}, completed {self.completed}",
            f"  dead-lettered {self.dead_lettered}, redriven {self.redriven}",
            f"  redeliveries {self.redeliveries} ({self.duplicates} after a finished handler)",
            f"  settlements never confirmed {self.unsettled}",
            f"  I1: lost {self.lost}, never sent {self.never_sent}",
            f"  I2: gaps {self.gaps}, order violations {self.order_violations}",
            f"  I3: overlaps {self.overlaps}",
        ]
        lines += [f"  - {violation}" for violation in self.violations]
        found = self.lost + self.never_sent + self.gaps + self.order_violations + self.overlaps
        if found > len(self.violations):
            lines.append(f"  … and {found - len(self.violations)} more")
        return "\n".join(lines)
