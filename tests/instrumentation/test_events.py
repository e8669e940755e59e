from __future__ import annotations

import inspect
import re

import attrs
import pytest

from queue_runtime.instrumentation import Event, MessagesSent, events
from queue_runtime.messages import Message, QueueName, SendResult

KINDS: list[type[Event]] = [getattr(events, name) for name in events.__all__ if name != "Event"]


def test_all_names_nothing_but_events() -> None:
    assert len(KINDS) > 20
    assert all(issubclass(kind, Event) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_frozen_final_and_documented(kind: type[Event]) -> None:
    assert getattr(kind, "__final__", False)
    event = object.__new__(kind)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.provider = "other"  # type: ignore[misc]
    own = {field.name for field in attrs.fields(kind)} - {"queue", "provider"}
    documented = set(
        re.findall(r"^    (\w+): ", inspect.cleandoc(kind.__doc__ or ""), re.MULTILINE)
    )
    assert documented == own


def test_a_representation_shows_neither_bodies_nor_headers() -> None:
    event = MessagesSent(
        queue=QueueName("orders"),
        provider="memory",
        messages=(Message(b"CANARY", headers={"note": "CANARY"}),),
        results=(SendResult(None),),
        duration=0.5,
    )
    assert "CANARY" not in repr(event)
    assert "messages=<1>" in repr(event)
