"""The one primitive the actors wait on: a wake-up that is never lost and costs nothing when nobody waits."""

from __future__ import annotations

from typing import final

import trio

__all__ = ["Signal"]


@final
class Signal:
    """Wakes its single waiting task; a wake-up without a waiter is kept for the next wait.

    A trio memory channel costs about 17 µs an item and an event a new object each; actors pass whole
    batches through plain deques and need only this beside them. Several wake-ups before a wait are one.
    """

    __slots__ = ("_raised", "_task")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._raised = False

    def wake(self) -> None:
        """Wake the waiting task, or let the next :meth:`wait` return at once."""
        task = self._task
        if task is None:
            self._raised = True
        else:
            self._task = None
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Return when woken; a checkpoint in every case. Only one task may wait at a time.

        Raises:
            trio.BusyResourceError: Another task is waiting already.
        """
        if self._raised:
            self._raised = False
            await trio.lowlevel.checkpoint()
            return
        if self._task is not None:
            raise trio.BusyResourceError("another task is already waiting for this signal")
        self._task = trio.lowlevel.current_task()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
