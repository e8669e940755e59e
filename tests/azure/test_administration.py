"""The emulator's administration endpoint and the SDK's own client: queues created, changed, counted, deleted."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.servicebus import ServiceBusMessage, TransportType
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.exceptions import ServiceBusError

from queue_runtime.testing.servicebus import (
    AccessPolicy,
    Certificate,
    Fault,
    Operation,
    QueueSettings,
    ServiceBusEmulator,
    emulator_in_thread,
)

_names = iter(range(1_000))


@pytest.fixture(scope="module")
def emulator() -> Iterator[ServiceBusEmulator]:
    with emulator_in_thread(certificate=Certificate()) as running:
        yield running


@pytest.fixture
def name(emulator: ServiceBusEmulator) -> str:
    return f"q{next(_names)}"


@pytest.fixture
def queue(emulator: ServiceBusEmulator, name: str) -> str:
    emulator.create_queue(name)
    return name


def run(main: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(main, 60)

    asyncio.run(limited())


def administrator(
    emulator: ServiceBusEmulator, connection_string: str = ""
) -> ServiceBusAdministrationClient:
    return ServiceBusAdministrationClient.from_connection_string(
        connection_string or emulator.connection_string,
        connection_verify=str(emulator.ca_file),
        retry_total=0,
    )


@asynccontextmanager
async def messaging(emulator: ServiceBusEmulator) -> AsyncIterator[ServiceBusClient]:
    async with ServiceBusClient.from_connection_string(
        emulator.connection_string,
        custom_endpoint_address=emulator.endpoint,
        transport_type=TransportType.Amqp,
        connection_verify=str(emulator.ca_file),
        retry_total=0,
    ) as client:
        yield client


def test_a_queue_is_created_as_asked_for(emulator: ServiceBusEmulator, name: str) -> None:
    async def main() -> None:
        async with administrator(emulator) as client:
            created = await client.create_queue(
                f"Made/{name}",
                requires_session=True,
                lock_duration=dt.timedelta(seconds=90),
                max_delivery_count=3,
                default_message_time_to_live=dt.timedelta(days=1, hours=2),
                requires_duplicate_detection=True,
                duplicate_detection_history_time_window=dt.timedelta(minutes=2),
                dead_lettering_on_message_expiration=True,
                max_message_size_in_kilobytes=2_048,
                max_size_in_megabytes=2_048,
            )
            found = await client.get_queue(f"made/{name}")
            for queue in (created, found):
                assert queue.requires_session
                assert queue.lock_duration == dt.timedelta(seconds=90)
                assert queue.max_delivery_count == 3
                assert queue.default_message_time_to_live == dt.timedelta(hours=26)
                assert queue.requires_duplicate_detection
                assert queue.duplicate_detection_history_time_window == dt.timedelta(minutes=2)
                assert queue.dead_lettering_on_message_expiration
                assert queue.max_message_size_in_kilobytes == 2_048
                assert queue.max_size_in_megabytes == 2_048

    run(main())


def test_what_is_not_said_is_as_azure_has_it(emulator: ServiceBusEmulator, name: str) -> None:
    async def main() -> None:
        async with administrator(emulator) as client:
            await client.create_queue(name)
            found = await client.get_queue(name)
        assert not found.requires_session
        assert not found.requires_duplicate_detection
        assert not found.dead_lettering_on_message_expiration
        assert found.lock_duration == dt.timedelta(minutes=1)
        assert found.max_delivery_count == 10
        assert found.default_message_time_to_live.days == 10_675_199  # for ever
        assert found.max_size_in_megabytes == 1_024

    run(main())


def test_messages_are_counted(emulator: ServiceBusEmulator, queue: str) -> None:
    async def main() -> None:
        later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
        async with (
            messaging(emulator) as client,
            client.get_queue_sender(queue) as sender,
            client.get_queue_receiver(queue) as receiver,
            administrator(emulator) as admin,
        ):
            await sender.send_messages([ServiceBusMessage("x") for _ in range(4)])
            await sender.schedule_messages(ServiceBusMessage("y"), later)
            dead, _locked = await receiver.receive_messages(2, max_wait_time=10)
            await receiver.dead_letter_message(dead)
            counts = await admin.get_queue_runtime_properties(queue)
        assert counts.active_message_count == 3
        assert counts.scheduled_message_count == 1
        assert counts.dead_letter_message_count == 1
        assert counts.total_message_count == 5

    run(main())


def test_a_queue_is_changed(emulator: ServiceBusEmulator, queue: str) -> None:
    lock = dt.timedelta(seconds=70)

    async def main() -> None:
        async with administrator(emulator) as client:
            found = await client.get_queue(queue)
            await client.update_queue(found, lock_duration=lock, max_delivery_count=1)
            changed = await client.get_queue(queue)
            assert changed.lock_duration == lock
            assert changed.max_delivery_count == 1
            assert changed.default_message_time_to_live.days == 10_675_199
            async with (
                messaging(emulator) as other,
                other.get_queue_sender(queue) as sender,
                other.get_queue_receiver(queue) as receiver,
            ):
                millisecond = dt.timedelta(milliseconds=1)
                before = dt.datetime.now(dt.UTC)
                await sender.send_messages(ServiceBusMessage("x"))
                (message,) = await receiver.receive_messages(1, max_wait_time=10)
                locked_at = message.locked_until_utc - lock
                assert before - millisecond <= locked_at <= dt.datetime.now(dt.UTC) + millisecond
                await receiver.abandon_message(message)
                assert emulator.counts(queue).dead_letters == 1

    run(main())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"requires_session": True}, "requires_session is False and cannot become True"),
        ({"requires_duplicate_detection": True}, "duplicate_window is 0.0 and cannot become 600.0"),
        ({"max_delivery_count": 0}, "max_delivery_count is 0"),
    ],
)
def test_what_cannot_be_changed_stays(
    emulator: ServiceBusEmulator, queue: str, change: dict[str, Any], words: str
) -> None:
    async def main() -> None:
        async with administrator(emulator) as client:
            found = await client.get_queue(queue)
            with pytest.raises(HttpResponseError, match=words) as caught:
                await client.update_queue(found, **change)
            assert caught.value.status_code == 400
            after = await client.get_queue(queue)
            assert after.max_delivery_count == 10
            assert not after.requires_session

    run(main())


def test_a_deleted_queue_is_gone_for_everybody(emulator: ServiceBusEmulator, queue: str) -> None:
    async def main() -> None:
        async with administrator(emulator) as admin, messaging(emulator) as client:
            async with client.get_queue_sender(queue) as sender:
                await sender.send_messages(ServiceBusMessage("x"))
                await admin.delete_queue(queue.upper())
                with pytest.raises(ServiceBusError):
                    await sender.send_messages(ServiceBusMessage("y"))
            for missing in (admin.delete_queue(queue), admin.get_queue(queue)):
                with pytest.raises(ResourceNotFoundError):
                    await missing
            await admin.create_queue(queue)
            assert emulator.counts(queue).active == 0

    run(main())


def test_what_is_not_there_and_what_is(emulator: ServiceBusEmulator, queue: str) -> None:
    async def main() -> None:
        async with administrator(emulator) as client:
            found = await client.get_queue(queue)
            for missing in (
                client.get_queue("nobody"),
                client.get_queue_runtime_properties("nobody"),
                client.delete_queue("nobody"),
                client.update_queue({**dict(found.items()), "name": "nobody"}),
            ):
                with pytest.raises(ResourceNotFoundError):
                    await missing
            with pytest.raises(ResourceExistsError):
                await client.create_queue(queue.upper())
            with pytest.raises(HttpResponseError, match="1 to 260 of A-Z") as refused:
                await client.create_queue("a$b")
            assert refused.value.status_code == 400
            with pytest.raises(HttpResponseError, match="has no QueueDescription"):
                await client.create_topic("topic")

    run(main())


def test_all_queues_are_listed_in_pages() -> None:
    async def main(emulator: ServiceBusEmulator) -> None:
        async with administrator(emulator) as client:
            listed = [found.name async for found in client.list_queues(max_page_size=100)]
            assert listed == sorted(f"q{number}" for number in range(230))
            counts = [found async for found in client.list_queues_runtime_properties()]
            assert len(counts) == 230

    queues = {f"q{number}": QueueSettings() for number in range(230)}
    with emulator_in_thread(queues, certificate=Certificate()) as emulator:
        run(main(emulator))


class Credential:
    """What azure-identity's credentials are to the SDK."""

    def __init__(self, token: str) -> None:
        self.token = token

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        return AccessToken(self.token, int(time.time() + 3_600))

    async def close(self) -> None:
        pass


def test_keys_and_tokens_are_checked(emulator: ServiceBusEmulator, queue: str) -> None:
    async def main() -> None:
        wrong = re.sub("SharedAccessKey=[^;]*", "SharedAccessKey=wrong", emulator.connection_string)
        async with administrator(emulator, wrong) as client:
            with pytest.raises(ClientAuthenticationError, match="InvalidSignature") as caught:
                await client.get_queue(queue)
            assert caught.value.status_code == 401
        for token, accepted in ((emulator.issue_token(), True), (emulator.issue_token(-5), False)):
            client = ServiceBusAdministrationClient(
                f"localhost:{emulator.port}",
                Credential(token),
                connection_verify=str(emulator.ca_file),
                retry_total=0,
            )
            async with client:
                if accepted:
                    assert (await client.get_queue(queue)).name == queue
                else:
                    with pytest.raises(ClientAuthenticationError, match="ExpiredToken"):
                        await client.get_queue(queue)

    run(main())


def test_the_key_signs_as_the_policy_says() -> None:
    async def main(emulator: ServiceBusEmulator) -> None:
        async with administrator(emulator) as client:
            await client.create_queue("q")

    policy = AccessPolicy(name="mine", key="a key of mine")
    with emulator_in_thread(policy=policy, certificate=Certificate()) as emulator:
        run(main(emulator))
        assert emulator.counts("q").active == 0


# --- faults ----------------------------------------------------------------------------------------


async def happened(fault: Fault) -> None:
    while not fault.happened:  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.01)


def test_requests_are_throttled_stalled_and_left_unanswered(
    emulator: ServiceBusEmulator, queue: str
) -> None:
    async def main() -> None:
        async with administrator(emulator) as client:
            emulator.faults.throttle(Operation.ADMINISTER, queue=queue)
            with pytest.raises(HttpResponseError) as caught:
                await client.get_queue(queue)
            assert caught.value.status_code == 503
            with emulator.faults.stall(queue) as stall:
                stalled = asyncio.ensure_future(client.get_queue(queue))
                await happened(stall)
                assert not stalled.done()
            assert (await stalled).name == queue
            loss = emulator.faults.lose_answer(Operation.ADMINISTER, queue=queue)
            deleting = asyncio.ensure_future(client.delete_queue(queue))
            await happened(loss)
            with pytest.raises(ResourceNotFoundError):
                await client.get_queue(queue)  # by another connection: it was done
            assert not deleting.done()
            deleting.cancel()

    run(main())
