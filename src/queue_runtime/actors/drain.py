"""The order in which a supervisor shuts down. All of it is here.

1. Let every session finish the message it is handling and give the rest back.
2. Stop the intake; what it still brings goes back untried.
3. At the deadline, cancel the handlers; what they were handling is abandoned.
4. Flush the settlements: what was handled must not be handled again.
5. Flush the leases given back, stop the other actors, whose calls would find the receiver closed, and close
   it, which gives back any leases that remain.
"""

from __future__ import annotations

from typing import final

import attrs
import trio

from ..abc import Receiver
from ..errors import QueueError
from .dispatcher import Dispatcher
from .leases import LeaseKeeper
from .receiver import ReceiverActor
from .settlement import Settler

__all__ = ["Drain"]


@final
@attrs.frozen(eq=False)
class Drain:
    """What is shut down, in this order.

    Args:
        intake: Asks for messages.
        dispatcher: Owns the sessions.
        settler: Sends settlements.
        keeper: Renews and releases leases.
        receiver: The provider's receiver.
        actors: The scope all of them run in.
        flush_timeout: Seconds each of the last steps may take when the broker does not answer.
    """

    intake: ReceiverActor
    dispatcher: Dispatcher
    settler: Settler
    keeper: LeaseKeeper
    receiver: Receiver
    actors: trio.CancelScope
    flush_timeout: float

    async def run(self, grace: trio.CancelScope) -> bool:
        """Shut down; handlers may run until the deadline of ``grace``, which may still move.

        Cancelled on the way, the handlers are cancelled at once and the rest is still done.

        Returns:
            Whether every handler finished by itself.
        """
        clean = False
        try:
            self.dispatcher.drain()
            await self.intake.stop()
            with grace:
                await self.dispatcher.wait_empty()
            clean = not grace.cancelled_caught
        finally:
            with trio.CancelScope(shield=True):
                await self._finish(clean)
        return clean

    async def _finish(self, clean: bool) -> None:
        if not clean:
            await self.intake.stop()
            self.dispatcher.cancel()
            await self.dispatcher.wait_empty()
        with trio.move_on_after(self.flush_timeout):
            await self.settler.wait_idle()
        with trio.move_on_after(self.flush_timeout):
            await self.keeper.wait_released()
        self.actors.cancel()
        with trio.move_on_after(self.flush_timeout):
            try:
                await self.receiver.aclose()
            except QueueError:
                # What the broker could not be told expires by itself; whoever listens was told of the error.
                pass
