"""Service Bus through the public classes of ``azure.servicebus.aio``, as fast as a careful author gets them.

Each sender and receiver of the SDK has a connection of its own, and what is under way on one waits for its socket. So
the programs use several, each by one task that does one thing after the other. What was tried on the emulator with
bodies of 1 KiB, and what went fastest and is used:

* sending batches: 1 to 8 senders, batches of 100 and as many as fit; 8 senders, as many as fit;
* sending one by one: 1 to 8 senders; 4 at most;
* a queue without sessions: 1 to 24 receivers, 1 to 1,000 messages at a time, 0 to 1,000 fetched ahead, settled
  one after the other or all at once, socket timeouts down to 2 ms; 16 receivers, one message at a time, 100 ahead.
  Asking for several at a time waits 0.2 s whenever fewer are there, and so does settling several at once;
* sessions: 16 to 200 session receivers, 1 to 50 messages at a time, 0 or 50 fetched ahead; 50 receivers, one message
  at a time, none ahead. Opening and closing one takes a second, nearly all of it in the SDK's waits; more of them
  at once need more of the processor's time than there is.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, final

from azure.servicebus import NEXT_AVAILABLE_SESSION, ServiceBusMessage, TransportType
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from azure.servicebus.exceptions import OperationTimeoutError

from queue_runtime import Message, Provider, QueueName
from queue_runtime.providers.asyncio_bridge import AsyncioBridge
from queue_runtime.providers.azure.administration import Administration
from queue_runtime.providers.azure.api import AzureApi
from queue_runtime.providers.azure.config import AzureConfig
from queue_runtime.providers.option_checks import LOOPBACK

from ..workload import SessionOrder, Workload

__all__ = ["AzureRaw", "open_raw"]

_SENDERS: Final = 8
_SINGLE_SENDERS: Final = 4
_RECEIVERS: Final = 16
_SESSION_RECEIVERS: Final = 50
_AHEAD: Final = 100
"""Messages a receiver fetches ahead on queues without sessions."""
_ENVELOPE: Final = 1_024
"""Bytes left free in a batch: the SDK forgets those of its own properties, which sessions are among."""
_ACCEPT: Final = 1.0
"""Seconds to wait for a next session."""
_EMPTY: Final = 0.2
"""Seconds without a message after which a session counts as drained: how long the SDK waits for its socket."""

_Sender = ServiceBusSender
_Receiver = ServiceBusReceiver
_Link = TypeVar("_Link", ServiceBusSender, ServiceBusReceiver)


@asynccontextmanager
async def open_raw(config: AzureConfig) -> AsyncIterator[AzureRaw]:
    """Clients with the credentials of ``config``."""
    bridge = await AsyncioBridge.open("raw-azure")
    try:
        raw = await bridge.run(_open, bridge, config)
        try:
            yield raw
        finally:
            await bridge.run(raw.aclose)
    finally:
        await bridge.aclose()


async def _open(bridge: AsyncioBridge, config: AzureConfig) -> AzureRaw:
    api = await AzureApi.open(config)
    # It would otherwise try again by itself, and wait ever longer: see the design's trap of next-available sessions.
    options: dict[str, Any] = {"retry_total": 0}
    if config.transport == "websocket":
        options["transport_type"] = TransportType.AmqpOverWebsocket
    if config.custom_endpoint is not None:
        options["custom_endpoint_address"] = config.custom_endpoint
    if config.verify is not None:
        options["connection_verify"] = config.verify
    if config.connection_string is not None:
        client = ServiceBusClient.from_connection_string(
            config.connection_string.reveal(), **options
        )
    else:
        credential: Any = api.credential
        client = ServiceBusClient(config.fully_qualified_namespace, credential, **options)
    return AzureRaw(bridge, api, client, config)


@final
class AzureRaw:
    """See :class:`..RawBroker`. Made by :func:`open_raw`; called from trio, works on the bridge's loop."""

    in_flight = _SENDERS
    least_ratio = 0.85
    most_calls = None
    longest_poll = 0.0
    idle_aim = ""
    longest_cancel = 250.0
    in_any_order = False

    def __init__(
        self, bridge: AsyncioBridge, api: AzureApi, client: ServiceBusClient, config: AzureConfig
    ) -> None:
        self._bridge = bridge
        self._api = api
        self._client = client
        self._config = config
        self.acceptors = config.acceptors
        self.is_local = LOOPBACK.fullmatch(config.fully_qualified_namespace) is not None

    async def aclose(self) -> None:
        """Disconnect. On the loop."""
        await self._client.close()
        await self._api.aclose()

    async def publish(self, queue: str, workload: Workload, *, ordered: bool) -> float:
        """See :class:`..RawBroker`."""
        return await self._bridge.run(self._publish, queue, workload, ordered)

    async def send_singly(self, queue: str, workload: Workload, tasks: int) -> float:
        """See :class:`..RawBroker`."""
        return await self._bridge.run(self._send_singly, queue, workload, tasks)

    async def drain(
        self, queue: str, expected: int, order: SessionOrder, *, ordered: bool
    ) -> float:
        """See :class:`..RawBroker`."""
        return await self._bridge.run(self._drain, queue, expected, order)

    async def switch(self, queue: str, times: int) -> float:
        """See :class:`..RawBroker`."""
        return await self._bridge.run(self._switch, queue, times)

    async def remove(self, queues: Iterable[str]) -> None:
        """See :class:`..RawBroker`."""
        await self._bridge.run(self._remove, list(queues))

    def connections(self, provider: Provider) -> int:
        """See :class:`..RawBroker`."""
        opened: int = provider.connections_opened  # type: ignore[attr-defined]  # of AzureProvider
        return opened

    def calls(self, provider: Provider) -> Mapping[str, int]:
        """See :class:`..RawBroker`."""
        return {}

    # On the loop.

    def _entity(self, queue: str) -> str:
        return self._config.wire_name(QueueName(queue))

    async def _remove(self, queues: Sequence[str]) -> None:
        administration = Administration(self._api)
        try:
            for queue in queues:
                await administration.delete(self._entity(queue))
        finally:
            await administration.aclose()

    # --- sending

    async def _publish(self, queue: str, workload: Workload, ordered: bool) -> float:
        async def send(sender: _Sender, messages: Sequence[Message]) -> None:
            batch = await _new_batch(sender)
            for message in messages:
                entry = _message(message)
                try:
                    batch.add_message(entry)
                except ValueError:  # it is full
                    await sender.send_messages(batch)
                    batch = await _new_batch(sender)
                    batch.add_message(entry)
            if len(batch):
                await sender.send_messages(batch)

        lanes = _lanes(workload, _SENDERS, by_session=ordered)
        return await self._send(queue, lanes, send)

    async def _send_singly(self, queue: str, workload: Workload, tasks: int) -> float:
        async def send(sender: _Sender, messages: Sequence[Message]) -> None:
            for message in messages:
                await sender.send_messages(_message(message))

        lanes = _lanes(workload, min(tasks, _SINGLE_SENDERS), by_session=True)
        return await self._send(queue, lanes, send)

    async def _send(
        self,
        queue: str,
        lanes: Sequence[Sequence[Message]],
        send: Callable[[_Sender, Sequence[Message]], Awaitable[None]],
    ) -> float:
        entity = self._entity(queue)
        async with _opened([self._client.get_queue_sender(entity) for _ in lanes]) as senders:
            began = time.perf_counter()
            await _together(send(sender, lane) for sender, lane in zip(senders, lanes, strict=True))
            spent = time.perf_counter() - began
        return sum(map(len, lanes)) / spent

    # --- receiving

    async def _drain(self, queue: str, expected: int, order: SessionOrder) -> float:
        drain = _Drain(self._client, self._entity(queue), expected, order)
        if self._config.sessions:
            began = time.perf_counter()
            await drain.by_session()
        else:
            async with _opened([drain.receiver() for _ in range(_RECEIVERS)]) as receivers:
                began = time.perf_counter()
                await drain.as_they_come(receivers)
        return expected / (drain.ended - began)

    async def _switch(self, queue: str, times: int) -> float:
        spent = []
        for _ in range(times):
            began = time.perf_counter()
            async with _next_session(self._client, self._entity(queue)) as receiver:
                for message in await receiver.receive_messages(
                    max_message_count=1, max_wait_time=_ACCEPT
                ):
                    await receiver.complete_message(message)
            spent.append(time.perf_counter() - began)
        return statistics.median(spent)


@final
class _Drain:
    """Receives, handles and completes ``expected`` messages.

    Attributes:
        ended: ``time.perf_counter()`` when the last one was completed.
    """

    def __init__(
        self, client: ServiceBusClient, entity: str, expected: int, order: SessionOrder
    ) -> None:
        self.ended = 0.0
        self._client = client
        self._entity = entity
        self._missing = expected  # not completed yet
        self._order = order
        self._done = asyncio.Event()

    def receiver(self) -> _Receiver:
        """One more, on a queue without sessions."""
        return self._client.get_queue_receiver(self._entity, prefetch_count=_AHEAD)

    async def as_they_come(self, receivers: Iterable[_Receiver]) -> None:
        """Every receiver completes a message before it takes the next."""
        await self._until_done(self._serve(receiver) for receiver in receivers)

    async def by_session(self) -> None:
        """Every receiver drains a session, closes, and takes the next."""

        async def serve() -> None:
            while True:
                try:
                    async with _next_session(self._client, self._entity) as receiver:
                        await self._serve(receiver, empty=_EMPTY)
                except OperationTimeoutError:
                    pass  # there was none

        await self._until_done(serve() for _ in range(_SESSION_RECEIVERS))

    async def _serve(self, receiver: _Receiver, *, empty: float | None = None) -> None:
        while not self._done.is_set():
            found = await receiver.receive_messages(
                max_message_count=1, max_wait_time=_ACCEPT if empty is None else empty
            )
            if not found and empty is not None:
                return
            for message in found:
                self._order.note(message.session_id, message.sequence_number or 0)
                await receiver.complete_message(message)
                self._missing -= 1
                if not self._missing:
                    self.ended = time.perf_counter()
                    self._done.set()

    async def _until_done(self, servers: Iterable[Awaitable[object]]) -> None:
        async with asyncio.TaskGroup() as tasks:
            serving = [tasks.create_task(_run(server)) for server in servers]
            await self._done.wait()
            for task in serving:
                task.cancel()


def _next_session(client: ServiceBusClient, entity: str) -> _Receiver:
    return client.get_queue_receiver(
        entity,
        session_id=NEXT_AVAILABLE_SESSION,
        max_wait_time=_ACCEPT,
    )


async def _new_batch(sender: _Sender) -> Any:
    batch = await sender.create_message_batch()
    return await sender.create_message_batch(batch.max_size_in_bytes - _ENVELOPE)


def _message(message: Message) -> ServiceBusMessage:
    return ServiceBusMessage(message.body, session_id=message.session_id)


def _lanes(workload: Workload, count: int, *, by_session: bool) -> list[list[Message]]:
    """The workload in shares; each session's messages in one of them if that is asked for."""
    lanes: list[list[Message]] = [[] for _ in range(count)]
    for number, message in enumerate(workload.generate()):
        lane = number % workload.sessions if by_session and workload.sessions else number
        lanes[lane % count].append(message)
    return lanes


@asynccontextmanager
async def _opened(links: Sequence[_Link]) -> AsyncIterator[Sequence[_Link]]:
    """All of them, opened and closed side by side: either takes the SDK half a second."""
    try:
        await _together(link.__aenter__() for link in links)
        yield links
    finally:
        await _together(link.close() for link in links)


async def _together(tasks: Iterable[Awaitable[object]]) -> None:
    async with asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(_run(task))


async def _run(task: Awaitable[object]) -> None:
    await task
