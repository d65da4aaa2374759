"""What every possible next stretch is worth per second: beginning pool members, or going on with paused runs.

The worth of a stretch is (1 − P(fail)) · E[(gain at the judged rung − best gain so far)₊]; its price the seconds to get
there. A rung that the budget cannot reach is replaced by the highest that it can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretune.search.belief import Belief
from foretune.search.encoding import Floats, Indices
from foretune.search.fidelity import LAST_LEVEL, LEVELS, level_step, next_level
from foretune.search.points import level_of
from foretune.search.pooled import Pooled
from foretune.search.ranking import has_risen
from foretune.search.runs import Run, View

OVERHEAD_SHARE = 0.02
"""Beginning or resuming a run takes about as long as so much of a whole run: attaching, checkpoints."""
OFFERED = 6
"""Of the beginnings only the best few are kept: one of them will do."""


@dataclass(frozen=True)
class Option:
    """A stretch that could be next."""

    rate: float
    """Worth per second"""
    worth: float
    place: int
    run: int | None = None
    """The number of the paused run that would go on; None for a beginning"""


def best_so_far(
    runs: Sequence[Run], belief: Belief, places: Sequence[int], able: Callable[[Mapping[str, Any]], bool]
) -> float:
    """The highest expected gain, at the rung it has reached, of any run whose configuration is ``able`` to win.

    0, the base itself, where none is better.
    """
    reached = [level_of(run) if not run.failed and run.step > 0 and able(run.config) else -1 for run in runs]
    best = 0.0
    for level in sorted({level for level in reached if level >= 0}):
        numbers = [number for number, each in enumerate(reached) if each == level]
        best = max(best, float(belief.mean([places[n] for n in numbers], numbers, level).max()))
    return best


def beginnings(
    strategy: Pooled, view: View, belief: Belief, free: Indices, odds: Floats, target: int, best: float
) -> list[Option]:
    """The best pool members to begin, judged at rung ``target`` or as far as the budget reaches."""
    if len(free) == 0:
        return []
    first = strategy.prior.pool[0]
    seconds = np.asarray([view.cost(first, 0, level_step(strategy.horizon, level)) for level in range(LEVELS)])
    dearer = strategy.dearer(free)
    reach = (_prices(strategy, view, free, seconds) <= _room(view)).sum(1) - 1
    levels = np.minimum(reach, target)
    worth, rate = np.zeros(len(free)), np.zeros(len(free))
    for level in sorted(set(levels.tolist()) - {-1}):
        chosen = levels == level
        gain = belief.improvement(free[chosen].tolist(), None, level, best)
        worth[chosen] = (1 - odds[free[chosen]]) * gain
        rate[chosen] = worth[chosen] / (seconds[level] * dearer[chosen] + OVERHEAD_SHARE * seconds[LAST_LEVEL])
    order = np.argsort(-rate, kind="stable")[:OFFERED]
    return [Option(float(rate[k]), float(worth[k]), int(free[k])) for k in order if levels[k] >= 0]


def continuations(
    strategy: Pooled, view: View, belief: Belief, places: Sequence[int], target: int, best: float
) -> list[Option]:
    """Every paused run that may go on and whose next rung the budget covers."""
    judged: dict[int, list[int]] = {}
    for number, run in enumerate(view.runs):
        if run.status == "idle" and not has_risen(run, strategy.metric):
            level = _reachable(view, run, max(target, next_level(run.horizon, run.step)))
            if level is not None:
                judged.setdefault(level, []).append(number)
    found = []
    overhead = OVERHEAD_SHARE * view.cost(strategy.prior.pool[0], 0, strategy.horizon)
    for level, numbers in judged.items():
        worths = belief.improvement([places[n] for n in numbers], numbers, level, best)
        for number, worth in zip(numbers, worths.tolist(), strict=True):
            run = view.runs[number]
            seconds = view.cost(run.config, run.step, level_step(run.horizon, level)) + overhead
            found.append(Option(worth / seconds, worth, places[number], number))
    return found


def _reachable(view: View, run: Run, level: int) -> int | None:
    """The highest rung up to ``level`` that the budget covers; None where not even the next is."""
    while level_step(run.horizon, level) > run.step:
        if view.affords(run.config, run.step, level_step(run.horizon, level)):
            return level
        if level == 0:
            return None
        level -= 1
    return None


def _prices(strategy: Pooled, view: View, places: Indices, seconds: Floats) -> Floats:
    """(places, 6): what a run of each pool member to each rung takes of the budget, in its unit."""
    if view.budget.kind == "time":
        return np.asarray(strategy.dearer(places)[:, None] * seconds[None, :])
    if view.budget.kind == "trials":
        return np.ones((len(places), LEVELS))
    steps = [strategy.steps_of(strategy.prior.pool[int(place)]) for place in places]
    return np.asarray([[float(level_step(each, level)) for level in range(LEVELS)] for each in steps])


def _room(view: View) -> float:
    """What a single further run may take of the budget."""
    left = view.budget.left()
    shared = view.budget.workers if view.budget.kind == "time" else 1
    return min(left, left * shared - view.held)
