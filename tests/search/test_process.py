"""The on-task process and what weighs transfer against none: by the textbook, by planted truth, by brute force."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from foretune.search import residual_gp
from foretune.search.belief import FLOOR, believe, foretold
from foretune.search.fidelity import RUNG_PERCENT
from foretune.search.learned import CURVE_LENGTHS, NOTHING_LEARNT, learn
from foretune.search.past_tasks import past_tasks
from foretune.search.residual_gp import (
    COMMON_LENGTH,
    JITTER,
    LOSS,
    METRIC,
    NOISE_NOT_GIVEN,
    SMALLEST_NOISE,
    Points,
    condition,
    matern,
)  # fmt: skip
from foretune.search.task_prior import TILT_SD, build, expert
from foretune.search.transfer_mean import fit
from tests.search import synthetic
from tests.search.synthetic import NEW


def test_the_process_is_a_gaussian_process(pool):
    """Conditioning, against the textbook formula on a dense covariance of everything at once."""
    rows = tuple(build((), synthetic.facts(NEW), pool, 0).rows)
    process = expert(rows)
    points = Points.of([(0, 5, LOSS, 0.2, 0.02, 0), (1, 5, LOSS, 0.1, 0.02, 1), (0, 3, LOSS, 0.05, 0.02, 0)])
    posterior = condition(process, points)
    process, s = posterior.process, posterior.scale
    mean, variance = posterior.predict(np.arange(4), 4)
    same, _ = posterior.predict_runs([0], [0], 4)
    assert abs(same[0] - mean[0]) > 1e-3, "a run's own curve says more"

    shift = (process.centre_sd[0] / s) ** 2
    every = np.asarray([0, 1, 0, 0, 1, 2, 3])
    level, run = np.asarray([5, 5, 3, 4, 4, 4, 4]), np.asarray([0, 1, 0, 10, 11, 12, 13])
    apart = np.abs(np.subtract.outer(*[np.log(np.asarray(RUNG_PERCENT, dtype=float))[level]] * 2))
    shared = process.residual_sd**2 * matern(process.places[every], process.places[every])
    shared += process.factors[every] @ process.factors[every].T
    k = np.outer(process.growth[level], process.growth[level]) * shared + shift
    k += np.outer(process.common_sd[level], process.common_sd[level]) * np.exp(-apart / COMMON_LENGTH)
    single = np.outer(process.path_sd[level], process.path_sd[level]) * np.exp(-apart / process.curve_length)
    k += (run[:, None] == run[None, :]) * single
    k[:3, :3] += np.eye(3) * (max(0.02 / s, SMALLEST_NOISE) ** 2 + JITTER)
    prior = process.mean[every] - process.deficits[level, every]
    solved = np.linalg.solve(k[:3, :3], np.asarray([0.2, 0.1, 0.05]) / s - prior[:3])
    np.testing.assert_allclose(mean, prior[3:] + k[3:, :3] @ solved, atol=1e-9)
    expected = np.diag(k[3:, 3:] - k[3:, :3] @ np.linalg.solve(k[:3, :3], k[:3, 3:]))
    np.testing.assert_allclose(variance, expected, atol=1e-9)


def test_a_gain_without_an_error_counts_like_an_uncertain_one(pool):
    process = expert(tuple(build((), synthetic.facts(NEW), pool, 0).rows))
    given = condition(process, Points.of([]))

    def after(error):
        mean, variance = condition(process, Points.of([(0, 5, LOSS, 0.2, error, 0)]), like=given).predict(
            np.arange(1), 5
        )
        return float(mean[0]), float(variance[0])

    assert after(0.0) == pytest.approx(after(NOISE_NOT_GIVEN * given.scale))
    assert after(0.0)[1] > after(1e-3)[1]  # what is known to be exact says more


def test_a_run_is_scored_once_by_its_last_gain_after_the_runs_before_it(pool):
    process = expert(tuple(build((), synthetic.facts(NEW), pool, 0).rows))
    rows = [(k, level, LOSS, 0.1 * k + 0.02 * level, 0.02, k) for k in range(4) for level in (2, 3, 5)[: 3 - k % 2]]
    whole = condition(process, Points.of(rows))
    expected = 0.0
    for run in range(1, 4):
        place, level, _, gain, error, _ = [row for row in rows if row[5] == run][-1]
        before = condition(process, Points.of([row for row in rows if row[5] < run]), like=whole)
        mean, variance = before.predict(np.asarray([place]), level)
        variance = variance[0] + max(error / whole.scale, 0.03) ** 2
        off = gain / whole.scale - mean[0]
        expected += -0.5 * off**2 / variance - 0.5 * math.log(2 * math.pi * variance) - math.log(whole.scale)
    assert foretold(whole) == pytest.approx(expected, abs=1e-4)


def test_how_a_curve_goes_does_not_speak_for_experience(pool):
    """The course of curves is foretold better by experience, whatever it says of configurations."""
    prior = build(past_tasks(synthetic.experience(8, 24, sign=-1.0)), synthetic.facts(NEW), pool, 0)
    rows = [
        (k, level, LOSS, synthetic.final_gain(pool[k], NEW) * share, 0.01, k)
        for k in range(0, 40, 5)
        for level, share in ((1, 0.2), (2, 0.35), (3, 0.55), (4, 0.8), (5, 1.0))
    ]
    assert believe(prior, Points.of(rows)).weights[0] < 0.3  # from 0.8
    ends = [row for row in rows if row[1] == 5]
    assert believe(prior, Points.of(ends)).weights[0] < 0.3, "as by the ends alone"


def test_how_much_of_the_end_shows_early_is_learnt():
    growth = np.asarray((0.1, 0.2, 0.3, 0.6, 0.8, 1.0))
    stream = np.random.default_rng(0)
    planted = []
    for task in past_tasks(synthetic.experience(6, 30)):
        ends = [curve.final for curve in task.curves]
        curves = tuple(
            replace(curve, gains=task.centre - 2 * task.spread * (1 - growth) + growth * (end - task.centre)
                    + task.spread * stream.normal(0, 0.1, 6) * (growth < 1))
            for curve, end in zip(task.curves, ends, strict=True)
        )  # fmt: skip
        planted.append(replace(task, curves=curves))
    found = learn(fit(planted, 0))
    np.testing.assert_allclose(found.growth, growth, atol=0.1)
    assert found.path_sd[2] < NOTHING_LEARNT.path_sd[2] and found.path_sd[5] == 0.0
    assert found.curve_length == min(CURVE_LENGTHS), "every rung deviates by itself"


def test_quiet_early_rungs_do_not_make_a_small_spread_of_the_ends(pool, monkeypatch):
    process = expert(tuple(build((), synthetic.facts(NEW), pool, 0).rows))
    stream, growth = np.random.default_rng(1), process.growth
    ends, quiet = stream.normal(0, 1, 12), 0.3 * process.path_sd

    def gain(k, level):
        score = process.mean[k] - process.deficits[level, k] + growth[level] * ends[k]
        return process.spread[LOSS] * (score + quiet[level] * stream.normal())

    levels = [(0, 1, 2, 3, 4, 5)[: 6 if k < 3 else 3] for k in range(12)]
    points = Points.of([(k, level, LOSS, gain(k, level), 1e-3, k) for k in range(12) for level in levels[k]])
    posterior = condition(process, points)
    assert posterior.process.path_sd[1] < process.path_sd[1] and posterior.scale == process.spread[LOSS]
    monkeypatch.setattr(residual_gp, "PATH_FACTORS", (1.0,))
    assert condition(process, points).scale < process.spread[LOSS], "what was wrong before"


def test_without_experience_the_bowl_leans_where_better_rates_lie(pool):
    process = expert(tuple(build((), synthetic.facts(NEW), pool, 0).rows))
    rates = process.factors[:, 0] / TILT_SD
    order = np.argsort(np.abs(rates - 0.5))
    high, low = int(order[0]), int(np.argmin(np.abs(rates + 0.5)))
    posterior = condition(process, Points.of([(high, 5, LOSS, 0.5, 0.01, 0), (low, 5, LOSS, 0.1, 0.01, 1)]))
    mean, _ = posterior.predict(np.arange(len(rates)), 5)
    assert np.corrcoef(mean, rates)[0, 1] > 0.3, "other members at high rates are thought better now"
    assert process.mean[high] < process.mean[int(np.argmin(np.abs(rates)))], "before, the rule's rate was"


def test_misleading_experience_loses_its_weight(pool):
    flipped = past_tasks(synthetic.experience(8, 24, sign=-1.0))
    prior = build(flipped, synthetic.facts(NEW), pool, 0)
    rows = [(k, 5, LOSS, synthetic.final_gain(pool[k], NEW), 0.01, k) for k in range(0, 40, 4)]
    belief = believe(prior, Points.of(rows))
    assert belief.weights[0] < 0.5  # from 0.8
    honest = build(past_tasks(synthetic.experience(8, 24)), synthetic.facts(NEW), pool, 0)
    belief = believe(honest, Points.of(rows))
    assert belief.weights[0] > 0.65 and belief.weights[1] >= FLOOR - 1e-9


def test_the_interval_holds_what_comes(tasks, pool):
    inside = []
    for new in range(NEW, NEW + 8):
        prior = build(tasks, synthetic.facts(new), pool, 0)
        rows = [(k, 5, LOSS, synthetic.final_gain(pool[k], new), 0.01, k) for k in range(4)]
        belief = believe(prior, Points.of(rows))
        for place in range(10, 60):
            low, mean, high = belief.interval(place, None, 5)
            assert low < mean < high
            inside.append(low <= synthetic.final_gain(pool[place], new) <= high)
    assert 0.8 <= np.mean(inside) <= 0.97  # 0.9 are expected; the formula's residuals are no Gaussian process


def test_a_metric_follows_the_whole_score_at_an_early_rung(pool):
    """Its tie multiplies how far a rung lies below the end as it does the end itself."""
    process = expert(tuple(build((), synthetic.facts(NEW), pool, 0).rows))
    tie, level, place = 0.5, 3, 0
    tied = replace(process, ties=(1.0, tie), spread=(process.spread[0], 1.0), centre_sd=(0.0, 0.0))
    early = tie * (tied.mean[place] - tied.deficits[level, place])
    loose = condition(tied, Points.of([]))
    told = condition(tied, Points.of([(place, level, METRIC, float(early), 1e-3, 0)]), like=loose)
    expected, moved = loose.predict(np.asarray([place]), 5)[0], told.predict(np.asarray([place]), 5)[0]
    assert moved[0] == pytest.approx(expected[0], abs=1e-6)  # what was expected came, and says nothing
