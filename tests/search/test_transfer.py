"""The transfer strategy on tasks from a formula: better with experience, no worse with a misleading one, resumable."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foretune.experience.past import Point
from foretune.fit.strategy import _task_metric
from foretune.search import encoding
from foretune.search.ask_tell import AskTell
from foretune.search.belief import believe
from foretune.search.budget import Budget
from foretune.search.encoding import Facts
from foretune.search.menu import read_menu
from foretune.search.past_tasks import LOWER, past_tasks
from foretune.search.residual_gp import LOSS, Points, condition
from foretune.search.strategies import Situation, pool_of, resolved_name, transfer
from foretune.search.task_prior import TaskPrior, build
from foretune.search.transfer_mean import fit
from foretune.search.types import Done, Observation, Score
from foretune.search.zero_shot import plan as zero_shot_plan
from tests.search import synthetic
from tests.search.simulation import drive
from tests.search.synthetic import NEW


def _first(budget=None, menu=None, methods=("lora", "full")):
    strategy, _ = zero_shot_plan(
        width=576, kind="causal", train_rows=1067, budget=budget or Budget("trials", 6), cost=_cost,
        methods=methods, menu=menu,
    )  # fmt: skip
    return strategy


def _strategy(tasks, seed=0, first=None, methods=("lora", "full"), **options):
    first = first or _first()
    members = pool_of(first, methods, width=576, kind="causal", seed=seed, size=80)
    prior = build(tasks, synthetic.facts(NEW), members, seed)
    base = synthetic.task_features(NEW)["base_loss"]
    return transfer(Situation(first, prior, (base,) * 6, options=options))


def _script(lease):
    """An honest worker on the formula's new task."""
    truth = {point.step: point for point in synthetic.run(lease.config, NEW).points if point.split == "validation"}
    steps = [lease.from_step, *lease.rungs]
    found = []
    for before, step in itertools.pairwise(steps):
        share = step / lease.horizon
        nearest = min(truth, key=lambda known: abs(known / synthetic.HORIZON - share), default=None)
        failed = synthetic.diverges(lease.config) and share > 0.05
        metrics = {} if failed else {"loss": Score(*truth[nearest].metrics["loss"])}
        found.append(
            Observation(step, metrics, train_s=float(step - before), status="diverged" if failed else "ok",
                        final=failed or step == lease.to_step)
        )  # fmt: skip
        if failed:
            break
    return found


def _cost(config, start, stop):
    return float(stop - start)


def _best(search):
    done = [run for run in search.runs if run.status == "finished" and run.arm != "default"]
    return max((synthetic.final_gain(run.config, NEW) for run in done), default=-math.inf)


def test_the_trees_predict_a_task_they_have_not_seen(tasks, pool):
    prior = build(tasks, synthetic.facts(NEW), pool, 0)
    truth = np.asarray([synthetic.final_gain(config, NEW) for config in pool])
    assert np.corrcoef(truth, prior.transfer.mean)[0, 1] > 0.7
    assert np.corrcoef(truth, prior.transfer.mean)[0, 1] > np.corrcoef(truth, prior.alone.mean)[0, 1]


def test_full_tuning_is_learnt_to_be_slower_and_larger(tasks):
    members = _strategy(tasks).prior
    full = [place for place, config in enumerate(members.pool) if config["method"] == "full"]
    lora = [place for place, config in enumerate(members.pool) if config["method"] == "lora"]
    assert 1.8 < members.cost[full].mean() / members.cost[lora].mean() < 3.2  # 2.5 by the formula
    assert members.memory[full].mean() > members.memory[lora].mean()


def test_rates_that_diverged_before_are_expected_to(pool):
    prior = build(past_tasks(synthetic.experience(8, 60)), synthetic.facts(NEW), pool, 0)
    fails = np.asarray([synthetic.diverges(config) for config in pool])
    assert fails.any() and prior.odds[fails].mean() > 4 * prior.odds[~fails].mean()


def test_with_experience_the_first_proposal_is_nearly_the_best(tasks):
    strategy = _strategy(tasks)
    search = AskTell(strategy, Budget("trials", 3), _cost)
    drive(search, 1, _script)
    everything = [synthetic.final_gain(config, NEW) for config in strategy.prior.pool if not synthetic.diverges(config)]
    spread = max(everything) - float(np.median(everything))
    assert max(everything) - _best(search) < 0.25 * spread
    default, second, third = search.runs
    assert default.arm == "default" and "similar tasks" in second.why and "below the base" in third.why


def test_a_pick_of_earlier_tasks_is_taken_on_while_nobody_is_ahead(tasks):
    strategy = _strategy(tasks)
    whole = AskTell(strategy, Budget("time", 1500), _cost)
    drive(whole, 1, _script)
    assert whole.runs[1].status == "finished", "the second run, to its end, before a third begins"
    assert [order.lease.run for order in whole._ledger.orders.values()][:5] == ["r001", *["r002"] * 4]

    def disappointing(lease):
        """The second run is worse than what came before."""
        seen = _script(lease)
        if lease.run != "r002":
            return seen
        worse = [{name: replace(s, value=s.value + 1.0) for name, s in each.metrics.items()} for each in seen]
        return [replace(each, metrics=metrics) for each, metrics in zip(seen, worse, strict=True)]

    other = AskTell(_strategy(tasks), Budget("time", 1500), _cost)
    drive(other, 1, disappointing)
    assert other.runs[1].status == "idle" and other.runs[1].step < 0.3 * other.runs[1].horizon


def test_one_process_at_a_time_is_believed_as_often_as_it_weighs(pool, tasks):
    prior = build(tasks, synthetic.facts(NEW), pool, 0)
    rows = [(k, 5, LOSS, synthetic.final_gain(pool[k], NEW), 0.01, k) for k in range(4)]
    belief = believe(prior, Points.of(rows))
    first, second = belief.parts
    chances = np.linspace(0, 1, 1000, endpoint=False)
    drawn = [belief.drawn(float(chance)).parts for chance in chances]
    assert all(parts in ((first,), (second,)) for parts in drawn)
    assert np.mean([parts[0] is first for parts in drawn]) == pytest.approx(belief.weights[0], abs=2e-3)
    vague = condition(replace(prior.alone, residual_sd=50.0), Points.of(rows))
    mixed = replace(belief, parts=(first, vague), weights=(0.99, 0.01))
    sure, unsure = (part.improvement(range(10, 20), None, 5, 0.5) for part in (mixed.drawn(0.0), mixed))
    assert np.median(unsure / sure) > 100, "in a mixture the vague part decides"


def test_a_search_that_has_spent_its_budget_says_so():
    strategy = _strategy(())
    search = AskTell(strategy, Budget("steps", round(2.2 * strategy.horizon)), _cost)
    drive(search, 1, _script)
    assert any(run.status == "idle" for run in search.runs), "paused runs are left"
    answer = search.ask(1, 0.0)
    assert isinstance(answer, Done) and "budget" in answer.why


def test_what_the_menu_leaves_out_is_not_tried():
    menu = read_menu({"learning_rate": "1e-4..5e-4", "lora.rank": [8, 16], "keep": [1.0, 0.5]})
    first = _first(menu=menu)
    members = pool_of(first, ("lora", "dora"), width=576, kind="causal", size=40)
    assert members[0] == first.baseline and len(members) == 40
    assert all(1e-4 <= config["learning_rate"] <= 5e-4 for config in members[1:])
    assert {config["lora.rank"] for config in members[1:] if config["method"] == "lora"} == {8, 16}
    prior = build((), synthetic.facts(NEW), members, 0)
    strategy = transfer(Situation(first, prior, (1.0,) * 6))
    begun = [members[place] for place in strategy.portfolio]
    assert [config["method"] for config in begun] == ["lora", "lora", "full"]
    assert [config["learning_rate"] for config in begun[:2]] == [5e-4, pytest.approx(4.4e-4, rel=0.1)]
    assert "learning_rate 0.0005 from the menu" in strategy.whys[0]


def test_the_portfolio_moves_onto_a_menu_that_has_none_of_it():
    """Ranks without 16: an expert that stays away would leave the search to begin anywhere."""
    menu = read_menu({"lora.rank": [4, 64], "regularizer": ["guided-dropout"], "lora.targets": ["attention"]})
    first = _first(menu=menu, methods=("lora",))
    assert len(first.portfolio) == 3
    for entry, usual in zip(first.portfolio, _first(methods=("lora",)).portfolio, strict=True):
        assert entry.config["learning_rate"] == usual.config["learning_rate"]
        assert entry.config["lora.rank"] in (4, 64) and entry.config["guided-dropout.schedule"]
        assert entry.config["regularizer"] == "guided-dropout" and entry.config["lora.targets"] == "attention"
    assert menu.offers(first.portfolio[0].config) and not menu.offers(first.baseline)


@pytest.mark.parametrize("left", ["menu", "methods"])
@pytest.mark.parametrize("strategy", ["transfer", "zero-shot"])
def test_a_default_lora_that_was_not_asked_for_is_compared_with_and_not_handed_over(strategy, left):
    methods = ("dora",) if left == "methods" else ("lora",)
    menu = read_menu({} if left == "methods" else {"lora.rank": [4, 8]}, methods=methods)
    first = _first(Budget("trials", 4), menu, methods)
    chosen = first if strategy == "zero-shot" else _strategy((), first=first, methods=methods)
    search = AskTell(chosen, Budget("trials", 4), _cost)

    def default_is_best(lease):
        loss = 0.2 if lease.config == first.baseline else 1.0
        return [replace(each, metrics={"loss": Score(loss, 0.01, 200)}) for each in _script(lease)]

    drive(search, 1, default_is_best)
    runs = [run for run in search.runs if run.status == "finished"]
    assert runs[0].config == first.baseline and len(runs) > 1
    best = chosen.finalists(search.runs)
    assert best and all(menu.offers(found.run.config) for found in best)


def test_one_trial_is_of_what_was_asked_for():
    menu = read_menu({"lora.rank": [4, 8]})
    first = _first(Budget("trials", 1), menu)
    assert first.alone and first.baseline["lora.rank"] == 8


def test_without_experience_the_portfolio_comes_first():
    search = AskTell(_strategy(()), Budget("time", 3000), _cost)
    drive(search, 1, _script)
    assert [run.arm for run in search.runs[:4]] == ["default", "portfolio", "portfolio", "portfolio"]
    assert len(search.runs) > 5 and search.budget.spent <= 3000


def _fixed(trials, **fixed):
    """A search in trials without experience, of what is fixed."""
    first, _ = zero_shot_plan(
        width=576, kind="causal", train_rows=1067, budget=Budget("trials", trials), cost=_cost, fixed=fixed
    )
    search = AskTell(_strategy((), first=first, methods=(fixed["method"],)), Budget("trials", trials), _cost)
    return search, first.baseline


def test_a_default_lora_that_may_not_win_ends_no_run_that_may():
    search, baseline = _fixed(3, method="ia3")

    def behind(lease):
        seen = _script(lease)
        if lease.config == baseline:
            return [replace(each, metrics={"loss": Score(0.4, 0.01, 200)}) for each in seen]
        return [
            replace(each, metrics={"loss": Score(1.5 - 0.5 * each.step / lease.horizon, 0.01, 200)}) for each in seen
        ]

    drive(search, 1, behind)
    best = search.strategy.finalists(search.runs)[0].run
    assert (best.config["method"], best.status) == ("ia3", "finished")


def test_a_trial_counts_once_however_dear_its_method_is():
    search, _ = _fixed(5, method="dora", selection="none")
    drive(search, 1, _script)
    assert search.strategy.dearer(search.strategy.free([])).min() > 1
    assert len(search.runs) == 5 == search.budget.spent


@pytest.mark.parametrize("workers", [1, 3])
def test_budgets_hold_and_failures_do_not_stop_it(tasks, workers):
    budget = Budget("time", 1500, workers=workers)
    search = AskTell(_strategy(tasks), budget, _cost)
    drive(search, workers, _script)
    assert budget.spent <= 1500 * (1 + 1e-9)
    assert len({json.dumps(dict(run.config), sort_keys=True) for run in search.runs}) == len(search.runs)


def test_two_asks_without_a_tell_give_two_configurations(tasks):
    search = AskTell(_strategy(tasks, seed=5), Budget("trials", 6), _cost)
    leases = search.ask(3, 0.0)
    assert isinstance(leases, list) and len({json.dumps(dict(lease.config)) for lease in leases}) == 3


def test_a_resumed_search_decides_as_before(tasks, tmp_path: Path):
    whole = AskTell(_strategy(tasks), Budget("time", 900), _cost, journal=tmp_path / "whole.jsonl")
    drive(whole, 1, _script)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(b"".join(lines[: len(lines) // 2]))
    saved = json.loads(json.dumps(_strategy(tasks).prior.to_json()))
    first = _first()
    base = synthetic.task_features(NEW)["base_loss"]
    again = transfer(Situation(first, TaskPrior.from_json(saved), (base,) * 6))
    search = AskTell(again, Budget("time", 900), _cost, journal=cut)
    drive(search, 1, _script)
    assert [run.to_json() for run in search.runs] == [run.to_json() for run in whole.runs]


def test_a_failure_seen_here_counts_at_once(tasks):
    from foretune.search.failures import SEEN_TO_FAIL, seen_failures
    from foretune.search.runs import Run

    prior = _strategy(tasks).prior
    place = max(
        range(len(prior.pool)), key=lambda k: prior.rows[k]["rate"] if prior.pool[k]["method"] == "lora" else -9
    )
    middle = [k for k in range(len(prior.pool)) if prior.pool[k]["method"] == "lora"][4]
    run = Run("r001", prior.pool[middle], 0, 200, "proposed", "", status="diverged")
    odds = seen_failures(prior.odds, prior.rows, [run], [middle])
    assert odds[place] >= SEEN_TO_FAIL and odds[middle] >= SEEN_TO_FAIL
    full = [k for k in range(len(prior.pool)) if prior.pool[k]["method"] == "full"]
    np.testing.assert_array_equal(odds[full], prior.odds[full])


def test_unknown_words_and_missing_features_are_no_error(tasks, pool):
    strange = [{**config, "schedule": "wild", "new.setting": 3.0} for config in pool[:5]]
    facts = type(synthetic.facts(NEW))({}, {}, 100)
    prior = build(tasks, facts, [*pool[:5], *strange], 0)
    assert np.isfinite(prior.transfer.mean).all() and np.isfinite(prior.odds).all()


def test_one_task_is_enough_to_begin(pool):
    one = past_tasks(synthetic.experience(1, 24))
    prior = build(one, synthetic.facts(NEW), pool, 0)
    assert np.isfinite(prior.transfer.mean).all()
    assert fit(one, 0).deficits(list(prior.rows), synthetic.facts(NEW)).shape == (6, len(pool))


@pytest.mark.parametrize(
    ("features", "sign"),
    [
        ({"metric": "accuracy"}, 1.0), ({"metric": "brier"}, -1.0), ({"metric": "calibration_error"}, -1.0),
        ({"metric": "mine", LOWER: True}, -1.0), ({"metric": "mine", LOWER: False}, 1.0), ({"metric": "mine"}, 1.0),
    ],
)  # fmt: skip
def test_a_metric_counts_in_its_direction(features, sign):
    scores = [0.1, 0.2, 0.3, 0.4, 0.5]
    runs = []
    for number, score in enumerate(scores):
        end = Point(synthetic.HORIZON, "test", {features["metric"]: (score, 0.01, 50)}, 60.0, 0.0, 0)
        whole = synthetic.run(synthetic.design(5)[number], 0, key=f"r{number}")
        runs.append(replace(whole, points=(end,), status="finished", task_features=features))
    (task,) = past_tasks(runs)
    assert [curve.final for curve in task.curves] == pytest.approx([sign * (score - 0.3) for score in scores])
    known, said = (
        encoding.features(Facts(task, {}, 100)) for task in ({"base_loss": 1.0}, {"base_loss": 1.0, LOWER: True})
    )
    assert np.array_equal(known, said, equal_nan=True), "tasks are no more alike by it"
    assert _task_metric({**features, f"base_{features['metric']}": 0.4}) == (features["metric"], sign, 0.4)


@pytest.mark.parametrize(
    ("count", "runs", "kind", "expected"),
    [
        (8, 25, "causal", "transfer"),
        (8, 24, "causal", "on-task"),  # 192 runs
        (7, 40, "causal", "on-task"),
        (8, 25, "encoder", "on-task"),  # all of them of another kind of model
    ],
)
def test_auto_searches_without_earlier_runs_until_the_experience_is_large(count, runs, kind, expected):
    tasks = past_tasks(synthetic.experience(count, runs))
    assert {task.facts.kind for task in tasks} == {"causal"} and len(tasks) == count
    assert resolved_name("auto", tasks, kind) == expected
    assert resolved_name("transfer", tasks, kind) == "transfer"


def test_other_load_on_the_machine_does_not_make_a_run_expensive():
    run = synthetic.run(synthetic.design(1)[0], 0)
    slow = tuple(replace(p, train_s=4 * p.train_s, train_cpu_s=p.train_s, eval_s=3 * p.eval_s, eval_cpu_s=p.eval_s)
                 for p in run.points)  # fmt: skip
    busy = replace(run, points=slow, hardware_features={"threads": 1})
    gpu = replace(busy, hardware_features={"threads": 1, "accelerators.0.name": "x"})
    quiet, loaded, remote = (past_tasks([replace(r, run=str(k)) for k in range(4)])[0].curves[0]
                             for r in (run, busy, gpu))  # fmt: skip
    np.testing.assert_allclose(loaded.seconds, quiet.seconds)
    assert remote.train_s == pytest.approx(4 * quiet.train_s)


def test_equal_experience_is_learnt_from_once_and_changed_experience_again():
    """A plan and its fit read the store one after the other and find the same runs."""
    runs, again = synthetic.experience(3, 12), synthetic.experience(3, 12)
    assert past_tasks(runs) is past_tasks(again) and runs[0] is not again[0]
    assert fit(past_tasks(runs), 0) is fit(past_tasks(again), 0) is not fit(past_tasks(runs), 1)
    points = (*again[5].points[:-1], replace(again[5].points[-1], metrics={"gain": (9.0, 0.1, 50)}))
    changed = [*again[:5], replace(again[5], points=points), *again[6:]]
    assert past_tasks(changed) is not past_tasks(runs)
    assert past_tasks(changed)[0].curves[5].tested == 9.0
