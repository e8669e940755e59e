"""The circuit-breaker actor: every provider call passes through one of these.

The decisions are in ``policies.breaker``; here are only time, cancellation and publication.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, final

import trio
from trio_util import AsyncValue  # type: ignore[attr-defined]  # exported without an __all__

from ..errors import CircuitOpen, QueueError, QueueFull, SessionLocked
from ..policies.breaker import BreakerConfig, BreakerMachine, BreakerState, BreakerStatistics
from .signal import Signal

__all__ = ["Breaker"]

T = TypeVar("T")

_ANSWERS: Final = (QueueFull, SessionLocked)
"""Transient, but the answers of a broker that works: refusing calls would not help it."""


@final
class Breaker:
    """Gates calls: lets them through (closed), refuses them (open), or lets one probe through (half-open).

    Args:
        name: What it guards, for errors and events.
        config: When it opens and for how long.
        changed: Called with name, previous and new state.

    Attributes:
        state: The state, observable: ``await breaker.state.wait_value(BreakerState.CLOSED)``.
    """

    def __init__(
        self,
        name: str,
        config: BreakerConfig,
        changed: Callable[[str, BreakerState, BreakerState], None] = lambda *_: None,
    ) -> None:
        self.name = name
        self._report = changed
        self.state: AsyncValue[BreakerState] = AsyncValue(BreakerState.CLOSED)
        self._machine = BreakerMachine(config)
        self._changed = Signal()

    async def call(self, operation: Callable[..., Awaitable[T]], *args: Any) -> T:
        """``await operation(*args)`` if the breaker allows it, and learn from how it ends.

        Only transient errors count as failures: a permanent one (unknown queue, bad request) says that the
        broker is there, and so does a full queue or a locked session. A cancelled call counts as nothing and
        gives a probe's permit back.

        Raises:
            CircuitOpen: The breaker is open; nothing was called. ``retry_after`` tells when it probes.
            Whatever the operation raises.
        """
        permit = self.admit()
        if permit is None:
            await trio.lowlevel.checkpoint()
            raise self.refusal()
        try:
            result = await operation(*args)
        except QueueError as error:
            if error.is_transient and not isinstance(error, _ANSWERS):
                self.fail(permit)
            else:
                self.succeed(permit)
            raise
        except BaseException:
            self.cancel(permit)
            raise
        self.succeed(permit)
        return result

    def admit(self) -> int | None:
        """A permit for one call, or ``None`` while calls are refused. Hand it to one of the next three."""
        permit = self._machine.admit(trio.current_time())
        self._publish()
        return permit

    def succeed(self, permit: int) -> None:
        """The call that got ``permit`` went well."""
        self._machine.succeed(permit, trio.current_time())
        self._publish()

    def fail(self, permit: int) -> None:
        """The call that got ``permit`` failed in a way that counts."""
        self._machine.fail(permit, trio.current_time())
        self._publish()

    def cancel(self, permit: int) -> None:
        """The call that got ``permit`` was cancelled, or told nothing."""
        self._machine.cancel(permit)
        self._publish()

    def refusal(self) -> CircuitOpen:
        """The error for a call that was not admitted."""
        wait = self._machine.retry_after(trio.current_time())
        return CircuitOpen(
            f"the circuit breaker of {self.name} is open after repeated failures; "
            f"it probes again in {wait:.1f} s",
            retry_after=wait,
        )

    async def wait_admitting(self) -> None:
        """Return once calls may be let through again (half-open or closed)."""
        await self.state.wait_value(lambda state: state is not BreakerState.OPEN)
        await trio.lowlevel.checkpoint()

    def statistics(self) -> BreakerStatistics:
        """A frozen snapshot."""
        return self._machine.statistics(trio.current_time())

    async def run(self) -> None:
        """Move from open to half-open in time, so that those who wait learn of it. Runs until cancelled."""
        while True:
            moment = self._machine.next_transition()
            if moment is None:
                await self._changed.wait()
                continue
            with trio.move_on_at(moment):
                await self._changed.wait()
            self._machine.tick(trio.current_time())
            self._publish()

    def _publish(self) -> None:
        state = self._machine.state
        previous = self.state.value
        if state is not previous:
            self.state.value = state
            self._changed.wake()
            self._report(self.name, previous, state)
