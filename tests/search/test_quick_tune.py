"""Quick-Tune without the known defects of its public code: one test for each."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from foretune.search.ask_tell import AskTell
from foretune.search.budget import Budget
from foretune.search.encoding import features
from foretune.search.fidelity import level_step
from foretune.search.past_tasks import past_tasks
from foretune.search.points import places_of
from foretune.search.quick_tune.inputs import CURVE, LARGEST_SCORE, Scaling, curve_inputs, examples
from foretune.search.quick_tune.strategy import QuickTune, best_so_far
from foretune.search.quick_tune.surrogate import SMALLEST_SECONDS, Surrogate, fit
from foretune.search.replay.contestants import Draw
from foretune.search.replay.simulation import simulate
from foretune.search.replay.world import HORIZON, WITHOUT_RUNGS, world_of
from foretune.search.runs import Run
from foretune.search.types import Observation, Score
from tests.search import synthetic


@pytest.fixture(scope="module")
def tasks():
    return past_tasks(synthetic.experience(4, 14))


@pytest.fixture(scope="module")
def surrogate(tasks):
    return fit(tasks[1:], 0)


@pytest.fixture(scope="module")
def draw(tasks):
    return Draw(world_of(tasks[0]), tuple(tasks[1:]))


def _strategy(draw, surrogate, **settings):
    own = features(draw.world.task.facts)
    return QuickTune(draw.informed, HORIZON, equal_steps=True, surrogate=surrogate, features=own, **settings)


def test_every_word_of_a_category_is_seen(tasks, surrogate):
    row = tasks[0].curves[0].row
    for name, words in (("schedule", ("linear", "cosine", "constant")), ("method", ("lora", "full"))):
        seen = surrogate.scaling.configs([{**row, name: word} for word in words])
        assert len(np.unique(seen.round(6), axis=0)) == len(words)


def test_costs_are_seconds(tasks, surrogate):
    rows = examples(tasks[1:], surrogate.scaling)
    known = np.isfinite(rows.log_seconds)
    forecast = surrogate.seconds(rows.configs[known], rows.features[known], rows.curves[known])
    off = np.abs(np.log(forecast) - rows.log_seconds[known])
    assert np.median(off) < math.log(2.0)  # seconds here span a factor of a hundred
    assert np.corrcoef(np.log(forecast), rows.log_seconds[known])[0, 1] > 0.8


def test_features_are_scaled_alike_in_training_and_use(tasks):
    scaling = Scaling.of(tasks)
    used = np.stack([scaling.features(task.features) for task in tasks])
    trained = np.unique(examples(tasks, scaling).features, axis=0)
    np.testing.assert_allclose(np.sort(used, axis=0), np.sort(trained, axis=0))
    known = np.isfinite(np.stack([task.features for task in tasks])).all(0)
    assert abs(used[:, known].mean()) < 1e-9


def test_no_stretch_is_free(surrogate, tasks):
    rows = examples(tasks[:1], surrogate.scaling)
    free = Surrogate(surrogate.scaling, surrogate.weights, surrogate.context, -60.0, 0.0)
    assert (free.seconds(rows.configs, rows.features, rows.curves) == SMALLEST_SECONDS).all()


@pytest.mark.parametrize("refit", ["none", "full"])
def test_two_asks_without_a_tell_differ(draw, surrogate, refit):
    search = AskTell(_strategy(draw, surrogate, refit=refit), Budget("time", 1e6), lambda c, a, b: float(b - a))
    leases = search.ask(3, 0.0)
    assert len({json.dumps(dict(lease.config), sort_keys=True) for lease in leases}) == 3


def test_observed_costs_count(draw, surrogate):
    strategy = _strategy(draw, surrogate)
    search = AskTell(strategy, Budget("time", 1e9), lambda c, a, b: float(b - a))
    lease = search.ask(1, 0.0)[0]
    search.tell(lease.id, 1, Observation(lease.to_step, {"loss": Score(0.9, 0.01, 64)}, train_s=5000.0), 1.0)
    places = [next(p for p, config in enumerate(draw.pool) if dict(config) == dict(lease.config))]
    assert strategy.pace(surrogate, search.runs, places, strategy.scores(search.runs)) > 10


def test_losses_of_any_size_and_gaps_are_understood():
    padded = curve_inputs(np.asarray([-3.0, 2.5, math.nan, 7.0, math.nan, math.nan]))
    assert padded.tolist() == [-3.0, 2.5, 0, 0, 0, 0, 2 / 6] and len(padded) == CURVE
    zero = curve_inputs(np.asarray([0.0, *[math.nan] * 5]))
    nothing = curve_inputs(np.full(6, math.nan))
    assert zero[-1] != nothing[-1]  # a score of zero is not a missing one


def test_seen_once_is_not_finished(draw, surrogate):
    trace = simulate(_strategy(draw, surrogate), draw.world)
    assert not math.isnan(trace.first) and trace.at(draw.world.budget_s) is not None
    assert all(moment.seconds <= draw.world.budget_s for moment in trace.moments)  # and the budget holds inside trials


def test_scores_have_one_scale_in_training_and_use(tasks, draw):
    own, others = tasks[0], tasks[1:]
    strategy = _strategy(draw, Surrogate(Scaling.of(others), {}, None, 0.0, 1.0))
    runs = [
        Run("r", curve.config, 0, HORIZON, "", "", HORIZON, "finished", {
            level_step(HORIZON, level): {"gain": Score(float(gain), 0.01, 64)}
            for level, gain in enumerate(curve.gains) if math.isfinite(gain)
        })
        for curve in own.curves
    ]  # fmt: skip
    used = strategy.scores(runs)
    trained = examples([own], strategy.surrogate.scaling).targets
    np.testing.assert_allclose(used[np.isfinite(used)], trained)
    every = np.concatenate([curve.gains[np.isfinite(curve.gains)] for task in others for curve in task.curves])
    pooled = examples(others, strategy.surrogate.scaling).targets
    np.testing.assert_allclose(pooled, (every - every.mean()) / every.std())  # the same for all tasks


def test_scores_far_beyond_all_earlier_ones_are_cut_off_alike(tasks):
    scaling = Scaling.of(tasks)
    far = scaling.scores(np.asarray([-1e3, 1e3, math.nan]))
    assert far[:2].tolist() == [-LARGEST_SCORE, LARGEST_SCORE] and math.isnan(far[2])


def test_the_state_is_json(draw, surrogate):
    again = Surrogate.from_json(json.loads(json.dumps(surrogate.to_json(), allow_nan=False)))
    row = surrogate.scaling.configs([draw.informed.rows[0]])
    own = surrogate.scaling.features(features(draw.world.task.facts))[None, :]
    curve = curve_inputs(np.full(6, math.nan))[None, :]
    np.testing.assert_array_equal(surrogate.predict(row, own, curve), again.predict(row, own, curve))


def test_the_first_pick_is_the_best_prediction_and_not_random(draw, surrogate):
    picks = []
    for seed in range(3):
        search = AskTell(_strategy(draw, surrogate), Budget("time", 1e6), lambda c, a, b: float(b - a), seed=seed)
        picks.append(dict(search.ask(1, 0.0)[0].config))
    assert picks[0] == picks[1] == picks[2]


def test_a_refit_believes_what_it_saw(draw, surrogate):
    rows = examples((draw.world.task,), surrogate.scaling)
    ends = np.flatnonzero(rows.curves[:, -1] > 0.8)
    from foretune.search.quick_tune.inputs import Examples

    half = Examples(*(value[ends[::2]] for value in vars(rows).values()))
    half = Examples(**{**vars(half), "log_seconds": np.full(len(half.targets), math.nan)})
    refitted = surrogate.refitted(half)
    seen = (half.configs, half.features, half.curves)
    errors = [np.abs(model.predict(*seen)[0] - half.targets).mean() for model in (surrogate, refitted)]
    assert errors[1] < errors[0]


def test_a_refit_serves_until_the_next_is_due(draw, surrogate, monkeypatch):
    counted = []
    monkeypatch.setattr(Surrogate, "refitted", lambda self, seen: counted.append(len(seen.targets)) or self)
    simulate(_strategy(draw, surrogate, refit="full", refit_every=4), draw.world)
    assert len(counted) > 3 and all(count <= 1 or count % 4 == 0 for count in counted)


def test_a_task_unlike_all_earlier_ones_has_finite_seconds(surrogate, tasks):
    scaling, rows = surrogate.scaling, examples(tasks[:1], surrogate.scaling)
    far = np.tile(scaling.features(tasks[0].features * 1e6 + 1e6), (len(rows.configs), 1))
    assert np.abs(far).max() <= 5
    assert np.isfinite(surrogate.seconds(rows.configs, far, rows.curves)).all()
    assert (surrogate.seconds(rows.configs, far * 1e9, rows.curves) < 1e9).all()


def test_the_best_so_far_counts_at_its_rung_and_above():
    nan = math.nan
    assert best_so_far(np.asarray([[0.1, 0.4, nan, nan, nan, nan], [0.2, 0.3, 0.35, nan, nan, nan]])).tolist() == [
        0.2, 0.4, 0.4, 0.4, 0.4, 0.4,
    ]  # fmt: skip
    assert best_so_far(np.asarray([[nan, nan, nan, nan, nan, 0.5]])).tolist() == [0.5] * 6


def test_without_rungs_a_new_run_has_to_beat_the_whole_ones(draw, surrogate, monkeypatch):
    bars = []

    def noted(mean, sd, best):
        bars.append(best)
        return sd

    monkeypatch.setattr("foretune.search.quick_tune.strategy.expected_improvement", noted)
    strategy = replace(_strategy(draw, surrogate), horizon=WITHOUT_RUNGS)
    search = AskTell(strategy, Budget("time", 1e6), lambda config, start, end: 1.0)
    lease = search.ask(1, 0.0)[0]
    search.tell(lease.id, 1, Observation(1, {"gain": Score(0.4, 0.01, 64)}, train_s=1.0), 1.0)
    search.ask(1, 1.0)
    assert set(bars) == {float(surrogate.scaling.scores(np.asarray(0.4)))}


def test_a_refit_learns_what_stretches_took(draw, surrogate):
    strategy = _strategy(draw, surrogate, refit="full")
    search = AskTell(strategy, Budget("time", 1e9), lambda config, start, end: float(end - start))
    for spent in (7.0, 20.0, 30.0):
        lease = search.ask(1, 0.0)[0]
        told = Observation(lease.to_step, {"gain": Score(0.1, 0.01, 64)}, train_s=spent, eval_s=1.0)
        search.tell(lease.id, 1, told, 1.0)
    places = places_of(draw.informed, search.runs)
    rows = strategy._seen(search.runs, places, strategy.scores(search.runs))
    stretches = np.exp(rows.log_seconds * surrogate.seconds_spread + surrogate.seconds_mean)
    assert sorted(stretches.round(6)) == [8.0, 21.0, 31.0]
