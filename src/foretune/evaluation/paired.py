"""Differences over seeds and tasks: Student intervals, what a design could have detected, many tests at once.

`evaluation.compare` speaks of rows; here one number is one repetition (a seed, a task), the unit over which a study
claims anything. Sources: Student's paired t; power by the noncentral t distribution (Cohen 1988, chapter 2);
Holm 1979 for several hypotheses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

from foretune.errors import UsageError

LEAST_REPETITIONS = 2
ROUNDING = 1e-12
"""Of the values compared: differences that differ by less are equal."""
MORE_REPETITIONS = "Add repetitions (seeds, tasks or rows)."
LARGEST_STANDARDISED_EFFECT = 1e4
"""In standard errors: where the search for the detectable effect ends."""


def paired_interval(differences: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high): Student's interval for the mean of paired differences.

    Raises `UsageError` for fewer than two differences or one that is not finite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < LEAST_REPETITIONS:
        raise UsageError(f"{len(values)} paired difference(s) give no interval.", remedy=MORE_REPETITIONS)
    if not np.isfinite(values).all():
        raise UsageError("a paired difference is not a finite number.", remedy="Leave failed runs out of the pairs.")
    mean = float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    width = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return mean, mean - width, mean + width


def smallest_detectable_effect(sd: float, n: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true mean difference that a two-sided paired t-test over ``n`` pairs finds with probability ``power``.

    ``sd`` is the standard deviation of one paired difference. Raises `UsageError` for n < 2 or a bad share.
    """
    if n < LEAST_REPETITIONS:
        raise UsageError(f"n = {n} detects nothing.", remedy=MORE_REPETITIONS)
    if sd < 0 or not math.isfinite(sd) or not 0 < alpha < power < 1:
        raise UsageError(
            f"sd = {sd}, alpha = {alpha}, power = {power} describe no test.",
            remedy="Use 0 <= sd, 0 < alpha < power < 1.",
        )
    return detectable_shift(n - 1, power=power, alpha=alpha) * sd / math.sqrt(n)


def detectable_shift(freedom: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true effect, in standard errors, that a two-sided t-test with ``freedom`` degrees finds with ``power``."""
    critical = float(stats.t.ppf(1 - alpha / 2, freedom))

    def shortfall(shift: float) -> float:
        """How much power is missing at a true difference of ``shift`` standard errors."""
        upper = float(stats.nct.sf(critical, freedom, shift))
        lower = float(stats.nct.cdf(-critical, freedom, shift))
        # far out SciPy loses the tails to NaN: there the upper one is everything and the lower one nothing
        return (1.0 if math.isnan(upper) else upper) + (0.0 if math.isnan(lower) else lower) - power

    high = critical + 1.0
    while shortfall(high) < 0 and high < LARGEST_STANDARDISED_EFFECT:
        high *= 2
    return float(optimize.brentq(shortfall, 0.0, high))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's adjusted p-values in the given order: reject where they are at most alpha."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return tuple(adjusted)
