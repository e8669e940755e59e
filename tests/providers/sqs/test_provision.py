"""Provisioning on the emulator: what is created, what is kept, what is said."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import pytest
from click.testing import CliRunner
from tests.sqs.emulator import Emulator, open_emulator, sqs_for_tests

from queue_runtime.cli import root
from queue_runtime.errors import ConfigurationError, ValidationError
from queue_runtime.messages import QueueName
from queue_runtime.providers.asyncio_bridge import AsyncioBridge
from queue_runtime.providers.sqs.api import SqsApi
from queue_runtime.providers.sqs.config import SqsConfig, sqs_config_from_url
from queue_runtime.providers.sqs.provision import LONGEST_RETENTION, provision

NUMBERS = count(1)


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with sqs_for_tests() as emulator:
        yield emulator


class Account:
    """One account: calls of SQS, and provisioning."""

    def __init__(self, bridge: AsyncioBridge, api: SqsApi, url: str) -> None:
        self.bridge = bridge
        self.api = api
        self.url = url

    async def provision(self, queue: str, **options: Any) -> list[str]:
        separator = "&" if "?" in self.url else "?"
        text = "&".join(f"{name}={value}" for name, value in options.items())
        config = sqs_config_from_url(f"{self.url}{separator}{text}" if text else self.url)
        return await self.bridge.run(provision, self.api, config, QueueName(queue))

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        return await self.bridge.run(self.api.call, operation, "", parameters)

    async def attributes(self, name: str) -> dict[str, str]:
        url = (await self.call("GetQueueUrl", QueueName=name))["QueueUrl"]
        answer = await self.call("GetQueueAttributes", QueueUrl=url, AttributeNames=["All"])
        found: dict[str, str] = answer["Attributes"]
        return found

    async def policy(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((await self.attributes(name))["RedrivePolicy"])
        return found


async def open_account(url: str) -> AsyncIterator[Account]:
    bridge = await AsyncioBridge.open("test-provision")
    try:
        api = await bridge.run(SqsApi.open, sqs_config_from_url(url))
        try:
            yield Account(bridge, api, url)
        finally:
            await bridge.run(api.aclose)
    finally:
        await bridge.aclose()


@pytest.fixture
async def account(emulator: Emulator) -> AsyncIterator[Account]:
    async for account in open_account(emulator.url):
        yield account


@pytest.fixture
def name() -> str:
    return f"provisioned-{next(NUMBERS)}"


async def test_a_fifo_queue_comes_with_all_that_belongs_to_it(account: Account, name: str) -> None:
    report = await account.provision(name, lock_duration=45, max_delivery_count=7)

    assert report == [
        f"{name}-dlq.fifo: created",
        f"{name}.fifo: created, dead letters go to {name}-dlq.fifo after 7 deliveries",
        f"{name}-holding.fifo: created",
    ]
    main = await account.attributes(f"{name}.fifo")
    assert main["FifoQueue"] == "true"
    assert main["VisibilityTimeout"] == "45"
    assert main["MaximumMessageSize"] == str(SqsConfig().max_message_bytes)
    dead_letters = await account.attributes(f"{name}-dlq.fifo")
    assert await account.policy(f"{name}.fifo") == {
        "deadLetterTargetArn": dead_letters["QueueArn"],
        "maxReceiveCount": 7,
    }
    holding = await account.attributes(f"{name}-holding.fifo")
    for beside in (dead_letters, holding):
        assert beside["FifoQueue"] == "true"
        assert beside["MessageRetentionPeriod"] == str(LONGEST_RETENTION)
        assert "RedrivePolicy" not in beside


async def test_a_standard_queue_has_a_standard_dead_letter_queue(
    account: Account, name: str
) -> None:
    report = await account.provision(name, queue_type="standard")

    assert [line.partition(":")[0] for line in report] == [
        f"{name}-dlq",
        name,
        f"{name}-holding.fifo",
    ]
    assert "FifoQueue" not in await account.attributes(name)
    assert (await account.policy(name))["maxReceiveCount"] == 100


async def test_the_second_time_nothing_happens(account: Account, name: str) -> None:
    await account.provision(name)
    calls = account.api.calls["CreateQueue"]
    before = await account.attributes(f"{name}.fifo")

    report = await account.provision(name)

    assert report == [
        f"{name}.fifo: kept, dead letters go to {name}-dlq.fifo after 100 deliveries",
        f"{name}-holding.fifo: kept",
    ]
    assert account.api.calls["CreateQueue"] == calls
    assert await account.attributes(f"{name}.fifo") == before


async def test_what_is_missing_is_made_the_second_time(account: Account, name: str) -> None:
    await account.provision(name)
    found = await account.call("GetQueueUrl", QueueName=f"{name}-holding.fifo")
    await account.call("DeleteQueue", QueueUrl=found["QueueUrl"])

    report = await account.provision(name, holding_queue=f"{name}-later.fifo")

    assert report[1:] == [f"{name}-later.fifo: created"]


async def test_what_differs_is_said_and_kept(account: Account, name: str) -> None:
    await account.provision(name, max_message_bytes=2_048)
    before = await account.attributes(f"{name}.fifo")

    report = await account.provision(
        name, lock_duration=90, max_delivery_count=5, max_message_bytes=4_096
    )

    assert report == [
        f"{name}.fifo: kept, dead letters go to {name}-dlq.fifo after 100 deliveries",
        f"{name}.fifo: VisibilityTimeout is 30, a new queue would have 90",
        f"{name}.fifo: MaximumMessageSize is 2048, a new queue would have 4096",
        f"{name}.fifo: maxReceiveCount is 100, a new queue would have 5",
        f"{name}-holding.fifo: kept",
        f"{name}-holding.fifo: MaximumMessageSize is 2048, a new queue would have 4096",
    ]
    assert await account.attributes(f"{name}.fifo") == before


async def test_a_queue_without_a_policy_is_not_given_one(account: Account, name: str) -> None:
    await account.call("CreateQueue", QueueName=f"{name}.fifo", Attributes={"FifoQueue": "true"})

    report = await account.provision(name)

    assert report[0] == f"{name}-dlq.fifo: created"
    assert report[1] == f"{name}.fifo: kept"
    assert "there is no redrive policy" in report[2]
    assert f"move them to {name}-dlq.fifo after 100 deliveries" in report[2]
    assert "RedrivePolicy" not in await account.attributes(f"{name}.fifo")


async def test_a_policy_of_somebody_elses_choice_stays(account: Account, name: str) -> None:
    await account.provision(name, dead_letter_queue=f"{name}-failed.fifo")

    report = await account.provision(name)

    assert report[0].startswith(f"{name}.fifo: kept, dead letters go to {name}-failed.fifo")
    assert not any(f"{name}-dlq" in line for line in report)


async def test_an_emulator_may_take_smaller_messages_only(name: str) -> None:
    with open_emulator(strict=False) as lax:
        async for account in open_account(lax.url):
            report = await account.provision(name)
            found = await account.attributes(f"{name}.fifo")

    assert f"{name}.fifo: messages of 1048576 bytes are refused; its own limit counts" in report
    assert found["MaximumMessageSize"] == "262144"


@pytest.mark.parametrize(
    ("queue", "options", "error", "words"),
    [
        ("q", {"account_id": "123456789012"}, ConfigurationError, "account_id and queue_url"),
        ("has a space", {}, ValidationError, "A-Z a-z 0-9"),
        ("x" * 73, {}, ValidationError, "choose one as dead_letter_queue"),
        ("q.fifo", {"queue_type": "standard"}, ValidationError, "FIFO"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_created(
    account: Account,
    queue: str,
    options: dict[str, str],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        await account.provision(queue, **options)

    assert account.api.calls["CreateQueue"] == 0


def provision_by_command(emulator: Emulator, *arguments: str) -> str:
    result = CliRunner().invoke(
        root, ["provision", "--url", emulator.url, *arguments], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command(emulator: Emulator, name: str) -> None:
    shown = provision_by_command(emulator, "--queue", name)
    again = json.loads(provision_by_command(emulator, "--queue", name, "--json"))

    assert f"{name}.fifo: created, dead letters go to {name}-dlq.fifo after 100" in shown
    assert again["queue"] == name
    assert again["report"][-1] == f"{name}-holding.fifo: kept"
