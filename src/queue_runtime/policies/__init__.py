"""Decisions without waiting: no trio, no I/O, no clock and no randomness of their own.

Everything a decision depends on is an argument, so each policy is tested exhaustively; the actors add time
and cancellation. Import from the modules:

* ``backoff``: how long to wait before the next try, and when to give up;
* ``breaker``: the states of a circuit breaker;
* ``outcomes``: what becomes of a message, given what its handler did;
* ``batching``: how much to ask for at once, and how often at the same time;
* ``assignment``: how much may be in flight.
"""

from __future__ import annotations

__all__: list[str] = []
