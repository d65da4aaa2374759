"""Which earlier tasks are like this one, and what gains they suggest: level and spread before any run.

Tasks are weighted by a Gaussian of the distance between their features (those that both have, in units of their
spread over all tasks); another kind of model counts little. Few tasks cannot support a regression on twenty
features; a weighted mean needs none, and with no features at all it is the plain mean over tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretune.search.encoding import TASK_FEATURES, Facts, Floats, described, features
from foretune.search.past_tasks import PastTask

OTHER_KIND = 0.02
"""Weight of a task with another kind of model: enough to speak when nothing else does."""
SMALLEST_WEIGHT = 0.05
"""Every task of the same kind counts this much: distances over few tasks are rough."""
SIMILAR = 0.25
"""Tasks above this share of the largest weight are called similar."""
NO_LEVEL_SD = 0.5
"""Standard deviation of the level, in log loss, where nothing is known."""
NO_SPREAD = 0.15
"""Spread of gains, in log loss, where nothing is known."""
FEW_TASKS_SD = 0.7
"""Standard deviation of the log spread predicted from fewer than three tasks: a factor of two."""


@dataclass(frozen=True)
class Outlook:
    """Level and spread of gains that similar tasks suggest."""

    centre: float
    centre_sd: float
    spread: float
    log_spread_sd: float
    metric_centre: float
    metric_sd: float
    metric_spread: float
    """0 where no task has the metric"""


def weights(tasks: Sequence[PastTask], facts: Facts) -> Floats:
    """(tasks,): how much each counts, summing to one."""
    if not tasks:
        return np.zeros(0)
    own, table = features(facts), np.stack([task.features for task in tasks])
    columns = list(range(len(TASK_FEATURES)))  # the model's kind counts by itself
    everything = np.vstack([table, own])[:, columns]
    known = np.isfinite(everything)
    with np.errstate(invalid="ignore"):
        counts = np.maximum(known.sum(0), 1)
        mean = np.where(known, everything, 0.0).sum(0) / counts
        deviation = np.where(known, everything - mean, 0.0)
        spread = np.sqrt((deviation**2).sum(0) / counts)
        scaled = deviation / np.where(spread > 0, spread, 1.0)
    both = known[:-1] & known[-1]
    squared = np.where(both, (scaled[:-1] - scaled[-1]) ** 2, 0.0).sum(1) / np.maximum(both.sum(1), 1)
    weight = np.maximum(np.exp(-squared / 2), SMALLEST_WEIGHT)
    weight *= np.asarray([1.0 if task.facts.kind == facts.kind else OTHER_KIND for task in tasks])
    return np.asarray(weight / weight.sum())


def outlook(tasks: Sequence[PastTask], weight: Floats) -> Outlook:
    """What the weighted tasks suggest for a new one."""
    based = np.asarray([task.has_base for task in tasks], dtype=bool)
    centre, centre_sd = _weighted([task.centre for task in tasks], weight * based, (0.0, NO_LEVEL_SD))
    log_spread, log_sd = _weighted(
        [math.log(task.spread) for task in tasks], weight, (math.log(NO_SPREAD), FEW_TASKS_SD)
    )
    scored = weight * np.asarray([task.metric_spread > 0 for task in tasks], dtype=bool)
    metric_centre, metric_sd = _weighted([task.metric_centre for task in tasks], scored, (0.0, 1.0))
    usual = _weighted([math.log(max(task.metric_spread, 1e-6)) for task in tasks], scored, (0.0, 1.0))
    return Outlook(
        centre, centre_sd, math.exp(log_spread), log_sd, metric_centre, metric_sd,
        math.exp(usual[0]) if scored.sum() > 0 else 0.0,
    )  # fmt: skip


def _weighted(values: Sequence[float], weight: Floats, unknown: tuple[float, float]) -> tuple[float, float]:
    """Weighted mean and the standard deviation of a further value, shrunk towards ``unknown`` by one task's worth."""
    total = float(weight.sum())
    if total <= 0:
        return unknown
    share, numbers = weight / total, np.asarray(values)
    effective = 1.0 / float((share**2).sum())
    mean = float(share @ numbers)
    between = float(share @ (numbers - mean) ** 2)
    variance = (effective * between + unknown[1] ** 2) / effective if effective < 3 else between
    return mean, math.sqrt(max(variance, 1e-8) * (1 + 1 / effective))


def verdicts(
    tasks: Sequence[PastTask], weight: Floats, encode: Callable[..., Floats], configs: Sequence[Mapping[str, Any]]
) -> list[tuple[int, int]]:
    """For each of ``configs``: on how many similar tasks the stored run nearest to it was better than the median run,
    and of how many.

    ``encode`` maps described configurations to points whose distances mean something.
    """
    wins, counted = np.zeros(len(configs), dtype=np.int64), 0
    for task, share in zip(tasks, weight, strict=True):
        if share < SIMILAR * float(weight.max()):
            continue
        finished = [curve for curve in task.curves if math.isfinite(curve.final)]
        places = encode([curve.row for curve in finished])
        better = np.asarray([curve.final > task.centre for curve in finished])
        own = encode([described(config, task.facts) for config in configs])
        nearest = [int(np.argmin(((places - one) ** 2).sum(1))) for one in own]
        counted += 1
        wins += better[nearest]
    return [(int(won), counted) for won in wins]
