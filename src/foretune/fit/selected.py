"""The selection inside a fit: checked with the plan, its other data written with the task, told in the record.

Torch-free, because a plan is. The ranking itself is made by a worker (`execution.kept`) once per task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.catalogue.selection import NONE, Keep, Pool, check, check_kind, needed, parse, work_of
from foretune.config.spec import FitSpec
from foretune.cost.request import SelectionWork
from foretune.data import corpora
from foretune.data.columns import FOUND, Columns, said_in
from foretune.data.example import Example
from foretune.data.instruction import instructed
from foretune.data.read import ReadResult, read
from foretune.errors import DataError, Place, UsageError
from foretune.files import write_text
from foretune.fit.planned_rows import PlannedRows
from foretune.report.selection_info import SelectionInfo

if TYPE_CHECKING:
    from foretune.data.split import Splits
    from foretune.fit.plan import Plan

VALIDATION = "validation"
"""As ``data.target``: the task's own validation rows."""


def check_selection(spec: FitSpec, kind: str) -> None:
    """Refuse a selection that could not be carried out with a kind of model. Raises `UsageError`."""
    config = spec.training
    check(config)
    check_kind(str(config.get("selection", NONE)), kind)
    names = [name for stage in parse(str(config.get("selection", NONE))) for name in stage.names]
    if needed(names)[1] and spec.data.target is None:
        raise UsageError(
            f"the selection {config['selection']} needs to know what the rows are for.",
            remedy="Give --target FILE (rows like those to be good at), or --target validation.",
        )


def selection_work(config: Mapping[str, Any], rows: PlannedRows, width: int) -> SelectionWork | None:
    """What ranking the training rows by a model of this hidden ``width`` takes; None where there is nothing to rank."""
    text = str(config.get("selection", NONE))
    if text == NONE:
        return None
    row = rows.count.row
    keep = Keep("share", float(config.get("keep", 1.0)))
    pool = Pool(rows.train, keep.rows(rows.train), row.prompt, row.answer, target_rows=rows.validation, width=width)
    work = work_of(text, pool, {key: value for key, value in config.items() if "." in key}, keep)
    taken = SelectionWork(work.scored_tokens, work.trained_tokens, work.comparisons)
    return None if taken == SelectionWork() else taken


def write_others(spec: FitSpec, found: ReadResult, splits: Splits, folder: Path, prefix: str = "") -> dict[str, int]:
    """Write ``target.jsonl`` and ``previous.jsonl`` beside the splits, with ``prefix`` before their prompts.

    Returns how many rows each has. Raises `DataError` with file and line.
    """
    counts = {}
    for name in ("target", "previous"):
        source = getattr(spec.data, name)
        if source is None:
            continue
        columns = said_in(spec.data)
        own = source == VALIDATION and name == "target"
        rows = splits.validation if own else other_rows(source, found.task, columns)
        written = (json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in instructed(rows, prefix))
        write_text(folder / f"{name}.jsonl", "".join(written))
        counts[name] = len(rows)
    return counts


def other_rows(source: str | Path | None, task: str, columns: Columns = FOUND) -> tuple[Example, ...]:
    """The rows of a target or a previous file, in whatever format; none where there is no file.

    Raises `DataError` with the place for a file that cannot be read, has no rows, or rows for another task.
    """
    if source is None:
        return ()
    where = corpora.locate(str(source))
    result = read(where, columns=columns, like=task)
    if result.task != task:
        raise DataError(
            f"these rows are for {result.task}, and the data is for {task}.",
            place=Place(str(where)),
            remedy="Give rows of the same task.",
        )
    return tuple(result.examples)


def named(config: Mapping[str, Any]) -> str:
    """A selection with its share, as a key."""
    return f"{config.get('selection', NONE)} {float(config.get('keep', 1.0)):g}"


def selection_info(
    plan: Plan, pool: int, selected: Mapping[str, Any], config: Mapping[str, Any]
) -> SelectionInfo | None:
    """The record's account of the selection of the chosen ``config``; None where it was trained on all rows.

    ``selected`` is what ranking took, by selection and share (`named`).
    """
    found, data = selected.get(named(config)), plan.resolution.spec.data
    if found is None:
        return None
    return SelectionInfo(
        method=str(config["selection"]),
        keep=float(config.get("keep", 1.0)),
        kept=int(found["kept"]),
        pool=pool,
        seconds=float(found["seconds"]),
        answer_tokens=float(found["answer_tokens"]),
        target=_name(data.target),
        previous=_name(data.previous),
        manifest=dict(found["manifest"]),
        compared=len(selected) > 1,
    )


def _name(source: str | None) -> str | None:
    return None if source is None else Path(source).name
