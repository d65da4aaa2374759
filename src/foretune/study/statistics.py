"""What a study may claim: paired differences to the control with intervals, corrected for the number of arms.

Repetitions. In one block (a model, a task, a size) a seed is one repetition: the difference of two runs that share
subset, order and noise. Over all tasks one repetition is a task × seed, its difference averaged over sizes and models
first, because smaller subsets lie inside larger ones and so do not repeat anything independently; a repetition with a
missing cell is left out and counted. That interval speaks of these tasks. From three tasks on, task means are also
taken as the repetitions: that interval, much wider, speaks of tasks like these.

Claims. ``better`` and ``worse`` need Student's interval of the mean difference to exclude zero and the p-value to
hold after Holm's correction over the arms of the same block. Everything else is ``not resolved``, with the effect
that would have been found in four of five such studies, whatever the other arms show (at Holm's strictest step). All
of it speaks of the test rows that were used; whether other rows would say the same is `study.row_tests`' question,
whose answer a block's differences carry beside.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats

from foretune.evaluation.base import Direction
from foretune.evaluation.compare import Comparison
from foretune.evaluation.paired import LEAST_REPETITIONS, ROUNDING, holm, paired_interval, smallest_detectable_effect

CONFIDENCE = 0.95
POWER = 0.8
FEWEST_TASKS = 3
"""Fewer task means say nothing about other tasks."""
ON_THESE_ROWS = " on these rows"
"""Added to a verdict that all seeds share but that other test rows may not."""
Verdict = Literal["better", "worse", "not resolved"]
Values = Mapping[str, Mapping[Hashable, float]]
"""Outcome by arm and repetition; failed runs are absent."""


@dataclass(frozen=True)
class Difference:
    """An arm against the control. ``mean`` is arm − control in the outcome's unit."""

    arm: str
    pairs: int
    dropped: int
    """Repetitions without a result of both"""
    arm_mean: float | None
    """Over the pairs"""
    control_mean: float | None
    mean: float | None
    low: float | None
    high: float | None
    sd: float | None
    """Standard deviation of one paired difference"""
    p_value: float
    p_holm: float
    wins: int
    """Pairs in which the arm is better; those that are equal count for neither"""
    losses: int
    detectable: float | None
    """The true difference that so many pairs find with probability 0.8, at the spread seen"""
    verdict: Verdict
    confidence: float = CONFIDENCE
    rows: Comparison | None = None
    """The same difference over test rows (`study.row_tests`); None where nothing was answered"""

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return asdict(self)

    @property
    def claim(self) -> str:
        """The verdict in words."""
        if self.verdict != "not resolved":
            return f"{self.verdict}{'' if self.rows is None or self.rows.verdict == self.verdict else ON_THESE_ROWS}"
        if self.pairs < LEAST_REPETITIONS:
            counted = "1 pair" if self.pairs == 1 else f"{self.pairs} pairs"
            return f"not resolved ({counted}, at least {LEAST_REPETITIONS} needed)"
        return f"not resolved ({self.pairs} pairs, smallest detectable effect {self.detectable:.2g})"


def compare_arms(
    values: Values,
    control: str,
    direction: Direction,
    *,
    expected: int,
    confidence: float = CONFIDENCE,
    comparisons: int | None = None,
) -> tuple[Difference, ...]:
    """Every arm of ``values`` but the control against it, Holm-corrected over these arms.

    ``expected`` is the number of repetitions there should be. The detectable effect is that of Holm's strictest step
    over so many ``comparisons`` (default: these arms), as is the one that is told beforehand.
    """
    arms = {arm: results for arm, results in values.items() if arm != control}
    strictest = (1 - confidence) / max(1, comparisons or len(arms))
    found = [
        _difference(arm, results, values.get(control, {}), direction, expected, confidence, strictest)
        for arm, results in arms.items()
    ]
    adjusted = holm([difference.p_value for difference in found])
    return tuple(_judged(replace(d, p_holm=p), direction) for d, p in zip(found, adjusted, strict=True))


def _difference(
    arm: str,
    results: Mapping[Hashable, float],
    against: Mapping[Hashable, float],
    direction: Direction,
    expected: int,
    confidence: float,
    strictest: float,
) -> Difference:
    pairs = [(results[unit], against[unit]) for unit in results if unit in against]
    scale = max((abs(value) for pair in pairs for value in pair), default=0.0)
    differences = settled([a - b for a, b in pairs], scale)
    sign = 1 if direction == "higher" else -1
    mean = low = high = sd = detectable = None
    p_value = 1.0
    if differences:
        mean = float(np.mean(differences))
    if len(differences) >= LEAST_REPETITIONS:
        mean, low, high = paired_interval(differences, confidence=confidence)
        sd = float(np.std(differences, ddof=1)) if len(set(differences)) > 1 else 0.0
        p_value = _p_value(mean, sd, len(differences))
        detectable = smallest_detectable_effect(sd, len(differences), power=POWER, alpha=strictest)
    return Difference(
        arm=arm,
        pairs=len(pairs),
        dropped=expected - len(pairs),
        arm_mean=float(np.mean([a for a, _ in pairs])) if pairs else None,
        control_mean=float(np.mean([b for _, b in pairs])) if pairs else None,
        mean=mean,
        low=low,
        high=high,
        sd=sd,
        p_value=p_value,
        p_holm=p_value,
        wins=sum(sign * difference > 0 for difference in differences),
        losses=sum(sign * difference < 0 for difference in differences),
        detectable=detectable,
        verdict="not resolved",
        confidence=confidence,
    )


def settled(differences: Sequence[float], scale: float) -> list[float]:
    """``differences`` of values as large as ``scale``; all of them their mean where they differ by rounding alone."""
    least = ROUNDING * scale
    if not differences or max(differences) - min(differences) > least:
        return list(differences)
    mean = float(np.mean(differences))
    return [0.0 if abs(mean) <= least else mean] * len(differences)


def _p_value(mean: float, sd: float, n: int) -> float:
    """Two-sided, of Student's paired test; of the sign test where all differences are equal and Student's is 0/0."""
    if sd == 0:
        return 1.0 if mean == 0 else 2.0 ** (1 - n)
    return float(2 * stats.t.sf(abs(mean) / (sd / math.sqrt(n)), n - 1))


def _judged(found: Difference, direction: Direction) -> Difference:
    if found.low is None or found.high is None or found.mean is None:
        return found
    if found.low <= 0 <= found.high or found.p_holm > 1 - found.confidence:
        return found
    better = (found.mean > 0) == (direction == "higher")
    return replace(found, verdict="better" if better else "worse")


Block = tuple[str, str, str, str]
"""(model, task, size, test set)"""


def pooled_values(blocks: Mapping[Block, Values], control: str) -> Values:
    """Outcome by arm and (task, seed), averaged over models and sizes where both arm and control have them all.

    The control's value of a repetition is averaged over the same cells as the arm's, which are all of them.
    """
    arms = {arm: None for values in blocks.values() for arm in values}
    tasks = {task: [block for block in blocks if block[1] == task] for _, task, *_ in blocks}
    pooled: dict[str, dict[Hashable, float]] = {arm: {} for arm in arms}
    for task, own in tasks.items():
        for arm in arms:
            seeds = [set(blocks[block].get(arm, {})) for block in own]
            for seed in sorted(set.intersection(*seeds), key=str):
                pooled[arm][task, seed] = float(np.mean([blocks[block][arm][seed] for block in own]))
    return {control: pooled.get(control, {}), **pooled}


def task_values(pooled: Values, control: str) -> dict[str, Values]:
    """For every arm: arm and control by task, averaged over the seeds that both have."""
    found: dict[str, Values] = {}
    for arm, results in pooled.items():
        if arm == control:
            continue
        shared: dict[Any, list[Any]] = {}
        for unit in results:
            if unit in pooled[control] and isinstance(unit, tuple):
                shared.setdefault(unit[0], []).append(unit)
        found[arm] = {
            name: {task: float(np.mean([pooled[name][unit] for unit in units])) for task, units in shared.items()}
            for name in (arm, control)
        }
    return found


def compare_over_tasks(pooled: Values, control: str, direction: Direction, tasks: int) -> tuple[Difference, ...]:
    """Every arm against the control with tasks as the repetitions; empty below `FEWEST_TASKS`."""
    if tasks < FEWEST_TASKS:
        return ()
    by_arm = task_values(pooled, control)
    found = [
        difference
        for values in by_arm.values()
        for difference in compare_arms(values, control, direction, expected=tasks, comparisons=len(by_arm))
    ]
    adjusted = holm([difference.p_value for difference in found])
    return tuple(
        _judged(replace(d, p_holm=p, verdict="not resolved"), direction) for d, p in zip(found, adjusted, strict=True)
    )


def detectable_before(arms: int, repetitions: int, sd: float | None) -> float | None:
    """The effect that a study of so many repetitions will find with probability 0.8, in units of ``sd`` (or of one).

    At Holm's strictest step over ``arms`` − 1 comparisons. None for fewer than two repetitions, which find nothing.
    """
    if repetitions < LEAST_REPETITIONS:
        return None
    alpha = (1 - CONFIDENCE) / max(1, arms - 1)
    return smallest_detectable_effect(1.0 if sd is None else sd, repetitions, power=POWER, alpha=alpha)


def spread(blocks: Mapping[Block, Values], control: str) -> float | None:
    """The standard deviation of one paired difference, pooled over blocks and arms; None where nothing repeats.

    Within each block and arm around its own mean; variances weighted by their degrees of freedom.
    """
    squares, freedom = 0.0, 0
    for values in blocks.values():
        against: Mapping[Hashable, float] = values.get(control, {})
        for arm, results in values.items():
            differences = [results[unit] - against[unit] for unit in results if unit in against]
            if arm != control and len(differences) >= LEAST_REPETITIONS:
                squares += float(np.var(differences, ddof=1)) * (len(differences) - 1)
                freedom += len(differences) - 1
    return math.sqrt(squares / freedom) if freedom and squares > 0 else None
