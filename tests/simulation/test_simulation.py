"""A thousand worlds; each must keep every invariant. A failing one prints how to have it again."""

from __future__ import annotations

import pytest

from queue_runtime.testing.simulation import Scenario, generate, simulate

SEEDS = 1_000
GROUP = 50


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_every_invariant_holds(first: int) -> None:
    for seed in range(first, first + GROUP):
        result = simulate(seed)
        assert result.ok, str(result)
        assert result.report.acknowledged == len(result.scenario.messages)


def test_the_scenarios_have_everything_in_them() -> None:
    scenarios = [generate(seed) for seed in range(200)]

    def some(holds: object) -> bool:
        return 10 <= sum(map(holds, scenarios)) <= 190  # type: ignore[call-overload,no-any-return]

    assert some(lambda scenario: scenario.is_calm)
    assert some(lambda scenario: scenario.mode == "pipelined")
    assert some(lambda scenario: scenario.config.halt_on_dead_letter)
    assert some(lambda scenario: scenario.redrives)
    assert some(lambda scenario: scenario.keeps_empty_sessions)
    assert some(lambda scenario: scenario.max_receive_messages is not None)
    assert some(lambda scenario: len(scenario.nodes) == 1)
    assert some(lambda scenario: any(message.due for message in scenario.messages))
    assert some(lambda scenario: any(message.time_to_live for message in scenario.messages))
    assert some(lambda scenario: any(message.session is None for message in scenario.messages))
    for action in ("drain", "cancel", "crash", "cut", "freeze"):
        assert some(lambda scenario, a=action: a in {i.action.value for i in scenario.incidents})
    behaviours = {message.behaviour for scenario in scenarios for message in scenario.messages}
    assert len(behaviours) == 11
    assert all(10 <= len(scenario.messages) <= 40 for scenario in scenarios)


def test_a_scenario_is_drawn_from_its_seed_alone() -> None:
    first, second, other = generate(7), generate(7), generate(8)
    assert isinstance(first, Scenario)
    assert first == second
    assert first != other
    assert "scenario 7" in str(first)


def test_the_worlds_are_not_idle() -> None:
    """Faults do happen, and so do redeliveries and dead letters: otherwise the invariants hold in vain."""
    results = [simulate(seed) for seed in range(30)]
    injected = sum((result.injected for result in results), start=type(results[0].injected)())
    assert set(injected) >= {"fails", "drops_reply", "throttles", "stalls", "cut", "loses_lease"}
    assert sum(result.report.redeliveries for result in results) > 50
    assert sum(result.report.dead_lettered for result in results) > 10
    assert sum(result.report.redriven for result in results) > 0
