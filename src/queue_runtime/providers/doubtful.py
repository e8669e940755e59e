"""What a sender remembers of messages whose sending ended without an answer."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Final, final

import trio

from queue_runtime.errors import QueueError
from queue_runtime.messages import Message

__all__ = ["DoubtfulTokens"]

_MOST_REMEMBERED: Final = 10_000
"""Messages of unknown fate remembered at most."""


@final
class DoubtfulTokens:
    """Tokens of messages of which it is unknown whether they were stored, for when they are sent again.

    Where the queue detects duplicates, the same token makes that harmless. The messages are told apart as objects:
    two equal ones are two messages.

    Args:
        seconds: For how long a token is good: no longer than the broker remembers it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tokens: dict[int, tuple[Message, float, list[str]]] = {}
        # A random id for each would be a system call for each.
        self._prefix = secrets.token_hex(12)
        self._numbers = count(1)

    @contextmanager
    def unless_refused(self, messages: Iterable[Message]) -> Iterator[None]:
        """Take tokens inside. What raises there refuses all of ``messages``: they stay as doubtful as before."""
        before = {
            id(message): self._tokens[id(message)]
            for message in (messages if self._tokens else ())
            if id(message) in self._tokens
        }
        try:
            yield
        except QueueError:
            self._tokens |= before
            raise

    def token(self, message: Message) -> str:
        """The token of an earlier try of this object, or a new one."""
        if self._tokens:
            _, until, tokens = self._tokens.get(id(message), (None, 0.0, []))
            if tokens and trio.current_time() < until:
                token, *rest = tokens
                if rest:
                    self._tokens[id(message)] = (message, until, rest)
                else:
                    del self._tokens[id(message)]
                return token
        return f"{self._prefix}{next(self._numbers):012x}"

    def remember(self, message: Message, token: str) -> None:
        """``message`` was sent with ``token``, and nobody knows whether it arrived."""
        until = trio.current_time() + self._seconds
        _, until, tokens = self._tokens.pop(id(message), (message, until, []))
        # Holding the object keeps its id from being given to another one.
        self._tokens[id(message)] = (message, until, [*tokens, token])
        if len(self._tokens) > _MOST_REMEMBERED:
            del self._tokens[next(iter(self._tokens))]
