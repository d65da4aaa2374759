"""From a grid and its prepared tasks to cells: which rows, how many steps, at which learning rate.

A cell is one run. The cells of a pair differ in nothing but their arm: the same subset of training rows (smaller
sizes are contained in larger ones), the same order of rows, the same seed of every random stream, and the same
number of steps unless the arms differ in rows per update.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from foretune.catalogue.priors import learning_rate
from foretune.catalogue.selection import kept_rows
from foretune.errors import UsageError
from foretune.execution.orders import FinalTest, TrialOrder, subset
from foretune.execution.types import Job
from foretune.search.grid import Cell
from foretune.search.horizon import total_steps
from foretune.search.types import Lease
from foretune.study.grid import ALL, GridSpec
from foretune.study.tasks import StudyTask
from foretune.study.test_sets import split_name

CONFOUNDED = "learning-rate-confounded"
EPOCH_DIGITS = 4

Rates = Mapping[tuple[str, str, str], float]
"""Swept learning rates by (model, task, arm)."""


@dataclass(frozen=True)
class StudyCell:
    """One run of a study."""

    model: str
    task: str
    arm: str
    size: str
    """As in the grid: a number or ``all``"""
    rows: int
    """Training rows of this run"""
    seed: int
    pair: str
    """What the runs that are compared with each other share"""
    config: Mapping[str, Any]
    horizon: int
    tested: bool = True
    """Whether the test rows are answered at the end (not in a sweep)"""
    selection: Mapping[str, Any] | None = None
    """What choosing its rows took, once that is known (`study.selections`); None where all are trained on"""

    @property
    def block(self) -> tuple[str, str, str]:
        """(model, task, size): where seeds are repetitions of the same comparison."""
        return self.model, self.task, self.size

    @property
    def cell(self) -> Cell:
        """The cell as the searcher knows it."""
        return Cell(f"{self.model}:{self.task}:{self.size}", self.config, self.seed, self.horizon)


def rows_of(size: Any, task: StudyTask) -> int:
    """Training rows of a size. Raises `UsageError` where the task has fewer."""
    available = task.rows["train"]
    if size == ALL:
        return available
    if size > available:
        raise UsageError(
            f"task {task.name} has {available} training rows, and a size of {size} was asked for.",
            remedy=f"Use sizes up to {available}, or `all`.",
        )
    return int(size)


def steps_of(grid: GridSpec, config: Mapping[str, Any], rows: int, row_tokens: float) -> int:
    """Optimiser steps of a run over ``rows`` rows of about ``row_tokens`` tokens."""
    asked = grid.horizon.steps or total_steps(rows, {**config, "epochs": grid.horizon.epochs})
    asked = max(int(asked), grid.horizon.least_steps)
    if grid.horizon.tokens is None:
        return asked
    return max(1, min(asked, int(grid.horizon.tokens / (row_tokens * int(config["rows_per_update"])))))


def cell_of(
    grid: GridSpec, task: StudyTask, arm: str, size: Any, seed: int, rate: float | None, row_tokens: float
) -> StudyCell:
    """The run of an arm on a task; without a ``rate`` the arm's own, the shared one, or the rule's."""
    config = dict(task.arms[arm].config)
    rows = rows_of(size, task)
    kept = kept_rows(config, rows)
    steps = steps_of(grid, config, kept, row_tokens)
    rows_per_update = int(config["rows_per_update"])
    if rate is None:
        rate = grid.arms[arm].get("learning_rate") or grid.learning_rate.shared
    if rate is None:
        rate = rule_rate(task, config, steps)
    epochs = round(steps / -(-kept // rows_per_update), EPOCH_DIGITS)
    config |= {"learning_rate": float(rate), "epochs": max(epochs, 10.0**-EPOCH_DIGITS)}
    pair = f"{task.name}:{size}:{seed}"
    pair = pair if len(grid.model) == 1 else f"{task.model}:{pair}"
    return StudyCell(task.model, task.name, arm, str(size), rows, seed, pair, config, steps)


def rule_rate(task: StudyTask, config: Mapping[str, Any], steps: int) -> float:
    """The rate that the rule of the arm's method gives."""
    return learning_rate(
        str(config["method"]),
        width=task.width,
        kind=task.spec.model.kind,
        rows_per_update=int(config["rows_per_update"]),
        steps=steps,
    )


def cells(
    grid: GridSpec, tasks: Iterable[StudyTask], rates: Rates, row_tokens: Mapping[tuple[str, str], float]
) -> tuple[StudyCell, ...]:
    """All cells, size after size and seed after seed, so that what is done early are whole pairs and whole blocks.

    A study that ends early, or is looked at under way, thus has tables of its first sizes with all their seeds.
    """
    listed = list(tasks)
    return tuple(
        cell_of(grid, task, arm, size, seed, rates.get((model, task.name, arm)), row_tokens[model, task.name])
        for size in grid.sizes
        for model in grid.model
        for seed in grid.seeds
        for task in listed
        if task.model == model
        for arm in grid.arms
        if arm in task.arms
    )


def rate_label(grid: GridSpec) -> str:
    """Where the learning rates come from, in a phrase; a rate shared without a sweep is labelled as a confounder."""
    settings = grid.learning_rate
    own = [name for name, arm in grid.arms.items() if "learning_rate" in arm]
    if settings.swept:
        pilot = settings.pilot or next(iter(grid.tasks))
        listed = ", ".join(f"{rate:g}" for rate in settings.swept)
        times = " times the rule's rate" if settings.factors else ""
        if settings.per == "task":
            arms = " and ".join(settings.of or (grid.control,))
            return f"one for all arms of a task, swept over {listed}{times} with {arms}, chosen by validation loss"
        if settings.per == "arm-on-task":
            return f"swept for every arm on every task over {listed}{times}, chosen by validation loss"
        return f"swept per {settings.per} over {listed}{times} on {pilot}, chosen by validation loss"
    if len(own) == len(grid.arms):
        return "set for each arm in the grid"
    source = f"{settings.shared:g} for all arms" if settings.shared is not None else "by the rule of each arm's method"
    named = f", but {', '.join(own)} with its own" if own else ""
    return f"{source}{named}, not swept: {CONFOUNDED} (an arm may differ because this rate suits it better)"


def notes(grid: GridSpec) -> tuple[str, ...]:
    """What makes pairs less equal than they should be."""
    configs = {arm: grid.config(arm) for arm in grid.arms}
    if len({int(config["rows_per_update"]) for config in configs.values()}) == 1:
        return ()
    unit = "steps" if grid.horizon.steps else "rows"
    return (f"arms differ in rows_per_update: they train on equal {unit}, but not on equal batches.",)


def job(
    task: StudyTask,
    cell: StudyCell,
    lease: Lease,
    folder: Path,
    answers: Path,
    limit_s: float | None,
    *,
    checkpoints: bool = True,
) -> Job:
    """The worker's order for a lease on a cell."""
    grid_wants_rungs = task.best or not cell.tested
    rungs = lease.rungs if grid_wants_rungs else ()
    scored = tuple(range(task.rows["validation"]))
    further = {split_name(name): rows for name, rows in task.tests.items()}
    which: Literal["best", "last"] = "best" if task.best else "last"
    test = FinalTest(str(answers.resolve()), task.rows["test"], task.generation, which, further)
    order = TrialOrder(
        lease=replace(lease, rungs=rungs),
        folder=folder.resolve(),
        evaluation_rows={step: scored for step in (*rungs, lease.to_step)},
        metric_rows={},
        train_rows=None if cell.rows == task.rows["train"] else subset(cell.rows, task.rows["train"], cell.seed),
        test=test if cell.tested else None,
        selection_seed=cell.seed,
        checkpoints=checkpoints,
    )
    return Job(f"{lease.id}.{lease.attempt}", "train", task.spec, order.to_json(), limit_s)
