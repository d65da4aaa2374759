"""Where an arm's learning rate comes from: the sweep that decides it, and its rate of lowest mean validation loss.

A sweep is the runs of one arm on the pilot task, or of a few arms on a task, over rates and seeds. A rate counts only
when all of its runs ended well: one that sometimes diverges is not a rate to use. Where the best rate lies at an end of
those tried, the sweep is widened by one step of its own spacing, as often as the grid allows; a best rate that still
lies at an end is used, and said, because a better one may lie beyond it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from foretune.catalogue.priors import rounded
from foretune.errors import TrainingError
from foretune.study.design import StudyCell, cell_of, rows_of, rule_rate, steps_of
from foretune.study.grid import GridSpec
from foretune.study.results import FINISHED, Line
from foretune.study.tasks import StudyTask

Key = tuple[str, str, str]
"""(model, task, arm)"""
HIGHEST_RATE = 1.0


@dataclass(frozen=True)
class Sweep:
    """The runs that decide a rate: these arms of a model on a task, at every rate and seed of the sweep."""

    model: str
    task: str
    arms: tuple[str, ...]

    def of(self, lines: Sequence[Line]) -> list[Line]:
        """Its lines."""
        return [e for e in lines if (e["model"], e["task"]) == (self.model, self.task) and e["arm"] in self.arms]

    def named(self, grid: GridSpec) -> str:
        """What to call it in a sentence."""
        per = grid.learning_rate.per
        what = f"task {self.task}" if per == "task" else f"arm {self.arms[0]}"
        what += f" on {self.task}" if per == "arm-on-task" else ""
        return what if len(grid.model) == 1 else f"{what} on {self.model}"


def deciding(grid: GridSpec, tasks: Iterable[StudyTask]) -> dict[Key, Sweep]:
    """For every (model, task, arm) the sweep that decides its rate; empty where nothing is swept."""
    settings, listed = grid.learning_rate, list(tasks)
    if not settings.swept:
        return {}
    if settings.per == "task":
        return {(t.model, t.name, arm): Sweep(t.model, t.name, settings.of or (grid.control,)) for t in listed
                for arm in t.arms}  # fmt: skip
    if settings.per == "arm-on-task":
        return {(t.model, t.name, arm): Sweep(t.model, t.name, (arm,)) for t in listed for arm in t.arms}
    pilot = settings.pilot or next(iter(grid.tasks))
    swept = {task.model: _swept_arms(grid, task) for task in listed if task.name == pilot}
    return {
        (task.model, task.name, arm): Sweep(task.model, pilot, (swept[task.model][arm],))
        for task in listed
        for arm in task.arms
    }


def _swept_arms(grid: GridSpec, task: StudyTask) -> dict[str, str]:
    """By arm the arm whose sweep decides its rate: itself, or the middle arm of its method."""
    if grid.learning_rate.per == "arm":
        return {arm: arm for arm in task.arms}
    by_method: dict[str, list[str]] = {}
    for arm, found in task.arms.items():
        by_method.setdefault(str(found.config["method"]), []).append(arm)
    return {arm: arms[(len(arms) - 1) // 2] for arms in by_method.values() for arm in arms}


def sweep_cells(
    grid: GridSpec,
    tasks: Iterable[StudyTask],
    row_tokens: Mapping[tuple[str, str], float],
    sweeps: Iterable[Sweep],
    further: Mapping[Sweep, float] | None = None,
) -> tuple[StudyCell, ...]:
    """The runs of ``sweeps``, which choose learning rates by validation rows alone.

    ``further`` asks for one more rate for some of them instead: the rounds that widen a sweep.
    """
    settings = grid.learning_rate
    prepared = {(task.model, task.name): task for task in tasks}
    found = []
    for sweep in dict.fromkeys(sweeps):
        task, tokens = prepared[sweep.model, sweep.task], row_tokens[sweep.model, sweep.task]
        for arm in sweep.arms:
            if further is None:
                rates = _rates_to_try(grid, task, arm, tokens)
            else:
                rates = [further[sweep]] if sweep in further else []
            for rate in rates:
                found += [cell_of(grid, task, arm, settings.size, seed, rate, tokens) for seed in settings.seeds]
    return tuple(replace(cell, pair=f"{cell.pair}:{cell.config['learning_rate']:g}", tested=False) for cell in found)


def _rates_to_try(grid: GridSpec, task: StudyTask, arm: str, tokens: float) -> list[float]:
    settings = grid.learning_rate
    if settings.factors is None:
        return list(settings.sweep or ())
    config = task.arms[arm].config
    steps = steps_of(grid, config, rows_of(settings.size, task), tokens)
    return [rounded(factor * rule_rate(task, config, steps)) for factor in settings.factors]


def chosen_rates(
    grid: GridSpec, lines: Sequence[Line], sweeps: Mapping[Key, Sweep]
) -> tuple[dict[Key, float], list[str]]:
    """The chosen rate by (model, task, arm), and remarks. Raises `TrainingError` where none ended well at any rate.

    ``sweeps`` is what `deciding` gives.
    """
    best: dict[Sweep, float] = {}
    remarks = []
    for sweep in dict.fromkeys(sweeps.values()):
        own = sweep.of(lines)
        losses = losses_by_rate(own)
        if not losses:
            how = f"{own[0]['status']} {own[0]['detail']}".strip() if own else "it was not tried"
            raise TrainingError(
                f"{sweep.named(grid)} ended well at none of the swept learning rates ({how}).",
                remedy="Sweep smaller rates, or look at the logs in the study's folder.",
            )
        best[sweep] = best_rate(losses)
        if end := _end(own, best[sweep]):
            remarks.append(f"{sweep.named(grid)}: the best swept learning rate, {best[sweep]:g}, is the {end}; "
                           "sweep beyond it.")  # fmt: skip
    return {key: best[sweep] for key, sweep in sweeps.items()}, remarks


def widened(lines: Sequence[Line], sweeps: Iterable[Sweep]) -> dict[Sweep, float]:
    """One further rate for every sweep whose best rate lies at an end of those tried."""
    further: dict[Sweep, float] = {}
    for sweep in dict.fromkeys(sweeps):
        own = sweep.of(lines)
        losses = losses_by_rate(own)
        tried = sorted({float(entry["config"]["learning_rate"]) for entry in own})
        if not losses or len(tried) < 2:
            continue
        best = best_rate(losses)
        if best == tried[0]:
            further[sweep] = rounded(best * tried[0] / tried[1])
        elif best == tried[-1] and best * tried[-1] / tried[-2] <= HIGHEST_RATE:
            further[sweep] = rounded(best * tried[-1] / tried[-2])
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
