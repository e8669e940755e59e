"""What is to go wrong at the edge, and how often. Made through :class:`~.emulator.Faults`."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import final

from .refusals import Refused

__all__ = ["Fault", "FaultBook", "Operation"]


@final
class Operation(enum.Enum):
    """What clients ask for, and faults can be about."""

    ATTACH = "attach"
    """Opening a link to a queue, by a sender, a receiver, a session receiver or for the management node."""

    SEND = "send"
    """A transfer to a queue."""

    SETTLE = "settle"
    """The outcome of a delivery, told on its link."""

    REQUEST = "request"
    """A request to a queue's management node."""

    ADMINISTER = "administer"
    """A request to the administration endpoint, by HTTP."""

    TOKEN = "token"  # noqa: S105 - a name
    """A token put to the node ``$cbs``."""


@final
class Fault:
    """Something that goes wrong until it has happened often enough or is lifted. Also a context manager that lifts it.

    Made by :class:`~.emulator.Faults`; no public constructor.
    """

    def __init__(
        self,
        book: FaultBook,
        *,
        queue: str | None,
        operations: frozenset[Operation] = frozenset(),
        count: float = float("inf"),
        refusal: Refused | None = None,
    ) -> None:
        self._book = book
        self._queue = None if queue is None else queue.lower()
        self._operations = operations
        self._left = count
        self._refusal = refusal
        self._held: deque[Callable[[], None]] = deque()
        self.happened = 0
        """How often it has happened."""

    def __enter__(self) -> Fault:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.lift()

    def lift(self) -> None:
        """End it. What a stall has held back happens now, in its order; without effect a second time."""
        self._book.call(self._lift)

    def _lift(self) -> None:
        self._book.discard(self)
        while self._held:
            self._held.popleft()()

    def drop(self) -> None:
        """Forget what was held back."""
        self._held.clear()

    def hold(self, call: Callable[[], None]) -> None:
        """Have a call wait until the stall is lifted."""
        self.happened += 1
        self._held.append(call)

    def concerns(self, path: str) -> bool:
        """Whether it is about this path; that of a queue stands for its nodes and sub-queue as well."""
        return self._queue is None or f"{path}/".lower().startswith(f"{self._queue}/")

    def strikes(self, operation: Operation, path: str) -> bool:
        """Whether it happens to this operation; if so, once less from now on."""
        if operation not in self._operations or not self.concerns(path):
            return False
        self.happened += 1
        self._left -= 1
        if self._left <= 0:
            self._book.discard(self)
        return True

    @property
    def refusal(self) -> Refused | None:
        """What is answered, or ``None`` where nothing is."""
        return self._refusal


@final
class FaultBook:
    """All faults that are to happen.

    Args:
        call: Runs a function where the emulator runs, and waits for it.
    """

    def __init__(self, call: Callable[[Callable[[], None]], None]) -> None:
        self.call = call
        self._stalls: list[Fault] = []
        self._refusals: list[Fault] = []
        self._losses: list[Fault] = []

    def stall(self, queue: str | None) -> Fault:
        """Hold back all that concerns a queue."""
        fault = Fault(self, queue=queue)
        self._stalls.append(fault)
        return fault

    def refuse(
        self, operations: frozenset[Operation], count: int, queue: str | None, refusal: Refused
    ) -> Fault:
        """Answer with an error in place of doing something."""
        fault = Fault(self, queue=queue, operations=operations, count=count, refusal=refusal)
        self._refusals.append(fault)
        return fault

    def lose(self, operations: frozenset[Operation], count: int, queue: str | None) -> Fault:
        """Do something without answering."""
        fault = Fault(self, queue=queue, operations=operations, count=count)
        self._losses.append(fault)
        return fault

    def discard(self, fault: Fault) -> None:
        """Forget a fault."""
        for faults in (self._stalls, self._refusals, self._losses):
            if fault in faults:
                faults.remove(fault)

    def clear(self) -> None:
        """Forget all faults and what they held back."""
        for fault in (*self._stalls, *self._refusals, *self._losses):
            fault.drop()
            self.discard(fault)

    def stall_of(self, path: str) -> Fault | None:
        """The stall that holds back what concerns a path."""
        for fault in self._stalls:
            if fault.concerns(path):
                return fault
        return None

    def check(self, operation: Operation, path: str) -> None:
        """Refuse an operation that is to be refused.

        Raises:
            Refused: As the fault has it.
        """
        for fault in self._refusals:
            if fault.strikes(operation, path) and fault.refusal is not None:
                refusal = fault.refusal
                raise Refused(refusal.condition, refusal.description, refusal.status)

    def loses_answer(self, operation: Operation, path: str) -> bool:
        """Whether the answer to an operation is to be lost."""
        return any(fault.strikes(operation, path) for fault in self._losses)
