"""Gaps between efficient arms and full tuning, run by run: what rules, findings and charts are made from.

A gap compares two runs of one pair (same model, task, size, seed, rows and order) and is positive where the arm is
worse, whatever the metric's direction. The reference is the arm of method ``full``; without one, or where the
control is one, the control.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from foretune.study.grid import GridSpec
from foretune.study.results import Line

FULL = "full"


@dataclass(frozen=True)
class Gap:
    """One arm against the reference in one pair."""

    model: str
    task: str
    rows: int
    seed: int
    arm: str
    method: str
    share: float
    """Trained share of the parameters"""
    parameters: int
    value: float
    """How much worse than the reference, in the outcome's unit"""
    score: float
    reference: float
    distance: float | None
    fertility: float | None

    @property
    def log_share(self) -> float:
        """log10 of the trained share."""
        return math.log10(self.share)

    @property
    def log_rows(self) -> float:
        """log10 of the training rows."""
        return math.log10(self.rows)


def reference_arm(grid: GridSpec) -> str:
    """The arm that gaps are measured from: the control, unless it is no full tuning and another arm is."""
    full = [arm for arm in grid.arms if grid.config(arm)["method"] == FULL and grid.share(arm) is None]
    return full[0] if full and grid.control not in full else grid.control


def outcome(entry: Line) -> float | None:
    """A run's primary outcome on the test rows, or None."""
    score: Mapping[str, Sequence[float]] = entry["scores"].get("test", {})
    return float(score[entry["primary"]][0]) if entry["primary"] in score else None


def gaps(lines: Sequence[Line], reference: str) -> list[Gap]:
    """Every finished run of another arm against the reference run of its pair."""
    at = {(e["model"], e["task"], e["size"], e["seed"]): e for e in lines if e["arm"] == reference}
    found = []
    for entry in lines:
        against = at.get((entry["model"], entry["task"], entry["size"], entry["seed"]))
        if entry["arm"] == reference or against is None or not entry["trainable"]:
            continue
        score, other = outcome(entry), outcome(against)
        if score is None or other is None:
            continue
        sign = 1.0 if entry["direction"] == "lower" else -1.0
        found.append(Gap(
            model=entry["model"], task=entry["task"], rows=int(entry["rows"]), seed=int(entry["seed"]),
            arm=entry["arm"], method=str(entry["config"]["method"]),
            share=entry["trainable"] / entry["parameters"], parameters=int(entry["parameters"]),
            value=sign * (score - other), score=score, reference=other,
            distance=entry["covariates"].get("distance"), fertility=entry["covariates"].get("fertility"),
        ))  # fmt: skip
    return found


def by_method(found: Iterable[Gap]) -> dict[str, list[Gap]]:
    """Gaps of every efficient method, in order of appearance."""
    methods: dict[str, list[Gap]] = {}
    for gap in found:
        if gap.method != FULL:
            methods.setdefault(gap.method, []).append(gap)
    return methods


def distances_of(found: Iterable[Gap]) -> dict[str, float | None]:
    """The distance of every task."""
    return {gap.task: gap.distance for gap in found}


def budget_points(found: Iterable[Gap]) -> dict[str, list[tuple[float, float]]]:
    """By task: (log10 of the trained share, gap), averaged over seeds, sizes and models of one arm.

    Of several methods each is moved to the task's mean: that one method has larger shares and smaller gaps than another
    says nothing of what a larger share does.
    """
    cells: dict[str, dict[str, dict[str, list[Gap]]]] = {}
    for gap in found:
        cells.setdefault(gap.task, {}).setdefault(gap.method, {}).setdefault(gap.arm, []).append(gap)
    return {task: _moved([_arm_means(arms) for arms in methods.values()]) for task, methods in cells.items()}


def _arm_means(arms: Mapping[str, Sequence[Gap]]) -> NDArray[np.float64]:
    """(arms, 2): mean log10 share and mean gap."""
    return np.asarray([[fmean(g.log_share for g in own), fmean(g.value for g in own)] for own in arms.values()])


def _moved(methods: Sequence[NDArray[np.float64]]) -> list[tuple[float, float]]:
    middle = np.concatenate(methods).mean(axis=0)
    moved = np.concatenate([points - points.mean(axis=0) + middle for points in methods])
    return [(float(x), float(y)) for x, y in (moved if len(methods) > 1 else methods[0])]


def size_points(found: Iterable[Gap]) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """By (task, seed), which share rows between sizes and models: (log10 of the rows, mean gap over both and arms)."""
    cells: dict[tuple[str, int], dict[float, list[float]]] = {}
    for gap in found:
        cells.setdefault((gap.task, gap.seed), {}).setdefault(gap.log_rows, []).append(gap.value)
    return {key: [(x, fmean(v)) for x, v in sizes.items()] for key, sizes in cells.items()}


def by_repetition(found: Iterable[Gap]) -> dict[tuple[str, int], float]:
    """The mean gap of every (task, seed), which share rows between sizes and models."""
    cells: dict[tuple[str, int], list[float]] = {}
    for gap in found:
        cells.setdefault((gap.task, gap.seed), []).append(gap.value)
    return {key: fmean(values) for key, values in cells.items()}
