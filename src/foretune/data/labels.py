"""Which task the rows are, and what their labels become: decided over all rows, said in words, overridable.

Text labels are classes. Numbers with a fraction are regression. Whole numbers are classes when there are few of
them (`MOST_NUMBER_CLASSES`) or when they count 0, 1, 2 … with several rows each; else regression. CSV has no types,
so there text that reads as a number is a number, unless some of it begins like a code (007). A column that mixes text
and numbers is drift: the rows of the rarer kind are bad rows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foretune.data.conversations import Draft
from foretune.data.example import TASKS, Task, Turn
from foretune.data.problems import Refused
from foretune.data.row_label import LABELLED, asked
from foretune.errors import DataError, Place, UsageError

MOST_NUMBER_CLASSES = 20
"""Up to this many different whole numbers are read as classes: ratings and codes have fewer, measurements more."""
_ROWS_PER_CODE = 5
"""Codes 0 … k-1 are classes, however many, when each has at least this many rows on average."""
_UNIQUE_SHARE = 0.5
"""Above this share of different text labels the column is probably an answer, not a label."""
_FEW_ROWS = 20
_MOSTLY = 0.9
"""From this share of numbers on, a column of text was probably meant to be one of numbers."""
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_CODE = re.compile(r"[+-]?0\d+", re.ASCII)
"""A code: it begins with a zero that a number would lose."""


@dataclass(frozen=True)
class Verdict:
    """The task, how a draft is turned into its final form, and what was decided in words."""

    task: Task
    finish: Callable[[Draft], Draft]
    notes: tuple[str, ...] = ()


def check_task(task: str | None) -> Task | None:
    """``task`` as one of `TASKS`, or a `UsageError`."""
    if task is not None and task not in TASKS:
        raise UsageError(f"there is no task {task!r}.", remedy=f"Tasks: {', '.join(TASKS)}.")
    return task


def decide(
    drafts: Sequence[Draft], task: Task | None, *, like: str | None = None, typed: bool, place: Place
) -> Verdict:
    """The task of ``drafts`` (the one that was said, or the one that fits) and how to finish each of them.

    ``typed``: the file tells numbers from text. ``like``: the task of rows read before, which labels are read as where
    none was said. Raises `DataError` when the rows cannot be the task that was said.
    """
    first = drafts[0]
    labels = [draft.label for draft in drafts if draft.label is not None]
    if labels:
        alike = next((known for known in LABELLED if known == like), None)
        return _with_labels(labels, task or alike, typed)
    if first.turns[0].role == "text":
        if task not in (None, "language-modelling"):
            raise DataError(
                f"rows of plain text have no answers or labels, so the task cannot be {task}.",
                place=place,
                remedy="Name the column that holds them: --answer-column or --label-column.",
            )
        return Verdict("language-modelling", _same)
    if task == "language-modelling":
        raise DataError(
            "rows of questions and answers are not plain text, so the task cannot be language-modelling.",
            place=place,
            remedy="Name the column with --text-column, or leave --task out.",
        )
    if task in ("classification", "regression"):
        return Verdict(task, lambda draft: _finish_label(_answer_as_label(draft), task))
    return Verdict("generation", _same)


def _with_labels(labels: list[Any], task: Task | None, typed: bool) -> Verdict:
    if task == "generation":
        return Verdict(task, _label_as_answer)
    if task == "language-modelling":
        return Verdict(task, lambda draft: Draft((Turn("text", asked(draft.turns)[-1].content),), targets=(0,)))
    guessed, notes = guess_labels(labels, typed=typed)
    chosen = task or guessed
    if chosen == "classification" and _is_number_column(labels, typed):
        return Verdict(
            chosen, lambda draft: _finish_label(draft, "classification", numbers=True), () if task else notes
        )
    return Verdict(chosen, lambda draft: _finish_label(draft, chosen), () if task else notes)


def guess_labels(labels: Sequence[Any], *, typed: bool) -> tuple[Task, tuple[str, ...]]:
    """Classification or regression for these labels, and what to say about the choice."""
    if not _is_number_column(labels, typed):
        distinct = len({str(label) for label in labels})
        others = [label for label in labels if not typed and _number(label) is None]
        if not typed and not others:
            code = next(label for label in labels if _CODE.fullmatch(str(label).strip()))
            return "classification", (
                f"labels such as {str(code)!r} begin with a zero: read as classes, as they are written; "
                "say --task regression for numbers.",
            )
        if 0 < len(others) <= (1 - _MOSTLY) * len(labels):
            return "classification", (
                f"{len(labels) - len(others):,} of {len(labels):,} labels are numbers and the others, such as "
                f"{str(others[0])[:40]!r}, are not: read as classes; say --task regression for numbers.",
            )
        if len(labels) >= _FEW_ROWS and distinct > _UNIQUE_SHARE * len(labels):
            return "classification", (
                f"{distinct:,} different labels in {len(labels):,} rows: if they are answers, say --task generation.",
            )
        return "classification", ()
    numbers = [value for label in labels if (value := _number(label)) is not None]
    distinct = len(set(numbers))
    if not all(value.is_integer() for value in numbers):
        return "regression", ("labels have fractions: read as numbers to predict (regression).",)
    if any(isinstance(label, float) or (isinstance(label, str) and not _whole(label)) for label in labels):
        note = f"labels are decimal numbers with {distinct} values, all whole: read as regression"
        return "regression", (f"{note}; say --task classification for classes.",)
    counting = min(numbers) in (0.0, 1.0) and max(numbers) - min(numbers) + 1 == distinct
    if distinct <= MOST_NUMBER_CLASSES or (counting and len(numbers) >= _ROWS_PER_CODE * distinct):
        note = f"labels are whole numbers with {distinct} values: read as classes"
        return "classification", (f"{note}; say --task regression to predict them as numbers.",)
    note = f"labels are whole numbers with {distinct:,} values: read as numbers to predict (regression)"
    return "regression", (f"{note}; say --task classification for classes.",)


def kind_of(value: Any) -> str | None:
    """``text``, ``number`` or ``truth`` for the drift check; None for what has no kind (missing, lists)."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    return "a number" if isinstance(value, int | float) else None


def drift(kinds: Sequence[str | None]) -> tuple[str, set[int]]:
    """The prevailing kind of a column and the positions of the rows that drift from it.

    On a tie the kind seen first prevails.
    """
    counts = Counter(kind for kind in kinds if kind is not None)
    if len(counts) < 2:
        return next(iter(counts), ""), set()
    prevailing = counts.most_common(1)[0][0]
    return prevailing, {i for i, kind in enumerate(kinds) if kind is not None and kind != prevailing}


def _is_number_column(labels: Sequence[Any], typed: bool) -> bool:
    if typed:
        return all(isinstance(label, int | float) and not isinstance(label, bool) for label in labels)
    return all(_number(label) is not None and not _CODE.fullmatch(str(label).strip()) for label in labels)


def _number(label: Any) -> float | None:
    if isinstance(label, bool) or (isinstance(label, str) and not _NUMBER.fullmatch(label.strip())):
        return None
    try:
        value = float(label)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _whole(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def _same(draft: Draft) -> Draft:
    return draft


def _class_name(label: Any, numbers: bool) -> str:
    if isinstance(label, bool):
        return "true" if label else "false"
    if isinstance(label, float) or (numbers and isinstance(label, str)):
        value = float(label)
        return str(int(value)) if value.is_integer() else repr(value)
    return str(label).strip()


def _finish_label(draft: Draft, task: Task, *, numbers: bool = False) -> Draft:
    if task == "classification":
        return replace(draft, label=_class_name(draft.label, numbers))
    value = _number(draft.label)
    if value is None:
        raise Refused(f"the label {str(draft.label)[:40]!r} is not a finite number")
    return replace(draft, label=value)


def _label_as_answer(draft: Draft) -> Draft:
    turns = (*asked(draft.turns), Turn("assistant", _class_name(draft.label, False)))
    return Draft(turns, targets=(len(turns) - 1,))


def _answer_as_label(draft: Draft) -> Draft:
    return Draft(draft.turns[:-1], label=draft.turns[-1].content.strip())
