"""Sessions by turns, as an intake hands them out. No broker: nothing waits here."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("azure.servicebus", reason="the extra azure is not installed")

from queue_runtime.errors import QueueError
from queue_runtime.providers.azure import AzureConfig
from queue_runtime.providers.azure.inlet import Arrival
from queue_runtime.providers.azure.intake import Intake
from queue_runtime.providers.azure.settling import Work
from queue_runtime.providers.azure.sources import Source
from queue_runtime.secret import Secret

CONNECTION_STRING = "Endpoint=sb://localhost;SharedAccessKeyName=n;SharedAccessKey=a2V5"


class Session(Source):
    """One that counts how often it is looked at."""

    looks = 0

    @property
    def is_ready(self) -> bool:
        Session.looks += 1
        return super().is_ready

    async def settle(self, works: Sequence[Work]) -> list[QueueError | None]:
        raise NotImplementedError


def intake_of(sessions: int, messages: int) -> Intake:
    api: Any = SimpleNamespace(
        config=AzureConfig(connection_string=Secret(CONNECTION_STRING), sessions=True)
    )
    intake = Intake(
        api,
        "queue",
        sessions=True,
        auto_accept=True,
        max_sessions=sessions,
        max_per_session=messages,
        on_lost=lambda *_: None,
    )
    for _ in range(sessions):
        session = Session(intake)
        session.buffer.extend(Arrival(number, b"", None) for number in range(messages))
        intake.arrived(session)
    return intake


def test_taking_looks_at_no_more_sessions_than_it_takes_from() -> None:
    intake = intake_of(1_000, 2)
    Session.looks = 0
    taken = intake._take(10)
    assert [len(take.arrivals) for take in taken] == [1] * 10
    assert Session.looks <= 2 * 10


@pytest.mark.parametrize("most", [1, 3, 7, 10, 100])
def test_sessions_take_turns(most: int) -> None:
    """None gets its next message before each had one, and a receive brings as much as it asks for."""
    sessions, messages = 10, 6
    intake = intake_of(sessions, messages)
    had: dict[Source, int] = {}
    while taken := intake._take(most):
        assert len({take.source for take in taken}) == len(taken)
        left = sessions * messages - sum(had.values())
        assert sum(len(take.arrivals) for take in taken) == min(most, left)
        for take in taken:
            numbers = [arrival.delivery_id for arrival in take.arrivals]
            begun = had.get(take.source, 0)
            assert numbers == list(range(begun, begun + len(numbers)))
            had[take.source] = begun + len(numbers)
        if most <= sessions:
            assert max(had.values()) - min(had.values() if len(had) == sessions else [0]) <= 1
    assert list(had.values()) == [messages] * sessions


def test_what_is_over_is_not_looked_at_again() -> None:
    intake = intake_of(1_000, 2)
    *over, last = list(intake._ready)
    for source in over:
        source.buffer.clear()
    [take] = intake._take(1)
    assert take.source is last
    Session.looks = 0
    [take] = intake._take(1)
    assert take.source is last
    assert Session.looks <= 2
