"""The configuration of Microsoft's emulator, ``Config.json``: so that the same queues can be had here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...errors import ValidationError
from .atom import settings_of
from .entities import QueueSettings

__all__ = ["queues_of"]


def queues_of(text: str) -> Mapping[str, QueueSettings]:
    """The queues of a ``Config.json``. Properties that this emulator has nothing for are passed over.

    https://learn.microsoft.com/azure/service-bus-messaging/test-locally-with-service-bus-emulator

    Raises:
        ValidationError: It is no such file, a queue's property cannot be read, or it has topics, which are not there.
    """
    try:
        (namespace,) = json.loads(text)["UserConfig"]["Namespaces"]
        topics = namespace.get("Topics")
        described = {
            str(queue["Name"]): queue.get("Properties", {}) for queue in namespace["Queues"]
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValidationError(
            "the file is no Config.json of Microsoft's emulator: expected JSON with one entry of"
            f" UserConfig.Namespaces, which has Queues, each with a Name ({type(error).__name__}: {error})"
        ) from error
    if topics:
        raise ValidationError("the configuration has Topics: the emulator has queues only")
    return {name: _settings(name, properties) for name, properties in described.items()}


def _settings(name: str, properties: Mapping[str, Any]) -> QueueSettings:
    try:
        return settings_of(
            {
                key: str(value).lower() if isinstance(value, bool) else str(value)
                for key, value in properties.items()
            }
        )
    except (AttributeError, ValueError) as error:
        raise ValidationError(
            f"the queue {name!r} has properties that cannot be read: {error}"
        ) from error
