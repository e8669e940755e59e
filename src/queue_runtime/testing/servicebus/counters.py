"""What the edge counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import final

import attrs

__all__ = ["Counters", "Statistics"]


@final
@attrs.frozen(kw_only=True)
class Statistics:
    """What clients did so far.

    Args:
        connections: AMQP connections accepted.
        open_connections: Those of them that are open now.
        websockets: AMQP connections accepted that came over WebSockets.
        http_connections: Connections to the administration endpoint accepted.
        links: Links that clients opened, refused ones and those to nodes included.
        open_links: Those of them that are open now.
        refused_links: Those that were refused.
        transfers_in: Transfers to queues; a batch is one.
        messages_in: Messages in these.
        messages_out: Messages sent to receivers on links.
        dispositions: Outcomes told on links.
        disposition_frames: Frames that told them; one may be for many deliveries.
        requests: Requests to management nodes by operation, and tokens as ``put-token``.
    """

    connections: int
    open_connections: int
    websockets: int
    http_connections: int
    links: int
    open_links: int
    refused_links: int
    transfers_in: int
    messages_in: int
    messages_out: int
    dispositions: int
    disposition_frames: int
    requests: Mapping[str, int]


@final
class Counters:
    """The numbers behind :class:`Statistics`, while they grow."""

    def __init__(self) -> None:
        self.connections = 0
        self.open_connections = 0
        self.websockets = 0
        self.http_connections = 0
        self.links = 0
        self.open_links = 0
        self.refused_links = 0
        self.transfers_in = 0
        self.messages_in = 0
        self.messages_out = 0
        self.dispositions = 0
        self.disposition_frames = 0
        self.requests: Counter[str] = Counter()

    def snapshot(self) -> Statistics:
        """The numbers as they are now."""
        return Statistics(**{**vars(self), "requests": dict(self.requests)})
