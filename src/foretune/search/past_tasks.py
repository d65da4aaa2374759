"""Earlier runs seen by task: comparable gains at the six rungs, on one scale for all tasks.

A gain is log(base loss / loss) on the same rows. Within a task, gains are centred at the median of the finished runs
and divided by their spread, so that trees learn what is better, not which task is easy; centre and spread are kept,
because a new task's own are predicted from those of similar tasks. A run that failed has no gain: its status stays.

Imported results often lack the base, the loss or a validation split. A task is read by the best that any of its runs
has (`Reading`): gains over the base, else losses or scores of its metric measured from the task's median, on validation
rows, else on test rows. Without a base the centre says nothing about it; the differences are as good as others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from foretune.experience.past import PastRun, Point
from foretune.files import fingerprint
from foretune.search.encoding import Facts, Floats, described, features
from foretune.search.fidelity import LAST_LEVEL, LEVELS, RUNG_PERCENT, level_step

FEWEST_FINISHED = 4
"""A task with fewer finished runs has no spread of its own."""
SMALLEST_SPREAD = 0.01
"""In log loss: a task on which all configurations agree tells nothing about them."""
LARGEST_Z = 4.0
"""Runs further below the median than this are all equally bad."""
NORMAL_QUARTILES = 1.349
"""Between the quartiles of a normal distribution lie so many standard deviations."""
NEAR_A_RUNG = (0.6, 1.25)
"""A point counts for a rung when it lies within these multiples of the rung's share."""
LOWER_IS_BETTER = frozenset({"loss", "loss_per_byte", "mse", "mae", "brier", "calibration_error"})
LOWER = "metric_lower"
"""The feature of a task that says whether a lower score of its metric is better: a metric may be the user's own."""
KEPT = 4
"""So many sets of earlier runs are kept with what was learnt from each: a plan and its fit learn once."""
FAILED = frozenset({"diverged", "oom", "crashed", "timeout", "refused"})
TINY_LOSS = 1e-6
GAIN, LOSS = "gain", "loss"


@dataclass(frozen=True)
class Reading:
    """What a task's runs are compared by."""

    score: str
    """`GAIN` over the base, `LOSS`, or the task's metric"""
    split: str
    """The rows that choose"""
    reference: float = 0.0
    """Median over the runs of their last loss or metric: gains are measured from it where there is no base"""
    sign: float = 1.0
    """−1 where a lower metric is better"""

    def value(self, point: Point) -> tuple[float, float] | None:
        """(gain, standard error); an error of 0 is one that was not given. None where the point has no such score."""
        if self.score == GAIN:
            return None if point.gain is None else point.gain[:2]
        if self.score not in point.metrics:
            return None
        value, error, _ = point.metrics[self.score]
        if self.score == LOSS:
            return math.log(self.reference / max(value, TINY_LOSS)), error / max(value, TINY_LOSS)
        return self.sign * (value - self.reference), error


@dataclass(frozen=True)
class PastCurve:
    """One run of a task."""

    config: Mapping[str, Any]
    row: Mapping[str, float | str]
    """`encoding.described`"""
    status: str
    gains: Floats
    """(6,): gain at each rung, NaN where it was not measured"""
    metrics: Floats
    """(6,): the task's metric over the base's, higher is better, NaN where it was not measured"""
    seconds: Floats
    """(6,): training and evaluation seconds until each rung, NaN where unknown; the processor's where it trained"""
    train_s: float
    """Seconds of training alone, likewise"""
    tokens: float
    peak_bytes: int
    seed: int = 0
    error: float = 0.0
    """Standard error of the last gain, 0 where it was not given"""
    tested: float = math.nan
    """Gain on the test rows, NaN where they were not answered"""
    tested_level: int = LAST_LEVEL
    """The rung at which they were"""
    arm: str = ""
    """The configuration's name in a design shared by tasks"""
    horizon: int = 0
    machine: str = ""
    """The fingerprint of the machine that it ran on"""
    accelerated: bool = False
    """Whether that machine trains on an accelerator"""

    @property
    def failed(self) -> bool:
        """Whether it ended with a failure."""
        return self.status in FAILED

    @property
    def final(self) -> float:
        """The gain at the end, NaN for a run that did not get there."""
        return float(self.gains[LAST_LEVEL])


@dataclass(frozen=True, eq=False)
class PastTask:
    """All runs of one task with one model. Equal to itself alone, so that what was learnt from it can be kept."""

    key: str
    facts: Facts
    features: Floats
    curves: tuple[PastCurve, ...]
    centre: float
    spread: float
    metric_centre: float
    metric_spread: float
    has_base: bool

    def scaled(self, gain: Floats) -> Floats:
        """Gains in units of the task's spread around its centre, bad ones cut off."""
        return np.asarray(np.clip((gain - self.centre) / self.spread, -LARGEST_Z, LARGEST_Z))


def past_tasks(runs: Sequence[PastRun]) -> tuple[PastTask, ...]:
    """Tasks with enough finished runs to compare, in the order of their first run; the same ones for equal runs."""
    return _past_tasks(tuple(runs))


@lru_cache(maxsize=KEPT)
def _past_tasks(runs: tuple[PastRun, ...]) -> tuple[PastTask, ...]:
    grouped: dict[tuple[str, str], list[PastRun]] = {}
    for run in runs:
        grouped.setdefault((run.task, run.model), []).append(run)
    found = (_task(key, group) for key, group in grouped.items())
    return tuple(task for task in found if task is not None)


def _task(key: tuple[str, str], runs: Sequence[PastRun]) -> PastTask | None:
    first = runs[0]
    typical = int(np.median([run.horizon for run in runs]))
    facts = Facts(first.task_features, first.model_features, typical)
    metric = str(first.task_features.get("metric", ""))
    reading = _reading(runs, metric, metric_sign(first.task_features))
    curves = tuple(_curve(run, facts, metric, reading) for run in runs)
    finals = np.asarray([curve.final for curve in curves if math.isfinite(curve.final)])
    if len(finals) < FEWEST_FINISHED:
        return None
    centre, spread = _centre_and_spread(finals, SMALLEST_SPREAD)
    scored = np.asarray([curve.metrics[LAST_LEVEL] for curve in curves if math.isfinite(curve.metrics[LAST_LEVEL])])
    metric_centre, metric_spread = _centre_and_spread(scored, 0.0) if len(scored) >= FEWEST_FINISHED else (0.0, 0.0)
    return PastTask(
        key=fingerprint(list(key)), facts=facts, features=features(facts), curves=curves,
        centre=centre, spread=spread, metric_centre=metric_centre, metric_spread=metric_spread,
        has_base=reading.score == GAIN,
    )  # fmt: skip


def metric_sign(task: Mapping[str, Any]) -> float:
    """−1 where a lower score of the task's metric is better, by what its features say or by the metric's name."""
    return -1.0 if task.get(LOWER, task.get("metric") in LOWER_IS_BETTER) else 1.0


def _reading(runs: Sequence[PastRun], metric: str, sign: float) -> Reading:
    """The best reading any run allows: validation before test, with a base before without, losses before metrics."""
    for split in ("validation", "test"):
        lasts = [points[-1] for run in runs if (points := run.on(split))]
        if any(point.gain is not None for point in lasts):
            return Reading(GAIN, split, sign=sign)
        for score in (LOSS, metric):
            values = [point.metrics[score][0] for point in lasts if score in point.metrics]
            if values:
                middle = float(np.median(values))
                return Reading(score, split, max(middle, TINY_LOSS) if score == LOSS else middle, sign)
    return Reading(GAIN, "validation", sign=sign)


def _curve(run: PastRun, facts: Facts, metric: str, reading: Reading) -> PastCurve:
    gains, metrics, seconds = (np.full(LEVELS, math.nan) for _ in range(3))
    error, spent, trained, tokens = 0.0, 0.0, 0.0, 0
    for point in run.on(reading.split):
        training = _undisturbed(point.train_s, point.train_cpu_s, run)
        spent += training + _undisturbed(point.eval_s, point.eval_cpu_s, run)
        trained += training
        tokens += point.tokens
        level = _level(point.step, run.horizon)
        gain = reading.value(point)
        if level is None or gain is None:
            continue
        gains[level], error = gain[0], gain[1]
        seconds[level] = spent if spent > 0 else math.nan
        if metric in point.metrics and metric not in (LOSS, reading.score):
            base = point.base.get(metric, (0.0, 0.0, 0))[0]
            metrics[level] = reading.sign * (point.metrics[metric][0] - base)
    if run.status in FAILED:
        gains[LAST_LEVEL] = math.nan
    row = described(run.config, Facts(facts.task, facts.model, run.horizon))
    answered = () if reading.split == "test" else run.on("test")
    tests = [(point, gain) for point in answered if (gain := reading.value(point)) is not None]
    tested = tests[-1][1][0] if tests else math.nan
    tested_level = _level(tests[-1][0].step, run.horizon) if tests else None
    return PastCurve(
        run.config, row, run.status, gains, metrics, seconds, trained, float(tokens), run.peak_bytes, run.seed, error,
        tested, LAST_LEVEL if tested_level is None else tested_level, run.arm, run.horizon, run.hardware,
        _accelerated(run),
    )  # fmt: skip


def _accelerated(run: PastRun) -> bool:
    return any(name.startswith("accelerators") for name in run.hardware_features)


def _undisturbed(wall_s: float, cpu_s: float | None, run: PastRun) -> float:
    """Seconds that a stretch takes on a quiet machine: its processor's, shared by its threads, where it ran there."""
    if cpu_s is None or _accelerated(run):
        return wall_s
    return min(wall_s, cpu_s / max(1, int(run.hardware_features.get("threads") or 1)))


def _level(step: int, horizon: int) -> int | None:
    """The rung that a step belongs to, None for one far from every rung."""
    exact = [k for k in range(LEVELS) if level_step(max(1, horizon), k) == step]
    if exact:
        return exact[-1]
    share = 100.0 * step / max(1, horizon)
    level = min(range(LEVELS), key=lambda k: abs(math.log(max(share, 1e-9) / RUNG_PERCENT[k])))
    if step >= horizon:
        return LAST_LEVEL
    low, high = NEAR_A_RUNG
    near = low * RUNG_PERCENT[level] <= share <= high * RUNG_PERCENT[level]
    return level if near and level < LAST_LEVEL else None


def _centre_and_spread(values: Floats, smallest: float) -> tuple[float, float]:
    low, centre, high = np.percentile(values, (25, 50, 75))
    return float(centre), max(float(high - low) / NORMAL_QUARTILES, smallest)
