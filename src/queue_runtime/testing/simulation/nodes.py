"""The processes of a simulated world: what each runs, and what its handlers do."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

import trio
import trio.lowlevel

from ...actors.supervisor import Supervisor, supervise
from ...client import QueueClient, open_client
from ...config import ClientConfig
from ...errors import InvalidReceipt, LockLost, QueueError, SerializationError
from ...handlers import Abandon, CloseReason, DeadLetter, Outcome, Retry, Session
from ...instrumentation import Event, MessagesReceived, MessagesSettled
from ...messages import Delivery, SettlementAction
from ...policies.backoff import RetryPolicy
from ...policies.breaker import BreakerConfig
from ..faults import FaultyProvider
from ..history import Completed, DeadLettered, Ended, HandleEnded, HandleStarted
from .broker import QUEUE
from .scenario import LOCK_DURATION, Behaviour, NodeKind, PlannedMessage

if TYPE_CHECKING:
    from .world import World

__all__ = ["Node"]

_REOPEN_DELAY: Final = 0.2
_TRIES: Final = 5
_SOON: Final = 0.05
_LATER: Final = 2.0


class _Broken(BaseException):
    """What a handler raises that is not an ``Exception``."""


@final
class Node:
    """One incarnation of a process. It may crash, and then nothing of it is seen or heard any more.

    Args:
        world: Where it lives.
        number: Which node it is.
        name: Unique among all incarnations.
        kind: What it runs.
        provider: Its connection to the broker.
    """

    def __init__(
        self, world: World, number: int, name: str, kind: NodeKind, provider: FaultyProvider
    ) -> None:
        self.world = world
        self.number = number
        self.name = name
        self.provider = provider
        self.kind = kind
        self.is_crashed = False
        self.stopping = False
        self.finished = trio.Event()
        self.supervisor: Supervisor | None = None
        self._scope = trio.CancelScope()
        self._running = 0
        self._alone_running = 0
        self._outstanding: dict[str, Delivery] = {}

    async def run(self) -> None:
        """Live until drained, cancelled or crashed."""
        try:
            with self._scope:
                while not self.stopping:
                    try:
                        if self.kind is NodeKind.CLIENT:
                            await self._run_client()
                        else:
                            await self._run_supervisor()
                    except QueueError as error:
                        self.world.note(self.name, f"ended with {error!r}")
                        await trio.sleep(_REOPEN_DELAY)
        except Exception as error:
            self.stopping = True
            self.world.violated("error", f"{self.name} failed: {error!r}")
        finally:
            self.finished.set()

    async def drain(self, grace: float) -> None:
        """Let it finish in order."""
        self.stopping = True
        if self.supervisor is not None:
            await self.supervisor.drain(grace)
        elif self.kind is NodeKind.SUPERVISOR:
            self._scope.cancel()  # it has not even opened its queue
        await self.finished.wait()

    def cancel(self) -> None:
        """Cancel its task."""
        self.stopping = True
        self._scope.cancel()

    def crash(self) -> None:
        """Kill it."""
        self.is_crashed = self.stopping = True
        self.world.ended(self.name)
        self.provider.crash()
        self._scope.cancel()

    # What a supervisor node runs.

    async def _run_supervisor(self) -> None:
        try:
            await supervise(
                self.provider,
                QUEUE,
                partial(_Handler, self),
                config=self.world.scenario.config,
                instruments=(self._on_event,),
                task_status=_Started(self),
            )
        finally:
            supervisor, self.supervisor = self.supervisor, None
            if supervisor is not None and not self.is_crashed:
                left = supervisor.statistics()
                if left.in_flight or left.active_sessions:
                    self.world.violated("I4", f"{self.name} ended with {left}")

    def _on_event(self, event: Event) -> None:
        if self.is_crashed:
            return
        if isinstance(event, MessagesReceived):
            for delivery in event.deliveries:
                self._outstanding[delivery.receipt] = delivery
            self._check_caps()
        elif isinstance(event, MessagesSettled):
            for settlement, error in zip(event.settlements, event.errors, strict=True):
                self.world.note(
                    self.name,
                    f"{settlement.action.value} {settlement.delivery.message_id}: {error or 'confirmed'}",
                )
                if error is None:
                    self._outstanding.pop(settlement.delivery.receipt, None)
                    self.settled(settlement.delivery, settlement.action)
                elif isinstance(error, InvalidReceipt):
                    # A repetition of what took effect although its answer was lost.
                    self._outstanding.pop(settlement.delivery.receipt, None)

    def _check_caps(self) -> None:
        now = trio.current_time()
        config = self.world.scenario.config
        total = 0
        for receipt, delivery in list(self._outstanding.items()):
            lease = delivery.lease
            if lease.lost is not None or lease.released or lease.deadline <= now:
                del self._outstanding[receipt]
                continue
            total += 1
        if total > config.max_in_flight:
            self.world.violated("I4", f"{self.name} has {total} messages in flight")

    # What a client node runs.

    async def _run_client(self) -> None:
        numbers = random.Random(f"{self.world.scenario.seed} {self.name}")
        config = ClientConfig(
            retry=RetryPolicy(initial=0.05, max_attempts=4),
            breaker=BreakerConfig(failure_threshold=5, open_duration=0.5),
            receive_timeout=1.0,
            operation_timeout=LOCK_DURATION,
        )
        async with open_client(self.provider, config=config) as client:
            while not self.stopping:
                delivery: Delivery | None = None
                with trio.move_on_after(numbers.choice((0.01, 0.1, 1.0))):
                    delivery = await client.receive(QUEUE)
                if delivery is None:
                    continue
                result = await self._handle_alone(client, delivery)
                if result is None:
                    action, settle = SettlementAction.COMPLETE, client.complete(delivery)
                elif isinstance(result, DeadLetter):
                    action = SettlementAction.DEAD_LETTER
                    settle = client.dead_letter(delivery, result.reason)
                else:
                    action = SettlementAction.ABANDON
                    delay = result.delay or 0.0 if isinstance(result, Retry) else 0.0
                    settle = client.abandon(delivery, delay=delay)
                try:
                    await settle
                    self.settled(delivery, action)
                except (LockLost, InvalidReceipt) as error:
                    self.world.note(self.name, f"{action.value} {delivery.message_id}: {error}")

    async def _handle_alone(self, client: QueueClient, delivery: Delivery) -> Outcome | None:
        """Handle one message while its lock is renewed, as a careful program does by hand."""
        result: Outcome | None = Abandon()
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = delivery.lease.deadline
            delivery.lease.on_lost(lambda _lease: nursery.cancel_scope.cancel())

            async def renew() -> None:
                while True:
                    await trio.sleep(LOCK_DURATION / 3)
                    try:
                        await client.renew(delivery)
                    except QueueError as error:
                        self.world.note(self.name, f"renew {delivery.message_id}: {error}")
                    nursery.cancel_scope.deadline = delivery.lease.deadline

            nursery.start_soon(renew)
            try:
                result = await _Handler(self).handle(delivery)
            except SerializationError as error:
                result = DeadLetter("poison", str(error))
            except (Exception, _Broken):
                result = Retry(0.1) if delivery.delivery_count < _TRIES else DeadLetter("failed")
            nursery.cancel_scope.cancel()
        delivery.lease.on_lost(None)
        return result

    # What is written down.

    def settled(self, delivery: Delivery, action: SettlementAction) -> None:
        """The broker confirmed ``action`` to this node."""
        if self.is_crashed:
            return
        session, at = delivery.session_id, self.world.time
        if action is SettlementAction.COMPLETE:
            self.world.add(Completed(self.name, session, delivery.message_id, at))
        elif action is SettlementAction.DEAD_LETTER:
            self.world.add(DeadLettered(self.name, session, delivery.message_id, at))

    def started(self, delivery: Delivery) -> None:
        """A handler is about to see the message."""
        if self.is_crashed:
            return
        self.world.add(
            HandleStarted(
                self.name,
                delivery.session_id,
                delivery.message_id,
                self.world.time,
                delivery.lease.token,
                delivery.delivery_count,
            )
        )
        self._running += 1
        config = self.world.scenario.config
        if delivery.session_id is None:
            self._alone_running += 1
            if self._alone_running > config.max_concurrent_sessionless:
                self.world.violated(
                    "I4", f"{self.name} handles {self._alone_running} single messages"
                )
        if self._running > config.max_in_flight:
            self.world.violated("I4", f"{self.name} handles {self._running} messages")

    def ended(self, delivery: Delivery, outcome: Ended) -> None:
        """The handler will not touch the message any more."""
        if self.is_crashed:
            return
        self._running -= 1
        if delivery.session_id is None:
            self._alone_running -= 1
        self.world.add(
            HandleEnded(
                self.name, delivery.session_id, delivery.message_id, self.world.time, outcome
            )
        )


@final
class _Started(trio.TaskStatus[Supervisor]):
    """Tells the node of its supervisor."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def started(self, value: Any = None) -> None:
        self._node.supervisor = value


@final
class _Handler:
    """The handler of one session at one node; it does what the plan says."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._world = node.world
        self._session: Session | None = None

    async def opened(self, session: Session) -> None:
        self._session = session

    async def handle(self, delivery: Delivery) -> Outcome | None:
        node = self._node
        node.started(delivery)
        ended = Ended.CANCELLED
        try:
            result = await self._behave(delivery)
            if isinstance(result, DeadLetter):
                ended = Ended.DEAD_LETTER
            elif isinstance(result, Retry):
                ended = Ended.RETRY
            elif isinstance(result, Abandon):
                ended = Ended.ABANDON
            else:
                ended = Ended.COMPLETE
            return result
        except (Exception, _Broken):
            ended = Ended.RAISED
            raise
        finally:
            node.ended(delivery, ended)

    async def closed(self, reason: CloseReason) -> None:
        self._world.note(
            self._node.name, f"closed {self._session and self._session.id}: {reason.value}"
        )
        await trio.lowlevel.checkpoint()

    async def _behave(self, delivery: Delivery) -> Outcome | None:
        plan: PlannedMessage = self._world.plan[delivery.message_id]
        attempt = self._world.attempt(delivery.message_id)
        if delivery.dead_letter is not None:
            return None  # redriven: whatever was wrong has been put right
        if plan.seconds:
            await trio.sleep(plan.seconds)
        misbehaves = attempt <= plan.times
        match plan.behaviour:
            case Behaviour.FAILS:
                raise RuntimeError("this message always fails")
            case Behaviour.REFUSES:
                return DeadLetter("refused")
            case Behaviour.POISON:
                delivery.json(dict[str, int])
            case Behaviour.KEEPS_STATE if self._session is not None and self._session.id:
                state = await self._session.state.get()
                await self._session.state.set(b"%d" % (int(state or b"0") + 1))
            case Behaviour.RAISES if misbehaves:
                raise RuntimeError(f"attempt {attempt} fails")
            case Behaviour.CRASHES if misbehaves:
                raise _Broken(f"attempt {attempt} breaks")
            case Behaviour.HANGS if misbehaves:
                # Cancelled by the timeout or the end of the lock; where neither comes, it comes back late.
                await trio.sleep(3 * LOCK_DURATION)
            case Behaviour.RETRIES_SOON if misbehaves:
                return Retry(_SOON)
            case Behaviour.RETRIES_LATER if misbehaves:
                return Retry(_LATER)
            case Behaviour.ABANDONS if misbehaves:
                return Abandon()
            case _:
                pass
        return None
