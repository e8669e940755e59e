"""What a scenario measures, and how large it is."""

from __future__ import annotations

from typing import final

import attrs

from ..workload import peak_memory

__all__ = ["Report", "Row", "Scale", "report"]


@final
@attrs.frozen
class Scale:
    """The large numbers of the scenarios, so that a short form can shrink them.

    Args:
        rate: Messages per second offered where latency is measured.
        duration: Seconds for which they are offered.
        depth: Messages in the deep queue.
        idle_sessions: Sessions that hold their lock and have nothing to do.
        hot_messages: Messages of the one hot session.
        cold_sessions: Sessions beside it.
        rounds: How often programs that stand beside each other take turns; the median counts.
        cancellations: Receive calls that are cancelled, and calls for a session.
        switches: Sessions of one message that are gone through.
        openings: Receivers of one session that the SDK opens and closes meanwhile, one after the other.
    """

    rate: float = 500.0
    duration: float = 5.0
    depth: int = 1_000_000
    idle_sessions: int = 10_000
    hot_messages: int = 100_000
    cold_sessions: int = 1_000
    rounds: int = 5
    cancellations: int = 20
    switches: int = 2_000
    openings: int = 20


@final
@attrs.frozen
class Row:
    """One measured figure.

    Args:
        what: What was measured.
        value: The figure: the median of the rounds where there were several.
        unit: ``msg/s``, ``ms``, ``MiB`` …
        beside: What it is compared with; empty when it stands alone.
        ratio: This figure divided by that one.
        aim: What the ratio or figure should be, for people.
    """

    what: str
    value: float
    unit: str
    beside: str = ""
    ratio: float | None = None
    aim: str = ""


@final
@attrs.frozen
class Report:
    """The outcome of one scenario.

    Args:
        scenario: Its name.
        rows: What was measured, in order.
        order_violations: Messages handled out of their session's order, over all runs.
        peak_memory_mib: Largest resident set of the process, MiB.
    """

    scenario: str
    rows: tuple[Row, ...]
    order_violations: int
    peak_memory_mib: float


def report(scenario: str, rows: list[Row], violations: int) -> Report:
    """What came out, with the largest memory so far."""
    return Report(scenario, tuple(rows), violations, peak_memory())
