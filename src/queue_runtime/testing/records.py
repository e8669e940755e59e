"""The record of what happened: what the checker in :mod:`queue_runtime.testing.history` reads.

Used by the contract suite, the simulation, the chaos tests, the demo and the benchmark, so that "in order, one
at a time, nothing lost" means the same thing everywhere.

Every participant (a producer, a consumer process, a simulated worker) owns a :class:`Recorder`. Recorders of
one machine share ``CLOCK_MONOTONIC``; each may write a JSON-lines file of its own, and :meth:`History.load`
merges the files, also those of killed processes.

For the checker to be exact, record in this order:

* ``sending`` before the send call, ``sent`` after the acknowledgement. A producer killed in between leaves a
  message that may or may not exist, and is treated so.
* ``started`` before the handler's first instruction and ``ended`` after its last one, before settling.
* ``settled`` as soon as the provider confirmed, before anything else of that session is started.
* ``found_dead`` for every message listed in the dead-letter queue at the end (or before a redrive): messages
  that the broker moved there by itself become known in this way only.
* ``redriven`` for every message named in a redrive.

The rules are stated in :func:`queue_runtime.testing.history.check`.
"""

from __future__ import annotations

import enum
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, final

import attrs

from ..errors import SerializationError
from ..messages import Delivery, PeekedMessage, SettlementAction

__all__ = [
    "Completed",
    "DeadLettered",
    "Ended",
    "HandleEnded",
    "HandleStarted",
    "History",
    "ProcessEnded",
    "ProcessPaused",
    "Record",
    "Recorder",
    "Redriven",
    "Sent",
]


class Ended(enum.StrEnum):
    """How a handler's turn ended."""

    COMPLETE = "complete"
    """It finished and the message is to be completed."""
    DEAD_LETTER = "dead_letter"
    """The message is to be dead-lettered."""
    RETRY = "retry"
    """It is to be tried again."""
    ABANDON = "abandon"
    """It was given back untried or unfinished."""
    RAISED = "raised"
    """The handler raised."""
    CANCELLED = "cancelled"
    """The handler was cancelled: shutdown, timeout, or a lock that is no longer held."""


@final
@attrs.frozen
class Sent:
    """A producer is about to send a message (``acknowledged=False``) or got its acknowledgement.

    Args:
        session: Session id; ``None`` for a message without one.
        message: Message id; unique within the session.
        number: Grows in the session's send order: the producer's own counter, or the sequence number.
        acknowledged: Whether the broker has confirmed it.
        at: Seconds on the shared monotonic clock.
    """

    session: str | None
    message: str
    number: int
    acknowledged: bool
    at: float


@final
@attrs.frozen
class HandleStarted:
    """A handler is about to see a message.

    Args:
        process: Name of the consumer: an operating-system process or a simulated worker.
        session: Session id or ``None``.
        message: Message id.
        at: Seconds on the shared monotonic clock.
        token: The lease's fencing token; ``None`` when unknown.
        delivery_count: As delivered.
    """

    process: str
    session: str | None
    message: str
    at: float
    token: int | None = None
    delivery_count: int = 1


@final
@attrs.frozen
class HandleEnded:
    """A handler will not touch the message any more. Fields as in :class:`HandleStarted`."""

    process: str
    session: str | None
    message: str
    at: float
    outcome: Ended = attrs.field(default=Ended.COMPLETE, converter=Ended)


@final
@attrs.frozen
class Completed:
    """The provider confirmed a completion to ``process``."""

    process: str
    session: str | None
    message: str
    at: float


@final
@attrs.frozen
class DeadLettered:
    """The provider confirmed to ``process`` that a message was moved to the dead-letter queue.

    Args:
        process: Who was told, or who found it.
        session: Session id or ``None``.
        message: Message id.
        at: Seconds on the shared monotonic clock.
        found: It was found there rather than confirmed: when it was moved is not known.
    """

    process: str
    session: str | None
    message: str
    at: float
    found: bool = False


@final
@attrs.frozen
class Redriven:
    """A message was put back from the dead-letter queue."""

    process: str
    session: str | None
    message: str
    at: float


@final
@attrs.frozen
class ProcessEnded:
    """``process`` is gone, with every handler it ran (written by whoever killed it)."""

    process: str
    at: float


@final
@attrs.frozen
class ProcessPaused:
    """``process`` was stopped (SIGSTOP) from ``at`` on: until it was continued it could not act.

    ``until``: when it was continued, as far as known.
    """

    process: str
    at: float
    until: float | None = None


Record: TypeAlias = (
    Sent
    | HandleStarted
    | HandleEnded
    | Completed
    | DeadLettered
    | Redriven
    | ProcessEnded
    | ProcessPaused
)

_TYPES: Final[dict[str, type[Any]]] = {
    "sent": Sent,
    "handle_started": HandleStarted,
    "handle_ended": HandleEnded,
    "completed": Completed,
    "dead_lettered": DeadLettered,
    "redriven": Redriven,
    "process_ended": ProcessEnded,
    "process_paused": ProcessPaused,
}
_NAMES: Final = {record_type: name for name, record_type in _TYPES.items()}
_FIELDS: Final = {
    record_type: tuple(field.name for field in attrs.fields(record_type)) for record_type in _NAMES
}


def _to_line(record: Record) -> str:
    record_type = type(record)
    values: dict[str, Any] = {"record": _NAMES[record_type]}
    for name in _FIELDS[record_type]:
        values[name] = getattr(record, name)
    return json.dumps(values, separators=(",", ":"))


def _from_line(line: bytes | str, place: str) -> Record:
    try:
        values = json.loads(line)
        record: Record = _TYPES[values.pop("record")](**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SerializationError(
            "not a history: every line must be a record as Recorder writes it",
            (f"{error!r} @ {place}",),
        ) from error
    return record


def _in_order(records: Iterable[Record]) -> tuple[Record, ...]:
    return tuple(sorted(records, key=attrgetter("at")))


@final
@attrs.frozen
class History:
    """Records in the order of their clock; those of one recorder, and of those ``named`` by it, keep their order.

    Args:
        records: Any iterable of records.
    """

    records: tuple[Record, ...] = attrs.field(
        converter=_in_order, repr=lambda records: f"<{len(records)} records>"
    )

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    @classmethod
    def merge(cls, histories: Iterable[Self]) -> Self:
        """One history of all the records."""
        return cls(record for history in histories for record in history.records)

    @classmethod
    def load(cls, paths: Iterable[Path | str]) -> Self:
        """Read JSON-lines files and merge them.

        A last line without its newline is dropped: that is how the file of a killed process may end.

        Raises:
            SerializationError: Any other line is not a record; the file and line are named.
            OSError: A file cannot be read.
        """

        def read() -> Iterator[Record]:
            for path in paths:
                with Path(path).open("rb") as file:
                    for number, line in enumerate(file, start=1):
                        if line.endswith(b"\n"):
                            yield _from_line(line, f"{path}:{number}")

        return cls(read())

    def dump(self, path: Path | str) -> None:
        """Write a JSON-lines file that :meth:`load` reads.

        Raises:
            OSError: The file cannot be written.
        """
        with Path(path).open("w", encoding="utf-8") as file:
            file.writelines(_to_line(record) + "\n" for record in self.records)

    def digest(self) -> str:
        """A hash of every record in order: equal for equal runs of a deterministic simulation."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(repr(record).encode())
        return digest.hexdigest()


@final
class Recorder:
    """Writes down what one participant does. Not thread-safe: one per thread.

    Args:
        process: Name of the participant; consumers that may run at the same time need different names.
        clock: Seconds on the clock all recorders of one history share. ``time.monotonic`` is shared by the
            processes of one machine; a simulation passes ``trio.current_time``.
        path: Also append every record to this JSON-lines file, unbuffered, so that nothing recorded is lost
            when the process is killed.

    Raises:
        OSError: ``path`` cannot be written.
    """

    def __init__(
        self,
        process: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        path: Path | str | None = None,
    ) -> None:
        self.process = process
        self._clock = clock
        self._records: list[Record] = []
        # Unbuffered and open for as long as the recorder lives; close() closes it.
        self._file = None if path is None else Path(path).open("ab", buffering=0)  # noqa: SIM115

    def named(self, process: str) -> Recorder:
        """A recorder for another participant, writing to the same place.

        Recorders that share a place keep the order of their records also when their times are equal, as
        under a mocked clock.
        """
        other = Recorder(process, clock=self._clock)
        other._records, other._file = self._records, self._file
        return other

    def close(self) -> None:
        """Close the file, if any. Idempotent."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._records)

    def history(self) -> History:
        """Everything recorded here so far."""
        return History(self._records)

    def add(self, record: Record) -> None:
        """Write down a record made elsewhere."""
        self._records.append(record)
        if self._file is not None:
            self._file.write(f"{_to_line(record)}\n".encode())

    def sending(self, session: str | None, message: str, number: int) -> None:
        """The send call for this message is about to be made."""
        self.add(Sent(session, message, number, False, self._clock()))

    def sent(self, session: str | None, message: str, number: int) -> None:
        """The broker acknowledged this message."""
        self.add(Sent(session, message, number, True, self._clock()))

    def started(self, delivery: Delivery) -> None:
        """A handler is about to see ``delivery``."""
        self.add(
            HandleStarted(
                self.process,
                delivery.message.session_id,
                delivery.message_id,
                self._clock(),
                delivery.lease.token,
                delivery.delivery_count,
            )
        )

    def ended(self, delivery: Delivery, outcome: Ended = Ended.COMPLETE) -> None:
        """The handler is through with ``delivery``; nothing has been settled yet."""
        self.add(
            HandleEnded(
                self.process,
                delivery.message.session_id,
                delivery.message_id,
                self._clock(),
                outcome,
            )
        )

    def settled(self, delivery: Delivery, action: SettlementAction) -> None:
        """The provider confirmed ``action``. Only completions and dead-letterings leave a record."""
        if action is SettlementAction.COMPLETE:
            self.add(
                Completed(
                    self.process, delivery.message.session_id, delivery.message_id, self._clock()
                )
            )
        elif action is SettlementAction.DEAD_LETTER:
            self.add(
                DeadLettered(
                    self.process, delivery.message.session_id, delivery.message_id, self._clock()
                )
            )

    def found_dead(self, message: PeekedMessage) -> None:
        """``message`` is in the dead-letter queue, by whatever way it came there."""
        self.add(
            DeadLettered(
                self.process,
                message.message.session_id,
                message.message_id,
                self._clock(),
                found=True,
            )
        )

    def redriven(self, message: PeekedMessage) -> None:
        """``message`` is put back from the dead-letter queue."""
        self.add(
            Redriven(self.process, message.message.session_id, message.message_id, self._clock())
        )

    def process_ended(self, process: str) -> None:
        """``process`` was killed or has exited."""
        self.add(ProcessEnded(process, self._clock()))

    def process_paused(self, process: str, seconds: float | None = None) -> None:
        """``process`` has been stopped, and will be continued after ``seconds``."""
        now = self._clock()
        self.add(ProcessPaused(process, now, None if seconds is None else now + seconds))
