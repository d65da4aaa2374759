"""The runs of a task list, in the order in which they are trained, and what each is called in the experience.

A run's id follows from what defines it (data, model, configuration, seed, steps): any number of collectors, in any
folders and sessions, mean the same run by it, and none is trained twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.catalogue.regularizers import NONE, SETTING
from foretune.catalogue.regularizers import check_kind as check_regularizers
from foretune.catalogue.selection import check_kind as check_selectors
from foretune.collect.design import Draw, Setting, planned
from foretune.collect.task_list import TaskList
from foretune.errors import UsageError
from foretune.execution.orders import FinalTest, TrialOrder, subset
from foretune.execution.types import Job
from foretune.files import fingerprint
from foretune.fit.effort import ANSWERED_RUNGS
from foretune.fit.folder import RunFolder
from foretune.fit.schedule import Speeds
from foretune.search.fidelity import rungs
from foretune.search.types import Lease
from foretune.study.tasks import StudyTask


@dataclass(frozen=True)
class CollectedTask:
    """A prepared task with what the probe measured on it."""

    task: StudyTask
    folder: RunFolder
    probe: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """The data as it is used: content and rows of each split."""
        return fingerprint([self.task.facts["profile"]["fingerprint"], dict(self.task.rows)])

    @property
    def model(self) -> str:
        """The fingerprint of the model's weights, as ``fit`` stores it."""
        return str(self.probe["weights_hash"])[:16]

    @property
    def speeds(self) -> Speeds:
        """What the probe measured."""
        return Speeds.of(self.probe)


@dataclass(frozen=True)
class Cell:
    """One run to be trained."""

    run: str
    task: CollectedTask
    draw: Draw
    config: Mapping[str, Any]
    horizon: int

    @property
    def rungs(self) -> tuple[int, ...]:
        """The steps at which it is measured."""
        return rungs(self.horizon)

    def answered(self, rows: int) -> dict[int, tuple[int, ...]]:
        """The validation rows answered for the task's metric, by step: all of them where answers cost nothing."""
        task = self.task.task
        every = tuple(range(task.rows["validation"]))
        if task.spec.metric == "loss":
            return {}
        if task.spec.model.kind == "encoder":
            return dict.fromkeys(self.rungs, every)
        if not task.generation or rows == 0:
            return {}
        drawn = subset(min(rows, len(every)), len(every), task.spec.seed)
        return dict.fromkeys(self.rungs[-ANSWERED_RUNGS:], drawn)

    def seconds(self, answered_rows: int) -> float:
        """Forecast seconds on one worker, from the probe's speeds for the default LoRA."""
        task, speeds = self.task.task, self.task.speeds
        trained = self.horizon * int(self.config["rows_per_update"]) / speeds.train_rows_per_s
        scored = (len(self.rungs) * task.rows["validation"] + task.rows["test"]) / speeds.score_rows_per_s
        written = sum(map(len, self.answered(answered_rows).values())) + task.rows["test"]
        return trained + scored + (written * speeds.answer_s if task.generation else 0.0)


def cells(listed: TaskList, tasks: Sequence[CollectedTask]) -> tuple[Cell, ...]:
    """All runs: a stretch of configurations on every task before the next stretch, so that any first part is balanced.

    Raises `UsageError` for a configuration that cannot be made here.
    """
    return tuple(_cells(listed, tasks))


def possible(draw: Draw, kind: str) -> bool:
    """Whether what a draw names works with a kind of model: what does not is no run of the list, and no failure."""
    try:
        check_regularizers(str(draw.settings.get(SETTING, NONE)), kind)
        check_selectors(str(draw.settings.get("selection", NONE)), kind)
    except UsageError:
        return False
    return True


def _cells(listed: TaskList, tasks: Sequence[CollectedTask]) -> Iterator[Cell]:
    kinds = {task.task.spec.model.kind for task in tasks}
    draws = [draw for draw in listed.draws() if all(possible(draw, kind) for kind in kinds)]
    for start in range(0, len(draws), listed.stretch):
        for task in tasks:
            for draw in draws[start : start + listed.stretch]:
                yield _cell(listed, task, draw)


def _cell(listed: TaskList, collected: CollectedTask, draw: Draw) -> Cell:
    task = collected.task
    setting = Setting(
        width=task.width,
        kind=task.spec.model.kind,
        train_rows=task.rows["train"],
        row_tokens=float(collected.probe["mean_row_tokens"]),
        tokens=listed.tokens,
        rows_per_update=listed.rows_per_update,
        raised_rates=listed.raised_rates,
    )
    made = planned(draw, setting)
    # not the whole configuration: a setting that a later version adds, at its neutral default, is the same run
    asked = {key: made.config[key] for key in ("learning_rate", "rows_per_update", *sorted(draw.settings))}
    identity = [collected.fingerprint, collected.model, asked, draw.seed, made.horizon]
    return Cell(f"{listed.name}.{fingerprint(identity)}", collected, draw, made.config, made.horizon)


def job(cell: Cell, attempt: int, folder: RunFolder, answered_rows: int) -> Job:
    """The worker's order for a run: every rung scored, the test rows at the end, no checkpoints."""
    task = cell.task.task
    lease = Lease(
        id=cell.run,
        attempt=attempt,
        run=cell.run,
        config=cell.config,
        from_step=0,
        to_step=cell.horizon,
        seconds=cell.seconds(answered_rows),
        seed=cell.draw.seed,
        rungs=cell.rungs,
        horizon=cell.horizon,
    )
    answers = folder.answers / f"{cell.run}.json"
    order = TrialOrder(
        lease=lease,
        folder=folder.trial(cell.run).resolve(),
        evaluation_rows=dict.fromkeys(cell.rungs, tuple(range(task.rows["validation"]))),
        metric_rows=cell.answered(answered_rows),
        test=FinalTest(str(answers.resolve()), task.rows["test"], task.generation, "best"),
        checkpoints=False,
    )
    return Job(f"{cell.run}.{attempt}", "train", task.spec, order.to_json())
