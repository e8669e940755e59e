"""All queues of the emulator, found by the paths that clients write."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Final, final

from ...errors import ValidationError
from .entities import QueueSettings
from .queue import Queue
from .refusals import entity_not_found
from .timers import Timers

__all__ = ["Namespace"]

_DEAD_LETTERS: Final = "/$deadletterqueue"
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,258}[A-Za-z0-9])?")
"""A queue's path: https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules"""


@final
class Namespace:
    """Queues by name; names are compared without regard to case, as Service Bus does.

    Args:
        clock: Wall-clock seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.timers = Timers(clock)
        self._queues: dict[str, Queue] = {}

    def __iter__(self) -> Iterator[Queue]:
        return iter(self._queues.values())

    def create(self, name: str, settings: QueueSettings) -> Queue:
        """Add a queue.

        Raises:
            ValidationError: The name is taken or none that a queue can have.
        """
        key = name.lower()
        if not _NAME.fullmatch(name):
            raise ValidationError(
                f"the queue's name is {name!r}: expected 1 to 260 of A-Z a-z 0-9 . _ / -, "
                "of which a letter or a digit is first and last"
            )
        if key in self._queues:
            raise ValidationError(f"the queue {name!r} exists already: choose another name")
        queue = self._queues[key] = Queue(name, settings, self.timers)
        return queue

    def delete(self, name: str) -> None:
        """Remove a queue with all that is in it.

        Raises:
            Refused: There is none.
        """
        if self._queues.pop(name.lower(), None) is None:
            raise entity_not_found(name)

    def find(self, path: str) -> Queue:
        """The queue of a path; ``/$DeadLetterQueue`` behind it stands for its sub-queue.

        Raises:
            Refused: There is none.
        """
        key = path.lower()
        is_sub_queue = key.endswith(_DEAD_LETTERS)
        queue = self._queues.get(key.removesuffix(_DEAD_LETTERS))
        if queue is not None and is_sub_queue:
            queue = queue.dead_letters
        if queue is None:
            raise entity_not_found(path)
        return queue
