"""Whatever clients do in whatever order: nothing is lost, sessions stay exclusive and in order, counts are right."""

from __future__ import annotations

from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from queue_runtime.testing.servicebus.entities import (
    ACTIVE,
    Consumer,
    Outcome,
    QueueSettings,
    Stored,
)
from queue_runtime.testing.servicebus.namespace import Namespace
from queue_runtime.testing.servicebus.refusals import Refused

from .semantics import Client, Clock, put

SESSIONS = "abc"
LOCK = 10.0


class Recorder(Client):
    """A client that checks what it gets against what it has."""

    has_left = False

    def deliver(self, message: Stored, token: UUID | None) -> None:
        assert token is not None
        assert not self.has_left
        assert all(held.sequence != message.sequence for held, _ in self.held())
        super().deliver(message, token)

    def held(self) -> list[tuple[Stored, UUID]]:
        """What it has locked at this moment."""
        return [
            (message, token)
            for message, token in self.got
            if token is not None and message.lock is not None and message.lock.token == token
        ]


class Machine(RuleBasedStateMachine):
    @initialize(sessions=st.booleans(), limit=st.sampled_from([2, 1_000]))
    def begin(self, sessions: bool, limit: int) -> None:
        self.clock = Clock()
        self.timers_of = Namespace(self.clock)
        self.queue = self.timers_of.create(
            "q",
            QueueSettings(requires_session=sessions, lock_duration=LOCK, max_delivery_count=limit),
        )
        self.sessions = sessions
        self.clients: list[Recorder] = []
        self.sent = 0
        self.done: set[int] = set()

    def a_client(self, number: int) -> Recorder:
        return self.clients[number % len(self.clients)]

    @rule(session=st.sampled_from(SESSIONS), count=st.integers(1, 3), delay=st.sampled_from([0, 5]))
    def send(self, session: str, count: int, delay: float) -> None:
        for _ in range(count):
            self.sent += 1
            due = self.clock.now + delay if delay else None
            put(self.queue, self.sent, session_id=session, due=due)

    @rule(name=st.sampled_from([None, *SESSIONS]), credit=st.integers(0, 3))
    def arrive(self, name: str | None, credit: int) -> None:
        client = Recorder(self.queue)
        if not self.sessions:
            client.attach(credit)
        else:
            try:
                client.accept(name, timeout=3.0)
            except Refused:
                return
            self.queue.flow(client.consumer, credit)
        self.clients.append(client)

    @precondition(lambda self: self.clients)
    @rule(number=st.integers(0), credit=st.integers(0, 3))
    def give_credit(self, number: int, credit: int) -> None:
        self.queue.flow(self.a_client(number).consumer, credit)

    @precondition(lambda self: self.clients)
    @rule(number=st.integers(0), which=st.integers(0), outcome=st.sampled_from(Outcome))
    def settle(self, number: int, which: int, outcome: Outcome) -> None:
        client = self.a_client(number)
        if not client.got:
            return
        message, token = client.got[which % len(client.got)]
        assert token is not None
        valid = (message, token) in client.held()
        expired = message.locked_until is not None and message.locked_until <= self.clock.now
        try:
            client.settle(token, outcome)
        except Refused:
            assert not valid or expired
        else:
            assert valid
            assert not expired
            if outcome is Outcome.COMPLETED:
                self.done.add(message.content.payload)

    @precondition(lambda self: self.clients)
    @rule(number=st.integers(0))
    def renew(self, number: int) -> None:
        client = self.a_client(number)
        held = client.held()
        try:
            if self.sessions and client.session is not None:
                until = self.queue.renew_session(client.session, client.consumer)
            elif not self.sessions and held:
                (until,) = self.queue.renew([held[0][1]])
            else:
                return
        except Refused:
            return
        assert until == self.clock.now + LOCK

    @precondition(lambda self: self.clients)
    @rule(number=st.integers(0))
    def leave(self, number: int) -> None:
        client = self.a_client(number)
        client.detach()
        client.has_left = True
        self.clients.remove(client)

    @rule(seconds=st.sampled_from([1.0, 4.0, LOCK]))
    def wait(self, seconds: float) -> None:
        self.clock.pass_by(seconds)
        self.queue.counts()

    @rule(name=st.sampled_from(SESSIONS))
    def steal(self, name: str) -> None:
        self.queue.steal_session(name)

    @rule(data=st.data())
    def take_deferred(self, data: st.DataObject) -> None:
        deferred = [message for message in self.queue.peek(0, 1_000) if message.state == 1]
        if not deferred or not self.clients:
            return
        message = data.draw(st.sampled_from(deferred))
        client = data.draw(st.sampled_from(self.clients))
        try:
            ((again, token),) = self.queue.receive_deferred([message.sequence], client.consumer)
        except Refused:
            return
        assert again is message
        client.got.append((message, token))

    # What must hold between any two of these

    @invariant()
    def nothing_is_lost(self) -> None:
        if not self.sent:
            return
        assert self.queue.dead_letters is not None
        alive = [message.content.payload for message in self.queue.peek(0, 10_000)]
        dead = [message.content.payload for message in self.queue.dead_letters.peek(0, 10_000)]
        assert sorted([*alive, *dead, *self.done]) == list(range(1, self.sent + 1))

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "queue"):
            return
        counts = self.queue.counts()
        messages = self.queue.peek(0, 10_000)
        states = [message.state for message in messages]
        assert (counts.active, counts.deferred, counts.scheduled) == tuple(
            states.count(state) for state in range(3)
        )
        assert counts.locked == sum(message.lock is not None for message in messages)
        assert counts.size_bytes == len(messages)

    @invariant()
    def who_could_work_does(self) -> None:
        """No ready message waits beside credit that may have it, and none overtakes within a session."""
        if not hasattr(self, "queue"):
            return
        ready = [
            message
            for message in self.queue.peek(0, 10_000)
            if message.state == ACTIVE and message.lock is None
        ]
        if not self.sessions:
            assert not ready or all(client.consumer.credit == 0 for client in self.clients)
            return
        owners: dict[str, Consumer] = {}
        for client in self.clients:
            lane = client.consumer.lane
            if lane is not None:
                assert lane.session_id is not None
                assert lane.session_id not in owners
                owners[lane.session_id] = client.consumer
        for message in ready:
            name = message.content.session_id
            assert name is not None
            if name in owners:
                assert owners[name].credit == 0
            else:
                waiting = [client for client in self.clients if client.consumer.waiting is not None]
                assert not waiting


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
