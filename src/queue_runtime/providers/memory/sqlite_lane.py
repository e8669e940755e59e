"""A row of ``sessions`` while a transaction changes it."""

from __future__ import annotations

from typing import Any, Final, final

import attrs

from queue_runtime.messages import SessionId

__all__ = ["LANE", "Lane"]

LANE: Final = (
    "SELECT id, name, token, holder, locked_until, capacity, in_flight, messages, turn, halted_by, has_state"
    " FROM sessions"
)
"""The columns of a :class:`Lane`, in the order of its arguments."""


def _stored_session_id(name: str | None) -> SessionId | None:
    # Skips the validation: it was a valid id when it was stored.
    return None if name is None else str.__new__(SessionId, name)


@final
@attrs.define(eq=False)
class Lane:
    """A session, or (without a name) all messages without one: a row of ``sessions`` being changed.

    Args:
        id: The row's number.
        name: The session; ``None``: the messages without one.
        token: The newest lock's.
        holder: Who has the lock; ``None``: it is not locked.
        locked_until: When the lock ends.
        capacity: The holder's ``max_per_session``.
        in_flight: Messages in flight under the lock.
        messages: Messages waiting or in flight.
        turn: Its place in the order of turns; ``None`` while it cannot be delivered.
        halted_by: The lowest halting dead letter.
        has_state: Whether there is a session state.
        has_moved: More than the two counts changed.
        is_stale: The turn must be found out again.
    """

    id: int
    name: SessionId | None = attrs.field(converter=_stored_session_id)
    token: int = 0
    holder: str | None = None
    locked_until: float | None = None
    capacity: int = 0
    in_flight: int = 0
    messages: int = 0
    turn: int | None = None
    halted_by: int | None = None
    has_state: bool | int = False
    has_moved: bool = False
    is_stale: bool = False

    def is_held(self, holder: str, token: int) -> bool:
        """Whether the holder's lock is current. What expired is freed before anybody asks."""
        return self.token == token and self.holder == holder

    def admits(self, head: tuple[Any, ...]) -> bool:
        """Whether a waiting message (id, end of its delay, …) may be delivered if it is the lowest one."""
        return head[1] is None and (self.halted_by is None or head[0] < self.halted_by)
