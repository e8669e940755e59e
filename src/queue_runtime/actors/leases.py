"""The lease keeper: renews every held lease in batches, well before it expires, and gives leases back."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import random
from typing import final

import trio

from ..abc import LOCAL_DEADLINE_FRACTION, Lease, Receiver
from ..errors import QueueError
from ..policies.backoff import RetryPolicy
from .bounded import BoundedCalls
from .breaker import Breaker
from .settlement import settle_timeout
from .signal import Signal

__all__ = ["LeaseKeeper"]


@final
class LeaseKeeper:
    """Keeps the leases of one receiver alive until told otherwise.

    A lease is renewed when ``renew_fraction`` of the lock duration has passed since it was granted or last
    renewed, give or take a tenth of that. A renewal that fails for a transient reason is repeated at every tick
    until the local deadline; whoever holds the lease stops there by itself. A call may take half of the time
    between the two, so that one that is not answered leaves time for another and for other leases.

    Args:
        receiver: Whose leases they are.
        breaker: Gates the calls.
        retry: Spaces repeated releases.
        renew_fraction: When to renew, as a part of the lock duration; below ``LOCAL_DEADLINE_FRACTION``.
        max_batch: Most leases in one call.
    """

    def __init__(
        self,
        receiver: Receiver,
        breaker: Breaker,
        retry: RetryPolicy,
        *,
        renew_fraction: float,
        max_batch: int,
    ) -> None:
        self._receiver = receiver
        self._retry = retry
        lock_duration = receiver.lock_duration
        self._interval = lock_duration * renew_fraction
        timeout = min(
            (LOCAL_DEADLINE_FRACTION - renew_fraction) / 2 * lock_duration,
            settle_timeout(lock_duration),
        )
        self._renewals = BoundedCalls(breaker, receiver.provider_name, timeout)
        self._releases = BoundedCalls(
            breaker, receiver.provider_name, settle_timeout(lock_duration)
        )
        self._max_batch = max_batch
        # Every lease lasts equally long, so insertion order is the order of the times.
        self._held: dict[Lease, tuple[float, Callable[[], None]]] = {}
        self._first_held = Signal()
        self._repeat: set[Lease] = set()
        self._to_release: list[Lease] = []
        self._more_to_release = Signal()
        self._ended = False
        self._released = trio.Event()
        self._released.set()

    def hold(self, lease: Lease, renewed: Callable[[], None]) -> None:
        """Renew ``lease`` from now on; call ``renewed()`` whenever its deadline moved."""
        if math.isinf(self._interval):
            return
        if not self._held:
            self._first_held.wake()
        # Held already (a message that waited for its turn): it falls due when it did.
        known = self._held.get(lease)
        due = trio.current_time() + self._interval if known is None else known[0]
        self._held[lease] = (due, renewed)

    def forget(self, lease: Lease) -> None:
        """Stop renewing ``lease``."""
        self._held.pop(lease, None)

    def release(self, lease: Lease) -> None:
        """Give ``lease`` back as soon as possible, together with others given back in the same moment."""
        self.forget(lease)
        lease.released = True
        if lease.lost is not None:
            return
        if not self._to_release:
            self._more_to_release.wake()
            if self._released.is_set() and not self._ended:
                self._released = trio.Event()
        self._to_release.append(lease)

    def stuck(self, now: float) -> bool:
        """Whether the broker does not answer renewals, or leases given back, at ``trio.current_time()``."""
        return self._renewals.stuck(now) or self._releases.stuck(now)

    async def wait_released(self) -> None:
        """Return when everything given back so far was sent to the broker, or :meth:`run` has ended."""
        await self._released.wait()

    async def run(self) -> None:
        """Renew and release until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._release_forever)
                await self._renew_forever()
        finally:
            self._ended = True
            self._released.set()

    async def _renew_forever(self) -> None:
        tick = self._interval / 10
        while True:
            if not self._held:
                await self._first_held.wait()
                continue
            await trio.sleep(tick)
            # Whatever falls due before the next tick goes along now.
            horizon = trio.current_time() + tick
            repeat, self._repeat = self._repeat, set()
            due = [lease for lease in repeat if lease in self._held]
            for lease, (moment, _) in self._held.items():
                if moment > horizon:
                    break
                if lease not in repeat:
                    due.append(lease)
            for start in range(0, len(due), self._max_batch):
                await self._renew(due[start : start + self._max_batch])

    async def _renew(self, batch: list[Lease]) -> None:
        try:
            errors = await self._renewals(self._receiver.renew, batch)
        except QueueError as failure:
            errors = [failure] * len(batch)
        now = trio.current_time()
        for lease, error in zip(batch, errors, strict=True):
            entry = self._held.pop(lease, None)
            if entry is None or lease.lost is not None:
                continue
            if error is None:
                renewed = entry[1]
                self._held[lease] = (now + self._interval, renewed)
                renewed()
            elif error.is_transient and now < lease.deadline:
                self._held[lease] = (now, entry[1])
                self._repeat.add(lease)

    async def _release_forever(self) -> None:
        while True:
            await self._more_to_release.wait()
            while self._to_release:
                batch = self._to_release[: self._max_batch]
                del self._to_release[: len(batch)]
                await self._release(batch)
            self._released.set()

    async def _release(self, batch: list[Lease]) -> None:
        """Try as long as the policy allows; a lease that cannot be given back expires by itself."""
        attempt = 0
        while True:
            try:
                await self._releases(self._receiver.release, batch)
                return
            except QueueError as error:
                attempt += 1
                delay = self._retry.delay(attempt, retry_after=error.retry_after, random=random)
                if not error.is_transient or delay is None:
                    return
            await trio.sleep(delay)
