from __future__ import annotations

import logging
from typing import Any, cast

import pytest

from queue_runtime.errors import ConfigurationError
from queue_runtime.instrumentation import Event, Instrument, Instruments, SupervisorStarted
from queue_runtime.messages import QueueName

EVENT = SupervisorStarted(queue=QueueName("orders"), provider="memory")


def broken(event: Event) -> None:
    raise RuntimeError("the text may quote a body: CANARY")


class Sink:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)


def test_none_is_false_and_any_is_true() -> None:
    assert not Instruments()
    assert Instruments([broken])


def test_every_instrument_is_told_in_order() -> None:
    told: list[str] = []
    instruments = Instruments([lambda _: told.append("first"), lambda _: told.append("second")])
    instruments.emit(EVENT)
    assert told == ["first", "second"]


def test_a_failure_is_contained_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    instruments = Instruments([broken, sink])
    for _ in range(3):
        instruments.emit(EVENT)
    assert sink.events == [EVENT] * 3
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("queue_runtime.instrumentation", logging.ERROR)
    assert "broken failed at SupervisorStarted with RuntimeError" in record.getMessage()
    assert "test_instruments.py" in record.getMessage()
    assert "CANARY" not in caplog.text


def test_each_broken_instrument_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    def other(event: Event) -> None:
        raise KeyError(event.queue)

    instruments: list[Instrument] = [broken, other]
    Instruments(instruments).emit(EVENT)
    assert [record.getMessage().count("KeyError") for record in caplog.records] == [0, 1]


def test_what_stops_the_program_passes() -> None:
    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Instruments([interrupted]).emit(EVENT)


def test_only_callables_are_accepted() -> None:
    with pytest.raises(ConfigurationError, match="str object is no instrument: give a callable"):
        Instruments(cast("Any", ["log"]))
