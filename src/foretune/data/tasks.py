"""Which task (or segment) a row belongs to, as a number: what multi-task adapters read beside the tokens.

The column is named with ``data.columns.task``. Names are numbered in alphabetical order of the training rows; a row
without a name belongs to the task "". Nothing else changes for rows with tasks, and methods that read none ignore them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from foretune.data.encode import EncodedRow
from foretune.data.example import Example
from foretune.errors import DataError


def task_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """The names of the tasks in ``examples``, sorted; empty where no row names one."""
    names = {example.task or "" for example in examples}
    return tuple(sorted(names)) if names - {""} else ()


def task_number(example: Example, names: Sequence[str]) -> int:
    """The number of an example's task. Raises `DataError` for one that no training row has."""
    name = example.task or ""
    if name not in names:
        raise DataError(
            f"the task {name!r} is in no training row.",
            place=example.place,
            remedy=f"The training rows' tasks are {', '.join(map(repr, names))}.",
        )
    return names.index(name)


def with_tasks(rows: Sequence[EncodedRow], examples: Sequence[Example], names: Sequence[str]) -> list[EncodedRow]:
    """``rows`` with the numbers of their examples' tasks; as they are where there are no tasks."""
    if not names:
        return list(rows)
    return [replace(row, task=task_number(example, names)) for row, example in zip(rows, examples, strict=True)]
