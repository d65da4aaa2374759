"""Test sets beside a task's own: a model is trained once and answers several sets of rows.

``tests: {tweets: tweet-sentiment}`` reads further rows as the task's own are read. Every set is compared in pairs for
itself: its runs were trained together with those of the other sets, so it is no further repetition of anything.
Rows that are the same or nearly the same as a training row are left out of a set; the training rows stay as they are,
so that the task's own results do not depend on what else is tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from foretune.config.spec import ColumnNames, FitSpec, Section
from foretune.data.deduplicate import find
from foretune.data.example import Example
from foretune.data.instruction import instructed
from foretune.errors import DataError, Place
from foretune.execution.types import TaskSpec
from foretune.files import read_lines
from foretune.fit.prepare import check_learnt, read_and_split, write_split
from foretune.fit.rows import read_rows

OWN = ""
"""The name of a task's own test rows."""
FOLDER = "tests"


class FurtherTest(Section):
    """A test set beside the task's own rows."""

    path: str
    """A file, a folder, a data set of the catalogue or of the hub."""
    format: str | None = None
    """How its rows are written; found when not given."""
    columns: ColumnNames | None = None
    """Names of its columns; as the task's when not given."""
    part: Literal["all", "test"] | None = None
    """All its rows, or those that a fit on it would be tested on; when not said, the latter for data that is in the
    training rows too."""


def split_name(name: str) -> str:
    """The split of a prepared task that holds a test set: its file without the ending."""
    return f"{FOLDER}/{name}" if name else "test"


def prepare_tests(
    tests: Mapping[str, FurtherTest], trained_on: Sequence[str | None], spec: FitSpec, task: TaskSpec, prefix: str
) -> None:
    """Write the rows of every test set into the folder of ``task``.

    ``trained_on``: the data sets whose rows are among its training rows. ``prefix``: what stands before every text.
    Raises `DataError` for rows of another kind, of labels or tasks that are not learnt, or for no row that is new.
    """
    folder = Path(task.folder)
    train = [Example.from_json(value) for value in read_lines(folder / "train.jsonl")] if tests else []
    for name, settings in tests.items():
        part = settings.part or ("test" if settings.path in trained_on else "all")
        rows = _read(settings, part, spec, task)
        check_learnt(rows, "test", task.labels, task.tasks)
        new = _unseen(instructed(rows, prefix), train)
        if not new:
            raise DataError("every row of this test set is a training row.", place=Place(settings.path))
        (folder / FOLDER).mkdir(exist_ok=True)
        write_split(folder / f"{split_name(name)}.jsonl", [row.with_split("test") for row in new])


def _read(settings: FurtherTest, part: str, spec: FitSpec, task: TaskSpec) -> Sequence[Example]:
    found_anew = {"task": None, "validation": None, "test": None}
    changes: dict[str, Any] = {**found_anew, "path": settings.path, "format": settings.format}
    if settings.columns is not None:
        changes["columns"] = settings.columns
    other = spec.model_copy(update={"data": spec.data.model_copy(update=changes)})
    read, splits = read_and_split(other) if part == "test" else (None, None)
    found = read_rows(other, settings.path, like=task.task) if read is None else read.data
    if found.task != task.task:
        raise DataError(
            f"these rows are for {found.task}, and the task's own for {task.task}.",
            place=Place(settings.path),
            remedy="Test on data of the same task.",
        )
    return found.examples if splits is None else splits.test


def _unseen(rows: Sequence[Example], train: Sequence[Example]) -> list[Example]:
    """The rows that no training row is the same or nearly the same as."""
    cluster = find([*train, *rows]).cluster
    seen = set(cluster[: len(train)].tolist())
    return [row for row, own in zip(rows, cluster[len(train) :].tolist(), strict=True) if own not in seen]
