"""What the on-task process takes from earlier tasks: its spreads, its length-scale, how the channels go together.

All are moments of out-of-bag errors (`transfer_mean.unseen`), pooled over tasks and shrunk towards `NOTHING_LEARNT` by
`PRIOR_TASKS` tasks' worth; only the length-scale is chosen, on a grid, by the errors' summed marginal likelihood.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from foretune.search.encoding import Floats
from foretune.search.fidelity import LAST_LEVEL, LEVELS, RUNG_PERCENT
from foretune.search.past_tasks import KEPT
from foretune.search.residual_gp import CURVE_LENGTH, SMALLEST_NOISE, matern, no_common, no_growth, no_path
from foretune.search.transfer_mean import TransferMean

PRIOR_TASKS = 2.0
"""The prior counts like so many tasks."""
LENGTHS = (0.3, 0.6, 1.2, 2.4)
"""Length-scales tried, where the range of a setting, or a change of category, is 1."""
CURVE_LENGTHS = (0.35, 0.7, 1.4, 2.8, 5.6)
"""Log steps tried"""
FEWEST_RUNS = 5
LARGEST_RUNS = 80
"""Runs of a task that choose the length-scale: the choice is coarse."""
TIE_BOUNDS = (0.0, 0.95)


@dataclass(frozen=True)
class Learned:
    """Hyper-parameters, in spreads of a task."""

    slope_sd: float = 0.5
    """How much the slope b varies between tasks: 0.5 lets the transfer mean be worth nothing at two deviations"""
    residual_sd: float = 0.7
    """Deviation of configurations from the transfer mean"""
    length: float = 0.6
    path_sd: Floats = field(default_factory=no_path)
    """(6,): deviation of one curve at each rung"""
    common_sd: Floats = field(default_factory=no_common)
    """(6,): deviation that all curves of a task share"""
    growth: Floats = field(default_factory=no_growth)
    """(6,): how much of what sets runs apart at their end shows at each rung"""
    curve_length: float = CURVE_LENGTH
    """Log steps over which the deviation of one curve is correlated"""
    tie: float = 0.8
    """Correlation of loss and metric over whole runs"""


NOTHING_LEARNT = Learned()


@lru_cache(maxsize=KEPT)
def learn(mean: TransferMean) -> Learned:
    """The hyper-parameters that the out-of-bag errors of ``mean`` speak for."""
    slopes, errors, places, ties = [], [], [], []
    for number, task in enumerate(mean.tasks):
        end = task.scaled(np.asarray([curve.final for curve in task.curves]))
        expected = mean.unseen(number)
        known = np.isfinite(end) & np.isfinite(expected)
        metric = np.asarray([curve.metrics[LAST_LEVEL] for curve in task.curves])
        both = np.isfinite(end) & np.isfinite(metric)
        if both.sum() >= FEWEST_RUNS and metric[both].std() > 0 and end[both].std() > 0:
            ties.append(float(np.corrcoef(end[both], metric[both])[0, 1]))
        if known.sum() < FEWEST_RUNS:
            continue
        x, y = expected[known] - expected[known].mean(), end[known] - end[known].mean()
        slope = float(x @ y + 1.0) / float(x @ x + 1.0)  # shrunk towards one by a unit of evidence
        slopes.append(slope)
        errors.append(y - slope * x)
        places.append(mean.encoding.dense([c.row for c, k in zip(task.curves, known, strict=True) if k]))
    if not errors:
        return replace(_curves(mean), tie=_tie(ties))
    residual = _shrunk([float((e**2).mean()) for e in errors], NOTHING_LEARNT.residual_sd**2)
    slope_variance = _shrunk([(slope - 1.0) ** 2 for slope in slopes], NOTHING_LEARNT.slope_sd**2)
    length = max(LENGTHS, key=lambda one: sum(_likelihood(p, e, one) for p, e in zip(places, errors, strict=True)))
    return replace(
        _curves(mean),
        slope_sd=math.sqrt(slope_variance), residual_sd=math.sqrt(residual), length=length, tie=_tie(ties),
    )  # fmt: skip


def _shrunk(values: list[float], prior: float) -> float:
    return (sum(values) + PRIOR_TASKS * prior) / (len(values) + PRIOR_TASKS)


def _tie(found: list[float]) -> float:
    low, high = TIE_BOUNDS
    tie = _shrunk(found, NOTHING_LEARNT.tie)
    return min(max(tie, low), high)


def _curves(mean: TransferMean) -> Learned:
    """How curves go: what of the end shows at a rung, how single ones deviate from that, and how those of a task do."""
    grown: list[list[float]] = [[] for _ in range(LEVELS)]
    single: list[list[float]] = [[] for _ in range(LEVELS)]
    shared: list[list[float]] = [[] for _ in range(LEVELS)]
    pairs: list[tuple[float, float]] = []
    for number, task in enumerate(mean.tasks):
        gains = np.stack([task.scaled(curve.gains) for curve in task.curves])
        off = gains[:, [LAST_LEVEL]] - gains - mean.unseen_deficits(number).T
        own = np.full_like(off, math.nan)
        for level in range(LAST_LEVEL):
            known = np.isfinite(off[:, level])
            if known.sum() < FEWEST_RUNS:
                continue
            end, here = (gains[known, each] - gains[known, each].mean() for each in (LAST_LEVEL, level))
            slope = float(end @ here) / max(float(end @ end), 1e-9)
            own[known, level] = here - slope * end
            grown[level].append(slope)
            single[level].append(float((own[known, level] ** 2).mean()))
            shared[level].append(float(off[known, level].mean()) ** 2)
        pairs += _correlations(own)
    growth = np.asarray([max(_shrunk(each, prior), 0.0) for each, prior in zip(grown, no_growth(), strict=True)])
    path = np.sqrt([_shrunk(each, sd**2) for each, sd in zip(single, no_path(), strict=True)])
    common = np.sqrt([_shrunk(each, sd**2) for each, sd in zip(shared, no_common(), strict=True)])
    return Learned(path_sd=path, common_sd=common, growth=growth, curve_length=_curve_length(pairs))


def _correlations(own: Floats) -> list[tuple[float, float]]:
    """(log steps between, correlation) of every pair of rungs of a task's (runs, 6) deviations of single curves."""
    found = []
    for one, other in itertools.combinations(range(LAST_LEVEL), 2):
        both = np.isfinite(own[:, [one, other]]).all(1)
        x, y = own[both, one], own[both, other]
        if both.sum() >= FEWEST_RUNS and x.std() > 0 and y.std() > 0:
            found.append((math.log(RUNG_PERCENT[other] / RUNG_PERCENT[one]), float(np.corrcoef(x, y)[0, 1])))
    return found


def _curve_length(pairs: Sequence[tuple[float, float]]) -> float:
    """The length on a grid whose exponential is nearest to the correlations of ``pairs``."""
    if not pairs:
        return CURVE_LENGTH
    between, seen = np.asarray(pairs).T
    return min(CURVE_LENGTHS, key=lambda length: float(((np.exp(-between / length) - seen) ** 2).sum()))


def _likelihood(places: Floats, errors: Floats, length: float) -> float:
    """Log marginal likelihood of a task's errors, their variance given, half of it noise of single runs."""
    places, errors = places[:LARGEST_RUNS] / length, errors[:LARGEST_RUNS]
    variance = max(float((errors**2).mean()), SMALLEST_NOISE**2)
    covariance = 0.5 * variance * matern(places, places) + 0.5 * variance * np.eye(len(errors))
    root = np.linalg.cholesky(covariance)
    white = np.linalg.solve(root, errors)
    return float(-0.5 * white @ white - np.log(np.diag(root)).sum())
