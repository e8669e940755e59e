"""The client: one imperative API for every broker, gated by a circuit breaker and retried.

* ``queue_client``: what users call; :class:`QueueClient`;
* ``sending``: message ids, splitting, senders and what travels together;
* ``holding``: what was received and not settled yet, and under which locks;
* ``sessions``, ``dead_letters``: a session and a dead-letter queue read by hand;
* ``calls``: how one call to the broker is gated, bounded in time and retried;
* ``opening``: the blocks a client and a supervisor live in;
* ``blocks``: which error comes out of such a block.
"""

from __future__ import annotations

from .dead_letters import DeadLetterClient as DeadLetterClient
from .opening import open_client as open_client
from .opening import open_supervisor as open_supervisor
from .queue_client import QueueClient as QueueClient
from .sessions import SessionReceiver as SessionReceiver

__all__ = [
    "DeadLetterClient",
    "QueueClient",
    "SessionReceiver",
    "open_client",
    "open_supervisor",
]
