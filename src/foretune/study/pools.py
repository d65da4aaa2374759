"""Pools that selection is tried on: with wrong answers, with duplicates, mixed with another data set.

What is done to the training rows of a prepared task is done once, from one seed, for all runs. Another data set is
read and split as the task's own is, so that its test rows were never in the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from foretune.config.spec import Count, FitSpec, Section, Share
from foretune.data.example import Example, Turn
from foretune.errors import DataError, Place
from foretune.execution.orders import subset
from foretune.files import read_lines
from foretune.fit.prepare import read_and_split, write_split
from foretune.seeding import generator

POOL_SEED = 0
"""The pool is the same for every seed of a study."""


class PoolSettings(Section):
    """What is done to the training rows before anything is selected."""

    shuffled_answers: Share = 0.0
    """Share of the rows whose answers change places among them, so that they are wrong."""
    duplicates: Share = 0.0
    """Share of the rows that are replaced by copies of others; the pool keeps its size."""
    also: str | None = None
    """Another data set whose training rows join the pool."""
    also_rows: Annotated[Count, Field(ge=1)] | None = None
    """So many of them, drawn once, instead of all."""
    also_is_previous: bool = False
    """The other data set is what the model was trained on before: its training rows are the previous data."""

    @model_validator(mode="after")
    def _other_is_named(self) -> PoolSettings:
        if self.also is None and (self.also_rows or self.also_is_previous):
            raise ValueError("also: no other data set is named")
        return self


def prepare_pool(settings: PoolSettings, spec: FitSpec, task: str, folder: Path) -> None:
    """Change ``train.jsonl`` (and what else ``settings`` says) in a prepared task's folder.

    Raises `DataError` for another data set of another task.
    """
    path = folder / "train.jsonl"
    rows = [Example.from_json(value) for value in read_lines(path)]
    changed = duplicated(shuffled(rows, settings.shuffled_answers), settings.duplicates)
    if settings.also is not None:
        changed += _others(settings, spec, task, folder)
    if changed != rows:
        write_split(path, changed)


def _others(settings: PoolSettings, spec: FitSpec, task: str, folder: Path) -> list[Example]:
    # found for itself: the task's own format and kind say nothing of another data set
    changes = {"path": settings.also, "format": None, "task": None, "validation": None, "test": None}
    data = spec.data.model_copy(update=changes)
    found, splits = read_and_split(spec.model_copy(update={"data": data}))
    if found.data.task != task:
        raise DataError(
            f"these rows are for {found.data.task}, and the task's own for {task}.",
            place=Place(str(settings.also)),
            remedy="Mix data sets of the same task.",
        )
    others = list(splits.train)
    if settings.also_rows is not None and settings.also_rows < len(others):
        others = [others[i] for i in subset(settings.also_rows, len(others), POOL_SEED)]
    if settings.also_is_previous:
        write_split(folder / "previous.jsonl", others)
    return [replace(row, task=row.task or str(settings.also)) for row in others]


def shuffled(rows: Sequence[Example], share: float) -> list[Example]:
    """``rows`` with the answers of a share of them moved one place on among those, in a drawn order."""
    count = round(share * len(rows))
    if count < 2:
        return list(rows)
    order = generator(POOL_SEED, "pool", "shuffled").permutation(len(rows))[:count]
    changed = list(rows)
    for place, row in enumerate(order):
        changed[int(row)] = _answered(rows[int(row)], rows[int(order[(place + 1) % count])])
    return changed


def _answered(row: Example, other: Example) -> Example:
    """``row`` with the answer of ``other``."""
    if not row.targets:
        return replace(row, label=other.label)
    turns = list(row.turns)
    turns[row.targets[-1]] = Turn("assistant", other.answer)
    return replace(row, turns=tuple(turns))


def duplicated(rows: Sequence[Example], share: float) -> list[Example]:
    """``rows`` with a share of them replaced by copies of the others."""
    count = min(round(share * len(rows)), len(rows) - 1)
    if count < 1:
        return list(rows)
    draw = generator(POOL_SEED, "pool", "duplicated")
    order = draw.permutation(len(rows))
    gone, left = order[:count], order[count:]
    changed: list[Any] = list(rows)
    for row, source in zip(gone, draw.choice(np.sort(left), count), strict=True):
        changed[int(row)] = rows[int(source)]
    return changed
