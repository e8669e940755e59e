"""What a caller's block raises comes out of ours as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import trio

__all__ = ["Block"]


@final
class Block:
    """The caller's block within a block of ours: what it raises is kept until all is closed, and comes out.

    It stays out of our nurseries, which would wrap it, and an error of the closing does not hide it.
    """

    def __init__(self) -> None:
        self._error: BaseException | None = None

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Around the ``yield``: keep what the caller's block raises."""
        try:
            yield
        except trio.Cancelled:
            # Nobody else's to keep: it ends where it began.
            raise
        except BaseException as error:
            self._error = error

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Around everything: raise what was kept; an error of the closing becomes a note of it."""
        try:
            with _single_errors():
                yield
        except BaseException as closing:
            if self._error is None or _interrupts(closing):
                raise
            if not isinstance(closing, trio.Cancelled):
                self._error.add_note(f"closing failed too: {closing!r}")
        error, self._error = self._error, None
        if error is not None:
            context = error.__context__
            try:
                raise error
            finally:
                error.__context__ = context  # what it came with, not the error of the closing
                del error  # it refers to this frame: no cycle


@contextmanager
def _single_errors() -> Iterator[None]:
    """Raise what is alone in an exception group as itself: the group is our nursery's, not the caller's."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__


def _interrupts(error: BaseException) -> bool:
    """Whether it is, or holds, more than errors and cancellations, such as ``KeyboardInterrupt``."""
    return BaseExceptionGroup("", [error]).split((Exception, trio.Cancelled))[1] is not None
