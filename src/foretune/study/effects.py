"""How a gap depends on budget, distance and data: effects over language pairs, crossing points, with intervals.

The model is

    gap(pair, B) = a + b · log10 B + c · distance + e · distance · log10 B + u(pair) + v(pair) · log10 B + noise

Pairs are what one wants to speak of, and distance varies between pairs only. So the pairs are the sample: each gives
its own line in log-budget by least squares, and the lines' slopes, and their levels at the mean log-budget of all
pairs, are regressed on distance over the pairs (summary measures; Matthews et al. 1990, BMJ 300:230; Murtaugh 2007,
Ecology 88:56). In a grid without holes this is the exact test of the mixed model above with random intercepts and
slopes; with random intercepts alone, slopes that differ between pairs for other reasons than distance would pass for
rules. The price is honest: with p pairs there are p − 2 degrees of freedom, whatever the number of runs.

Crossing points come from lines over log rows, one for each repetition that shares rows, by Fieller's theorem (1954):
an interval that is no finite range is no crossing, and neither is a point outside the rows that were run.

What this does not do: curves, covariates beyond one more (a check), anything about pairs that failed throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from foretune.evaluation.paired import ROUNDING, detectable_shift

CONFIDENCE = 0.95
POWER = 0.8
BEYOND = 1.0
"""Decades of rows: an interval is told so far beyond the rows that were run, since the line is known there alone."""
Array = NDArray[np.float64]
Points = Sequence[tuple[float, float]]
"""(x, gap): x is log10 of budget or rows"""


@dataclass(frozen=True)
class Effect:
    """A coefficient with its interval over pairs."""

    name: str
    value: float
    low: float
    high: float
    p_value: float
    freedom: int
    units: int
    """Pairs (or repetitions) it is estimated over"""
    detectable: float
    """The true effect that such a grid finds with probability 0.8, at ``alpha``"""
    alpha: float
    p_holm: float = 1.0

    @property
    def resolved(self) -> bool:
        """Whether the interval excludes zero and the p-value holds after Holm's correction."""
        return not self.low <= 0 <= self.high and self.p_holm <= 1 - CONFIDENCE

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {**asdict(self), "resolved": self.resolved}


@dataclass(frozen=True)
class Crossing:
    """Where a line over log10 rows passes zero, among the rows that were run."""

    rows: float
    low: float
    """The interval's ends, cut `BEYOND` the rows that were run"""
    high: float
    slope: Effect


@dataclass(frozen=True)
class Straight:
    """A line of one pair or repetition."""

    x: float
    """The mean x of its points"""
    level: float
    """Its value there"""
    slope: float

    def at(self, x: float) -> float:
        """Its value at ``x``."""
        return self.level + self.slope * (x - self.x)


def line_of(points: Points) -> Straight | None:
    """The line through ``points`` by least squares; None below two different x."""
    x, y = np.asarray([p[0] for p in points]), np.asarray([p[1] for p in points])
    if len(points) < 2 or float(np.ptp(x)) == 0:
        return None
    centred = x - x.mean()
    return Straight(float(x.mean()), float(y.mean()), float(centred @ y / (centred @ centred)))


def mean_effect(name: str, values: Sequence[float], *, alpha: float) -> Effect | None:
    """The mean of ``values`` with Student's interval; None for fewer than two."""
    return _coefficient(name, np.ones((len(values), 1)), np.asarray(values, dtype=np.float64), 0, alpha)


def _coefficient(name: str, design: Array, y: Array, column: int, alpha: float) -> Effect | None:
    """A least-squares coefficient with t interval. ``design``: (units, k)."""
    units, width = design.shape
    freedom = units - width
    if freedom < 1 or np.linalg.matrix_rank(design) < width:
        return None
    inverse = np.linalg.inv(design.T @ design)
    weights = inverse @ design.T @ y
    residual = y - design @ weights
    error = math.sqrt(float(residual @ residual) / freedom * float(inverse[column, column]))
    value = float(weights[column])
    rounding = ROUNDING * float(np.abs(y).max())
    value, error = (0.0 if abs(each) <= rounding else each for each in (value, error))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    if error > 0:
        p_value = float(2 * stats.t.sf(abs(value) / error, freedom))
    else:
        p_value = 1.0 if value == 0 else 2.0 ** (1 - units)  # the sign test, where Student's is 0/0
    detectable = detectable_shift(freedom, power=POWER, alpha=alpha) * error
    return Effect(name, value, value - reach, value + reach, p_value, freedom, units, detectable, alpha)


@dataclass(frozen=True)
class BudgetFit:
    """The fitted model; effects that the grid cannot estimate are None."""

    level: Effect | None
    """a: the mean gap, at the mean log-budget and mean distance"""
    budget: Effect | None
    """b: change of the gap for ten times the budget, at the mean distance"""
    distance: Effect | None
    """c: change of the gap for a distance of one, at the mean log-budget"""
    interaction: Effect | None
    """e: how b changes for a distance of one"""
    adjusted: Effect | None
    """e with the second covariate held equal; a check, never a rule"""
    mean_log_budget: float
    mean_distance: float | None

    def effects(self) -> dict[str, Effect]:
        """Those that there are, by name."""
        named = {"budget": self.budget, "distance": self.distance, "interaction": self.interaction}
        return {name: effect for name, effect in named.items() if effect is not None}

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {
            key: value.to_json() if isinstance(value, Effect) else value for key, value in vars(self).items()
        }  # fmt: skip


def fit_budget(
    gaps: Mapping[str, Points],
    distances: Mapping[str, float | None],
    *,
    other: Mapping[str, float | None] | None = None,
    alpha: float = 1 - CONFIDENCE,
) -> BudgetFit | None:
    """Fit the model to ``gaps``: by pair, points (log10 of the trained share, gap).

    ``other`` is a further covariate of pairs (token fertility) for the check. ``alpha`` is that of the detectable
    effects: with several rules, Holm's strictest. None where no pair has two budgets.
    """
    lines = {pair: line for pair, points in gaps.items() if (line := line_of(points)) is not None}
    if not lines:
        return None
    pairs = list(lines)
    mean_log = float(np.mean([x for pair in pairs for x, _ in gaps[pair]]))
    levels = np.asarray([lines[pair].at(mean_log) for pair in pairs])
    slopes = np.asarray([lines[pair].slope for pair in pairs])
    known = [distances.get(pair) for pair in pairs]
    if any(value is None for value in known) or len(set(known)) < 2:
        alone = np.ones((len(pairs), 1))
        level, budget = (_coefficient(n, alone, y, 0, alpha) for n, y in (("level", levels), ("budget", slopes)))
        return BudgetFit(level, budget, None, None, None, mean_log, None)
    d = np.asarray(known, dtype=np.float64)
    design = np.column_stack([np.ones(len(pairs)), d - d.mean()])
    return BudgetFit(
        level=_coefficient("level", design, levels, 0, alpha),
        budget=_coefficient("budget", design, slopes, 0, alpha),
        distance=_coefficient("distance", design, levels, 1, alpha),
        interaction=_coefficient("interaction", design, slopes, 1, alpha),
        adjusted=_adjusted(design, slopes, [(other or {}).get(pair) for pair in pairs], alpha),
        mean_log_budget=mean_log,
        mean_distance=float(d.mean()),
    )


def _adjusted(design: Array, slopes: Array, other: Sequence[float | None], alpha: float) -> Effect | None:
    values = [value for value in other if value is not None]
    if len(values) < len(other) or not values:
        return None
    covariate = np.asarray(values, dtype=np.float64)
    wider = np.column_stack([design, covariate - covariate.mean()])
    return _coefficient("interaction, covariate held", wider, slopes, 1, alpha)


def crossing(gaps: Mapping[Any, Points], *, alpha: float = 1 - CONFIDENCE) -> tuple[Effect | None, Crossing | None]:
    """(effect of ten times the rows on the gap, where the gap passes zero): by repetition points (log10 rows, gap).

    The crossing is None where Fieller's set is not a finite interval, that is where the slope is not resolved, and
    where it lies outside the rows that were run.
    """
    lines = {key: line for key, points in gaps.items() if (line := line_of(points)) is not None}
    if len(lines) < 2:
        return None, None
    run = np.asarray([x for key in lines for x, _ in gaps[key]])
    x_mean, least, most = float(run.mean()), float(run.min()), float(run.max())
    levels = np.asarray([line.at(x_mean) for line in lines.values()])
    slopes = np.asarray([line.slope for line in lines.values()])
    slope = mean_effect("rows", list(slopes), alpha=alpha)
    assert slope is not None
    found = ratio_of_means(-levels, slopes)
    if found is None or not least <= x_mean + found[0] <= most:
        return slope, None
    centre, low, high = (10.0 ** min(max(x_mean + shift, least - BEYOND), most + BEYOND) for shift in found)
    return slope, Crossing(centre, low, high, slope)


def ratio_of_means(tops: Array, bottoms: Array) -> tuple[float, float, float] | None:
    """(value, low, high) of mean(tops) / mean(bottoms), paired, by Fieller; None when the interval is not finite."""
    n = len(tops)
    a, b = float(tops.mean()), float(bottoms.mean())
    spread = np.cov(np.stack([tops, bottoms])) / n
    t2 = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) ** 2
    top, both, bottom = a * a - t2 * spread[0, 0], a * b - t2 * spread[0, 1], b * b - t2 * spread[1, 1]
    root = both * both - top * bottom
    if bottom <= 0 or root < 0:
        return None
    return a / b, float((both - math.sqrt(root)) / bottom), float((both + math.sqrt(root)) / bottom)
