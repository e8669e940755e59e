"""The session actor: holds one session's lease, handles its messages in order, decides what becomes of each.

Read :meth:`SessionActor.run` from top to bottom: that is the life of a session.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from random import random
from typing import Any, Final, NoReturn, final

import attrs
import trio

from ..abc import Lease
from ..errors import InvalidReceipt, LockLost, OperationTimeout, QueueError, SerializationError
from ..handlers import CloseReason, Complete, Outcome, Retry, Session, SessionHandler
from ..messages import Delivery, Settlement, SettlementAction
from ..policies.outcomes import Park, Settle, Wait, decide, error_text
from .bounded import bounded
from .environment import SessionEnvironment
from .settlement import settle_timeout
from .signal import Signal

__all__ = ["SESSION_CRASHED", "SessionActor"]

_COMPLETE: Final = SettlementAction.COMPLETE  # looked up once: members of an enum cost a search
SESSION_CRASHED: Final = "SessionCrashed"
"""Dead-letter reason when a session's handler crashed more often than its restart budget allows."""


_PAUSED: Final = Retry(reason="handlers are paused")
"""Stands for the result of a handler that was not called; compared by identity."""


@final
class SessionActor:
    """Serves one lease until it is idle, stopped, parked or lost.

    A lease that does not outlive its messages - that of a message without a session, and every lease where the
    broker keeps no empty sessions - is idle as soon as everything delivered under it is settled.

    Args:
        lease: The lock on the session, or on one message without a session.
        environment: What is shared with the other sessions.
        predecessor: Set when an actor of this supervisor still unwinds under an older lease of the same
            session; nothing starts before it is set.

    Attributes:
        finished: Set when the actor will never run a handler again.
        handled: Messages settled so far.
        last_active: ``trio.current_time()`` of the last time it had nothing left to do.
    """

    __slots__ = (
        "_awaits_pending",
        "_began",
        "_crashed",
        "_ends_empty",
        "_environment",
        "_handle",
        "_handler",
        "_head",
        "_mailbox",
        "_on_answers",
        "_pending",
        "_predecessor",
        "_refused",
        "_restarts",
        "_scope",
        "_signal",
        "_stop",
        "_unsettled",
        "finished",
        "handled",
        "last_active",
        "lease",
    )

    def __init__(
        self, lease: Lease, environment: SessionEnvironment, predecessor: trio.Event | None = None
    ) -> None:
        self.lease = lease
        self.finished = trio.Event()
        self.handled = 0
        self.last_active = 0.0
        self._environment = environment
        self._predecessor = predecessor
        self._mailbox: deque[Delivery] = deque()
        self._signal = Signal()
        self._scope = trio.CancelScope()
        self._stop: CloseReason | None = None
        self._handler: Any = None
        self._handle: Any = None
        self._restarts = 0
        self._crashed = False
        self._began = 0.0
        self._head: Delivery | None = None
        self._unsettled = 0
        self._pending = 0
        self._ends_empty = lease.session_id is None or not environment.keeps_empty_sessions
        self._awaits_pending = False
        # Bound once: the coalescer groups answers by the identity of who gets them.
        self._on_answers = self._answered
        self._refused: deque[Settlement] = deque()

    @property
    def backlog(self) -> int:
        """Deliveries waiting in the mailbox."""
        return len(self._mailbox)

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """Put deliveries into the mailbox. What arrives after the actor stopped is given back."""
        self._mailbox.extend(deliveries)
        self._unsettled += len(deliveries)
        self._signal.wake()

    def stop(self, reason: CloseReason) -> None:
        """Finish the message that is being handled, give the rest back, and end."""
        if self._stop is None:
            self._stop = reason
            self._signal.wake()

    async def run(self) -> None:
        """Live. Only cancellation from outside and ``KeyboardInterrupt`` get out of here."""
        environment = self._environment
        lease = self.lease
        reason: CloseReason | None = None
        try:
            self._scope.deadline = lease.deadline
            environment.keeper.hold(lease, self._renewed)
            lease.on_lost(self._lost)
            if self._predecessor is not None:
                await self._predecessor.wait()
                self._predecessor = None
            # Else a handler would still run to its first checkpoint, and its message count as tried.
            await trio.lowlevel.checkpoint_if_cancelled()
            with self._scope:
                stopped = await self._serve()
                await self._wait_pending(0)
                reason = stopped  # not before: cancelled while it waits, the lease must outlive the settlements
            if self._scope.cancelled_caught:
                reason = CloseReason.LOCK_LOST
                lease.lose(
                    LockLost(f"the lock on session {lease.session_id!r} was not renewed in time")
                )
            assert reason is not None
            await self._close_handler(reason)
        finally:
            lease.on_lost(None)
            head = self._head
            try:
                if reason is None:
                    # Cancelled from outside. The lease is given back when the receiver closes, after the
                    # settlements that are still queued.
                    environment.keeper.forget(lease)
                    if head is not None:
                        environment.settler.submit(
                            Settlement(head, SettlementAction.ABANDON), self._on_answers
                        )
                    with trio.CancelScope(shield=True):
                        await self._close_handler(CloseReason.DRAINED)
                elif reason is CloseReason.LOCK_LOST or (self._ends_empty and not self._unsettled):
                    environment.keeper.forget(lease)  # it is over: there is nothing to give back
                    lease.released = True
                else:
                    environment.keeper.release(lease)
            finally:
                self._mailbox.clear()
                self.finished.set()
                self._account(None, self._unsettled)
                environment.observer.closed(self, CloseReason.DRAINED if reason is None else reason)

    async def _serve(self) -> CloseReason:
        """Handle messages until there is a reason to end."""
        environment = self._environment
        lease = self.lease
        mailbox = self._mailbox
        pipelined = environment.pipelined
        current_time = environment.current_time
        submit, on_answers = environment.settler.submit, self._on_answers
        plain = environment.handler_breaker is None and environment.handler_timeout is None
        result: Outcome | BaseException | None
        while True:
            while mailbox:
                if self._stop is not None:
                    return self._stop
                delivery = mailbox.popleft()
                if self._handler is None or not plain or lease.lost is not None:
                    result = await self._attempt(delivery)
                else:
                    # What ``_attempt`` comes to here, without its costs: nothing gates or times the handler.
                    self._head = delivery
                    self._began = began = current_time()
                    if began >= lease.deadline:
                        await self._lose_late()
                    try:
                        result = await self._handle(delivery)
                    except BaseException as error:
                        result = await self._raised(error)
                if result is None or type(result) is Complete:
                    if pipelined:
                        # Without waiting for the broker's word.
                        self._restarts = 0
                        self._head = None
                        self._pending += 1
                        submit(Settlement(delivery, _COMPLETE), on_answers)
                        if self._pending > pipelined:
                            await self._wait_pending(pipelined)
                        continue
                    reason = await self._complete(delivery)
                else:
                    reason = await self._follow_up(delivery, result)
                if reason is not None:
                    return reason
            if self._stop is not None:
                return self._stop
            if self._refused or (self._ends_empty and self._pending):
                await self._wait_pending(0)
                continue
            if self._ends_empty:
                return CloseReason.IDLE
            self._environment.observer.idle(self)
            await self._signal.wait()

    async def _attempt(self, delivery: Delivery) -> Outcome | BaseException | None:
        """Call the handler once; what it raises is a result too, only cancellation is not.

        Returns:
            ``_PAUSED`` when the handler was not called because handlers are paused.
        """
        environment = self._environment
        self._head = delivery
        self._began = environment.current_time()
        if self.lease.lost is not None or self._began >= self.lease.deadline:
            await self._lose_late()
        breaker = environment.handler_breaker
        permit = None
        if breaker is not None:
            permit = breaker.admit()
            if permit is None:
                return _PAUSED
        self._crashed = False
        result: Outcome | BaseException | None
        try:
            if self._handler is None:
                await self._open_handler()
            if environment.handler_timeout is None:
                result = await self._handle(delivery)
            else:
                result = OperationTimeout(
                    f"the handler took longer than {environment.handler_timeout} s"
                )
                with trio.move_on_after(environment.handler_timeout):
                    result = await self._handle(delivery)
        except BaseException as error:
            if permit is not None and breaker is not None and not isinstance(error, Exception):
                breaker.cancel(permit)
                permit = None
            result = await self._raised(error)
        if permit is not None and breaker is not None:
            if isinstance(result, (BaseException, Retry)) and not isinstance(
                result, SerializationError
            ):
                breaker.fail(permit)
            else:
                breaker.succeed(permit)
        return result

    async def _raised(self, error: BaseException) -> BaseException:
        """What a handler raised, as its result; raised again when it is our cancellation or ends the program."""
        if not isinstance(error, Exception):
            await trio.lowlevel.checkpoint_if_cancelled()
            if _interrupts(error):
                raise error
            # Neither an error nor a cancellation of ours (SystemExit, a stray Cancelled, GeneratorExit …).
            self._crashed = True
        return error

    async def _follow_up(
        self, delivery: Delivery, result: Outcome | BaseException | None
    ) -> CloseReason | None:
        """See a message that was not completed at once through its attempts.

        Returns:
            Why the session must end, or ``None`` to go on with the next message.
        """
        attempt = delivery.delivery_count
        began = self._began
        while not (result is None or isinstance(result, Complete)):
            if result is _PAUSED:
                return CloseReason.PAUSED
            decision = await self._judge(result, attempt, trio.current_time() - began)
            self._environment.observer.failed(delivery, result, decision)
            if isinstance(decision, Settle):
                return await self._settle_failed(delivery, decision)
            if isinstance(decision, Park):
                return await self._park(delivery, decision.delay, CloseReason.PARKED)
            remaining = await self._pause(decision.delay)
            if self._stop is not None:
                return await self._park(delivery, remaining, self._stop)
            attempt += 1
            delivery = attrs.evolve(delivery, delivery_count=attempt)
            result = await self._attempt(delivery)
        await self._wait_pending(0)
        return await self._complete(delivery)

    async def _judge(
        self, result: Outcome | BaseException, attempt: int, elapsed: float
    ) -> Settle | Wait | Park:
        if self._crashed:
            await self._close_handler(CloseReason.CRASHED)
            self._restarts += 1
            if self._restarts > self._environment.restart_budget:
                self._restarts = 0
                assert isinstance(result, BaseException)
                return Settle(SettlementAction.DEAD_LETTER, SESSION_CRASHED, error_text(result))
        return decide(
            result,
            attempt=attempt,
            elapsed=elapsed,
            policy=self._environment.failure_policy,
            random=random,
        )

    async def _complete(self, delivery: Delivery) -> CloseReason | None:
        environment = self._environment
        settlement = Settlement(delivery, _COMPLETE)
        self._restarts = 0
        self._head = None
        error = await environment.settler.settle(settlement)
        if error is not None and error.is_transient:
            error = await self._settle(settlement)
        if error is None:
            self._account(SettlementAction.COMPLETE)
            return None
        return await self._refused_settlement(delivery, error)

    async def _settle_failed(self, delivery: Delivery, decision: Settle) -> CloseReason | None:
        """Settle a message that was not completed, everything before it first."""
        await self._wait_pending(0)
        settlement = Settlement(
            delivery,
            decision.action,
            reason=decision.reason,
            description=decision.description,
            halt=self._environment.halt_on_dead_letter and self.lease.session_id is not None,
        )
        error = await self._settle(settlement)
        if error is None:
            self._head = None
            self._account(decision.action)
            return CloseReason.PARKED if settlement.halt else None
        return await self._refused_settlement(delivery, error)

    async def _park(self, delivery: Delivery, delay: float, reason: CloseReason) -> CloseReason:
        """Give the message back with its delay; what is behind it goes back with the lease."""
        await self._wait_pending(0)
        error = await self._settle(Settlement(delivery, SettlementAction.ABANDON, delay=delay))
        if error is None:
            self._head = None
            self._account(SettlementAction.ABANDON)
        elif not error.is_transient:
            await self._lose(str(error))
        return reason

    async def _refused_settlement(self, delivery: Delivery, error: QueueError) -> CloseReason:
        if isinstance(error, (LockLost, InvalidReceipt)):
            await self._lose(str(error))
        # The broker cannot do it now (its dead-letter queue may be down): the message stays where it was.
        self._head = delivery
        delay = self._environment.failure_policy.retry.delay(1, random=random) or 1.0
        return await self._park(delivery, delay, CloseReason.PARKED)

    async def _settle(self, settlement: Settlement) -> QueueError | None:
        """Settle, trying again while the error is transient and the policy allows."""
        attempt = 0
        while True:
            error = await self._environment.settler.settle(settlement)
            if error is None or not error.is_transient:
                return error
            attempt += 1
            delay = self._environment.settle_retry.delay(
                attempt, retry_after=error.retry_after, random=random
            )
            if delay is None:
                return error
            try:
                await trio.sleep(delay)
            except trio.Cancelled:
                # What a handler finished is not handled again if the drain can still report it.
                self._environment.settler.submit(settlement, self._on_answers)
                raise

    def _answered(
        self,
        settlements: Sequence[Settlement],
        answers: Sequence[QueueError | None] | QueueError,
    ) -> None:
        """The answers to settlements the session ran ahead of."""
        if self.finished.is_set():
            return
        if isinstance(answers, QueueError):
            answers = [answers] * len(settlements)
        confirmed = answers.count(None)
        if confirmed:
            self._pending -= confirmed
            self._account(SettlementAction.COMPLETE, confirmed)
        if confirmed < len(answers):
            for settlement, error in zip(settlements, answers, strict=True):
                if error is not None and error.is_transient:
                    self._refused.append(settlement)
                elif error is not None:
                    self.lease.lose(LockLost(str(error)))
        if self._awaits_pending or self._refused:
            self._signal.wake()

    async def _wait_pending(self, limit: int) -> None:
        """Return when at most ``limit`` settlements are unconfirmed."""
        while self._pending > limit:
            if self._refused:
                settlement = self._refused.popleft()
                error = await self._settle(settlement)
                self._pending -= 1
                if error is not None:
                    await self._lose(str(error))
                self._account(SettlementAction.COMPLETE)
                continue
            self._awaits_pending = True
            await self._signal.wait()
            self._awaits_pending = False

    async def _pause(self, delay: float) -> float:
        """Wait out a retry delay while the lease is renewed; return what is left of it when told to stop."""
        until = trio.current_time() + delay
        while self._stop is None and trio.current_time() < until:
            with trio.move_on_at(until):
                await self._signal.wait()
        return max(0.0, until - trio.current_time())

    async def _open_handler(self) -> None:
        self._crashed = True
        handler = self._environment.make_handler()
        opened = getattr(handler, "opened", None)
        if opened is not None:
            receiver = self._environment.receiver
            limit = settle_timeout(receiver.lock_duration)
            calls = partial(bounded, limit, receiver.provider_name)
            await opened(Session(receiver, self.lease, calls))
        self._handle = handler.handle
        self._handler = handler
        self._crashed = False

    async def _close_handler(self, reason: CloseReason) -> None:
        handler, self._handler = self._handler, None
        closed = getattr(handler, "closed", None)
        if closed is None or getattr(type(handler), "closed", None) is SessionHandler.closed:
            return
        try:
            with trio.move_on_after(self._environment.close_timeout):
                await closed(reason)
        except BaseException as error:
            if _interrupts(error):
                raise
            # Nothing depends on how it ends; who wants to know wraps the handler (instrumentation does).
            await trio.lowlevel.checkpoint_if_cancelled()

    def _account(self, action: SettlementAction | None, count: int = 1) -> None:
        self._unsettled -= count
        if action is not None:
            self.handled += count
        if count:
            self._environment.observer.settled(action, count)

    async def _lose_late(self) -> NoReturn:
        """The lock ran out unnoticed: a handler blocked the loop, or the process was paused."""
        await self._lose(f"the lock on session {self.lease.session_id!r} was not renewed in time")

    async def _lose(self, why: str) -> NoReturn:
        """Treat the lease as lost; the scope of :meth:`run` ends the session."""
        self.lease.lose(LockLost(why))
        self._scope.cancel()
        while True:
            await trio.lowlevel.checkpoint()

    def _lost(self, _lease: Lease) -> None:
        self._scope.cancel()

    def _renewed(self) -> None:
        self._scope.deadline = self.lease.deadline


def _interrupts(error: BaseException) -> bool:
    """Whether it is, or holds, what ends the program."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt)
