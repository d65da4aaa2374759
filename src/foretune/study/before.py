"""What a study's models are trained on first: the old version of the data, in a study of what a new version costs.

``before: {data: interface-en-de, rows: 400, steps: 60}`` trains the default LoRA on rows of that data set, folds it
into the weights and lets every arm begin there. The rows are drawn as `pools.PoolSettings` draws those of ``also``, so
that equal numbers are equal rows, and its test rows are never among them. A killed training goes on from its
checkpoint; what is done stays in the study's folder.

It does not choose a rate or judge the result: the untouched base in the tables is then the model trained so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from foretune.catalogue.methods import resolve
from foretune.catalogue.priors import DEFAULT_LORA
from foretune.config.spec import Count, ModelSettings, Section
from foretune.errors import TrainingError
from foretune.execution.drive import Stopped, Watch, run_job
from foretune.execution.orders import TrialOrder, subset
from foretune.execution.types import Executor, Job, TaskSpec
from foretune.files import MANIFEST
from foretune.fit.folder import RunFolder
from foretune.models.fetch import folder_of
from foretune.search.types import Lease, Observation
from foretune.study.pools import POOL_SEED

NAME = "before"
SEED = 0
"""One old model, whatever the seeds of the study."""
WATCHED_ROWS = 16
"""Validation rows scored at its end: a trial has to measure something."""


class BeforeSettings(Section):
    """Data that every model is trained on before the arms begin."""

    data: str
    """A file, a data set of the catalogue or of the hub."""
    rows: Annotated[Count, Field(ge=1)] | None = None
    """So many of its training rows, drawn once, instead of all."""
    steps: Annotated[Count, Field(ge=1)]
    """Optimiser steps."""
    rows_per_update: Annotated[Count, Field(ge=1)] = 8
    """Rows of a step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Of the default LoRA."""
    context_tokens: Annotated[Count, Field(ge=8)] | None = None
    """Longest row in tokens."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""


def trained_before(
    settings: BeforeSettings, models: Mapping[str, ModelSettings], root: Path, executor: Executor, watch: Watch
) -> dict[str, ModelSettings]:
    """``models`` with the sources of their trained versions under ``root``, made now where they are not there.

    Raises `Stopped` when told to, `TrainingError` where training fails, and what preparing and merging raise.
    """
    return {name: _made(settings, model, root / name, executor, watch) for name, model in models.items()}


def _made(
    settings: BeforeSettings, model: ModelSettings, root: Path, executor: Executor, watch: Watch
) -> ModelSettings:
    from foretune.export.merge import export_merged

    merged = root / "merged"
    if not (merged / MANIFEST).is_file():
        folder = RunFolder(root)
        task = TaskSpec.from_json(folder.once("prepared", lambda: _prepared(settings, model, folder)))
        adapter = (root / "adapter").resolve()
        folder.once("trained", lambda: _trained(settings, task, root, adapter, executor, watch))
        export_merged(folder_of(task.model.source, task.model.revision), adapter, merged)
    return model.model_copy(update={"source": str(merged.resolve())})


def _prepared(settings: BeforeSettings, model: ModelSettings, folder: RunFolder) -> dict[str, Any]:
    from foretune.fit.plan import plan
    from foretune.fit.prepare import prepare

    options = {
        "data.path": settings.data,
        **{f"model.{key}": value for key, value in model.model_dump(exclude_none=True).items()},
        "device": settings.device,
        **({} if settings.context_tokens is None else {"data.context_tokens": settings.context_tokens}),
    }
    return prepare(plan(options=options), folder, lambda line: None).task.to_json()


def _trained(
    settings: BeforeSettings, task: TaskSpec, root: Path, adapter: Path, executor: Executor, watch: Watch
) -> dict[str, Any]:
    """Train and export the adapter; the observation at its end."""
    rows, validation = (_count(Path(task.folder) / f"{split}.jsonl") for split in ("train", "validation"))
    taken = None if settings.rows is None or settings.rows >= rows else subset(settings.rows, rows, POOL_SEED)
    config = resolve(
        {**DEFAULT_LORA, "rows_per_update": settings.rows_per_update, "learning_rate": settings.learning_rate}
    )
    lease = Lease(NAME, 1, NAME, config, 0, settings.steps, 0.0, seed=SEED, horizon=settings.steps)
    run_folder = (root / "run").resolve()
    watched = tuple(range(min(WATCHED_ROWS, validation)))
    order = TrialOrder(lease, run_folder, {settings.steps: watched}, {}, train_rows=taken)
    watch.on_event("progress", {"line": f"training on {settings.data} first: {settings.steps:,} steps"})
    seen = Observation.from_json(run_job(executor, Job(NAME, "train", task, order.to_json()), watch))
    if seen.status == "paused":
        raise Stopped
    if seen.status != "ok":
        raise TrainingError(
            f"training on {settings.data} first ended as {seen.status} {seen.detail}.",
            remedy="Set before.learning_rate lower.",
        )
    loss = seen.metrics["loss"].value
    watch.on_event("progress", {"line": f"trained on {settings.data}: validation loss {loss:.3f}"})
    payload = {
        "output": str(adapter), "config": config, "seed": SEED, "run_folder": str(run_folder), "step": seen.step,
        "base": task.model.source,
    }  # fmt: skip
    run_job(executor, Job(f"{NAME}-export", "export", task, payload), watch)
    return seen.to_json()


def _count(path: Path) -> int:
    """Rows of a split."""
    return path.read_text(encoding="utf-8").count("\n")
