"""One prepared task folder per model and task of a study: read and split once, with the rows that will be measured.

Reading, splitting, labels and the layout that fits the machine are those of ``fit``. Validation and test rows are
drawn once for all runs; the pool of training rows likewise where the grid limits it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretune.catalogue.languages import distance, parse_pair
from foretune.config.spec import ModelSettings
from foretune.data.example import Example
from foretune.errors import BudgetError, Place, UsageError
from foretune.evaluation.metrics import metric
from foretune.execution.orders import subset
from foretune.execution.types import TaskSpec
from foretune.files import write_text
from foretune.fit.find_model import find_model
from foretune.fit.folder import RunFolder
from foretune.fit.history import model_features
from foretune.fit.plan import Plan, plan
from foretune.fit.prepare import Prepared, prepare
from foretune.fit.row_tokens import fertility
from foretune.packages import Progress
from foretune.study.arms import ModelArm, on_model
from foretune.study.grid import LIKELIHOODS, GridSpec, TaskSettings
from foretune.study.pools import prepare_pool
from foretune.study.test_sets import prepare_tests, split_name

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
    arms: Mapping[str, ModelArm]
    """What every arm is on this model; those it cannot have are absent"""
    left_out: Mapping[str, str]
    """Why an arm is absent, by its name"""
    covariates: Mapping[str, float]
    """Distance of the languages, token fertility, and what the grid says"""
    tests: Mapping[str, int] = field(default_factory=dict)
    """Rows of each further test set"""

    @property
    def translation(self) -> bool:
        """Whether rows are a text and its translation."""
        return self.spec.metric == "chrf"

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "spec": self.spec.to_json(),
            "arms": {name: arm.to_json() for name, arm in self.arms.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StudyTask:
        """The inverse of `to_json`."""
        arms = {name: ModelArm(**arm) for name, arm in value["arms"].items()}
        return cls(**{**value, "spec": TaskSpec.from_json(value["spec"]), "arms": arms})


def prepare_task(grid: GridSpec, model: str, name: str, folder: Path, progress: Progress) -> StudyTask:
    """Prepare a task of the grid under ``folder``. Raises as ``fit`` does on the same data and model."""
    arms, left_out = _arms(grid, model, name)
    made = plan(options=_options(grid, grid.model[model], grid.tasks[name], arms))
    if not made.fits:
        raise BudgetError(f"{model} does not fit: {made.notes[-1]}.", remedy="Choose a smaller model or smaller arms.")
    prepared = prepare(made, RunFolder(folder), progress)
    limits = {
        "train": grid.tasks[name].train_rows,
        "validation": grid.evaluation.validation_rows,
        "test": grid.evaluation.test_rows,
    }
    _limit(folder / "task" / "train.jsonl", limits["train"])
    if grid.tasks[name].target_rows is not None:
        _limit(folder / "task" / "target.jsonl", grid.tasks[name].target_rows)
    prepare_pool(grid.tasks[name].pool, made.resolution.spec, prepared.task.task, folder / "task")
    _write_tests(grid, name, made, prepared)
    rows = {split: _limit(folder / "task" / f"{split}.jsonl", limits[split]) for split in ("validation", "test")}
    rows["train"] = _limit(folder / "task" / "train.jsonl", None)
    primary = _primary(grid, prepared.task, Place(str(grid.tasks[name].path)))
    return StudyTask(
        name=name,
        model=model,
        spec=prepared.task,
        rows=rows,
        primary=primary,
        generation=_generation(grid, prepared.task, primary),
        best=grid.evaluation.checkpoint == "best",
        width=made.model.shapes.width,
        facts={
            **prepared.facts,
            "model": {"name": Path(made.model.source).name, **model_features(made.model.shapes)},
        },
        arms=arms,
        left_out=left_out,
        covariates=_covariates(
            grid.tasks[name], made.rows.result.examples if made.rows.result else (), made.model.tokenizer
        ),
        tests={
            test: _limit(folder / "task" / f"{split_name(test)}.jsonl", limits["test"])
            for test in grid.tasks[name].tests
        },
    )


def _write_tests(grid: GridSpec, name: str, made: Plan, prepared: Prepared) -> None:
    """The further test sets of a task, without rows that are trained on."""
    settings = grid.tasks[name]
    prefix = str(prepared.facts["instruction"])
    prepare_tests(settings.tests, (settings.path, settings.pool.also), made.resolution.spec, prepared.task, prefix)


def _arms(grid: GridSpec, model: str, task: str) -> tuple[dict[str, ModelArm], dict[str, str]]:
    """Every arm of a task on a model, and why some cannot be had. Raises `UsageError` for one that was written out."""
    settings = grid.model[model]
    shapes = find_model(settings.source, revision=settings.revision).shapes
    arms: dict[str, ModelArm] = {}
    left_out: dict[str, str] = {}
    for name in grid.arms_on(task):
        try:
            found = on_model(grid.config(name), grid.share(name), shapes)
        except UsageError as error:
            if name not in grid.product or name == grid.control:
                raise UsageError(f"arm {name} on {model}: {error.what}", remedy=error.remedy) from error
            left_out[name] = error.what
            continue
        if twin := next((other for other, arm in arms.items() if arm.config == found.config), None):
            if name not in grid.product:
                raise UsageError(f"arm {name} on {model} is the same as {twin}.", remedy="Give them other shares.")
            left_out[name] = f"on this model it is the same as {twin}"
            continue
        arms[name] = found
    return arms, left_out


def _covariates(task: TaskSettings, rows: Sequence[Example], tokenizer: Path | None) -> dict[str, float]:
    """What fitted rules may depend on."""
    found: dict[str, float] = {}
    if task.languages is not None:
        source, target = parse_pair(task.languages)
        between = distance(source, target)
        if between is not None:
            found["distance"] = between
        found |= fertility(rows, tokenizer)
    return {**found, **task.covariates}


def _options(grid: GridSpec, model: ModelSettings, task: TaskSettings, arms: Mapping[str, ModelArm]) -> dict[str, Any]:
    """The settings of a ``fit`` on the same data and model, with the arm that takes most memory."""
    heaviest = max(arms.values(), key=lambda arm: arm.trainable).config
    apart = {"train_rows", "target_rows", "columns", "covariates", "pool", "tests"}
    data = task.model_dump(exclude=apart, exclude_none=True)
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
