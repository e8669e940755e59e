"""Creating a queue with what belongs to it, for development. On the bridge's loop; nothing else here creates anything.

A queue comes with a dead-letter queue and the redrive policy that names it, and with a FIFO queue where scheduled
messages wait. What exists is looked at and never changed: somebody may have chosen it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, final

from queue_runtime.errors import ConfigurationError, QueueNotFound, ValidationError
from queue_runtime.messages import QueueName

from .api import SqsApi
from .config import SqsConfig

__all__ = ["LONGEST_RETENTION", "provision"]

LONGEST_RETENTION: Final = 1_209_600
"""Seconds SQS keeps a message at most (14 days): dead letters and scheduled messages should not vanish earlier.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
"""

_LOOK_AGAIN: Final = 0.25
"""Seconds between looks for a new queue, of which SQS says that it takes "at least one second" (CreateQueue)."""
_LOOKS: Final = 40

_Attributes = Mapping[str, str]


async def provision(api: SqsApi, config: SqsConfig, queue: QueueName) -> list[str]:
    """Create ``queue``, its dead-letter queue, redrive policy and holding queue, as far as they are missing.

    ``config.max_delivery_count`` becomes the policy's ``maxReceiveCount``. It must be generous: SQS counts every
    receive, also that of a message which was given back untried because one before it in its group failed, a
    process ended or a receive was cancelled. The runtime dead-letters by itself after as many tries as its retry
    policy allows; SQS's own count is only for messages that kill whoever receives them.

    Returns:
        Lines for people: what was created or kept, and what of it differs.

    Raises:
        ConfigurationError, ValidationError: There can be no such queue, or it may belong to another account.
        PermissionDenied: ``sqs:CreateQueue``, ``GetQueueUrl`` and ``GetQueueAttributes`` are needed.
        QueueError: A call failed. What was created stays; calling again goes on.
    """
    if config.account_id is not None or config.queue_url is not None:
        raise ConfigurationError(
            "queues are created in the account of the credentials: "
            "leave account_id and queue_url out of the URL to provision"
        )
    name = config.wire_name(queue)
    dead_letters, holding = config.dead_letter_name(queue), config.holding_name(queue)
    work = _Work(api, config)
    existing = await work.look(name)
    if existing is None or not existing.get("RedrivePolicy"):
        target = await work.ensure(dead_letters, {"MessageRetentionPeriod": str(LONGEST_RETENTION)})
        policy = {
            "deadLetterTargetArn": target["QueueArn"],
            "maxReceiveCount": config.max_delivery_count,
        }
    else:
        policy = {"maxReceiveCount": config.max_delivery_count}
    await work.ensure(
        name,
        {"VisibilityTimeout": str(config.lock_duration), "RedrivePolicy": json.dumps(policy)},
        existing,
    )
    await work.ensure(holding, {"MessageRetentionPeriod": str(LONGEST_RETENTION)})
    return work.report


@final
class _Work:
    """Looks at queues, creates those that are missing, and keeps a report."""

    def __init__(self, api: SqsApi, config: SqsConfig) -> None:
        self.report: list[str] = []
        self._api = api
        self._size = str(config.max_message_bytes)

    async def look(self, name: str) -> _Attributes | None:
        """A queue's attributes; ``None`` if it does not exist."""
        try:
            found = await self._api.call("GetQueueUrl", name, {"QueueName": name})
            return await self._attributes(name, found["QueueUrl"])
        except QueueNotFound:
            return None

    async def ensure(
        self, name: str, wanted: _Attributes, existing: _Attributes | None = None
    ) -> _Attributes:
        """Create a queue with these attributes if there is none; what it has."""
        if existing is None:
            existing = await self.look(name)
        if existing is None:
            url = await self._create(name, wanted)
            attributes = await self._appeared(name, url)
            self.report.append(f"{name}: created{_described(wanted)}")
            return attributes
        self.report.append(f"{name}: kept{_described(existing)}")
        sized = {**wanted, "MaximumMessageSize": self._size}
        self.report.extend(f"{name}: {line}" for line in _differences(existing, sized))
        return existing

    async def _create(self, name: str, wanted: _Attributes) -> str:
        attributes = {**wanted, "MaximumMessageSize": self._size}
        if name.endswith(".fifo"):
            attributes["FifoQueue"] = "true"
        try:
            return await self._try_to_create(name, attributes)
        except ValidationError as error:
            # Emulators and some partitions still refuse more than 256 KiB, and have that as their default.
            if "MaximumMessageSize" not in str(error):
                raise
        del attributes["MaximumMessageSize"]
        url = await self._try_to_create(name, attributes)
        self.report.append(
            f"{name}: messages of {self._size} bytes are refused; its own limit counts"
        )
        return url

    async def _try_to_create(self, name: str, attributes: _Attributes) -> str:
        answer = await self._api.call(
            "CreateQueue", name, {"QueueName": name, "Attributes": attributes}
        )
        return str(answer["QueueUrl"])

    async def _appeared(self, name: str, url: str) -> _Attributes:
        for _ in range(_LOOKS):
            with suppress(QueueNotFound):
                return await self._attributes(name, url)
            await asyncio.sleep(_LOOK_AGAIN)
        return await self._attributes(name, url)

    async def _attributes(self, name: str, url: str) -> _Attributes:
        answer = await self._api.call(
            "GetQueueAttributes", name, {"QueueUrl": url, "AttributeNames": ["All"]}
        )
        attributes: _Attributes = answer.get("Attributes") or {}
        return attributes


def _described(attributes: _Attributes) -> str:
    policy = _policy(attributes)
    if not policy:
        return ""
    return f", dead letters go to {_name(policy)} after {policy.get('maxReceiveCount')} deliveries"


def _differences(existing: _Attributes, wanted: _Attributes) -> Iterator[str]:
    """What an existing queue has otherwise than a new one would, in words."""
    for attribute in ("VisibilityTimeout", "MessageRetentionPeriod", "MaximumMessageSize"):
        has, would = existing.get(attribute), wanted.get(attribute)
        if None not in (has, would) and has != would:
            yield f"{attribute} is {has}, a new queue would have {would}"
    expected, policy = _policy(wanted), _policy(existing)
    if not expected:
        return
    if not policy:
        yield (
            "there is no redrive policy, so messages that nobody can handle come for ever; a new queue would "
            f"move them to {_name(expected)} after {expected['maxReceiveCount']} deliveries"
        )
    elif str(policy.get("maxReceiveCount")) != str(expected["maxReceiveCount"]):
        yield (
            f"maxReceiveCount is {policy.get('maxReceiveCount')}, "
            f"a new queue would have {expected['maxReceiveCount']}"
        )


def _policy(attributes: _Attributes) -> Mapping[str, Any]:
    found = json.loads(attributes.get("RedrivePolicy") or "{}")
    return found if isinstance(found, dict) else {}


def _name(policy: Mapping[str, Any]) -> str:
    """The queue at the end of ``arn:aws:sqs:region:account:name``."""
    return str(policy.get("deadLetterTargetArn")).rpartition(":")[2]
