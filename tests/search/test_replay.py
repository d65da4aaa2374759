"""The replay: worlds, virtual time, regret, baselines, spoiled experience; against cases computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from foretune.experience.past import Point
from foretune.files import fingerprint
from foretune.search.baselines.halving import bracket_of
from foretune.search.fidelity import LAST_LEVEL, RUNG_PERCENT
from foretune.search.past_tasks import past_tasks
from foretune.search.ranking import clearly_above
from foretune.search.replay.adversaries import ADVERSARIES
from foretune.search.replay.contestants import CONTESTANTS, Draw, agnostic_portfolio, every
from foretune.search.replay.regret import SHARES, over_tasks, scored
from foretune.search.replay.simulation import forecast_of, simulate
from foretune.search.replay.world import _filled, world_of
from foretune.search.types import Score
from tests.search import synthetic


@pytest.fixture(scope="module")
def tasks():
    return past_tasks(synthetic.experience(5, 16))


@pytest.fixture(scope="module")
def draw(tasks):
    return Draw(world_of(tasks[0]), tuple(tasks[1:]))


def test_best_and_reference_of_a_world_are_by_validation_and_by_test(tasks):
    world = world_of(tasks[0])
    whole = [curve for curve in tasks[0].curves if math.isfinite(curve.final)]
    assert world.best == pytest.approx(max(whole, key=lambda curve: curve.final).tested)
    assert world.reference == pytest.approx(np.median([curve.tested for curve in whole]))
    assert world.regret(world.best) == 0 and world.regret(world.reference) == 1
    assert world.has_test and math.isnan(world.noise)


def test_the_noise_floor_comes_from_other_seeds():
    listed = synthetic.design(10)
    runs = [synthetic.run(c, 0, seed=s, key=f"c{k}-{s}") for k, c in enumerate(listed) for s in (0, 1)]
    task = past_tasks(runs)[0]
    world = world_of(task)
    assert len(world.entries) == 10 and 0 < world.noise < 0.5


def test_a_whole_random_run_takes_its_time_and_is_at_hand_at_its_end(draw):
    strategy = CONTESTANTS["random"](draw)
    world = replace(draw.world)
    trace = simulate(strategy, world, seed=3)
    first = trace.moments[0]
    lengths = {round(float(entry.seconds[LAST_LEVEL]), 6): entry for entry in world.entries if entry.fails_at is None}
    assert trace.at(0.0) is None and trace.moments[-1].seconds <= world.budget_s
    reached = {round(float(entry.seconds[level]), 6) for entry in world.entries for level in range(6)}
    assert round(first.seconds, 6) in reached and lengths
    assert trace.runs <= len(world.entries)


def test_more_workers_are_not_slower(draw):
    strategy = CONTESTANTS["asha"](draw)
    one, four = (scored(simulate(strategy, draw.world, workers=w, prior_cost=draw.costs(strategy.prior)), draw.world)
                 for w in (1, 4))  # fmt: skip
    assert np.mean(four.curve) < np.mean(one.curve)


def test_asking_time_is_charged_where_it_is_to_be(draw):
    slow = type("Slow", (), {})()
    inner = CONTESTANTS["random"](draw)

    def propose(view):
        end = sum(range(300_000))  # some processor time
        assert end
        return inner.propose(view)

    slow.name, slow.propose, slow.settings = "slow", propose, inner.settings
    free, charged = (simulate(slow, draw.world, asks_take_time=flag).moments[0].seconds for flag in (False, True))
    assert charged > free


def test_hyperbands_brackets_are_the_papers():
    assert [bracket_of(k) for k in range(5)] == [(16, 1), (10, 2), (7, 3), (5, 4), (5, 5)]


def test_hyperband_halves_a_bracket_that_the_pool_could_not_fill(draw):
    pool = len(draw.pool)
    assert pool < 16 + 10  # the second bracket finds too few members
    trace = simulate(CONTESTANTS["hyperband"](draw), draw.world, budget_s=10 * draw.world.budget_s)
    assert not math.isnan(trace.first) and trace.runs == pool


def _ended(config, number, *, loss):
    """A run of a public sweep: the loss at its end on test rows, without base, error or rungs."""
    whole = synthetic.run(config, number)
    end = Point(synthetic.HORIZON, "test", {"loss": (loss, 0.0, 0)}, 60.0, 0.0, 0)
    return replace(whole, points=(end,), status="finished", task_features={"metric": "loss"}, model_features={})


def test_a_sweep_that_kept_only_ends_has_no_rungs_to_tell_them_early():
    listed = synthetic.design(12)
    losses = [1.0 + 0.01 * k for k in range(12)]
    tasks = past_tasks([_ended(config, 0, loss=loss) for config, loss in zip(listed, losses, strict=True)])
    world = world_of(tasks[0])
    assert not tasks[0].has_base and not world.has_test
    assert world.horizon == 1 and world.regret(world.best) == 0
    assert world.best == pytest.approx(math.log(np.median(losses) / 1.0))
    for name in ("transfer", "asha", "hyperband", "random"):
        trace = simulate(CONTESTANTS[name](Draw(world, tuple(tasks))), world)
        whole = [moment.seconds for moment in trace.moments]
        assert whole[0] == pytest.approx(60.0) and trace.at(59.0) is None  # nothing is known before a run's end
        assert trace.moments[-1].tested == pytest.approx(world.best)


def test_an_error_that_was_not_given_makes_nothing_clear():
    assert clearly_above(Score(1.2, 0.01, 64), Score(1.0, 0.01, 64))
    assert not clearly_above(Score(1.2, 0.0, 0), Score(1.0, 0.0, 0))
    assert not clearly_above(Score(1.2, 0.01, 64), Score(1.0, 0.0, 0))
    assert not clearly_above(Score(1.2, 0.0, 0), Score(1.0, 0.01, 64))


def test_rungs_before_the_first_that_was_measured_tell_nothing_of_the_end():
    run = synthetic.run(synthetic.design(1)[0], 0)
    late = replace(run, points=tuple(point for point in run.points if point.step >= 50))  # from 25 % on
    curve = past_tasks([replace(late, run=str(k)) for k in range(4)])[0].curves[0]
    filled = _filled(curve.gains)
    assert filled[3] == curve.gains[3] and filled[0] == pytest.approx(curve.gains[3] * 3 / 25)


def test_a_portfolio_is_of_the_other_tasks_and_in_order(draw):
    chosen = agnostic_portfolio(draw)
    assert len(set(chosen)) == len(chosen)
    scaled = [task.scaled(np.asarray([curve.final for curve in task.curves])) for task in draw.others]
    means = np.mean([np.nan_to_num(each, nan=-4.0) for each in scaled], axis=0)
    assert means[chosen[0]] == pytest.approx(means.max())


@pytest.mark.parametrize("name", ["transfer", "no-transfer", "no-guard", "end-only", "hyperband", "portfolio-halving"])
def test_contestants_stay_in_budget_and_end_near_the_best(draw, name):
    strategy = every()[name](draw)
    trace = simulate(strategy, draw.world, prior_cost=draw.costs(strategy.prior))
    assert all(moment.seconds <= draw.world.budget_s for moment in trace.moments)
    found = scored(trace, draw.world)
    assert len(found.at) == len(SHARES) and found.at[-1] < 0.3
    assert (np.diff([moment.seconds for moment in trace.moments]) >= 0).all()


def test_spoilt_experience_is_spoilt_and_survived(draw):
    flipped = ADVERSARIES["flipped-sign"](draw.others, 0)
    one, other = draw.others[0], flipped[0]
    ends = [(a.final, b.final) for a, b in zip(one.curves, other.curves, strict=True) if math.isfinite(a.final)]
    assert all(a + b == pytest.approx(2 * one.centre) for a, b in ends)
    shuffled = ADVERSARIES["shuffled-labels"](draw.others, 0)[0]
    finals = [sorted(np.nan_to_num([c.final for c in task.curves], nan=-9.0)) for task in (shuffled, one)]
    assert finals[0] == finals[1]
    assert [c.config for c in shuffled.curves] == [c.config for c in one.curves]
    costs = ADVERSARIES["corrupted-costs"](draw.others, 0)
    ratios = [b.train_s / a.train_s for x, y in zip(draw.others, costs, strict=True)
              for a, b in zip(x.curves, y.curves, strict=True)]  # fmt: skip
    assert {round(ratio, 6) for ratio in ratios} <= {0.1, 1.0, 10.0} and len({round(r, 6) for r in ratios}) > 1
    strategy = every()["flipped-sign"](draw)
    assert scored(simulate(strategy, draw.world, prior_cost=draw.costs(strategy.prior)), draw.world).at[-1] < 0.3


def test_a_search_learns_more_from_experience_than_from_none(tasks):
    areas = {"transfer": [], "random": []}
    for number, task in enumerate(tasks):
        stage = Draw(world_of(task), tuple(other for k, other in enumerate(tasks) if k != number))
        for name, found in areas.items():
            strategy = every()[name](stage)
            found.append(float(np.mean(scored(simulate(strategy, stage.world, prior_cost=stage.costs(strategy.prior)),
                                              stage.world).curve)))  # fmt: skip
    assert np.mean(areas["transfer"]) < 0.7 * np.mean(areas["random"])


def test_regret_is_bounded_on_both_sides(draw):
    trace = simulate(CONTESTANTS["random"](draw), draw.world)
    lucky = replace(draw.world, best=draw.world.reference + 1e-3)  # validation prefers a run that tests hardly confirm
    assert min(scored(trace, lucky).at) == -1.0 and max(scored(trace, lucky).at) <= 1.0


def test_intervals_are_over_tasks():
    interval = over_tasks([0.0, 1.0])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)
    assert math.isnan(over_tasks([math.nan]).mean)
    assert len(RUNG_PERCENT) == 6


def test_a_world_of_two_machines_takes_its_seconds_from_the_one_with_most_runs():
    runs = synthetic.experience(1, 24)
    quick = [replace(run, hardware="slow", points=tuple(
        replace(p, train_s=2 * p.train_s, eval_s=5 * p.eval_s) for p in run.points)) for run in runs[:8]]  # fmt: skip
    (alike,), (mixed,) = (past_tasks(list(found)) for found in (runs, [*quick, *runs[8:]]))
    one, two = world_of(alike), world_of(mixed)
    for own, moved in zip(one.entries, two.entries, strict=True):
        np.testing.assert_allclose(moved.seconds, own.seconds, rtol=0.35)  # medians of other runs stand for the ratio
    assert two.budget_s == pytest.approx(one.budget_s, rel=0.1)


def test_a_slow_setting_makes_training_dear_and_not_evaluation():
    (task,) = past_tasks(synthetic.experience(1, 24))
    world = world_of(task)
    config = world.entries[0].config
    plain = forecast_of(world, {})(config, 0, world.horizon)
    dear = forecast_of(world, {fingerprint(dict(config)): 3.0})(config, 0, world.horizon)
    training = float(np.median([entry.training[LAST_LEVEL] for entry in world.entries if entry.fails_at is None]))
    assert dear - plain == pytest.approx(2 * training) and 0 < training < plain
