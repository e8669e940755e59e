"""What happens in a simulated world, all of it drawn from one seed before anything runs."""

from __future__ import annotations

import enum
import random
from typing import Final, Literal, final

import attrs

from ...config import SettlementMode, SupervisorConfig
from ...policies.backoff import RetryPolicy
from ...policies.breaker import BreakerConfig
from ..faults import NO_FAULTS, Faults

__all__ = [
    "LOCK_DURATION",
    "Action",
    "Behaviour",
    "Incident",
    "NodeKind",
    "PlannedMessage",
    "Scenario",
    "generate",
]

LOCK_DURATION: Final = 2.0
"""Seconds a lock lasts in every scenario."""


class Behaviour(enum.Enum):
    """What the handler does with a message."""

    OK = "ok"
    """Finishes, after some time."""
    RAISES = "raises"
    """Raises the first times, then finishes."""
    RETRIES_SOON = "retries_soon"
    """Asks for another try, soon enough to be waited for in place."""
    RETRIES_LATER = "retries_later"
    """Asks for another try, so late that the session is parked."""
    ABANDONS = "abandons"
    """Gives the session back, the first times."""
    REFUSES = "refuses"
    """Asks for the dead-letter queue."""
    FAILS = "fails"
    """Raises every time."""
    POISON = "poison"
    """The body does not fit what the handler reads."""
    HANGS = "hangs"
    """Does not come back the first times, until cancelled; then finishes."""
    CRASHES = "crashes"
    """Raises something that is not an ``Exception`` the first times."""
    KEEPS_STATE = "keeps_state"
    """Reads and writes the session's state."""


class NodeKind(enum.Enum):
    """What a node runs."""

    SUPERVISOR = "supervisor"
    """The actors."""
    CLIENT = "client"
    """A loop over ``QueueClient``: receive, with impatience, handle, settle."""


class Action(enum.Enum):
    """What befalls a node (or, where it says so, the world)."""

    DRAIN = "drain"
    """It is drained, with ``seconds`` of grace, and another one takes its place."""
    CANCEL = "cancel"
    """Its task is cancelled, and another one takes its place after ``seconds``."""
    CRASH = "crash"
    """It is killed, and another one takes its place after ``seconds``."""
    CUT = "cut"
    """Nothing passes between it and the broker for ``seconds``."""
    FREEZE = "freeze"
    """The whole machine stands still for ``seconds``: timers are late, locks expire, nobody noticed."""


@final
@attrs.frozen(kw_only=True)
class PlannedMessage:
    """One message and what its handler will do.

    Args:
        name: Its id.
        session: Its session, or ``None``.
        number: Its place in the send order.
        behaviour: What the handler does.
        times: How often it misbehaves, where that ends.
        seconds: How long a turn of the handler takes.
        pause: Seconds the producer waits before sending it; 0: together with the one before.
        time_to_live: As of ``Message``.
        due: When it is scheduled for, in seconds from the start; ``None``: not scheduled.
        is_deduplicated: Whether it carries a deduplication id.
    """

    name: str
    session: str | None
    number: int
    behaviour: Behaviour
    times: int
    seconds: float
    pause: float
    time_to_live: float | None = None
    due: float | None = None
    is_deduplicated: bool = False


@final
@attrs.frozen(kw_only=True)
class Incident:
    """Something that befalls node number ``node`` at ``at``; ``seconds`` as the action says."""

    at: float
    action: Action
    node: int
    seconds: float


@final
@attrs.frozen(kw_only=True)
class Scenario:
    """A whole run.

    Args:
        seed: What it was drawn from; also the seed of the scheduler.
        nodes: What each node runs; the first is always a supervisor.
        config: Of every supervisor.
        max_delivery_count: Of the broker.
        faults: Of every node's network, and the producers'.
        settle_linger, max_settle_messages, max_concurrent: What the broker seems to be like.
        keeps_empty_sessions, max_receive_messages: What it really is like.
        messages: Everything that is sent, per session in order.
        incidents: What befalls the nodes, in order.
        faults_end: When everything becomes well, in seconds.
        redrives: Whether the dead letters are put back when everything else has been handled.
    """

    seed: int
    nodes: tuple[NodeKind, ...]
    config: SupervisorConfig
    max_delivery_count: int
    faults: Faults
    settle_linger: float
    max_settle_messages: int
    max_concurrent: int
    keeps_empty_sessions: bool
    max_receive_messages: int | None
    messages: tuple[PlannedMessage, ...]
    incidents: tuple[Incident, ...]
    faults_end: float
    redrives: bool

    @property
    def mode(self) -> Literal["strict", "pipelined"]:
        """How strictly the history is to be judged."""
        return "pipelined" if self.config.settlement is SettlementMode.PIPELINED else "strict"

    @property
    def is_calm(self) -> bool:
        """Nothing goes wrong but in handlers: then nothing may be handled again once it was finished."""
        return attrs.evolve(self.faults, latency=0.0) == NO_FAULTS and all(
            incident.action is Action.DRAIN
            or (
                # A client that is cancelled while it settles does not know what became of it.
                incident.action is Action.CANCEL
                and self.nodes[incident.node] is NodeKind.SUPERVISOR
            )
            for incident in self.incidents
        )

    def __str__(self) -> str:
        sessions = {message.session for message in self.messages}
        lines = [
            f"scenario {self.seed}: {len(self.messages)} messages in {len(sessions)} sessions",
            f"  {self.mode}, nodes {', '.join(kind.value for kind in self.nodes)}",
            f"  {self.faults}",
            f"  {self.config}",
        ]
        lines += [f"  {message}" for message in self.messages]
        lines += [f"  {incident}" for incident in self.incidents]
        return "\n".join(lines)


_MISBEHAVIOURS: Final = (
    (Behaviour.RAISES, 6),
    (Behaviour.RETRIES_SOON, 3),
    (Behaviour.RETRIES_LATER, 4),
    (Behaviour.ABANDONS, 2),
    (Behaviour.REFUSES, 2),
    (Behaviour.FAILS, 2),
    (Behaviour.POISON, 2),
    (Behaviour.HANGS, 2),
    (Behaviour.CRASHES, 2),
    (Behaviour.KEEPS_STATE, 5),
)


_TURNS: Final = (0.0, 0.01, 0.1, 0.5, 1.4 * LOCK_DURATION)
_TURN_WEIGHTS: Final = (10, 5, 10, 3, 1)


def generate(seed: int) -> Scenario:
    """The scenario of a seed."""
    numbers = random.Random(f"scenario {seed}")
    is_calm = numbers.random() < 0.2
    faults_end = numbers.uniform(3.0, 8.0)
    # Drawn apart, so that the rest of a scenario is what it is under either kind of lease.
    leases = random.Random(f"leases {seed}")
    keeps_empty_sessions = leases.random() < 0.6
    config = _config(numbers)
    redrives = config.halt_on_dead_letter or numbers.random() < 0.3
    nodes = [NodeKind.SUPERVISOR for _ in range(numbers.randint(1, 3))]
    # The client handles one message at a time and knows nothing of halted sessions: fine beside strict ones.
    if numbers.random() < 0.3:
        nodes.append(NodeKind.CLIENT)
    return Scenario(
        seed=seed,
        nodes=tuple(nodes),
        config=config,
        max_delivery_count=numbers.choice((0, 4, 10)),
        faults=Faults(latency=numbers.choice((0.0, 0.02))) if is_calm else _faults(numbers),
        settle_linger=numbers.choice((0.0, 0.0, 0.02)),
        max_settle_messages=numbers.choice((1, 3, 100)),
        max_concurrent=numbers.choice((1, 1, 1, 2)),
        messages=tuple(_messages(numbers, expire=not redrives)),
        incidents=_incidents(numbers, len(nodes), faults_end, is_calm),
        faults_end=faults_end,
        redrives=redrives,
        keeps_empty_sessions=keeps_empty_sessions,
        max_receive_messages=None if keeps_empty_sessions else leases.choice((1, 3, 10)),
    )


def _config(numbers: random.Random) -> SupervisorConfig:
    max_in_flight = numbers.choice((2, 5, 16, 64))
    return SupervisorConfig(
        max_in_flight=max_in_flight,
        max_sessions=numbers.choice((1, 2, 10)),
        max_per_session=numbers.choice((1, 2, 8)),
        max_concurrent_sessionless=numbers.choice((1, 3)),
        settlement=numbers.choice(
            (SettlementMode.STRICT, SettlementMode.STRICT, SettlementMode.PIPELINED)
        ),
        max_unsettled_ahead=numbers.choice((1, 3, 8)),
        idle_timeout=numbers.choice((0.0, 0.1, 1.0, 5.0)),
        handler_timeout=numbers.choice((None, 1.0, 1.0)),
        close_timeout=1.0,
        drain_timeout=5.0,
        retry=RetryPolicy(
            initial=numbers.choice((0.02, 0.2, 1.0)),
            max_delay=1.0,
            max_attempts=numbers.choice((3, 5)),
        ),
        park_threshold=numbers.choice((0.0, 0.1, 1.0)),
        breaker=BreakerConfig(
            failure_threshold=numbers.choice((2, 5)), open_duration=numbers.choice((0.2, 1.0))
        ),
        handler_breaker=(
            BreakerConfig(failure_threshold=2, open_duration=0.5)
            if numbers.random() < 0.15
            else None
        ),
        receive_timeout=numbers.choice((1.0, 5.0)),
        halt_on_dead_letter=numbers.random() < 0.1,
    )


def _faults(numbers: random.Random) -> Faults:
    def share(*choices: float) -> float:
        return numbers.choice((0.0, *choices))

    return Faults(
        latency=share(0.005, 0.05),
        fails=share(0.03, 0.2),
        drops_reply=share(0.03, 0.15),
        throttles=share(0.05, 0.3),
        retry_after=numbers.choice((0.05, 0.5)),
        stalls=share(0.02, 0.08),
        stall=numbers.uniform(0.2, 2.0) * LOCK_DURATION,
        loses_lease=share(0.02, 0.1),
        sends_twice=share(0.1),
        announces_losses=numbers.random() < 0.3,
    )


def _messages(numbers: random.Random, *, expire: bool) -> list[PlannedMessage]:
    sessions: list[str | None] = [f"s{index}" for index in range(numbers.randint(1, 6))]
    if numbers.random() < 0.4:
        sessions.append(None)
    total = numbers.randint(10, 40)
    trouble = numbers.choice((0.05, 0.2, 0.5))
    is_deduplicated = numbers.random() < 0.3
    # What was redriven and expires again leaves no trace of when it did.
    has_ttl = expire and numbers.random() < 0.3
    # In a session of scheduled messages all are scheduled, later ones for later: that is their order.
    scheduled = {session for session in sessions if numbers.random() < 0.1}
    rush = numbers.choice((0.02, 0.3))
    counts = dict.fromkeys(sessions, 0)
    messages: list[PlannedMessage] = []
    due = dict.fromkeys(sessions, 0.0)
    for _ in range(total):
        session = numbers.choice(sessions)
        number = counts[session] = counts[session] + 1
        behaviour = Behaviour.OK
        if numbers.random() < trouble:
            behaviour = numbers.choices(
                [each for each, _ in _MISBEHAVIOURS], [weight for _, weight in _MISBEHAVIOURS]
            )[0]
        if session in scheduled:
            due[session] += numbers.uniform(0.01, 1.0)
        time_to_live = numbers.uniform(0.5, 4.0) if has_ttl and numbers.random() < 0.2 else None
        messages.append(
            PlannedMessage(
                name=f"{session or 'alone'}-{number}",
                session=session,
                number=number,
                behaviour=behaviour,
                times=numbers.randint(1, 2),
                seconds=numbers.choices(_TURNS, _TURN_WEIGHTS)[0],
                pause=0.0 if numbers.random() < 0.5 else numbers.expovariate(1 / rush),
                time_to_live=time_to_live,
                due=due[session] if session in scheduled else None,
                # One copy may expire and the other one be handled: that has no place in any order.
                is_deduplicated=is_deduplicated or time_to_live is not None,
            )
        )
    return messages


def _incidents(
    numbers: random.Random, nodes: int, faults_end: float, is_calm: bool
) -> tuple[Incident, ...]:
    actions = (
        [Action.DRAIN, Action.CANCEL]
        if is_calm
        else [*Action, Action.CRASH, Action.CRASH, Action.CUT]
    )
    incidents = []
    for _ in range(numbers.randint(0, 5)):
        action = numbers.choice(actions)
        if action is Action.DRAIN:
            seconds = numbers.choice((0.0, 0.2, 5.0))
        elif action in (Action.CUT, Action.FREEZE):
            seconds = numbers.uniform(0.3, 2.0) * LOCK_DURATION
        else:
            seconds = numbers.uniform(0.0, 3.0)
        incidents.append(
            Incident(
                at=numbers.uniform(0.0, faults_end),
                action=action,
                node=numbers.randrange(nodes),
                seconds=seconds,
            )
        )
    return tuple(sorted(incidents, key=lambda incident: incident.at))
