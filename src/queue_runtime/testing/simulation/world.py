"""A simulated world: one broker, some nodes, what befalls them, and the verdict on how they took it."""

from __future__ import annotations

import hashlib
import random
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Final, final

import attrs
import trio
import trio.testing

from ...abc import DeadLetters, Provider
from ...errors import QueueError
from ...messages import Message, PeekedMessage, SendResult
from ...providers.memory.engine import QueueOptions
from ..faults import FaultyProvider
from ..history import DeadLettered, History, ProcessEnded, Record, Redriven, Report, Sent, check
from .broker import EPOCH, QUEUE, SimulatedBroker
from .ending_leases import EndingLeases
from .nodes import Node
from .scenario import LOCK_DURATION, Action, Behaviour, Incident, PlannedMessage, Scenario, generate
from .scheduler import run_deterministically

__all__ = ["Finding", "SimulationResult", "World", "simulate"]

_RECOVERY: Final = 300.0
"""Simulated seconds after the end of all faults in which everything must have been handled."""
_LOOK: Final = 0.5
_RESEND_DELAY: Final = 0.1


@final
@attrs.frozen
class Finding:
    """Something that must not happen, and did, seen by other means than the history.

    Args:
        invariant: ``I4`` (caps), ``I5`` (something left behind), ``I7`` (no recovery), ``fence`` (the broker
            obeyed a stale holder), ``calm`` (a finished message handled again, although nothing went wrong) or
            ``error`` (an actor raised what is no ``QueueError``).
        text: What exactly.
    """

    invariant: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.text}"


@final
@attrs.frozen(kw_only=True)
class SimulationResult:
    """How a run went.

    Args:
        scenario: What was run.
        report: The checker's verdict on I1, I2 and I3.
        findings: Everything else that was wrong.
        history: What the verdict is about.
        injected: How often each fault happened.
        seconds: Simulated seconds it took.
    """

    scenario: Scenario = attrs.field(repr=False)
    report: Report
    findings: tuple[Finding, ...]
    history: History = attrs.field(repr=False)
    injected: Counter[str]
    seconds: float

    @property
    def seed(self) -> int:
        """What it was drawn from."""
        return self.scenario.seed

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return self.report.ok and not self.findings

    @property
    def broken(self) -> tuple[str, ...]:
        """The invariants that did not hold."""
        named = {violation.invariant: None for violation in self.report.violations}
        return (*named, *{finding.invariant: None for finding in self.findings})

    def digest(self) -> str:
        """A hash of everything that happened: equal for equal runs."""
        rest = (self.report.digest(), self.findings, sorted(self.injected.items()), self.seconds)
        return hashlib.sha256(repr(rest).encode()).hexdigest()

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.injected.items()))
        lines = [
            f"seed {self.seed}: {'ok' if self.ok else 'FAILED'}, digest {self.digest()}",
            f"simulated {self.seconds:.1f} s; faults: {faults or 'none'}",
            str(self.report),
            *(f"  - {finding}" for finding in self.findings),
        ]
        if not self.ok:
            lines.append(
                f"replay: python -m queue_runtime.testing.simulation --seed {self.seed} --trace"
            )
        return "\n".join(lines)


@final
class World:
    """One run of one scenario. To be used inside of a trio run, once."""

    def __init__(self, scenario: Scenario, *, trace: bool = False) -> None:
        self.scenario = scenario
        self.plan = {message.name: message for message in scenario.messages}
        self._is_traced = trace
        self._start = trio.current_time()
        self._numbers = random.Random(f"world {scenario.seed}")
        self._records: list[Record] = []
        self._findings: list[Finding] = []
        self._attempts: Counter[str] = Counter()
        self._incarnations: Counter[int] = Counter()
        self._providers: list[FaultyProvider] = []
        self._nodes: dict[int, Node] = {}
        self._is_over = False
        self._dead_letters: DeadLetters
        options = QueueOptions(
            lock_duration=LOCK_DURATION, max_delivery_count=scenario.max_delivery_count
        )
        self._broker = SimulatedBroker(options, partial(self.violated, "fence"))

    # What everybody uses.

    @property
    def time(self) -> float:
        """Simulated seconds since the start."""
        return trio.current_time() - self._start

    def add(self, record: Record) -> None:
        """Write down what happened."""
        self._records.append(record)
        if self._is_traced:
            sys.stderr.write(f"{self.time:10.4f}  {record}\n")

    def note(self, who: str, what: str) -> None:
        """Show what is no part of the history, if anybody looks."""
        if self._is_traced:
            sys.stderr.write(f"{self.time:10.4f}    {who}: {what}\n")

    def violated(self, invariant: str, text: str) -> None:
        """Something happened that must not."""
        finding = Finding(invariant, f"at {self.time:.4f}: {text}")
        self.note("world", f"VIOLATED {finding}")
        self._findings.append(finding)

    def attempt(self, name: str) -> int:
        """Count a turn of a handler with a message, over all nodes; the first is 1."""
        self._attempts[name] += 1
        return self._attempts[name]

    def ended(self, process: str) -> None:
        """A process is gone."""
        self.add(ProcessEnded(process, self.time))

    # The course of events.

    async def run(self) -> SimulationResult:
        """Run the scenario to its end."""
        admin = self._broker.connect()
        self._dead_letters = await admin.open_dead_letters(QUEUE)
        async with trio.open_nursery() as nursery:
            for number in range(len(self.scenario.nodes)):
                self._start_node(nursery, number)
            async with trio.open_nursery() as producers:
                sessions = {message.session: None for message in self.scenario.messages}
                for session in sessions:
                    producers.start_soon(self._produce, session)
                for incident in self.scenario.incidents:
                    producers.start_soon(self._befall, nursery, incident)
                producers.start_soon(self._heal)
            await self._wait_handled()
            if self.scenario.redrives:
                await self._redrive()
                await self._wait_handled()
            await self._stop(nursery)
        await self._inspect()
        history = History(self._records)
        report = check(history, mode=self.scenario.mode)
        if self.scenario.is_calm and report.duplicates:
            self.violated("calm", f"{report.duplicates} finished messages were handled again")
        injected: Counter[str] = Counter()
        for provider in self._providers:
            injected.update(provider.injected)
        return SimulationResult(
            scenario=self.scenario,
            report=report,
            findings=tuple(self._findings),
            history=history,
            injected=injected,
            seconds=self.time,
        )

    def _connect(self, who: str, observe: Callable[[str], None] | None = None) -> FaultyProvider:
        def observer(fault: str, operation: str) -> None:
            self.note(who, f"{fault} {operation}")
            if observe is not None:
                observe(fault)

        inner: Provider = self._broker.connect()
        scenario = self.scenario
        if not scenario.keeps_empty_sessions:
            inner = EndingLeases(inner, max_receive_messages=scenario.max_receive_messages)
        provider = FaultyProvider(
            inner,
            random=random.Random(self._numbers.random()),
            capabilities=attrs.evolve(
                inner.capabilities,
                settle_linger=scenario.settle_linger,
                max_settle_messages=scenario.max_settle_messages,
                max_concurrent_receives=scenario.max_concurrent,
                max_concurrent_settles=scenario.max_concurrent,
            ),
            observer=observer,
        )
        if not self._is_over:
            provider.faults = scenario.faults
        self._providers.append(provider)
        return provider

    def _start_node(self, nursery: trio.Nursery, number: int) -> Node:
        self._incarnations[number] += 1
        name = f"node{number}.{self._incarnations[number]}"
        kind = self.scenario.nodes[number]
        node = self._nodes[number] = Node(self, number, name, kind, self._connect(name))
        self.note(name, "starts")
        nursery.start_soon(node.run)
        return node

    async def _befall(self, nursery: trio.Nursery, incident: Incident) -> None:
        await trio.sleep_until(self._start + incident.at)
        node = self._nodes[incident.node]
        if node.stopping and incident.action is not Action.FREEZE:
            return  # something else befell it, and its successor is not there yet
        self.note(node.name, f"{incident.action.value} {incident.seconds:.3f}")
        match incident.action:
            case Action.CUT:
                node.provider.cut_off(incident.seconds)
                return
            case Action.FREEZE:
                clock = trio.lowlevel.current_clock()
                assert isinstance(clock, trio.testing.MockClock)
                clock.jump(incident.seconds)
                return
            case Action.DRAIN:
                await node.drain(incident.seconds)
            case Action.CANCEL:
                node.cancel()
                await trio.sleep(incident.seconds)
                await node.finished.wait()
            case Action.CRASH:
                node.crash()
                await trio.sleep(incident.seconds)
        self._start_node(nursery, incident.node)

    async def _heal(self) -> None:
        await trio.sleep_until(self._start + self.scenario.faults_end)
        self._is_over = True
        self.note("world", "all faults end")
        for provider in self._providers:
            provider.heal()

    # Producers.

    async def _produce(self, session: str | None) -> None:
        batch: list[PlannedMessage] = []

        def attempted() -> None:
            for message in batch:
                self.add(Sent(message.session, message.name, message.number, False, self.time))

        def observe(fault: str) -> None:
            if fault == "sends_twice":
                attempted()

        provider = self._connect(f"producer {session}", observe)
        messages = [message for message in self.scenario.messages if message.session == session]
        while messages:
            await trio.sleep(messages[0].pause)
            size = 1
            while size < len(messages) and not messages[size].pause:
                size += 1
            batch, messages = messages[:size], messages[size:]
            results: list[SendResult] = []
            while not results:
                attempted()
                try:
                    sender = await provider.open_sender(QUEUE)
                    results = await sender.send([self._message(message) for message in batch])
                except QueueError as error:
                    self.note(f"producer {session}", repr(error))
                    await trio.sleep(_RESEND_DELAY)
            for message, result in zip(batch, results, strict=True):
                assert result.error is None
                self.add(Sent(message.session, message.name, message.number, True, self.time))

    def _message(self, plan: PlannedMessage) -> Message:
        due = None
        if plan.due is not None:
            due = datetime.fromtimestamp(EPOCH + plan.due, UTC)
        return Message(
            b"{" if plan.behaviour is Behaviour.POISON else b'{"number": %d}' % plan.number,
            session_id=plan.session,
            message_id=plan.name,
            time_to_live=plan.time_to_live,
            scheduled_at=due,
            deduplication_id=plan.name if plan.is_deduplicated else None,
        )

    # The end.

    async def _wait_handled(self) -> None:
        """Wait until the queue is empty, and note if that did not come in time."""
        limit = trio.current_time() + _RECOVERY
        while trio.current_time() < limit:
            queue = self._broker.queue
            if not queue.waiting and not queue.in_flight and not queue.scheduled:
                return
            if self.scenario.config.halt_on_dead_letter and not queue.in_flight:
                await self._redrive()
            await trio.sleep(_LOOK)
        queue = self._broker.queue
        self.violated(
            "I7",
            f"{_RECOVERY:.0f} s after the last fault {queue.waiting} messages wait and "
            f"{queue.in_flight} are in flight",
        )

    async def _find_dead(self) -> list[PeekedMessage]:
        letters = await self._dead_letters.peek(len(self.plan) * 4)
        for letter in letters:
            session = letter.message.session_id
            self.add(DeadLettered("operator", session, letter.message_id, self.time, found=True))
        return letters

    async def _redrive(self) -> None:
        """Put all dead letters back."""
        for letter in await self._find_dead():
            self.add(Redriven("operator", letter.message.session_id, letter.message_id, self.time))
        await self._dead_letters.redrive()

    async def _stop(self, nursery: trio.Nursery) -> None:
        nodes = [node for node in self._nodes.values() if not node.finished.is_set()]
        with trio.move_on_after(self.scenario.config.drain_timeout + 60.0) as scope:
            async with trio.open_nursery() as drains:
                for node in nodes:
                    drains.start_soon(node.drain, self.scenario.config.drain_timeout)
        if scope.cancelled_caught:
            stuck = [node.name for node in nodes if not node.finished.is_set()]
            self.violated("I5", f"draining never ended: {', '.join(stuck)}")
            nursery.cancel_scope.cancel()

    async def _inspect(self) -> None:
        """Look at what is left when everybody is gone."""
        if not self.scenario.is_calm:
            await trio.sleep(LOCK_DURATION)  # of the crashed
        queue = self._broker.queue
        if queue.locks:
            sessions = sorted(str(lock.lane.session_id) for lock in queue.locks.values())
            self.violated("I5", f"locks are left on {', '.join(sessions)}")
        if queue.in_flight:
            self.violated("I5", f"{queue.in_flight} messages are left in flight")
        if self.scenario.is_calm and queue.holders:
            self.violated("I5", f"{len(queue.holders)} receivers are left open")
        await self._find_dead()


def simulate(seed: int, *, trace: bool = False) -> SimulationResult:
    """Run the scenario of ``seed``, in simulated time and deterministically.

    Args:
        seed: Decides everything.
        trace: Print what happens to the standard error stream, as it happens.
    """

    async def main() -> SimulationResult:
        return await World(generate(seed), trace=trace).run()

    return run_deterministically(seed, main)
