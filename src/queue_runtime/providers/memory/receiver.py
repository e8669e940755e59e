"""Reading a queue under leases."""

# ruff: noqa: D102 - the methods are documented where they are declared, in queue_runtime.abc

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, TypeVar, final

import trio

from queue_runtime.abc import LOCAL_DEADLINE_FRACTION, Lease, Receiver, ReceiverOptions
from queue_runtime.errors import LockLost, QueueError, ValidationError
from queue_runtime.messages import Delivery, QueueName, SessionId, Settlement

from .connection import Connection, moment
from .engine import Grant, Refusal
from .errors import invalid_receipt, lock_lost
from .waiting import Waiter

__all__ = ["EngineReceiver"]

T = TypeVar("T")

# Groups of waiters: who has room for new sessions and single messages, and who waits for a session only.
_RECEIVE: Final = "receive"
_ACCEPT: Final = "accept"


@final
class EngineReceiver(Receiver):
    """Reads one queue. Made by :meth:`EngineProvider.open_receiver`.

    Calls may overlap, ``receive`` included.
    """

    def __init__(
        self,
        provider_name: str,
        connection: Connection,
        queue: QueueName,
        holder: str,
        options: ReceiverOptions,
        forget: Callable[[EngineReceiver], None],
    ) -> None:
        engine = connection.engine
        self.provider_name = provider_name
        self.lock_duration = engine.options.lock_duration
        self.max_delivery_count = engine.options.max_delivery_count or None
        self._connection = connection
        self._engine = engine
        self._queue = queue
        self._hub = connection.hub(queue)
        self._holder = holder
        self._options = options
        self._forget = forget
        self._closed = False
        self._sessions: dict[int, Lease] = {}  # by token
        self._singles: dict[int, Lease] = {}  # of messages without a session
        self._expiry = 0.0, moment(0.0)  # the last one: the locks of a batch share theirs
        self._hub.lose[holder] = self._token_lost

    # Receiving

    async def receive(self, max_messages: int, timeout: float) -> list[Delivery]:
        if max_messages < 1:
            raise ValidationError(f"max_messages is {max_messages}: ask for at least 1")
        engine, queue, holder = self._engine, self._queue, self._holder

        def claim(now: float) -> list[Grant]:
            return engine.claim(queue, holder, max_messages, now)

        grants, asked_at = await self._look_until(claim, timeout, self._takes)
        return self._deliveries(grants, asked_at)

    async def accept(self, session_id: SessionId | None, timeout: float) -> Lease | None:
        engine, queue, holder = self._engine, self._queue, self._holder

        def accept(now: float) -> list[Grant]:
            grant = engine.accept(queue, holder, session_id, now)
            return [] if grant is None else [grant]

        grants, asked_at = await self._look_until(accept, timeout, lambda: _ACCEPT)
        return self._lease(grants[0], asked_at) if grants else None

    def _takes(self) -> str | None:
        """The group of waiters that ``receive`` belongs to at the moment."""
        options = self._options
        has_room = options.auto_accept and len(self._sessions) < options.max_sessions
        return _RECEIVE if has_room else None

    async def _look_until(
        self, look: Callable[[float], list[Grant]], timeout: float, takes: Callable[[], str | None]
    ) -> tuple[list[Grant], float]:
        """What ``look`` finds, at once or before the timeout, and when that look was asked for.

        There is no checkpoint between a look that found something and the return.
        """
        hub = self._hub
        version = hub.version

        def noted(now: float) -> list[Grant]:
            nonlocal version
            version = hub.version
            return look(now)

        deadline = trio.current_time() + timeout
        waiter: Waiter | None = None
        try:
            while True:
                self._check_open()
                asked_at = trio.current_time()
                grants, signals = await self._connection.cross(self._queue, noted)
                # What was signalled since the look began may have come too late for it, and too early for a wait.
                is_stale = hub.version != version
                group = takes()
                hub.apply(signals, skip=None if grants else group)
                self._check_open()
                if grants:
                    await self._give_back_if_cancelled(grants)
                    return grants, asked_at
                if trio.current_time() >= deadline:
                    return grants, asked_at
                if not is_stale:
                    waiter = Waiter(self._holder, deadline, group)
                    await hub.wait(waiter)
        except BaseException:
            if waiter is not None and waiter.woken.is_set():
                hub.pass_on(waiter.takes)
            raise

    async def _give_back_if_cancelled(self, grants: list[Grant]) -> None:
        """Undo a claim that was answered to a cancelled task. A checkpoint only then."""
        # An inline look cannot be cancelled half-way; asking trio costs as much as the rest.
        if self._engine.is_blocking and trio.current_effective_deadline() == -math.inf:
            with trio.CancelScope(shield=True):
                await self._connection.call(
                    self._queue,
                    lambda now: self._engine.unclaim(self._queue, self._holder, grants, now),
                )
            await trio.lowlevel.checkpoint()

    def _deliveries(self, grants: list[Grant], asked_at: float) -> list[Delivery]:
        deliveries: list[Delivery] = []
        for grant in grants:
            lease = None if grant.is_new else self._sessions.get(grant.token)
            if lease is None:
                lease = self._lease(grant, asked_at)
            for message, message_id, receipt, count, at, sequence, history in grant.messages:
                deliveries.append(
                    Delivery(message, message_id, receipt, lease, count, at, sequence, history)
                )
        return deliveries

    def _lease(self, grant: Grant, asked_at: float) -> Lease:
        """The lease of a new lock."""
        session_id, token, locked_until, _, messages = grant
        if locked_until != self._expiry[0]:
            self._expiry = locked_until, moment(locked_until)
        deadline = asked_at + LOCAL_DEADLINE_FRACTION * self.lock_duration
        lease = Lease(session_id, token, deadline, self._expiry[1])
        if session_id is None:
            lease.provider_data = messages[0][5]
            self._singles[token] = lease
        else:
            self._sessions[token] = lease
        return lease

    # Settling

    async def settle(self, settlements: Sequence[Settlement]) -> list[QueueError | None]:
        self._check_open()
        refusals = await self._connection.call(
            self._queue,
            lambda now: self._engine.settle(self._queue, self._holder, settlements, now),
        )
        if not self._singles and not any(refusals):
            return [None] * len(refusals)
        return [
            self._settled(settlement, refusal)
            for settlement, refusal in zip(settlements, refusals, strict=True)
        ]

    def _settled(self, settlement: Settlement, refusal: Refusal | None) -> QueueError | None:
        lease = settlement.delivery.lease
        if refusal is None:
            self._singles.pop(lease.token, None)
            return None
        if refusal is Refusal.INVALID_RECEIPT:
            return invalid_receipt(settlement)
        if not self._is_held(lease) and lease.lost is None and lease.session_id is None:
            # The lock of a single message ends with its settlement, so this is the second one.
            return invalid_receipt(settlement)
        return self._lost(lease)

    async def renew(self, leases: Sequence[Lease]) -> list[QueueError | None]:
        self._check_open()
        asked_at = trio.current_time()
        answers = await self._connection.call(
            self._queue, lambda now: self._engine.renew(self._queue, self._holder, leases, now)
        )
        deadline = asked_at + LOCAL_DEADLINE_FRACTION * self.lock_duration
        results: list[QueueError | None] = []
        for lease, until in zip(leases, answers, strict=True):
            if until is None:
                results.append(self._lost(lease))
            else:
                lease.deadline = deadline
                lease.expires_at = moment(until)
                results.append(None)
        return results

    async def release(self, leases: Sequence[Lease]) -> None:
        self._check_open()
        await self._connection.call(
            self._queue, lambda now: self._engine.release(self._queue, self._holder, leases, now)
        )
        for lease in leases:
            self._drop(lease)
        self._hub.wake_holder(self._holder)  # it has room for other sessions now

    async def get_state(self, lease: Lease) -> bytes | None:
        return await self._fenced(
            lease, lambda now: self._engine.get_state(self._queue, self._holder, lease, now)
        )

    async def set_state(self, lease: Lease, state: bytes | None) -> None:
        await self._fenced(
            lease, lambda now: self._engine.set_state(self._queue, self._holder, lease, state, now)
        )

    async def _fenced(self, lease: Lease, call: Callable[[float], T]) -> T:
        self._check_open()
        try:
            return await self._connection.call(self._queue, call)
        except LockLost:
            raise self._lost(lease) from None

    # Leases

    def _is_held(self, lease: Lease) -> bool:
        return (self._sessions.get(lease.token) or self._singles.get(lease.token)) is lease

    def _drop(self, lease: Lease) -> None:
        if self._is_held(lease):
            self._sessions.pop(lease.token, None)
            self._singles.pop(lease.token, None)

    def _lost(self, lease: Lease) -> LockLost:
        """The engine says that a lock is over: tell the lease's holder, unless it gave the lock back itself."""
        error = lock_lost(lease)
        if self._is_held(lease):
            self._drop(lease)
            lease.lose(error)
        return error

    def _token_lost(self, token: int) -> None:
        lease = self._sessions.get(token) or self._singles.get(token)
        if lease is not None:
            self._lost(lease)

    # Closing

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"the receiver of queue {self._queue!s} is closed")

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._hub.wake_holder(self._holder)
            del self._hub.lose[self._holder]
            self._forget(self)
            with trio.CancelScope(shield=True):
                await self._connection.call(
                    self._queue,
                    lambda now: self._engine.close_holder(self._queue, self._holder, now),
                )
        await trio.lowlevel.checkpoint()
