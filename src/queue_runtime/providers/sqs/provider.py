"""A connection to SQS: one asyncio loop in one thread, one client of the SDK on it."""

# ruff: noqa: D102 - the methods are documented where they are declared, in queue_runtime.abc

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, final

import trio

from queue_runtime.abc import DeadLetters, Provider, Receiver, ReceiverOptions, Sender
from queue_runtime.errors import QueueNotFound
from queue_runtime.messages import Capabilities, QueueName, QueueStats

from ..asyncio_bridge import AsyncioBridge, BackgroundTask
from .api import SqsApi
from .batches import MAX_ENTRIES
from .claims import MAX_RECEIVED, MOVED_FROM, Claims
from .config import SqsConfig
from .dead_letters import Graveyard, SqsDeadLetters
from .holding import Forwarder
from .polls import Poller
from .provision import provision
from .queues import Counts, Queue, Queues
from .receiver import SqsReceiver
from .sender import SqsSender
from .settling import Workshop

__all__ = ["SqsProvider"]

_CONCURRENT: Final = 8
"""Calls of a kind worth having under way: each brings or settles ten messages in some 10 to 20 milliseconds."""

_LINGER: Final = 0.005
"""Seconds worth waiting for a batch of settlements to fill: a call costs that long, and money."""

_MAX_SETTLEMENTS: Final = 100
"""Most settlements in one call: ten batches side by side."""

_PURGE_HELD: Final = 30
"""Seconds that messages are ours between being received and deleted by a purge."""


@final
class SqsProvider(Provider):
    """A connection to SQS. Made by :meth:`open`."""

    name = "sqs"

    @classmethod
    async def open(cls, config: SqsConfig) -> SqsProvider:
        """Find credentials and make the client; SQS itself is asked when a queue is opened.

        Raises:
            ConfigurationError, AuthenticationFailed: See :meth:`.api.SqsApi.open`.
        """
        bridge = await AsyncioBridge.open("sqs")
        try:
            api = await bridge.run(SqsApi.open, config)
            bridge.start(_close_at_the_end, api)
            queues = Queues(api, config)
        except BaseException:
            await bridge.aclose()
            raise
        return cls(config, bridge, api, queues)

    def __init__(
        self, config: SqsConfig, bridge: AsyncioBridge, api: SqsApi, queues: Queues
    ) -> None:
        self._config = config
        self._bridge = bridge
        self._api = api
        self._queues = queues
        self._closed = False
        self._receivers: set[SqsReceiver] = set()
        self._forwarders: dict[QueueName, tuple[BackgroundTask, set[SqsReceiver]]] = {}
        self.capabilities = Capabilities(
            sessions=config.fifo,
            lock_renewal=True,
            abandon_delay=True,
            scheduling=True,
            deduplication=config.fifo,
            purge=True,
            stats=True,
            dead_letters=True,
            provisioning=True,
            durable=True,
            multi_process=True,
            max_message_bytes=config.max_message_bytes,
            max_batch_messages=MAX_ENTRIES,
            max_settle_messages=_MAX_SETTLEMENTS,
            max_receive_messages=MAX_RECEIVED,
            max_concurrent_receives=_CONCURRENT,
            max_concurrent_settles=_CONCURRENT,
            settle_linger=_LINGER,
        )

    @property
    def calls(self) -> Mapping[str, int]:
        """How many requests were sent so far, by operation."""
        return dict(self._api.calls)

    # --- opening -----------------------------------------------------------------------------------

    async def open_sender(self, queue: QueueName) -> Sender:
        found = await self._main(queue)
        return SqsSender(self._bridge, self._api, self._queues, queue, found)

    async def open_receiver(self, queue: QueueName, options: ReceiverOptions) -> Receiver:
        found = await self._main(queue)
        claims = Claims(self._api, found)
        config = self._config

        async def make() -> tuple[Poller, Workshop, Queue | None]:
            return (
                Poller(claims, config.lock_duration, config.wait_time),
                Workshop(self._api, self._queues, queue, claims),
                await self._queues.holding(queue),
            )

        poller, workshop, holding = await self._bridge.run(make)

        async def closed(receiver: SqsReceiver) -> None:
            await self._receiver_closed(queue, receiver)

        receiver = SqsReceiver(
            self._bridge, found, poller, workshop, options, config.lock_duration, closed
        )
        self._receivers.add(receiver)
        if self._closed:  # meanwhile
            await receiver.aclose()
            raise trio.ClosedResourceError("the provider is closed")
        if holding is not None:
            self._forward(queue, Claims(self._api, holding), claims, receiver)
        return receiver

    async def open_dead_letters(self, queue: QueueName) -> DeadLetters:
        source = await self._main(queue)
        graves = await self._bridge.run(self._queues.dead_letters, queue)
        if graves is None:
            raise QueueNotFound(
                f"queue {source.name} has no dead-letter queue: it has no redrive policy; make one with "
                "queue-runtime provision, or name a queue in dead_letter_queue"
            )
        graveyard = Graveyard(Claims(self._api, graves, [MOVED_FROM]), Claims(self._api, source))
        return SqsDeadLetters(self._bridge, graveyard)

    async def provision(self, queue: QueueName) -> list[str]:
        self._check_open()
        return await self._bridge.run(provision, self._api, self._config, queue)

    async def _main(self, queue: QueueName) -> Queue:
        self._check_open()
        return await self._bridge.run(self._queues.main, queue)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the provider is closed")

    # --- forwarding --------------------------------------------------------------------------------

    def _forward(
        self, queue: QueueName, holding: Claims, target: Claims, receiver: SqsReceiver
    ) -> None:
        """Forward what falls due as long as somebody here receives from the queue."""
        if queue not in self._forwarders:
            forwarder = Forwarder(holding, target, self._config.wait_time)
            self._forwarders[queue] = self._bridge.start(forwarder.run), set()
        self._forwarders[queue][1].add(receiver)

    async def _receiver_closed(self, queue: QueueName, receiver: SqsReceiver) -> None:
        self._receivers.discard(receiver)
        entry = self._forwarders.get(queue)
        if entry is None:
            return
        task, users = entry
        users.discard(receiver)
        if not users:
            del self._forwarders[queue]
            await task.aclose()

    # --- looking and emptying ----------------------------------------------------------------------

    async def stats(self, queue: QueueName) -> QueueStats:
        main = await self._main(queue)
        return await self._bridge.run(self._stats, queue, main)

    async def _stats(self, queue: QueueName, main: Queue) -> QueueStats:
        holding = await self._queues.holding(queue)
        graves = await self._queues.dead_letters(queue)

        async def counts(one: Queue | None) -> Counts:
            return Counts() if one is None else await self._queues.counts(one)

        here, waiting, dead = await asyncio.gather(counts(main), counts(holding), counts(graves))
        return QueueStats(
            depth=here.waiting,
            in_flight=here.in_flight,
            scheduled=here.delayed + waiting.total,
            dead_lettered=dead.total,
        )

    async def purge(self, queue: QueueName) -> int:
        main = await self._main(queue)
        return await self._bridge.run(self._purge, queue, main)

    async def _purge(self, queue: QueueName, main: Queue) -> int:
        """Receive and delete: SQS's own ``PurgeQueue`` would take what is in flight too."""
        count = 0
        claims = Claims(self._api, main)
        while messages := await claims.receive(MAX_RECEIVED, _PURGE_HELD, 1):
            answers = await claims.delete([message["ReceiptHandle"] for message in messages])
            count += sum(1 for answer in answers if answer is None)
        holding = await self._queues.holding(queue)
        return count + (0 if holding is None else await self._purge_holding(holding))

    async def _purge_holding(self, holding: Queue) -> int:
        """Scheduled messages are invisible until they are due: there ``PurgeQueue`` is right."""
        waiting = (await self._queues.counts(holding)).total
        if waiting:
            await self._api.call("PurgeQueue", holding.name, {"QueueUrl": holding.url})
        return waiting

    # --- closing -----------------------------------------------------------------------------------

    async def aclose(self) -> None:
        self._closed = True
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for receiver in list(self._receivers):
                    nursery.start_soon(receiver.aclose)
            await self._bridge.aclose()
        await trio.lowlevel.checkpoint()


async def _close_at_the_end(api: SqsApi) -> None:
    """Close the client after the last call: the bridge ends its calls before what runs in the background."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await api.aclose()
