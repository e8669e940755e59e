"""What a contract case is, what a provider's author gives, and what a case gets."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeAlias, final
from uuid import uuid4

import attrs

from ...abc import Provider
from ...messages import Capabilities, QueueName

__all__ = ["CASES", "Case", "ContractEnvironment", "ContractViolated", "case", "unsupported_case"]

_OpenProvider: TypeAlias = Callable[[], Awaitable[Provider]]


class ContractViolated(AssertionError):
    """A provider does not keep the contract; the text says what was expected and what came."""


def _fresh_queue_name() -> QueueName:
    return QueueName(f"contract-{uuid4().hex[:16]}")


def _now() -> datetime:
    return datetime.now(UTC)


@final
@attrs.frozen(kw_only=True)
class ContractEnvironment:
    """What the author of a provider gives to the contract suite.

    The broker behind it should have a short lock duration (about a second) and a low maximum delivery count
    (3), so that the suite need not wait long. Both are read from the receivers.

    Args:
        open_provider: Opens a fresh connection to the one broker of this environment. Cases close it.
        queue_name: Makes the name of a queue that nobody used before.
        tolerance: Seconds by which anything timed may come late: a message that was just sent, a lock that
            just expired, a scheduled time.
        resolution: Seconds the broker's delays are whole multiples of: one that is not is rounded up; 0: any delay is
            kept as it is.
        empty_tolerance: Seconds by which an empty ``receive`` may come after its timeout.
        delay: Seconds that delayed, scheduled and expiring messages of the cases wait; at most half of a lock's
            duration, and a multiple of ``resolution``.
        patience: Seconds after which a single wait has failed.
        case_timeout: Seconds after which a case has failed.
        longest_wait: Cases that would wait longer than this (such as for a lock of five minutes) are skipped.
        real_clock: Whether time passes by itself. Under a mocked clock the cases with other processes are
            skipped.
        now: The broker's time of day.
        exact: The broker goes beyond the ports' words like the embedded one: a redriven message returns to
            its original place, before later ones of its session; an expired lock counts a delivery against
            its lowest message only; an expired message in flight is not disturbed; a bad settlement is told
            apart exactly (``LockLost`` or ``InvalidReceipt``); statistics are right at once; a message may be as
            large as its limit says, whatever is in it. Without it statistics and dead letters have ``patience``
            to become right.
        reports_duplicates: A dropped duplicate is acknowledged as such, with the id of the first message.
            Otherwise it is only dropped.
        deduplication_window: Seconds the broker remembers a deduplication id; ``None``: too long to wait.
        load_messages: Messages of the load cases.
        load_consumers: Concurrent consumers of the load cases.
        child_url: A URL under which a child process can open the same broker with the same options; ``None``:
            there cannot be any, and the cases that need one are skipped.
        create_queue: Creates a queue of the given name by the broker's own means, where its use does not; goes
            before the provider's provisioning, which keeps what is there. Raises ``ValidationError`` for a name
            that cannot be had. ``queue_name`` has created its own.
        open_unhurried: Opens a connection as ``open_provider`` does, but with locks that outlast any case. Cases
            in which no lock has to expire use it, so that a busy machine does not upset them.
        open_undeclared: Opens a connection that does not create queues.
        open_bounded: Opens a connection whose queues hold at most the given number of messages.
        without_dead_letters: While the context lasts, the queue's dead-letter queue is out of order.
    """

    open_provider: _OpenProvider
    queue_name: Callable[[], QueueName] = _fresh_queue_name
    tolerance: float = 1.0
    resolution: float = 0.0
    empty_tolerance: float = 0.1
    delay: float = 0.5
    patience: float = 30.0
    case_timeout: float = 180.0
    longest_wait: float = 20.0
    real_clock: bool = True
    now: Callable[[], datetime] = _now
    exact: bool = False
    reports_duplicates: bool = True
    deduplication_window: float | None = None
    load_messages: int = 5_000
    load_consumers: int = 50
    child_url: str | None = None
    create_queue: Callable[[QueueName], object] | None = None
    open_unhurried: _OpenProvider | None = None
    open_undeclared: _OpenProvider | None = None
    open_bounded: Callable[[int], Awaitable[Provider]] | None = None
    without_dead_letters: Callable[[QueueName], AbstractAsyncContextManager[object]] | None = None


@final
@attrs.frozen(eq=False)
class Case:
    """One thing that a provider has to do. Made by :func:`case`.

    Args:
        name: ``topic.what_it_proves``.
        run: The async function; it gets a ``Bench``.
        description: What is promised, one line.
        requires: Fields of ``Capabilities`` that must be declared; otherwise the case is skipped.
        lacks: Field that must not be declared: the case proves that using it raises ``Unsupported``.
        waits: It mostly waits, such as for a lock to expire, so many such cases may run at the same time.
        child: It needs other processes.
    """

    name: str
    run: Callable[[Any], Awaitable[None]]
    description: str
    requires: tuple[str, ...] = ()
    lacks: str | None = None
    waits: bool = False
    child: bool = False

    def __str__(self) -> str:
        return self.name

    def reason_to_skip(
        self, capabilities: Capabilities, environment: ContractEnvironment
    ) -> str | None:
        """Why the case does not apply; ``None`` when it does."""
        for feature in self.requires:
            if not getattr(capabilities, feature):
                return f"{feature} is not declared"
        if self.lacks is not None and getattr(capabilities, self.lacks):
            return f"{self.lacks} is declared"
        if self.child and environment.child_url is None:
            return "the environment has no child_url, so no other process can open the broker"
        if self.child and not environment.real_clock:
            return "other processes need a real clock"
        return None


CASES: Final[dict[str, Case]] = {}
"""Every case by its name, in the order of definition."""

_Function: TypeAlias = Callable[[Any], Awaitable[None]]


def _register(
    function: _Function,
    *,
    requires: tuple[str, ...],
    lacks: str | None = None,
    waits: bool = False,
    child: bool = False,
) -> _Function:
    fields = {field.name for field in attrs.fields(Capabilities)}
    unknown = {*requires, *((lacks,) if lacks else ())} - fields
    assert not unknown, f"not fields of Capabilities: {unknown}"
    topic = function.__module__.rpartition(".")[2]
    name = f"{topic}.{lacks or function.__name__}"
    description = " ".join((inspect.getdoc(function) or "").split())
    assert name not in CASES, f"there are two cases {name}"
    assert description, f"{name} does not say what it proves"
    CASES[name] = Case(name, function, description, requires, lacks, waits, child)
    return function


def case(
    *requires: str, waits: bool = False, child: bool = False
) -> Callable[[_Function], _Function]:
    """Register an async function as a case.

    Args:
        *requires: Fields of ``Capabilities`` the case proves.
        waits: See :class:`Case`.
        child: See :class:`Case`.
    """
    return partial(_register, requires=requires, waits=waits, child=child)


def unsupported_case(lacks: str, *requires: str) -> Callable[[_Function], _Function]:
    """Register the counterpart: what has to happen where ``lacks`` is not declared.

    Args:
        lacks: Field of ``Capabilities``.
        *requires: Fields that the case needs to show it.
    """
    return partial(_register, requires=requires, lacks=lacks)
