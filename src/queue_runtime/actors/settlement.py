"""The settlement actor: decisions about messages, coalesced across sessions into broker batches."""

from __future__ import annotations

from collections.abc import Sequence
from random import random
from typing import Final, final

import trio

from ..abc import Lease, Receiver
from ..errors import CircuitOpen, InvalidReceipt, LockLost, QueueError
from ..messages import Capabilities, Settlement
from ..policies.backoff import RetryPolicy
from .bounded import BoundedCalls
from .breaker import Breaker
from .coalescer import Coalescer

__all__ = ["RepeatableSettle", "Settler", "settle_timeout"]

_LEAST_TIMEOUT: Final = 1.0
_MOST_TIMEOUT: Final = 30.0
"""Bounds of what :func:`settle_timeout` returns, in seconds."""


def settle_timeout(lock_duration: float) -> float:
    """Seconds a call that settles or gives back may take: a third of the lock, so that it can be repeated under it.

    Not less than a busy broker needs (1 s), nor more than anybody should wait for one answer (30 s).
    """
    return min(max(_LEAST_TIMEOUT, lock_duration / 3), _MOST_TIMEOUT)


@final
class RepeatableSettle:
    """``receiver.settle`` for one batch, called again with the same or fewer settlements when it fails.

    A call that failed as a whole may have been applied. A receipt that is invalid when the call is repeated
    is taken for the trace of that: the message is settled, by this call or, at worst, by whoever got it after
    its lock had run out, in which case it was handled at least once all the same.

    Args:
        receiver: Where the deliveries came from.
    """

    __slots__ = ("_is_unknown", "_receiver")

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._is_unknown = False

    async def __call__(self, settlements: Sequence[Settlement]) -> Sequence[QueueError | None]:
        """Settle; answers and errors are those of :meth:`Receiver.settle` but for the above."""
        try:
            answers = await self._receiver.settle(settlements)
        except BaseException:  # cancelled: it took too long
            self._is_unknown = True
            raise
        if self._is_unknown:
            return [None if isinstance(answer, InvalidReceipt) else answer for answer in answers]
        return answers


@final
class Settler:
    """Sends settlements to the broker in batches and reports what became of each.

    A settlement whose lease is over, by the local deadline or by event, is refused here with ``LockLost``,
    whatever the broker would say. A call that fails as a whole or takes longer than :func:`settle_timeout`
    is repeated (settling twice is safe) as the retry policy says; what still fails is answered with the error.

    Args:
        receiver: Where the deliveries came from.
        breaker: Gates the calls.
        retry: For calls that fail as a whole with a transient error.
        capabilities: Batch size, useful concurrency and linger of the broker.
    """

    def __init__(
        self, receiver: Receiver, breaker: Breaker, retry: RetryPolicy, capabilities: Capabilities
    ) -> None:
        self._receiver = receiver
        self._calls = BoundedCalls(
            breaker, receiver.provider_name, settle_timeout(receiver.lock_duration)
        )
        self.stuck = self._calls.stuck
        """Whether the broker does not answer settlements, at that ``trio.current_time()``."""
        self._retry = retry
        self._coalescer: Coalescer[Settlement, QueueError | None] = Coalescer(
            self._flush,
            max_batch=capabilities.max_settle_messages,
            workers=capabilities.max_concurrent_settles,
            linger=capabilities.settle_linger,
            withdraw=False,
        )
        self.submit = self._coalescer.submit
        """Queue a settlement; the callback gets the answers: ``None``, or why it was refused."""
        self.settle = self._coalescer.ask
        """Settle and wait for the broker's word: ``None``, or why it was refused.

        Cancelled, the settlement stays queued: what a handler finished is not handled again for that.
        """
        self.wait_idle = self._coalescer.wait_idle
        self.run = self._coalescer.run

    async def _flush(self, batch: Sequence[Settlement]) -> Sequence[QueueError | None]:
        attempt = 0
        settle = RepeatableSettle(self._receiver)
        while True:
            refusals = _refusals(batch)
            live = batch
            if refusals:
                live = [s for s, refusal in zip(batch, refusals, strict=True) if refusal is None]
                if not live:
                    return refusals
            try:
                results = await self._calls(settle, live)
            except CircuitOpen as error:
                # No attempt at the broker: wait for it as long as the leases last.
                await trio.sleep(max(error.retry_after or 0.0, 0.01))
                continue
            except QueueError as error:
                attempt += 1
                delay = self._retry.delay(attempt, retry_after=error.retry_after, random=random)
                if error.is_transient and delay is not None:
                    await trio.sleep(delay)
                    continue
                results = [error] * len(live)
            if not refusals:
                return results
            answers = iter(results)
            return [next(answers) if refusal is None else refusal for refusal in refusals]


def _refusals(batch: Sequence[Settlement]) -> list[LockLost | None]:
    """For each settlement whose lease is over, why it is refused, ``None`` for the others; ``[]`` if none is."""
    now = trio.current_time()
    over: dict[Lease, LockLost] = {}
    for lease in {settlement.delivery.lease for settlement in batch}:
        if lease.lost is not None:
            over[lease] = lease.lost
        elif now >= lease.deadline:
            over[lease] = LockLost(
                f"the lock on session {lease.session_id!r} ran out before the settlement was sent"
            )
    return [over.get(settlement.delivery.lease) for settlement in batch] if over else []
