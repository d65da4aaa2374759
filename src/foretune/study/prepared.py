"""A prepared task in a study's folder, written so that it can be taken up in another place.

``prepared.json`` names no path of a machine. The rows themselves are no part of what travels: where they are missing
they are read, split and drawn again from the same source, and must come out with the hashes of ``rows.json``.
Everything else (arms, layout, covariates) stays as it was decided when the study began, whatever the new machine is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foretune.errors import DataError, ModelError, Place
from foretune.files import read_json, sha256_file, write_json
from foretune.models.load import locate, weights_hash
from foretune.packages import Progress
from foretune.study.grid import GridSpec
from foretune.study.tasks import StudyTask, prepare_task

FILE = "prepared.json"
HASHES = "rows.json"
"""The SHA-256 of every file of rows."""
ROWS = "task"
"""The folder of the rows, beside `FILE`."""


def prepared_task(grid: GridSpec, model: str, name: str, folder: Path, progress: Progress) -> StudyTask:
    """The task under ``folder``: prepared now, or as it was prepared before, its rows read again where they are gone.

    Raises `DataError` when they come out differently, and as `prepare_task` does.
    """
    path = folder / FILE
    if not path.is_file():
        task = prepare_task(grid, model, name, folder, progress)
        spec = replace(task.spec, folder=ROWS, model=replace(task.spec.model, source=model))
        write_json(folder / HASHES, _hashes(folder / ROWS))
        write_json(path, replace(task, spec=spec).to_json())
    rows = folder / ROWS
    hashes: dict[str, str] = read_json(folder / HASHES) if (folder / HASHES).is_file() else {}
    if not (rows / "train.jsonl").is_file() or any(not (rows / file).is_file() for file in hashes):
        progress(f"{name}: reading the rows again")
        prepare_task(grid, model, name, folder, progress)
        _check(hashes, rows, Place(str(grid.tasks[name].path)))
    task = StudyTask.from_json(read_json(path))
    source = str(locate(grid.model[model].source, progress=progress))
    spec = replace(task.spec, folder=str(rows.resolve()), model=replace(task.spec.model, source=source))
    return replace(task, spec=spec)


def _hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*.jsonl"))}


def _check(hashes: Mapping[str, str], rows: Path, place: Place) -> None:
    found = _hashes(rows)
    changed = [file for file, expected in hashes.items() if found.get(file) != expected]
    if changed:
        (rows / "train.jsonl").unlink()  # so that the next attempt reads and compares again
        raise DataError(
            f"these rows are not those that the study was begun with ({', '.join(changed)}).",
            place=place,
            remedy="Give the data of the beginning, or begin the study anew in another --output.",
        )


def check_weights(task: StudyTask, probe: Mapping[str, Any]) -> None:
    """Raise `ModelError` where the base model is not the one that was probed when the study began."""
    reference = task.spec.model
    where = Path(reference.source) if Path(reference.source).is_dir() else reference.source
    if weights_hash(where, reference.revision) != probe["weights_hash"]:
        raise ModelError(
            f"the weights of {task.model} are not those that the study was begun with.",
            place=Place(reference.source),
            remedy="Put the model of the beginning in its place, or begin the study anew in another --output.",
        )
