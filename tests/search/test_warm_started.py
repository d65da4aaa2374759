"""A strategy with one more run beside it: when it starts, how far it goes, what the strategy inside sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import simulation

from foretune.catalogue.priors import DEFAULT_LORA
from foretune.search.ask_tell import AskTell
from foretune.search.budget import Budget
from foretune.search.types import Lease, Observation
from foretune.search.warm_start import ARM, WarmStarted
from foretune.search.zero_shot import ZeroShot, plan

TOTAL_S = 1_500.0
SEED = 7


def inside(budget: Budget, **options: Any) -> ZeroShot:
    strategy, _ = plan(width=576, kind="causal", train_rows=400, budget=budget, cost=simulation.cost, **options)
    return strategy


def searched(shift: float, budget: Budget | None = None, **options: Any) -> AskTell:
    """A whole search in which the run that begins elsewhere has a loss ``shift`` above what its settings give."""
    budget = budget or Budget("time", TOTAL_S)
    strategy = WarmStarted(inside(budget, **options), {**DEFAULT_LORA, "learning_rate": 3e-4}, SEED, "begun elsewhere")
    core = AskTell(strategy, budget, simulation.cost)

    def script(lease: Lease) -> list[Observation]:
        moved = shift if core.run(lease.run).arm == ARM else 0.0
        return [
            replace(seen, metrics={n: replace(s, value=s.value + moved) for n, s in seen.metrics.items()})
            for seen in simulation.honest(lease)
        ]

    simulation.drive(core, 1, script)
    return core


def own(core: AskTell) -> Any:
    (run,) = (run for run in core.runs if run.arm == ARM)
    return run


def test_it_starts_after_the_baseline_with_the_seed_of_the_earlier_run() -> None:
    core = searched(0.0)
    assert [run.arm for run in core.runs[:2]] == ["default", ARM]
    assert own(core).seed == SEED and all(run.seed == 0 for run in core.runs if run.arm != ARM)
    assert core.runs[0].status == "finished" and "begun elsewhere" in own(core).why


def test_it_goes_on_to_the_end_while_it_leads_and_no_further_once_another_does() -> None:
    leading, behind = searched(-0.5), searched(0.5)
    assert own(leading).status == "finished"
    assert leading.strategy.finalists(leading.runs)[0].run.arm == ARM
    assert own(behind).step < 0.3 * own(behind).horizon and own(behind).status == "idle"
    assert behind.strategy.finalists(behind.runs)[0].run.arm != ARM


def test_the_strategy_inside_decides_as_if_it_were_not_there() -> None:
    with_it, without = searched(0.5), AskTell(inside(Budget("time", TOTAL_S)), Budget("time", TOTAL_S), simulation.cost)
    simulation.drive(without, 1)
    tried = [dict(run.config) for run in with_it.runs if run.arm != ARM]
    alone = [dict(run.config) for run in without.runs]
    assert tried == alone[: len(tried)] and len(tried) > 4


@pytest.mark.parametrize("most", [1, 2, 4])
def test_it_counts_as_one_of_the_runs_that_are_allowed(most: int) -> None:
    core = searched(0.0, max_trials=most)
    assert len(core.runs) == most
    assert sum(run.arm == ARM for run in core.runs) == (most > 1)


def test_a_budget_without_room_for_it_is_spent_as_before() -> None:
    core = searched(0.0, Budget("trials", 1))
    assert [run.arm for run in core.runs] == ["default"]


def test_other_weights_are_other_settings_to_a_journal() -> None:
    strategy = inside(Budget("trials", 5))
    one, other = (WarmStarted(strategy, {**DEFAULT_LORA, "learning_rate": rate}, 0, "") for rate in (1e-4, 2e-4))
    assert one.settings() != other.settings() != strategy.settings()
