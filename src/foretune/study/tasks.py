"""One prepared task folder per model and task of a study: read and split once, with the rows that will be measured.

Reading, splitting, labels and the layout that fits the machine are those of ``fit``. Validation and test rows are
drawn once for all runs; the pool of training rows likewise where the grid limits it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foretune.config.spec import ModelSettings
from foretune.errors import BudgetError, Place, UsageError
from foretune.evaluation.metrics import metric
from foretune.execution.orders import subset
from foretune.execution.types import SPLITS, TaskSpec
from foretune.files import write_text
from foretune.fit.folder import RunFolder
from foretune.fit.plan import plan
from foretune.fit.prepare import prepare
from foretune.packages import Progress
from foretune.study.grid import LIKELIHOODS, GridSpec, TaskSettings

DRAW_SEED = 0
"""Which rows are validated and tested is the same for every seed of a study."""


@dataclass(frozen=True)
class StudyTask:
    """A task under one model, ready for workers."""

    name: str
    model: str
    spec: TaskSpec
    rows: Mapping[str, int]
    """Rows of each split, after limits"""
    primary: str
    """The metric that decides on this task"""
    generation: bool
    best: bool
    """Whether the checkpoint of lowest validation loss is tested, not the last"""
    width: int
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back."""
        return {**asdict(self), "spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StudyTask:
        """The inverse of `to_json`."""
        return cls(**{**value, "spec": TaskSpec.from_json(value["spec"])})


def prepare_task(grid: GridSpec, model: str, name: str, folder: Path, progress: Progress) -> StudyTask:
    """Prepare a task of the grid under ``folder``. Raises as ``fit`` does on the same data and model."""
    made = plan(options=_options(grid, grid.model[model], grid.tasks[name]))
    if not made.fits:
        raise BudgetError(f"{model} does not fit: {made.notes[-1]}.", remedy="Choose a smaller model or smaller arms.")
    prepared = prepare(made, RunFolder(folder), progress)
    limits = {
        "train": grid.tasks[name].train_rows,
        "validation": grid.evaluation.validation_rows,
        "test": grid.evaluation.test_rows,
    }
    rows = {split: _limit(folder / "task" / f"{split}.jsonl", limits[split]) for split in SPLITS}
    primary = _primary(grid, prepared.task, Place(str(grid.tasks[name].path)))
    shapes = made.model.shapes
    return StudyTask(
        name=name,
        model=model,
        spec=prepared.task,
        rows=rows,
        primary=primary,
        generation=_generation(grid, prepared.task, primary),
        best=grid.evaluation.checkpoint == "best",
        width=shapes.width,
        facts={
            **prepared.facts,
            "model": {
                "name": Path(made.model.source).name,
                "kind": shapes.kind,
                "family": shapes.architecture,
                "parameters": shapes.parameters,
                "width": shapes.width,
                "layers": shapes.layers,
                "vocabulary": shapes.vocabulary,
            },
        },
    )


def _options(grid: GridSpec, model: ModelSettings, task: TaskSettings) -> dict[str, Any]:
    """The settings of a ``fit`` on the same data and model, with the arm that takes most memory."""
    heaviest = max(
        (grid.config(arm) for arm in grid.arms), key=lambda c: (c["method"] == "full", c.get("lora.rank", 0))
    )
    data = task.model_dump(exclude={"train_rows", "columns"}, exclude_none=True)
    columns = task.columns.model_dump(exclude_none=True)
    return {
        **{f"data.{key}": value for key, value in data.items()},
        **{f"data.columns.{key}": value for key, value in columns.items()},
        **{f"model.{key}": value for key, value in model.model_dump(exclude_none=True).items()},
        **{f"training.{key}": value for key, value in heaviest.items()},
        "evaluation.max_answer_tokens": grid.evaluation.max_answer_tokens,
        "device": grid.device,
    }


def _limit(path: Path, most: int | None) -> int:
    """Keep at most so many rows of a split, drawn once; returns how many there are."""
    # not splitlines: a row's text may hold other line separators, which JSON leaves as they are
    lines = [f"{line}\n" for line in path.read_text(encoding="utf-8").split("\n") if line]
    if most is None or most >= len(lines):
        return len(lines)
    write_text(path, "".join(lines[i] for i in subset(most, len(lines), DRAW_SEED)))
    return most


def _primary(grid: GridSpec, task: TaskSpec, place: Place) -> str:
    name = task.metric if grid.primary == "metric" else metric(grid.primary).name
    if name in LIKELIHOODS and task.task == "regression":
        raise UsageError("a regression has no loss that is compared here.", place=place, remedy="Set primary: metric.")
    return name


def _generation(grid: GridSpec, task: TaskSpec, primary: str) -> bool:
    """Whether answers are written; raises `UsageError` where the outcome needs what the grid or the task forbids."""
    possible = task.model.kind != "encoder" and task.task != "language-modelling"
    needed = primary not in LIKELIHOODS and metric(primary).needs_generation
    if needed and task.model.kind != "encoder" and (not possible or grid.evaluation.generation is False):
        raise UsageError(
            f"the outcome {primary} needs generated answers, which "
            + ("this task has none of." if not possible else "evaluation.generation: false leaves out."),
            remedy="Set primary: loss, or let answers be generated.",
        )
    return possible and (needed if grid.evaluation.generation is None else grid.evaluation.generation)
