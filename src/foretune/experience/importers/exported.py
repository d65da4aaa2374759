"""A folder written by ``foretune experience export``: another machine's store, or what ships with Foretune."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from foretune.experience.importers.base import ImportedRun, Subject
from foretune.experience.past import BASE, Point, past_runs
from foretune.experience.records import RunRecord, Seen


def read(folder: Path) -> Iterator[ImportedRun]:
    """Its runs, with their ids: a run that is in both stores is the same run. Raises `StoreError`."""
    for run in past_runs(folder):
        yield ImportedRun(
            record=RunRecord(
                id=run.run, task=run.task, model=run.model, hardware=run.hardware, config="", seed=run.seed,
                horizon=run.horizon, arm=run.arm, study=run.study, pair=run.pair,
                versions=run.versions,
            ),
            task=Subject(run.task, run.task_features),
            model=Subject(run.model, run.model_features),
            hardware=Subject(run.hardware, run.hardware_features),
            config=run.config,
            seen=tuple(_seen(point) for point in run.points),
            status=run.status,
            peak_bytes=run.peak_bytes,
        )  # fmt: skip


def _seen(point: Point) -> Seen:
    base = {f"{BASE}{name}": score for name, score in point.base.items()}
    return Seen(
        point.step, point.split, {**point.metrics, **base}, point.train_s, point.eval_s, point.tokens,
        point.train_cpu_s, point.eval_cpu_s,
    )  # fmt: skip
