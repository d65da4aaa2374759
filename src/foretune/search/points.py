"""From the runs of a search to observations of its process: gains over the base, on the same rows, with their noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from foretune.files import fingerprint
from foretune.search.belief import Belief
from foretune.search.fidelity import LAST_LEVEL, LEVELS, level_step, next_level
from foretune.search.past_tasks import TINY_LOSS
from foretune.search.pooled import Pooled
from foretune.search.residual_gp import LOSS, METRIC, Points, condition
from foretune.search.runs import Run
from foretune.search.task_prior import TaskPrior

PAIRED = 0.3
"""Two runs are scored on the same rows, whose difficulty they share: the error of their difference is about this share
of each one's own. What all share moves the level, which is learnt anyway."""
GAIN = "gain"
"""A score of this name is a gain already."""
FANTASY_ERROR = 1e-3


def observed(strategy: Pooled, runs: Sequence[Run]) -> Points:
    """All scores of the runs at rungs, run by run in their order."""
    rows: list[tuple[int, int, int, float, float, int]] = []
    for number, (run, place) in enumerate(zip(runs, places_of(strategy.prior, runs), strict=True)):
        for step, scores in sorted(run.curve.items()):
            if (level := _level(run.horizon, step)) is None:
                continue
            if GAIN in scores:
                rows.append((place, level, LOSS, scores[GAIN].value, scores[GAIN].standard_error, number))
            elif strategy.metric in scores and (strategy.loss_channel or level == LAST_LEVEL):
                score = scores[strategy.metric]
                loss = max(score.value, TINY_LOSS)
                gain = math.log(strategy.base_losses[level] / loss)
                rows.append((place, level, LOSS, gain, PAIRED * score.standard_error / loss, number))
            if strategy.task_metric is not None and strategy.task_metric[0] in scores:
                name, sign, base = strategy.task_metric
                score = scores[name]
                rows.append((place, level, METRIC, sign * (score.value - base), score.standard_error, number))
    return Points.of(rows)


def pending(strategy: Pooled, belief: Belief, points: Points, runs: Sequence[Run], places: Sequence[int]) -> Belief:
    """``belief`` as if every run under way had reached its next rung as expected; the weights stay as they were."""
    waiting = [(number, place) for number, (run, place) in enumerate(zip(runs, places, strict=True))
               if run.status == "running" and run.step < run.horizon]  # fmt: skip
    if not waiting:
        return belief
    parts = []
    for part in belief.parts:
        rows = list(zip(*(column.tolist() for column in vars(points).values()), strict=True))
        for number, place in waiting:
            level = next_level(runs[number].horizon, runs[number].step)
            mean, _ = part.predict_runs([place], [number], level)
            rows.append((place, level, LOSS, part.gain(float(mean[0])), FANTASY_ERROR, number))
        parts.append(condition(part.process, Points.of(rows), like=part))
    return Belief(tuple(parts), belief.weights)


def places_of(prior: TaskPrior, runs: Sequence[Run]) -> list[int]:
    """The pool members that runs are of; a configuration from elsewhere counts as its nearest member."""
    known = prior.places
    found = []
    for run in runs:
        place = known.get(fingerprint(dict(run.config)))
        found.append(_nearest(prior, run) if place is None else place)
    return found


def _nearest(prior: TaskPrior, run: Run) -> int:
    """The member that shares most settings, the nearest learning rate among equals."""

    def distance(place: int) -> tuple[int, float]:
        config = prior.pool[place]
        differing = sum(config.get(key) != value for key, value in run.config.items() if key != "learning_rate")
        rates = [float(each.get("learning_rate") or 1.0) for each in (config, run.config)]
        return differing, abs(math.log(rates[0] / rates[1]))

    return min(range(len(prior.pool)), key=distance)


def _level(horizon: int, step: int) -> int | None:
    """The highest rung at ``step``; None where there is none."""
    levels = [level for level in range(LEVELS) if level_step(horizon, level) == step]
    return LAST_LEVEL if step >= horizon else (levels[-1] if levels else None)


def level_of(run: Run) -> int:
    """The last rung that a run has reached; -1 before the first."""
    reached = np.asarray([level_step(run.horizon, level) <= run.step for level in range(LEVELS)])
    return int(reached.sum()) - 1
