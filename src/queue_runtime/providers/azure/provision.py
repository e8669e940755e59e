"""Creating a queue, for development. On the bridge's loop; nothing else here creates anything.

What exists is looked at and never changed: somebody may have chosen it. What cannot be changed later and is not as
the configuration says is an error, as the provider could not use the queue; the rest is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

from queue_runtime.errors import ConfigurationError, ConnectionFailed
from queue_runtime.messages import QueueName

from .administration import Administration
from .config import STANDARD_MESSAGE_BYTES, AzureConfig

__all__ = ["DUPLICATE_WINDOW", "provision"]

DUPLICATE_WINDOW: Final = 600.0
"""Seconds for which a new queue remembers ids, where it detects duplicates: Azure's own default.

https://learn.microsoft.com/azure/service-bus-messaging/duplicate-detection#duplicate-detection-window-size
"""

_LEAST_LARGE_KILOBYTES: Final = 1_024
"""The smallest limit that a queue for large messages can be given.

https://learn.microsoft.com/azure/service-bus-messaging/service-bus-premium-messaging#large-messages-support
"""

_FOR_LIFE: Final = {
    "requires_session": ("RequiresSession", "sessions"),
    "requires_duplicate_detection": ("RequiresDuplicateDetection", "deduplication"),
}
"""What a queue has for life: the setting, and the option that has to agree with it."""

_TOLD: Final = {
    "lock_duration": "LockDuration",
    "max_delivery_count": "MaxDeliveryCount",
    "dead_lettering_on_message_expiration": "DeadLetteringOnMessageExpiration",
    "duplicate_detection_history_time_window": "DuplicateDetectionHistoryTimeWindow",
    "max_message_size_in_kilobytes": "MaxMessageSizeInKilobytes",
}
"""What can be changed by whoever the queue belongs to."""


async def provision(
    administration: Administration, config: AzureConfig, queue: QueueName
) -> list[str]:
    """Create ``queue`` if it is missing, as ``config`` says; its dead-letter sub-queue comes with it.

    Messages that name no time to live stay for ever (14 days in the Basic tier); what expires becomes a dead letter.
    ``config.max_delivery_count`` should be generous: the runtime dead-letters by itself after as many tries as its
    retry policy allows; the broker's count is only for messages that kill whoever receives them.

    Returns:
        Lines for people: what was created or kept, and what of it differs.

    Raises:
        ConfigurationError: The queue exists and has sessions, or detects duplicates, and should not; or the reverse.
        PermissionDenied: The credential may not manage the queue.
        QueueError: A call failed. Calling again goes on.
    """
    name = config.wire_name(queue)
    wanted = _wanted(config)
    found = await administration.find(name)
    if found is None:
        if await administration.create(name, **wanted) is not None:
            return [f"{name}: created{_described(wanted)}"]
        found = await administration.find(name)  # somebody else was faster
    if found is None:
        raise ConnectionFailed(
            f"provision on {name}: it can neither be created, as there is one, nor be found: "
            "it is being created or deleted elsewhere; try again"
        )
    existing = {each: _plain(found[each]) for each in wanted}
    _check_for_life(name, existing, wanted)
    return [f"{name}: kept{_described(existing)}", *_differences(name, existing, wanted)]


def _wanted(config: AzureConfig) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        "requires_session": config.sessions,
        "lock_duration": float(config.lock_duration),
        "max_delivery_count": config.max_delivery_count,
        "dead_lettering_on_message_expiration": True,
        "requires_duplicate_detection": config.deduplication,
    }
    if config.deduplication:
        wanted["duplicate_detection_history_time_window"] = DUPLICATE_WINDOW
    if config.max_message_bytes > STANDARD_MESSAGE_BYTES:
        kilobytes = -(-config.max_message_bytes // 1_024)
        wanted["max_message_size_in_kilobytes"] = max(kilobytes, _LEAST_LARGE_KILOBYTES)
    return wanted


def _plain(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _described(settings: Mapping[str, Any]) -> str:
    sessions = "with sessions" if settings["requires_session"] else "without sessions"
    duplicates = ", detects duplicates" if settings["requires_duplicate_detection"] else ""
    return (
        f", {sessions}{duplicates}, locks last {_shown(settings['lock_duration'])} s, "
        f"dead letters after {settings['max_delivery_count']} deliveries"
    )


def _check_for_life(name: str, existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    wrong = [
        f"{setting} is {_shown(existing[each])}, {option}={_shown(wanted[each])} expects "
        f"{_shown(wanted[each])}"
        for each, (setting, option) in _FOR_LIFE.items()
        if bool(existing[each]) != wanted[each]
    ]
    if wrong:
        options = ", ".join(
            f"{option}={_shown(bool(existing[each]))}"
            for each, (_, option) in _FOR_LIFE.items()
            if bool(existing[each]) != wanted[each]
        )
        raise ConfigurationError(
            f"queue {name} exists, and what cannot be changed later is not as expected: "
            f"{'; '.join(wrong)}: say {options}, choose another name, or delete the queue and provision it anew"
        )


def _differences(
    name: str, existing: Mapping[str, Any], wanted: Mapping[str, Any]
) -> Iterator[str]:
    """What an existing queue has otherwise than a new one would, in words."""
    for each, setting in _TOLD.items():
        has, would = existing.get(each), wanted.get(each)
        if None not in (has, would) and has != would:
            yield f"{name}: {setting} is {_shown(has)}, a new queue would have {_shown(would)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
