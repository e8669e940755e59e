"""The supervisor: puts the actors of one queue together, watches them, and takes them apart again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, final

import attrs
import trio

from ..abc import Provider, Receiver, ReceiverOptions
from ..config import SettlementMode, SupervisorConfig
from ..errors import QueueError, Unsupported
from ..handlers import CloseReason, HandlerFactory, handler_maker
from ..instrumentation import Instrument, Instruments, instrument_handlers, instrument_provider
from ..messages import QueueName, QueueStats, SessionId
from ..policies.assignment import Demand
from ..policies.backoff import RetryPolicy
from ..policies.batching import AdaptiveBatch
from ..policies.breaker import BreakerState, BreakerStatistics
from ..policies.outcomes import FailurePolicy
from .breaker import Breaker
from .dispatcher import Dispatcher
from .drain import Drain
from .environment import SessionEnvironment
from .leases import LeaseKeeper
from .observer import SupervisorObserver
from .receiver import ReceiverActor
from .settlement import Settler

__all__ = ["Supervisor", "SupervisorStatistics", "supervise"]

_RATE_WINDOW: Final = 10.0
"""Seconds over which the rates in the statistics are taken."""
_SAMPLES: Final = 10
"""Samples taken in that time."""
_FIRST_BATCH: Final = 16
"""Messages the first receive call asks for, and the fewest that a later one does while there is room for them."""
_CALL_RETRY: Final = RetryPolicy(initial=0.1, max_delay=5.0, max_attempts=8)
"""For calls to the broker that fail with a transient error: about half a minute in all."""


@final
@attrs.frozen(kw_only=True)
class SupervisorStatistics:
    """How a supervisor stands, at one moment.

    Args:
        active_sessions: Sessions with an actor.
        in_flight: Messages received and not settled.
        session_backlog: Messages waiting in the mailbox of each active session.
        received: Messages received since the start, redeliveries included.
        completed: Messages completed.
        retried: Handler failures that were followed by another attempt.
        abandoned: Messages given back to be tried again.
        dead_lettered: Messages moved to the dead-letter queue.
        given_back: Messages given back untried.
        sessions_opened: Sessions locked since the start.
        locks_lost: Locks lost since the start.
        completed_per_second: Rate over about the last ten seconds.
        breaker: The breaker that gates the provider.
        handler_breaker: The breaker that watches the handlers; ``None`` if there is none.
        draining: Whether it is shutting down.
        healthy: Whether the runtime makes progress: a receive call that never comes back is unhealthy, and so
            is a broker that leaves settlements, renewals or locks given back unanswered; a handler that runs
            long is not.
    """

    active_sessions: int
    in_flight: int
    session_backlog: Mapping[SessionId, int]
    received: int
    completed: int
    retried: int
    abandoned: int
    dead_lettered: int
    given_back: int
    sessions_opened: int
    locks_lost: int
    completed_per_second: float
    breaker: BreakerStatistics
    handler_breaker: BreakerStatistics | None
    draining: bool
    healthy: bool


@final
class Supervisor:
    """Runs one actor per active session of a queue. Made by ``open_supervisor``; no public constructor."""

    def __init__(
        self,
        provider: Provider,
        receiver: Receiver,
        queue: QueueName,
        make_handler: Callable[[], Any],
        config: SupervisorConfig,
        instruments: Instruments,
    ) -> None:
        self._provider = provider
        self._queue = queue
        self._config = config
        capabilities = provider.capabilities
        self._observer = SupervisorObserver(instruments, queue, provider.name)
        changed = self._observer.breaker_changed
        self.breaker = Breaker(f"provider {provider.name}", config.breaker, changed)
        self.handler_breaker = (
            None
            if config.handler_breaker is None
            else Breaker(f"the handlers of {queue}", config.handler_breaker, changed)
        )
        capabilities = attrs.evolve(
            capabilities, settle_linger=min(capabilities.settle_linger, config.settle_max_age)
        )
        self._settler = Settler(receiver, self.breaker, _CALL_RETRY, capabilities)
        self._keeper = LeaseKeeper(
            receiver,
            self.breaker,
            _CALL_RETRY,
            renew_fraction=config.renew_fraction,
            max_batch=capabilities.max_settle_messages,
        )
        self._dispatcher = Dispatcher(
            Demand(config.max_in_flight),
            # Beyond either the receiver accepts no session, however many wait behind idle ones.
            max_sessions=min(config.max_sessions, capabilities.max_sessions or config.max_sessions),
            max_concurrent=config.max_concurrent_sessionless,
            idle_timeout=config.idle_timeout,
            observer=self._observer,
        )
        self._dispatcher.connect(
            SessionEnvironment(
                make_handler=make_handler,
                receiver=receiver,
                settler=self._settler,
                keeper=self._keeper,
                observer=self._dispatcher,
                failure_policy=FailurePolicy(
                    retry=config.retry,
                    park_threshold=config.park_threshold,
                    max_delivery_count=receiver.max_delivery_count,
                ),
                settle_retry=_CALL_RETRY,
                handler_breaker=self.handler_breaker,
                pipelined=(
                    config.max_unsettled_ahead
                    if config.settlement is SettlementMode.PIPELINED
                    else 0
                ),
                handler_timeout=config.handler_timeout,
                close_timeout=config.close_timeout,
                restart_budget=config.restart_budget,
                keeps_empty_sessions=capabilities.keeps_empty_sessions,
                halt_on_dead_letter=config.halt_on_dead_letter,
            )
        )
        most = config.max_in_flight
        if capabilities.max_receive_messages is not None:
            most = min(most, capabilities.max_receive_messages)
        self._intake = ReceiverActor(
            receiver,
            self._dispatcher,
            self.breaker,
            self.handler_breaker,
            _CALL_RETRY,
            timeout=config.receive_timeout,
            batch=AdaptiveBatch(minimum=min(_FIRST_BATCH, most), maximum=most),
            max_concurrency=capabilities.max_concurrent_receives,
        )
        self._actors_scope = trio.CancelScope(shield=True)
        self._drain = Drain(
            self._intake,
            self._dispatcher,
            self._settler,
            self._keeper,
            receiver,
            self._actors_scope,
            flush_timeout=config.close_timeout,
        )
        self._grace = trio.CancelScope()
        self._drain_requested = trio.Event()
        self._drained = trio.Event()
        self._clean = False
        self._failure: QueueError | None = None
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES + 1)

    def statistics(self) -> SupervisorStatistics:
        """A frozen snapshot."""
        now = trio.current_time()
        counters = self._dispatcher.counters
        return SupervisorStatistics(
            active_sessions=self._dispatcher.active_sessions,
            in_flight=self._dispatcher.in_flight,
            session_backlog=self._dispatcher.backlogs(),
            received=counters.received,
            completed=counters.completed,
            retried=counters.retried,
            abandoned=counters.abandoned,
            dead_lettered=counters.dead_lettered,
            given_back=counters.given_back,
            sessions_opened=counters.sessions_opened,
            locks_lost=counters.locks_lost,
            completed_per_second=self._rate(now),
            breaker=self.breaker.statistics(),
            handler_breaker=(
                None if self.handler_breaker is None else self.handler_breaker.statistics()
            ),
            draining=self._drain_requested.is_set(),
            healthy=not (
                self._intake.wedged(now) or self._settler.stuck(now) or self._keeper.stuck(now)
            ),
        )

    async def drain(self, timeout: float | None = None) -> bool:
        """Stop the intake, finish what runs, settle, give the locks back; return when all that is done.

        Args:
            timeout: Seconds handlers may still run before they are cancelled and their messages abandoned;
                ``None``: the configured ``drain_timeout``. A second call may only shorten it.

        Returns:
            Whether every handler finished by itself.
        """
        self._request_drain(self._config.drain_timeout if timeout is None else timeout)
        await self._drained.wait()
        return self._clean

    async def wait_settled(self) -> None:
        """Return when every message received so far was settled or given back, and none is in flight."""
        await self._dispatcher.wait_settled()

    async def wait_empty(self, *, poll_interval: float = 0.05) -> None:
        """Return when the queue has nothing left to handle: nothing waiting (delayed retries included) or in flight.

        Messages scheduled for later and dead letters do not count. Other consumers' work does.

        Args:
            poll_interval: Seconds between looks at the queue while this supervisor itself has nothing to do.

        Raises:
            Unsupported: The provider has no ``stats``.
        """
        while True:
            await self._dispatcher.wait_settled()
            try:
                stats: QueueStats = await self.breaker.call(self._provider.stats, self._queue)
            except QueueError as error:
                if not error.is_transient:
                    raise
            else:
                if not stats.depth and not stats.in_flight:
                    return
            await trio.sleep(poll_interval)

    def _request_drain(self, timeout: float) -> None:
        self._grace.deadline = min(self._grace.deadline, trio.current_time() + timeout)
        self._drain_requested.set()

    def _rate(self, now: float) -> float:
        samples = self._samples
        if not samples or now - samples[0][0] <= 0:
            return 0.0
        return (self._dispatcher.counters.completed - samples[0][1]) / (now - samples[0][0])

    async def _sample(self) -> None:
        while True:
            self._samples.append((trio.current_time(), self._dispatcher.counters.completed))
            await trio.sleep(_RATE_WINDOW / _SAMPLES)

    async def _pause_when_handlers_fail(self, breaker: Breaker) -> None:
        while True:
            await breaker.state.wait_value(BreakerState.OPEN)
            self._dispatcher.stop_sessions(CloseReason.PAUSED)
            await breaker.state.wait_transition()

    async def _run(self, task_status: trio.TaskStatus[Supervisor]) -> None:
        """Run until drained or cancelled; in both cases everything is settled and given back first."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_actors)
            self._observer.started()
            task_status.started(self)
            try:
                await self._drain_requested.wait()
            finally:
                if not self._drain_requested.is_set():
                    self._request_drain(0.0)
                self._observer.draining(max(0.0, self._grace.deadline - trio.current_time()))
                try:
                    self._clean = await self._drain.run(self._grace)
                finally:
                    self._actors_scope.cancel()
                    self._drained.set()
                    self._observer.stopped(self._clean)
        if self._failure is not None:
            raise self._failure

    async def _run_actors(self) -> None:
        # Shielded: a cancellation from outside reaches the actors only in the order of the drain.
        with self._actors_scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.breaker.run)
                if self.handler_breaker is not None:
                    nursery.start_soon(self.handler_breaker.run)
                    nursery.start_soon(self._pause_when_handlers_fail, self.handler_breaker)
                nursery.start_soon(self._settler.run)
                nursery.start_soon(self._keeper.run)
                nursery.start_soon(self._dispatcher.run)
                nursery.start_soon(self._run_intake)
                nursery.start_soon(self._sample)

    async def _run_intake(self) -> None:
        try:
            await self._intake.run()
        except QueueError as error:
            # Nothing more can be received, ever: finish what is here, then tell.
            self._failure = error
            self._request_drain(self._config.drain_timeout)


async def supervise(
    provider: Provider,
    queue: str,
    handler: HandlerFactory,
    *,
    config: SupervisorConfig | None = None,
    instruments: Iterable[Instrument] = (),
    task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a supervisor until it is drained or cancelled; for ``await nursery.start(supervise, …)``.

    Args:
        provider: The connection to the broker; stays open.
        queue: The queue to serve.
        handler: A handler class, a function that makes handlers, or an async function.
        config: How the actors work.
        instruments: Told what happens.
        task_status: Gets the :class:`Supervisor` once the queue is open.

    Raises:
        ConfigurationError: ``handler`` is none of the above.
        Unsupported: The configuration asks for what the provider lacks.
        QueueError: The queue cannot be opened, or a permanent error ended the intake.
    """
    config = SupervisorConfig() if config is None else config
    name = QueueName(queue)
    make_handler = handler_maker(handler)
    if config.halt_on_dead_letter and not provider.capabilities.session_halt:
        raise Unsupported("session_halt", provider.name, "set halt_on_dead_letter to false")
    listeners = Instruments(instruments)
    provider = instrument_provider(provider, listeners)
    make_handler = instrument_handlers(make_handler, listeners, name, provider.name)
    receiver = await provider.open_receiver(
        name,
        ReceiverOptions(max_sessions=config.max_sessions, max_per_session=config.max_per_session),
    )
    try:
        supervisor = Supervisor(provider, receiver, name, make_handler, config, listeners)
        await supervisor._run(task_status)
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(config.close_timeout):
            try:
                await receiver.aclose()
            except QueueError:
                # As in the drain, which tried it already unless it was never reached.
                pass
