"""Which entries travel in one call, and which calls may overlap. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final

from queue_runtime.errors import MessageTooLarge

__all__ = ["MAX_ENTRIES", "plan", "split"]

MAX_ENTRIES: Final = 10
"""Most entries of one batch call, whatever it does.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
"""


def split(sizes: Sequence[int], max_bytes: int, max_entries: int = MAX_ENTRIES) -> list[list[int]]:
    """Cut entries into batches, in order, each as full as it gets.

    Args:
        sizes: Bytes of each entry, see :func:`.codec.wire_size`; 0 where bytes do not count.
        max_bytes: Most bytes of one batch.
        max_entries: Most entries of one batch.

    Returns:
        Batches of positions in ``sizes``.

    Raises:
        MessageTooLarge: One entry is larger than a batch may be.
    """
    batches: list[list[int]] = []
    room = 0
    for position, size in enumerate(sizes):
        if size > max_bytes:
            raise MessageTooLarge(size, max_bytes)
        if not batches or size > room or len(batches[-1]) == max_entries:
            batches.append([])
            room = max_bytes
        batches[-1].append(position)
        room -= size
    return batches


class _Chain:
    """Batches that go one after the other; there is room in the last one only."""

    def __init__(self, batches: list[list[int]], size: int) -> None:
        self.batches = batches
        self.size = size  # of the last batch


def plan(
    keys: Sequence[Hashable | None],
    sizes: Sequence[int],
    max_bytes: int,
    max_entries: int = MAX_ENTRIES,
) -> list[list[list[int]]]:
    """Cut entries into batches that may overlap, without ever changing the order within a session.

    Entries of one session go in one batch where they fit in one. Those that need several make a *chain*:
    its batches must go one after the other, each after the answer to the one before. Chains may overlap.
    When everything fits into one batch, there is one, in the given order.

    Args:
        keys: The session of each entry; ``None``: none, it may go anywhere.
        sizes: Bytes of each entry; 0 where bytes do not count.
        max_bytes: Most bytes of one batch.
        max_entries: Most entries of one batch.

    Returns:
        Chains of batches of positions in ``keys``. Positions of a batch ascend.

    Raises:
        MessageTooLarge: One entry is larger than a batch may be.
    """
    if len(split(sizes, max_bytes, max_entries)) <= 1:
        return [[list(range(len(sizes)))]] if sizes else []
    sessions: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        # A position alone cannot be mistaken for a session's key.
        sessions.setdefault((position,) if key is None else (key, None), []).append(position)
    # Long sessions first: what is left of their last batches is filled with others.
    cut = [
        [[positions[index] for index in batch] for batch in split(own, max_bytes, max_entries)]
        for positions in sessions.values()
        for own in ([sizes[position] for position in positions],)
    ]
    chains: list[_Chain] = []
    for batches in sorted(cut, key=len, reverse=True):
        size = sum(sizes[position] for position in batches[-1])
        home = (
            None
            if len(batches) > 1
            else _with_room(chains, batches[0], size, max_bytes, max_entries)
        )
        if home is None:
            chains.append(_Chain(batches, size))
        else:
            home.batches[-1] = sorted(home.batches[-1] + batches[0])
            home.size += size
    return [chain.batches for chain in chains]


def _with_room(
    chains: list[_Chain], positions: list[int], size: int, max_bytes: int, max_entries: int
) -> _Chain | None:
    """The first chain whose last batch has room for all of ``positions``."""
    for chain in chains:
        if (
            len(chain.batches[-1]) + len(positions) <= max_entries
            and chain.size + size <= max_bytes
        ):
            return chain
    return None
