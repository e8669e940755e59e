"""SQS through ``aiobotocore``: batches of 10, eight calls in flight.

The ordered programs do what a careful author writes by hand. Publishing: a session's messages go through one of
eight lanes, which sends its batches one after the other. Draining: a queue and a task per session, and deletions of
different sessions gathered into batches. The others take messages as they come.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, final
from urllib.parse import urlsplit

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from queue_runtime import Provider, QueueName
from queue_runtime.providers.asyncio_bridge import AsyncioBridge
from queue_runtime.providers.sqs.config import SqsConfig

from ..workload import SessionOrder, Workload

__all__ = ["SqsRaw", "open_raw"]

_IN_FLIGHT: Final = 8
"""Calls at a time; more did not go faster on the emulator, and a poll each is what the runtime may use too."""
_BATCH: Final = 10
_LINGER: Final = 0.005
"""Seconds a deletion waits for others: about what a call to SQS in the same region takes."""
_POLL: Final = 1  # seconds

_Message = Mapping[str, Any]


@asynccontextmanager
async def open_raw(config: SqsConfig) -> AsyncIterator[SqsRaw]:
    """A connection with the credentials of ``config``; roles are not assumed."""
    bridge = await AsyncioBridge.open("raw-sqs")
    try:
        client = await bridge.run(_connect, config)
        try:
            yield SqsRaw(bridge, client, config)
        finally:
            await bridge.run(client.__aexit__, None, None, None)
    finally:
        await bridge.aclose()


async def _connect(config: SqsConfig) -> Any:
    keys = {
        "aws_access_key_id": config.access_key_id,
        "aws_secret_access_key": config.secret_access_key,
        "aws_session_token": config.session_token,
    }
    context = AioSession(profile=config.profile).create_client(
        "sqs",
        region_name=config.region,
        endpoint_url=config.endpoint_url,
        config=AioConfig(
            max_pool_connections=32,
            parameter_validation=False,
            retries={"total_max_attempts": 1, "mode": "standard"},
        ),
        **{name: secret.reveal() for name, secret in keys.items() if secret is not None},
    )
    return await context.__aenter__()


@final
class SqsRaw:
    """See :class:`..RawBroker`. Made by :func:`open_raw`; called from trio, works on the bridge's loop."""

    in_flight = _IN_FLIGHT
    least_ratio = 0.9
    most_calls = 0.25
    idle_aim = "at most 2: the queue's poll and its holding queue's"
    longest_cancel = 100.0
    in_any_order = True
    acceptors = 0

    def __init__(self, bridge: AsyncioBridge, client: Any, config: SqsConfig) -> None:
        self._bridge = bridge
        self._client = client
        self._config = config
        host = urlsplit(config.endpoint_url or "").hostname
        self.is_local = host is not None and (host == "localhost" or host.startswith("127."))
        # Half of the lock is left to what comes at a poll's very end.
        self.longest_poll = float(min(config.wait_time, config.lock_duration // 2))

    async def publish(self, queue: str, workload: Workload, *, ordered: bool) -> float:
        """See :class:`..RawBroker`."""
        return await self._bridge.run(self._publish, queue, workload, ordered, _IN_FLIGHT, _BATCH)

    async def send_singly(self, queue: str, workload: Workload, tasks: int) -> float:
        """See :class:`..RawBroker`."""
        return await self._bridge.run(self._publish, queue, workload, True, tasks, 1)

    async def switch(self, queue: str, times: int) -> float:
        """See :class:`..RawBroker`."""
        raise NotImplementedError("SQS has no receivers of one session")

    async def drain(
        self, queue: str, expected: int, order: SessionOrder, *, ordered: bool
    ) -> float:
        """See :class:`..RawBroker`."""
        return await self._bridge.run(self._drain, queue, expected, order, ordered)

    async def remove(self, queues: Iterable[str]) -> None:
        """See :class:`..RawBroker`."""
        for queue in queues:
            name = QueueName(queue)
            for wire_name in (
                self._config.wire_name(name),
                self._config.dead_letter_name(name),
                self._config.holding_name(name),
            ):
                await self._bridge.run(self._delete_queue, wire_name)

    def connections(self, provider: Provider) -> int:
        """See :class:`..RawBroker`."""
        return 0

    def calls(self, provider: Provider) -> Mapping[str, int]:
        """See :class:`..RawBroker`."""
        found: Mapping[str, int] = provider.calls  # type: ignore[attr-defined]  # of SqsProvider
        return dict(found)

    # On the loop.

    async def _url(self, queue: str) -> str:
        name = self._config.wire_name(QueueName(queue))
        return str((await self._client.get_queue_url(QueueName=name))["QueueUrl"])

    async def _delete_queue(self, wire_name: str) -> None:
        try:
            found = await self._client.get_queue_url(QueueName=wire_name)
            await self._client.delete_queue(QueueUrl=found["QueueUrl"])
        except self._client.exceptions.QueueDoesNotExist:
            pass

    async def _publish(
        self, queue: str, workload: Workload, ordered: bool, tasks: int, batch: int
    ) -> float:
        url = await self._url(queue)
        messages = list(workload.generate())
        lanes: list[list[dict[str, Any]]] = [[] for _ in range(tasks)]
        for number, message in enumerate(messages):
            entry = {"Id": str(number), "MessageBody": message.body.decode()}
            lane = number // batch
            if self._config.fifo:
                entry["MessageGroupId"] = str(message.session_id)
                entry["MessageDeduplicationId"] = uuid.uuid4().hex
                if ordered:
                    lane = number % workload.sessions
            lanes[lane % tasks].append(entry)
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for entries in lanes:
                group.create_task(self._send(url, entries, batch))
        return len(messages) / (time.perf_counter() - began)

    async def _send(self, url: str, entries: Sequence[dict[str, Any]], batch: int) -> None:
        for start in range(0, len(entries), batch):
            _check(
                await self._client.send_message_batch(
                    QueueUrl=url, Entries=entries[start : start + batch]
                )
            )

    async def _drain(self, queue: str, expected: int, order: SessionOrder, ordered: bool) -> float:
        drain = _Drain(self._client, await self._url(queue), expected, order)
        began = time.perf_counter()
        if ordered and self._config.fifo:
            await drain.by_session()
        else:
            await drain.as_they_come()
        return expected / (time.perf_counter() - began)


@final
class _Drain:
    """Receives, handles and deletes ``expected`` messages."""

    def __init__(self, client: Any, url: str, expected: int, order: SessionOrder) -> None:
        self._client = client
        self._url = url
        self._missing = expected  # not deleted yet
        self._order = order
        self._done = asyncio.Event()

    async def as_they_come(self) -> None:
        """Every poller deletes what it got, then asks again."""

        async def poll() -> None:
            while True:
                messages = await self._receive()
                for message in messages:
                    await self._handle(message)
                if messages:
                    await self._delete([message["ReceiptHandle"] for message in messages])

        await self._until_done(poll, _IN_FLIGHT)

    async def by_session(self) -> None:
        """Pollers hand messages to a task per session; what is handled is deleted in full batches."""
        handled: asyncio.Queue[str] = asyncio.Queue()
        inboxes: dict[str, asyncio.Queue[_Message]] = {}
        async with asyncio.TaskGroup() as serving:
            tasks: list[asyncio.Task[None]] = []

            async def serve(inbox: asyncio.Queue[_Message]) -> None:
                while True:
                    message = await inbox.get()
                    await self._handle(message)
                    handled.put_nowait(message["ReceiptHandle"])

            async def poll() -> None:
                while True:
                    for message in await self._receive():
                        session = message["Attributes"]["MessageGroupId"]
                        inbox = inboxes.get(session)
                        if inbox is None:
                            inbox = inboxes[session] = asyncio.Queue()
                            tasks.append(serving.create_task(serve(inbox)))
                        inbox.put_nowait(message)

            async def delete() -> None:
                room = asyncio.Semaphore(_IN_FLIGHT)

                async def confirm(receipts: Sequence[str]) -> None:
                    try:
                        await self._delete(receipts)
                    finally:
                        room.release()

                while True:
                    receipts = [await handled.get()]
                    await room.acquire()
                    if handled.qsize() < _BATCH - 1:
                        await asyncio.sleep(_LINGER)
                    while len(receipts) < _BATCH and not handled.empty():
                        receipts.append(handled.get_nowait())
                    tasks.append(serving.create_task(confirm(receipts)))

            tasks.append(serving.create_task(delete()))
            await self._until_done(poll, _IN_FLIGHT)
            for task in tasks:
                task.cancel()

    async def _until_done(self, poll: Any, count: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            polls = [tasks.create_task(poll()) for _ in range(count)]
            await self._done.wait()
            for task in polls:
                task.cancel()

    async def _receive(self) -> list[dict[str, Any]]:
        answer = await self._client.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=_BATCH,
            WaitTimeSeconds=_POLL,
            AttributeNames=["MessageGroupId", "SequenceNumber"],
        )
        messages: list[dict[str, Any]] = answer.get("Messages") or []
        return messages

    async def _handle(self, message: _Message) -> None:
        attributes = message.get("Attributes", {})
        self._order.note(attributes.get("MessageGroupId"), int(attributes.get("SequenceNumber", 0)))

    async def _delete(self, receipts: Sequence[str]) -> None:
        entries = [{"Id": str(n), "ReceiptHandle": each} for n, each in enumerate(receipts)]
        _check(await self._client.delete_message_batch(QueueUrl=self._url, Entries=entries))
        self._missing -= len(receipts)
        if not self._missing:
            self._done.set()


def _check(answer: Mapping[str, Any]) -> None:
    failed: Sequence[Mapping[str, Any]] = answer.get("Failed") or ()
    if failed:
        raise RuntimeError(f"{failed[0].get('Code')}: {failed[0].get('Message')}")
