from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from simulation import BEST_RATE, cost, drive, honest, observe

from foretune.catalogue.priors import DEFAULT_LORA, recommended
from foretune.errors import BudgetError, UsageError
from foretune.search.ask_tell import AskTell
from foretune.search.budget import Budget
from foretune.search.fidelity import level_step, rungs
from foretune.search.types import Done, Observation, Score
from foretune.search.zero_shot import plan

ROWS = 1600  # 100 updates an epoch, 300 steps


def searcher(budget: Budget, *, seed: int = 0, speed_cost=cost, journal=None, **facts):
    settings = {"width": 576, "kind": "causal", "train_rows": ROWS, **facts}
    strategy, length = plan(budget=budget, cost=speed_cost, **settings)
    return AskTell(strategy, budget, speed_cost, seed=seed, journal=journal), length


def test_the_first_lease_is_the_exact_default_lora_over_the_whole_run():
    search, length = searcher(Budget("time", 4000))
    (lease,) = search.ask(1, 0.0)
    assert dict(lease.config) == dict(DEFAULT_LORA)
    assert (lease.from_step, lease.to_step, lease.horizon) == (0, 300, 300)
    assert lease.rungs == rungs(300) == (9, 18, 36, 75, 150, 300)
    assert not length.shortened


@pytest.mark.parametrize("workers", [1, 4, 8])
def test_the_cold_start_ends_inside_the_budget_and_finishes_the_best_of_the_portfolio(workers):
    budget = Budget("time", 1100, reserve=150, workers=workers)
    search, _ = searcher(budget)
    wall, _ = drive(search, workers)
    assert wall <= 950
    assert budget.spent <= budget.capacity
    first = [run for run in search.runs if run.arm == "portfolio"]
    assert [run.config["learning_rate"] for run in first] == [1.32e-3, 3.96e-3, 4.4e-4]
    assert {run.id for run in first if run.status == "finished"} >= {first[2].id}  # 4.4e-4 is nearest to the best rate
    best = search.strategy.finalists(search.runs, 1)[0]
    assert best.run.config["learning_rate"] == pytest.approx(BEST_RATE, rel=1.0)
    assert best.step == 300


def test_every_run_is_measured_at_the_same_rungs_and_promotions_continue_runs():
    search, _ = searcher(Budget("time", 3000))
    _, handed = drive(search, 1)
    for run in search.runs:
        assert set(run.curve) <= set(rungs(300))
    reached = {}
    for lease in handed:
        assert lease.from_step == reached.get(lease.run, 0)
        reached[lease.run] = lease.to_step
    assert any(lease.from_step > 0 for lease in handed)


def test_more_budget_brings_extra_configurations_nearer_to_the_best_rate():
    small, _ = searcher(Budget("time", 1000))
    drive(small, 1)
    large, _ = searcher(Budget("time", 6000))
    drive(large, 1)
    score = lambda s: s.strategy.finalists(s.runs, 1)[0].score.value  # noqa: E731
    assert sum(run.arm == "extra" for run in large.runs) >= 5
    assert score(large) < score(small)


def test_new_configurations_come_in_the_same_order_whatever_the_number_of_workers():
    orders = []
    for workers in (1, 2, 3, 8):
        search, _ = searcher(Budget("trials", 12), seed=5)
        drive(search, workers, partial(honest, noise=0.05))
        orders.append([dict(run.config) for run in search.runs])
    assert all(order == orders[0] for order in orders)
    assert len(orders[0]) == 12


def test_a_budget_in_trials_gives_the_same_leases_whatever_the_timing():
    logs = []
    for speed in (1.0, 0.2, 7.0):
        search, _ = searcher(Budget("trials", 10))
        drive(search, 1, partial(honest, speed=speed))
        logs.append([event for event in search._journal.events() if event["event"] == "ask"])
    assert logs[0] == logs[1] == logs[2]


def test_another_seed_draws_other_extras():
    first, _ = searcher(Budget("trials", 8), seed=1)
    second, _ = searcher(Budget("trials", 8), seed=2)
    drive(first, 1)
    drive(second, 1)
    assert [r.config for r in first.runs][:4] == [r.config for r in second.runs][:4]
    assert [r.config for r in first.runs][4:] != [r.config for r in second.runs][4:]


def test_extras_stay_within_a_decade_of_the_rule_and_never_repeat():
    search, _ = searcher(Budget("trials", 30))
    drive(search, 1)
    rates = [run.config["learning_rate"] for run in search.runs if run.arm == "extra"]
    assert all(1.32e-4 <= rate <= 1.32e-2 for rate in rates)
    assert len({str(sorted(run.config.items())) for run in search.runs}) == 30
    assert {run.config["epochs"] for run in search.runs} == {3.0}
    assert len({run.config["lora.rank"] for run in search.runs}) > 2


def test_fixed_settings_hold_in_every_configuration_and_the_baseline_is_then_no_candidate():
    fixed = {"lora.rank": 8, "learning_rate": 1e-3, "weight_decay": 0.01}
    search, _ = searcher(Budget("trials", 9), fixed=fixed)
    drive(search, 1)
    others = [run for run in search.runs if run.arm != "default"]
    assert len(others) == 8
    for run in others:
        assert {name: run.config[name] for name in fixed} == fixed
    assert [run.arm for run in search.runs].count("portfolio") == 1
    assert dict(search.runs[0].config) == dict(DEFAULT_LORA)
    assert "default" not in {f.run.arm for f in search.strategy.finalists(search.runs)}


def test_the_fixed_amount_of_training_is_shared_by_the_baseline():
    search, length = searcher(Budget("time", 4000), fixed={"epochs": 1, "rows_per_update": 8})
    assert length.steps == 200
    drive(search, 1)
    assert {(run.horizon, run.config["epochs"]) for run in search.runs} == {(200, 1.0)}


def test_an_unknown_fixed_setting_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"Did you mean lora\.rank"):
        searcher(Budget("time", 1000), fixed={"lora.rnak": 8})


def test_max_trials_ends_the_search():
    search, _ = searcher(Budget("time", 50_000), max_trials=6)
    drive(search, 2)
    assert len(search.runs) == 6
    assert "as many as were allowed" in search.ask(1, 0.0).why


def test_encoders_try_full_fine_tuning_too():
    search, _ = searcher(Budget("trials", 12), kind="encoder", width=384)
    drive(search, 1)
    first = [(run.config["method"], run.config["learning_rate"]) for run in search.runs if run.arm == "portfolio"]
    assert first == [("lora", 5e-4), ("lora", 1.5e-3), ("lora", 1.67e-4), ("full", 5e-5)]
    assert {run.config["method"] for run in search.runs if run.arm == "extra"} == {"lora", "full"}
    for run in search.runs:
        assert any(name.startswith("lora.") for name in run.config) == (run.config["method"] == "lora")


def test_a_rising_loss_ends_a_run_which_then_counts_at_its_best_step():
    def overfits(lease):
        seen = honest(lease)
        if lease.config["learning_rate"] != 4.4e-4:
            return seen
        return [
            replace(o, metrics={"loss": Score(0.5 if o.step <= 75 else 0.9, 0.01, 64)}) if o.step >= 36 else o
            for o in seen
        ]

    search, _ = searcher(Budget("trials", 4))
    drive(search, 1, overfits)
    run = search.runs[3]
    assert (run.step, run.status) == (150, "idle")
    best = search.strategy.finalists(search.runs, 1)[0]
    assert (best.run.id, best.step, best.score.value) == (run.id, 75, 0.5)


def test_failures_are_outcomes_without_a_score_and_the_search_goes_on():
    def diverges(lease):
        if lease.config["learning_rate"] > 1e-3:
            return [Observation(step=5, train_s=5, status="diverged", metrics={"loss": Score(0.0, 0.0, 1)})]
        return honest(lease)

    search, _ = searcher(Budget("trials", 8))
    drive(search, 1, diverges)
    failed = [run for run in search.runs if run.status == "diverged"]
    assert len(failed) >= 2
    assert all(not run.curve for run in failed)
    ranked = search.strategy.finalists(search.runs)
    assert ranked and all(not entry.run.failed for entry in ranked)


def test_a_failed_default_lora_leaves_the_portfolio_to_finish():
    def breaks(lease):
        if lease.run == "r001":
            return [Observation(step=0, status="oom")]
        return honest(lease)

    search, _ = searcher(Budget("time", 1200))
    drive(search, 1, breaks)
    assert search.runs[0].status == "oom"
    assert any(run.status == "finished" for run in search.runs)


@pytest.mark.parametrize("speed", [0.5, 1.3, 3.0])
def test_a_wrong_forecast_is_learnt_and_the_planned_spending_stays_inside(speed):
    budget = Budget("time", 1500, reserve=100)
    search, _ = searcher(budget)
    wall, handed = drive(search, 1, partial(honest, speed=speed))
    longest = max(lease.to_step - lease.from_step for lease in handed) * speed
    assert wall <= max(1400, longest) * 1.001
    late = [lease for lease in handed[2:]]
    for lease in late:
        assert lease.seconds == pytest.approx(speed * (lease.to_step - lease.from_step), rel=0.15)


def test_the_horizon_is_shortened_alike_for_all_when_the_default_is_too_dear():
    budget = Budget("time", 400, reserve=60)
    search, length = searcher(budget)
    assert length.shortened
    assert "75 % of the budget" in length.why and "same shortened horizon" in length.why
    assert length.steps <= 0.35 * 400
    drive(search, 1)
    assert {run.horizon for run in search.runs} == {length.steps}
    finished = [run for run in search.runs if run.status == "finished"]
    assert len(finished) >= 2 and len(search.runs) >= 4
    assert budget.spent <= 340


def test_the_shortened_horizon_is_the_longest_that_fits():
    from foretune.search.horizon import MARGIN, early_level, horizon

    entries = [{"learning_rate": 1.0}] * 3
    for total in (50, 80):  # a third of these says less than all of them for the default LoRA alone
        assert horizon(300, Budget("time", total), cost, DEFAULT_LORA, entries).steps == total
    for total in (90, 333, 711):
        budget = Budget("time", total)
        steps = horizon(300, budget, cost, DEFAULT_LORA, entries).steps

        def fits(n, total=total):
            early = level_step(n, early_level(n))
            return n <= 0.35 * total and MARGIN * (n + 3 * early + (n - early)) <= total

        assert fits(steps) and not any(fits(more) for more in range(steps + 1, 301))


def test_budgets_too_small_are_refused_or_said():
    with pytest.raises(BudgetError, match="one step takes"):
        searcher(Budget("time", 0.5))
    with pytest.raises(BudgetError):
        Budget("time", 0)
    search, length = searcher(Budget("time", 3))
    assert length.steps in (1, 2, 3)
    drive(search, 1)
    assert search.budget.spent <= 3
    with pytest.raises(BudgetError, match="no training row"):
        searcher(Budget("time", 100), train_rows=0)


def test_a_budget_in_steps_is_never_exceeded():
    for total in (100, 500, 1234):
        budget = Budget("steps", total)
        search, _ = searcher(budget)
        _, handed = drive(search, 3)
        assert sum(lease.to_step - lease.from_step for lease in handed) == budget.spent <= total


def test_every_lease_gives_its_reason():
    search, _ = searcher(Budget("trials", 7))
    _, handed = drive(search, 1)
    assert all(len(lease.why.split()) > 5 for lease in handed)
    assert isinstance(search.ask(1, 0.0), Done)
    assert observe(handed[0], 300, 0).step == 300


def test_only_the_better_half_of_a_rung_goes_on():
    search, _ = searcher(Budget("trials", 4))
    drive(search, 1)
    reached = {run.config["learning_rate"]: run.step for run in search.runs}
    assert reached == {2e-4: 300, 4.4e-4: 300, 1.32e-3: 75, 3.96e-3: 36}


def test_a_run_that_is_ahead_and_whose_end_cannot_be_paid_goes_as_far_as_the_budget():
    strategy, _ = plan(width=576, kind="causal", train_rows=ROWS, budget=Budget("trials", 1), cost=cost)
    budget = Budget("time", 600)
    search = AskTell(strategy, budget, cost)
    drive(search, 1, lambda lease: honest(lease, speed=1.0 if lease.run == "r001" else 1.2))
    assert [(run.step, run.status) for run in search.runs] == [(300, "finished"), (150, "idle")]
    assert budget.spent == pytest.approx(300 + 1.2 * 150)
    best, second = strategy.finalists(search.runs, 2)
    assert (best.run.id, second.run.id, second.step) == ("r001", "r002", 150)  # both are evaluated again


def test_advice_is_where_the_portfolio_starts_and_what_it_avoids_is_not_tried():
    from foretune.search.budget import Budget
    from foretune.search.zero_shot import plan

    def made(**changes):
        strategy, _ = plan(width=64, kind="encoder", train_rows=64, budget=Budget("trials", 8.0),
                           cost=lambda config, start, stop: float(stop - start), **changes)  # fmt: skip
        return strategy

    plain = made()
    advised = made(advised={"method": "full", "weight_decay": 0.1, "rows_per_update": 64})
    assert advised.baseline == plain.baseline and advised.horizon == plain.horizon
    first = advised.portfolio[0].config
    assert (first["method"], first["weight_decay"]) == ("full", 0.1)
    assert first["rows_per_update"] == plain.baseline["rows_per_update"], "all runs share the amount of training"
    assert {entry.config["method"] for entry in advised.portfolio} == {"lora", "full"}
    assert advised.fixed == {}, "advice may be left by the search"
    assert {entry.config["method"] for entry in made(avoid=("full",)).portfolio} == {"lora"}
    assert made(fixed={"method": "full"}, avoid=("full",)).portfolio[0].config["method"] == "full"
    assert made(advised={"method": "lora"}).portfolio == plain.portfolio
    named = made(methods=("dora", "ia3"), advised={"method": "full"}, avoid=("ia3",))
    assert [entry.config["method"] for entry in named.portfolio] == ["dora"] * 3 + ["ia3"], (
        "what was named, and no other"
    )


@pytest.mark.parametrize(
    ("step_s", "steps", "compared"), [(10.0, 10, False), (4.0, 25, False), (2.0, 36, False), (1.5, 22, True)]
)
def test_runs_too_short_to_compare_give_way_to_one_long_run(step_s: float, steps: int, compared: bool) -> None:
    from foretune.search.horizon import horizon

    def price(config: Mapping[str, Any], start: int, stop: int) -> float:
        return step_s * (stop - start)

    found = horizon(36, Budget("time", 100.0), price, {}, [{}, {}, {}])
    assert found.steps == steps and found.alone is ("no comparison" in found.why) is not compared


def test_one_run_alone_is_the_rule_s_and_not_the_default_lora() -> None:
    """The default's rate of 2e-4 is for long runs: alone, and over few steps, it would hardly learn."""
    search, length = searcher(Budget("time", 60))
    assert length.alone
    drive(search, 1)
    (run,) = search.runs
    expected = recommended("lora", width=576, kind="causal", steps=length.steps)
    assert run.config == expected.config and float(run.config["learning_rate"]) > 5 * DEFAULT_LORA["learning_rate"]
    assert (run.arm, run.step, run.horizon) == ("portfolio", length.steps, length.steps)


@pytest.mark.parametrize(("fixed", "alone"), [({}, False), ({"lora.rank": 8}, True), ({"lora.rank": 16}, False)])
def test_one_trial_is_the_default_lora_unless_other_settings_are_fixed(fixed: dict[str, Any], alone: bool) -> None:
    first, length = plan(
        width=576, kind="causal", train_rows=400, budget=Budget("trials", 1), cost=cost, fixed=fixed, max_trials=1
    )
    assert first.alone is alone and not length.alone
    assert (first.baseline["learning_rate"] != DEFAULT_LORA["learning_rate"]) is alone
    assert all(first.baseline[name] == value for name, value in fixed.items())


def test_short_runs_have_more_updates_of_fewer_rows() -> None:
    def made(rows: int, budget: Budget, **fixed: Any) -> tuple[int, int, str]:
        first, length = plan(width=576, kind="causal", train_rows=rows, budget=budget, cost=by_row, fixed=fixed)
        sizes = {int(config["rows_per_update"]) for config in (first.baseline, *(e.config for e in first.portfolio))}
        (size,) = sizes
        return size, length.steps, length.why

    def by_row(config: Mapping[str, Any], start: int, stop: int) -> float:
        return (stop - start) * int(config["rows_per_update"]) / 16

    plenty, trials = Budget("time", 10_000), Budget("trials", 4)
    assert made(1600, plenty)[:2] == (16, 300)
    for budget in (plenty, trials):
        assert made(160, budget)[:2] == (8, 60)
        assert made(60, budget)[:2] == (4, 45)
        assert made(20, budget)[:2] == (4, 15)
    assert "more of them" in made(160, plenty)[2] and "more of them" not in made(1600, plenty)[2]
    assert made(160, plenty, rows_per_update=16)[:2] == (16, 30)
    assert made(160, Budget("steps", 1000))[:2] == (16, 30), "fewer rows would be less training"
    size, steps, _ = made(1600, Budget("time", 20))
    assert size == 8 and 32 <= steps <= 40
    assert made(1600, Budget("time", 10))[0] == 4
