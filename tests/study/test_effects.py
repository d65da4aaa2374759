"""Effects over language pairs: by hand, and how often planted ones are found and absent ones claimed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from foretune.evaluation.paired import holm
from foretune.study.effects import crossing, fit_budget, line_of

PAIRS, SHARES, SEEDS = 8, (0.0005, 0.005, 0.02, 0.1), 3
DISTANCES = {f"p{i}": 0.1 + 0.06 * i for i in range(PAIRS)}
NOISE, LEVELS, SLOPES = 0.02, 0.05, 0.01
"""Spread of a run, of the pairs' levels and of their slopes in log10 of the share."""
STUDIES = 400
STATEMENTS = 3


def simulated(random: np.random.Generator, slope: float, interaction: float) -> dict[str, list[tuple[float, float]]]:
    """Gaps of a grid with pairs that differ in level and slope for reasons of their own."""
    mean = np.mean(list(DISTANCES.values()))
    gaps = {}
    for pair, far in DISTANCES.items():
        level, own = random.normal(0.1, LEVELS), random.normal(0.0, SLOPES)
        gaps[pair] = [
            (x, level + (slope + interaction * (far - mean) + own) * (x + 2) + random.normal(0, NOISE / SEEDS**0.5))
            for x in np.log10(SHARES)
        ]
    return gaps


def resolved(gaps: dict[str, list[tuple[float, float]]]) -> dict[str, bool]:
    """Which effects make a rule: the interval excludes zero and Holm's correction over all of them holds."""
    fit = fit_budget(gaps, DISTANCES, alpha=0.05 / STATEMENTS)
    assert fit is not None
    effects = fit.effects()
    adjusted = holm([effect.p_value for effect in effects.values()])
    return {
        name: not effect.low <= 0 <= effect.high and p <= 0.05
        for (name, effect), p in zip(effects.items(), adjusted, strict=True)
    }


def test_a_planted_distance_by_budget_slope_is_found_and_no_rule_comes_from_nothing() -> None:
    random = np.random.default_rng(0)
    fits = [fit_budget(simulated(random, 0.0, 0.0), DISTANCES, alpha=0.05 / STATEMENTS) for _ in range(STUDIES)]
    detectable = float(np.mean([fit.interaction.detectable for fit in fits if fit and fit.interaction]))
    found = [resolved(simulated(random, 0.0, -1.5 * detectable)) for _ in range(STUDIES)]
    assert np.mean([one["interaction"] for one in found]) >= 0.8
    false = [any(resolved(simulated(random, 0.0, 0.0)).values()) for _ in range(STUDIES)]
    assert np.mean(false) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / STUDIES)


def test_slopes_that_differ_between_pairs_are_no_rule_where_runs_alone_would_make_one() -> None:
    """Least squares over all points takes the pairs' own slopes for evidence; over pairs they are the noise."""
    random = np.random.default_rng(1)
    naive = honest = 0
    for _ in range(STUDIES):
        gaps = simulated(random, 0.0, 0.0)
        rows = [(x, DISTANCES[pair], y) for pair, points in gaps.items() for x, y in points]
        x, d, y = (np.asarray(column) for column in zip(*rows, strict=True))
        dummies = np.column_stack([[pair == p for p in gaps for _ in gaps[p]] for pair in gaps]).astype(float)
        design = np.column_stack([dummies, x, (d - d.mean()) * (x - x.mean())])
        weights, squares, _, _ = np.linalg.lstsq(design, y, rcond=None)
        freedom = len(y) - design.shape[1]
        error = np.sqrt(squares[0] / freedom * np.linalg.inv(design.T @ design)[-1, -1])
        naive += abs(weights[-1] / error) > stats.t.ppf(0.975, freedom)
        fit = fit_budget(gaps, DISTANCES)
        assert fit is not None and fit.interaction is not None
        honest += not fit.interaction.low <= 0 <= fit.interaction.high
    assert naive / STUDIES > 0.1
    assert honest / STUDIES < 0.08


def test_the_fit_by_hand_on_points_without_noise() -> None:
    gaps = {
        pair: [(x, 0.3 - 0.02 * (x + 2) + 0.5 * d - 0.1 * d * (x + 2)) for x in (-3.0, -2.0, -1.0)]
        for pair, d in DISTANCES.items()
    }
    fit = fit_budget(gaps, DISTANCES)
    assert fit is not None
    mean = float(np.mean(list(DISTANCES.values())))
    values = [effect.value for effect in (fit.level, fit.budget, fit.distance, fit.interaction) if effect is not None]
    assert values == pytest.approx([0.3 + 0.5 * mean, -0.02 - 0.1 * mean, 0.5, -0.1])
    assert (fit.mean_log_budget, fit.mean_distance) == pytest.approx((-2.0, mean))


def test_an_interval_is_that_of_a_regression_over_pairs() -> None:
    random = np.random.default_rng(2)
    gaps = simulated(random, -0.02, -0.1)
    slopes = [line.slope for points in gaps.values() if (line := line_of(points)) is not None]
    reference = stats.linregress(list(DISTANCES.values()), slopes)
    reach = stats.t.ppf(0.975, PAIRS - 2) * reference.stderr
    fit = fit_budget(gaps, DISTANCES, other={pair: random.normal() for pair in gaps})
    assert fit is not None and fit.interaction is not None and fit.adjusted is not None
    assert (fit.interaction.low, fit.interaction.high, fit.interaction.p_value) == pytest.approx(
        (reference.slope - reach, reference.slope + reach, reference.pvalue)
    )
    assert fit.adjusted.freedom == PAIRS - 3


def test_levels_are_compared_at_one_budget_where_points_are_missing() -> None:
    """Far pairs lack the largest share, whose gap is smaller: that is no effect of distance."""
    random = np.random.default_rng(5)
    shares = {pair: (-3.0, -2.0, -1.0) if number < 4 else (-3.0, -2.0) for number, pair in enumerate(DISTANCES)}
    false = 0
    for _ in range(STUDIES):
        gaps = {
            pair: [(x, -0.05 * (x + 2) + level + random.normal(0, 0.01)) for x in shares[pair]]
            for pair, level in zip(shares, random.normal(0, 0.01, size=PAIRS), strict=True)
        }
        fit = fit_budget(gaps, DISTANCES)
        assert fit is not None and fit.distance is not None
        false += fit.distance.p_value <= 0.05
    assert false / STUDIES < 0.08


def test_a_crossing_without_the_largest_size_of_some_repetitions_is_where_it_is() -> None:
    gaps = {
        i: [(x, 0.1 * (x - 3) + 0.001 * (-1) ** i) for x in ((2.0, 3.0, 4.0) if i < 2 else (2.0, 3.0))]
        for i in range(6)
    }
    gaps[6] = [(4.0, 0.1)]
    _, where = crossing(gaps)
    assert where is not None and where.rows == pytest.approx(1000, rel=1e-6)


def test_without_distances_the_budget_alone_is_fitted() -> None:
    gaps = {f"t{i}": [(-3.0, 0.2 + i / 100), (-1.0, 0.1)] for i in range(3)}
    fit = fit_budget(gaps, dict.fromkeys(gaps))
    assert fit is not None and fit.distance is None and fit.interaction is None and fit.budget is not None
    assert fit.budget.value == pytest.approx(-0.055) and fit.budget.freedom == 2
    assert fit_budget({"a": [(-3.0, 0.1)]}, {"a": 0.2}) is None


def test_a_crossing_is_given_where_the_gap_passes_zero_and_only_where_it_is_resolved() -> None:
    random = np.random.default_rng(3)

    def repetitions(noise: float) -> dict[int, list[tuple[float, float]]]:
        return {
            seed: [(x, 0.1 * (x - 2.6) + random.normal(0, noise)) for x in (2.0, 2.5, 3.0, 3.5)] for seed in range(8)
        }

    slope, where = crossing(repetitions(0.01))
    assert slope is not None and where is not None
    assert where.low < 10**2.6 < where.high and where.high / where.low < 2
    assert slope.value == pytest.approx(0.1, abs=0.02)
    _, nowhere = crossing(repetitions(1.0))
    assert nowhere is None


def test_a_crossing_lies_among_the_rows_that_were_run() -> None:
    """A slope that is hardly resolved crosses zero a thousand decades away."""
    flat = {i: [(2.0, 1 + 0.001 * i), (3.0, 1.0011 + 0.001 * i + 0.00005 * (i % 3))] for i in range(6)}
    slope, where = crossing(flat)
    assert slope is not None and slope.low > 0 and where is None
    wide = {i: [(2.0, 0.1 * (i - 2) - 0.04), (3.0, 0.1 * (i - 2) + 0.004 * (i % 2))] for i in range(5)}
    _, where = crossing(wide)
    assert where is not None and 100 <= where.rows <= 1000
    assert (where.low, where.high) == pytest.approx((10, 10_000))


def test_fiellers_interval_covers_the_crossing_as_often_as_it_says() -> None:
    random = np.random.default_rng(4)
    covered = []
    for _ in range(STUDIES):
        gaps = {
            seed: [(x, 0.1 * (x - 2.6) + random.normal(0, 0.05) + level) for x in (2.0, 2.5, 3.0, 3.5)]
            for seed, level in enumerate(random.normal(0, 0.03, size=6))
        }
        _, where = crossing(gaps)
        covered.append(where is None or where.low <= 10**2.6 <= where.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)
