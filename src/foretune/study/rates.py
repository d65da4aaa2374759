"""The learning rate of every arm from the sweep on the pilot task: lowest mean validation loss over the sweep's seeds.

A rate counts only when all of its seeds ended well: one that sometimes diverges is not a rate to use. Where the best
rate lies at an end of those tried, the sweep is widened by one step of its own spacing, as often as the grid allows;
a best rate that still lies at an end is used, and said, because a better one may lie beyond it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from foretune.catalogue.priors import rounded
from foretune.errors import TrainingError
from foretune.study.design import swept_arms
from foretune.study.grid import GridSpec
from foretune.study.results import FINISHED, Line
from foretune.study.tasks import StudyTask

Key = tuple[str, str]
"""(model, arm)"""
HIGHEST_RATE = 1.0


def chosen_rates(
    grid: GridSpec, lines: Sequence[Line], deciding: Mapping[Key, str]
) -> tuple[dict[Key, float], list[str]]:
    """The chosen rate by (model, arm), and remarks. Raises `TrainingError` for an arm that ended well at no rate.

    ``deciding`` names for every (model, arm) the arm whose sweep decides.
    """
    chosen: dict[Key, float] = {}
    remarks = []
    for (model, arm), swept in deciding.items():
        own = [entry for entry in lines if (entry["model"], entry["arm"]) == (model, swept)]
        losses = losses_by_rate(own)
        if not losses:
            how = f"{own[0]['status']} {own[0]['detail']}".strip() if own else "it was not tried"
            raise TrainingError(
                f"arm {swept} ended well at none of the swept learning rates ({how}).",
                remedy="Sweep smaller rates, or look at the logs in the study's folder.",
            )
        chosen[model, arm] = best_rate(losses)
        if arm == swept and (end := _end(own, chosen[model, arm])):
            where = f"arm {arm}" if len(grid.model) == 1 else f"arm {arm} on {model}"
            remarks.append(f"{where}: the best swept learning rate, {chosen[model, arm]:g}, is the {end}; "
                           "sweep beyond it.")  # fmt: skip
    return chosen, remarks


def deciding_arms(grid: GridSpec, tasks: Iterable[StudyTask]) -> dict[Key, str]:
    """For every (model, arm) the arm whose sweep decides its rate."""
    pilot = grid.learning_rate.pilot or next(iter(grid.tasks))
    return {
        (task.model, arm): swept
        for task in tasks
        if task.name == pilot
        for arm, swept in swept_arms(grid, task).items()
    }


def widened(lines: Sequence[Line]) -> dict[Key, float]:
    """One further rate for every swept (model, arm) whose best rate lies at an end of those tried."""
    further: dict[Key, float] = {}
    for key in dict.fromkeys((entry["model"], entry["arm"]) for entry in lines):
        own = [entry for entry in lines if (entry["model"], entry["arm"]) == key]
        losses = losses_by_rate(own)
        tried = sorted({float(entry["config"]["learning_rate"]) for entry in own})
        if not losses or len(tried) < 2:
            continue
        best = best_rate(losses)
        if best == tried[0]:
            further[key] = rounded(best * tried[0] / tried[1])
        elif best == tried[-1] and best * tried[-1] / tried[-2] <= HIGHEST_RATE:
            further[key] = rounded(best * tried[-1] / tried[-2])
    return further


def best_rate(losses: Mapping[float, float]) -> float:
    """The rate of lowest loss; the smaller of equals."""
    return min(losses, key=lambda rate: (losses[rate], rate))


def losses_by_rate(lines: Sequence[Line]) -> dict[float, float]:
    """Mean validation loss by rate, over the rates whose runs all ended well."""
    by_rate: dict[float, list[Line]] = {}
    for entry in lines:
        by_rate.setdefault(float(entry["config"]["learning_rate"]), []).append(entry)
    return {
        rate: fmean(entry["scores"]["validation"]["loss"][0] for entry in runs)
        for rate, runs in by_rate.items()
        if all(entry["status"] == FINISHED for entry in runs)
    }


def _end(lines: Sequence[Line], best: float) -> str:
    """``smallest`` or ``largest`` where the best rate is an end of those tried."""
    tried = [float(entry["config"]["learning_rate"]) for entry in lines]
    return "smallest" if best == min(tried) else "largest" if best == max(tried) else ""
