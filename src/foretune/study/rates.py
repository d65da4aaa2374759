"""The learning rate of every arm from the sweep on the pilot task: lowest mean validation loss over the sweep's seeds.

A rate counts only when all of its seeds ended well: one that sometimes diverges is not a rate to use. A best rate at
the end of the list is used, and said, because a better one may lie beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from foretune.errors import TrainingError
from foretune.study.grid import GridSpec
from foretune.study.results import FINISHED, Line


def chosen_rates(grid: GridSpec, lines: Sequence[Line]) -> tuple[dict[tuple[str, str], float], list[str]]:
    """The chosen rate by (model, arm), and remarks. Raises `TrainingError` for an arm that ended well at no rate."""
    swept = sorted(grid.learning_rate.sweep or ())
    chosen: dict[tuple[str, str], float] = {}
    remarks = []
    for model in grid.model:
        for arm in grid.arms:
            losses = _losses([entry for entry in lines if (entry["model"], entry["arm"]) == (model, arm)])
            if not losses:
                failed = next(entry for entry in lines if (entry["model"], entry["arm"]) == (model, arm))
                how = f"{failed['status']} {failed['detail']}".strip()
                raise TrainingError(
                    f"arm {arm} ended well at none of the swept learning rates ({how}).",
                    remedy="Sweep smaller rates, or look at the logs in the study's folder.",
                )
            best = min(losses, key=lambda rate: (losses[rate], rate))
            chosen[model, arm] = best
            if best in (swept[0], swept[-1]):
                end = "smallest" if best == swept[0] else "largest"
                remarks.append(f"arm {arm}: the best swept learning rate, {best:g}, is the {end}; sweep beyond it.")
    return chosen, remarks


def _losses(lines: Sequence[Line]) -> dict[float, float]:
    """Mean validation loss by rate, over the rates whose runs all ended well."""
    by_rate: dict[float, list[Line]] = {}
    for entry in lines:
        by_rate.setdefault(float(entry["config"]["learning_rate"]), []).append(entry)
    return {
        rate: fmean(entry["scores"]["validation"]["loss"][0] for entry in runs)
        for rate, runs in by_rate.items()
        if all(entry["status"] == FINISHED for entry in runs)
    }
