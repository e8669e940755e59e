"""What is known of a queue: its URL and attributes, looked up once per connection. On the bridge's loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, final

import attrs

from queue_runtime.errors import (
    ConfigurationError,
    PermissionDenied,
    QueueNotFound,
    ValidationError,
)
from queue_runtime.messages import QueueName

from .api import SqsApi
from .codec import QueueKind
from .config import MAX_MESSAGE_BYTES, SqsConfig, parse_queue_url

__all__ = ["Counts", "Queue", "Queues"]

_RETENTION: Final = 345_600  # four days, SQS's default


@final
@attrs.frozen(kw_only=True)
class Queue:
    """One queue as SQS has it.

    Args:
        name: As SQS calls it.
        url: What calls name it by.
        kind: FIFO, standard, or the FIFO queue where scheduled messages wait.
        max_message_bytes: Largest message: the queue's own limit, or the configured one if that is lower.
        max_batch_bytes: Largest batch.
        retention: Seconds after which SQS deletes a message, delivered or not.
        dead_letters: Name of its dead-letter queue; ``None`` if it has none.
        dead_letters_owner: Account of that queue; ``None`` if it is the same.
        max_delivery_count: Deliveries after which SQS moves a message there; ``None``: never.
    """

    name: str
    url: str
    kind: QueueKind
    max_message_bytes: int
    max_batch_bytes: int
    retention: int
    dead_letters: str | None = None
    dead_letters_owner: str | None = None
    max_delivery_count: int | None = None

    @property
    def fifo(self) -> bool:
        """Whether it keeps groups in order."""
        return self.kind != "standard"


@final
@attrs.frozen(kw_only=True)
class Counts:
    """About how many messages a queue holds; SQS counts approximately.

    Args:
        waiting: Ready for delivery.
        in_flight: Delivered and not settled, or failed and delayed.
        delayed: Sent with a delay that is not over.
    """

    waiting: int = 0
    in_flight: int = 0
    delayed: int = 0

    @property
    def total(self) -> int:
        """All together."""
        return self.waiting + self.in_flight + self.delayed


@final
class Queues:
    """The queues of one connection. Overlapping calls may look a queue up twice, which does no harm."""

    def __init__(self, api: SqsApi, config: SqsConfig) -> None:
        self._api = api
        self._config = config
        self._known: dict[tuple[str, str | None], Queue] = {}

    async def main(self, queue: QueueName) -> Queue:
        """The queue that users open as ``queue``.

        Raises:
            ValidationError, ConfigurationError: SQS cannot have such a queue, or it is of the other type.
            QueueNotFound: It does not exist.
            QueueError: It could not be asked.
        """
        name = self._config.wire_name(queue)
        return await self._find(name, self._config.account_id, shown=str(queue))

    async def dead_letters(self, queue: QueueName) -> Queue | None:
        """The dead-letter queue of ``queue``: its redrive policy's, else the configured one; ``None``: neither.

        Raises:
            QueueNotFound: It is named, and does not exist.
        """
        source = await self.main(queue)
        if source.dead_letters is not None:
            owner = source.dead_letters_owner or self._config.account_id
            return await self._find(source.dead_letters, owner)
        if self._config.dead_letter_queue is not None:
            return await self._find(self._config.dead_letter_queue, self._config.account_id)
        return None

    async def holding(self, queue: QueueName) -> Queue | None:
        """Where scheduled messages of ``queue`` wait; ``None`` if that was not provisioned.

        An account may not tell a queue that is absent from one that these credentials may not see.
        """
        with suppress(QueueNotFound, PermissionDenied, ValidationError):
            name = self._config.holding_name(queue)
            return await self._find(name, self._config.account_id, kind="holding")
        return None

    async def counts(self, queue: Queue) -> Counts:
        """How many messages are in a queue."""
        found = await self._attributes(queue.name, queue.url)
        return Counts(
            waiting=_number(found.get("ApproximateNumberOfMessages"), 0),
            in_flight=_number(found.get("ApproximateNumberOfMessagesNotVisible"), 0),
            delayed=_number(found.get("ApproximateNumberOfMessagesDelayed"), 0),
        )

    async def _find(
        self,
        name: str,
        owner: str | None,
        *,
        shown: str = "",
        kind: QueueKind | None = None,
    ) -> Queue:
        known = self._known.get((name, owner))
        if known is not None:
            return known
        try:
            url = await self._url(name, owner)
            found = await self._attributes(name, url)
        except QueueNotFound as error:
            raise QueueNotFound(
                f"queue {shown or name} does not exist in {self._api.region} as {name}: check name, region and "
                "account, or create it with queue-runtime provision"
            ) from error
        fifo = found.get("FifoQueue") == "true"
        if fifo != name.endswith(".fifo"):
            raise ConfigurationError(
                f"queue {name} is {'a FIFO' if fifo else 'a standard'} queue, which its name does not say"
            )
        queue = _queue(name, url, kind or ("fifo" if fifo else "standard"), found, self._config)
        self._known[name, owner] = queue
        return queue

    async def _url(self, name: str, owner: str | None) -> str:
        given = self._config.queue_url
        if given is not None and parse_queue_url(given).name == name:
            return given
        parameters = {"QueueName": name}
        if owner is not None:
            parameters["QueueOwnerAWSAccountId"] = owner
        answer = await self._api.call("GetQueueUrl", name, parameters)
        return str(answer["QueueUrl"])

    async def _attributes(self, name: str, url: str) -> Mapping[str, str]:
        # By name, attributes that the type of queue does not have would be refused.
        answer = await self._api.call(
            "GetQueueAttributes", name, {"QueueUrl": url, "AttributeNames": ["All"]}
        )
        attributes: Mapping[str, str] = answer.get("Attributes") or {}
        return attributes


def _queue(
    name: str, url: str, kind: QueueKind, found: Mapping[str, str], config: SqsConfig
) -> Queue:
    policy = _redrive_policy(found.get("RedrivePolicy"))
    # arn:aws:sqs:region:account:name
    target = str(policy.get("deadLetterTargetArn") or "").split(":")
    limit = _number(policy.get("maxReceiveCount"), 0)
    return Queue(
        name=name,
        url=url,
        kind=kind,
        max_message_bytes=min(
            config.max_message_bytes,
            _number(found.get("MaximumMessageSize"), MAX_MESSAGE_BYTES),
        ),
        max_batch_bytes=config.max_message_bytes,
        retention=_number(found.get("MessageRetentionPeriod"), _RETENTION),
        dead_letters=target[5] if len(target) == 6 else None,
        dead_letters_owner=target[4] if len(target) == 6 else None,
        max_delivery_count=limit or None,
    )


def _redrive_policy(text: str | None) -> Mapping[str, Any]:
    try:
        policy = json.loads(text or "{}")
    except ValueError:
        return {}
    return policy if isinstance(policy, dict) else {}


def _number(value: object, default: int) -> int:
    try:
        return int(str(value))
    except ValueError:
        return default
