"""What a replay measures: regret at shares of the budget, its area over log time, time to a level; over tasks.

NR = (y* − y_inc) / (y* − y_ref), where y* is the test score of the whole run that is best on validation and y_ref that
of the median whole run. Before anything is at hand, and where all failed, it is 1. Where another run than the one that
validation prefers does better on test rows it is below 0, at least -1: few test rows must not decide a mean over tasks.
Intervals are bootstrapped over tasks, the unit that a new task is drawn from; seeds are averaged within a task before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretune.search.encoding import Floats
from foretune.search.fidelity import LAST_LEVEL
from foretune.search.replay.simulation import Trace
from foretune.search.replay.world import World
from foretune.search.task_prior import TaskPrior, predicted_end
from foretune.seeding import generator

SHARES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
GRID = 60
"""Points of a regret curve, evenly in log time from `FIRST_SHARE` to the budget."""
FIRST_SHARE = 0.01
BOOTSTRAPS = 2000
NOTHING = 1.0
CENTRAL = 1.645
"""Standard deviations on either side that hold 90 % of a normal distribution."""


@dataclass(frozen=True)
class Score:
    """One search, scored."""

    curve: Floats
    """(GRID,): regret over log time"""
    at: tuple[float, ...]
    """Regret at `SHARES`"""
    first: float
    """Regret of the first whole run; NaN where there is none"""
    asked_s: float
    cost_errors: tuple[float, float]
    """Median relative error of forecast seconds: of the first lease, of those after the first whole run"""
    runs: int

    def to_json(self) -> dict[str, Any]:
        """A JSON form; NaN becomes null."""
        return {
            "curve": [round(float(value), 5) for value in self.curve],
            "at": [round(value, 5) for value in self.at],
            "first": None if math.isnan(self.first) else round(self.first, 5),
            "asked_s": round(self.asked_s, 4),
            "cost_errors": [None if math.isnan(error) else round(error, 4) for error in self.cost_errors],
            "runs": self.runs,
        }


def covered(prior: TaskPrior, world: World) -> float:
    """The share of whole runs whose gain lies in the central 90 % of what was believed before any run; NaN without
    experience, where nothing was."""
    if prior.transfer is None:
        return math.nan
    mean, sd = predicted_end(prior)
    whole = [place for place, entry in enumerate(world.entries) if entry.fails_at is None]
    gains = np.asarray([world.entries[place].gains[LAST_LEVEL] for place in whole])
    return float((np.abs(gains - mean[whole]) <= CENTRAL * sd[whole]).mean())


def times(world: World) -> Floats:
    """(GRID,): the moments of a regret curve in seconds."""
    return np.asarray(world.budget_s * np.exp(np.linspace(math.log(FIRST_SHARE), 0.0, GRID)))


def scored(trace: Trace, world: World) -> Score:
    """The score of a trace."""

    def regret(seconds: float) -> float:
        tested = trace.at(seconds)
        return NOTHING if tested is None else bounded(world.regret(tested))

    errors = [abs(forecast - measured) / max(measured, 1e-9) for forecast, measured in trace.forecasts]
    later = errors[1:]
    return Score(
        curve=np.asarray([regret(float(at)) for at in times(world)]),
        at=tuple(regret(share * world.budget_s) for share in SHARES),
        first=math.nan if math.isnan(trace.first) else bounded(world.regret(trace.first)),
        asked_s=trace.asked_s,
        cost_errors=(errors[0] if errors else math.nan, float(np.median(later)) if later else math.nan),
        runs=trace.runs,
    )


def bounded(regret: float) -> float:
    """Within -1 and 1."""
    return max(-NOTHING, min(NOTHING, regret))


@dataclass(frozen=True)
class Interval:
    """A mean over tasks with its bootstrapped 95 % interval."""

    mean: float
    low: float
    high: float

    def text(self) -> str:
        """``0.12 [0.08, 0.17]``."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> list[float | None]:
        """[mean, low, high]; NaN becomes null."""
        return [None if math.isnan(value) else round(value, 5) for value in (self.mean, self.low, self.high)]


def over_tasks(values: Sequence[float]) -> Interval:
    """The mean of one value a task."""
    known = np.asarray([value for value in values if not math.isnan(value)])
    if len(known) == 0:
        return Interval(math.nan, math.nan, math.nan)
    draws = generator(0, "replay", "bootstrap").integers(len(known), size=(BOOTSTRAPS, len(known)))
    means = known[draws].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(known.mean()), float(low), float(high))
