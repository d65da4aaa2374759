"""Learning from forecasts that were wrong: multiplicative corrections from stored forecast–truth pairs.

The mean log-ratio of truth to forecast is shrunk towards zero as if ``_PRIOR_RUNS`` earlier runs had been forecast
exactly (a normal mean with a conjugate prior), so two lucky runs move little and twenty move almost fully. The
spread of the log-ratios says how wide the next interval has to be.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from foretune.cost.interval import Interval

_PRIOR_RUNS = 2.0
_EIGHTY_PERCENT = 1.2816
_LARGEST_RATIO = 10.0  # a truth further off than this was another thing (a suspended laptop), not a bias
_RUNS_FOR_SPREAD = 5  # with fewer, the interval of the forecast itself is kept


@dataclass(frozen=True)
class Outcome:
    """What was forecast of a quantity and what it was: seconds, bytes; ``quantity`` names it (see `Forecast`)."""

    quantity: str
    forecast: float
    truth: float


@dataclass(frozen=True)
class Factor:
    """A learnt correction: multiply the value by ``factor``; ``spread`` is a factor for the bounds, or None."""

    factor: float
    spread: float | None
    runs: int


@dataclass(frozen=True)
class Correction:
    """A factor for every quantity that was seen."""

    factors: Mapping[str, Factor] = field(default_factory=dict)

    def apply(self, quantity: str, interval: Interval) -> Interval:
        """The corrected interval; unchanged for a quantity that was never seen."""
        learnt = self.factors.get(quantity)
        if learnt is None:
            return interval
        moved = interval.times(learnt.factor)
        return moved if learnt.spread is None else Interval.around(moved.value, learnt.spread)


def correction(records: Sequence[Outcome]) -> Correction:
    """Corrections from all stored pairs; non-positive and absurd pairs are left out."""
    ratios: dict[str, list[float]] = {}
    for record in records:
        if record.forecast > 0 and record.truth > 0:
            ratio = math.log(record.truth / record.forecast)
            if abs(ratio) <= math.log(_LARGEST_RATIO):
                ratios.setdefault(record.quantity, []).append(ratio)
    factors = {}
    for quantity, logs in ratios.items():
        shrunk = sum(logs) / (len(logs) + _PRIOR_RUNS)
        spread = None
        if len(logs) >= _RUNS_FOR_SPREAD:
            centred = math.sqrt(statistics.fmean((ratio - shrunk) ** 2 for ratio in logs))
            spread = math.exp(_EIGHTY_PERCENT * centred * math.sqrt(1 + 1 / len(logs)))
        factors[quantity] = Factor(math.exp(shrunk), spread, len(logs))
    return Correction(factors)
