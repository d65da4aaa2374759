"""Which format and columns a file has: the layout that fits most of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from foretune.data.columns import Columns, columns_of, value_of
from foretune.data.formats import FORMATS, LABEL_SETS, ONE_LABEL, Format, Layout, Raw, first_column
from foretune.data.label_sets import are_indicators, are_several
from foretune.data.reasoning import REASONING_KEYS
from foretune.data.tools import tool_column
from foretune.data.usual_columns import PROMPTS, QUESTIONS, SYSTEM_COLUMNS
from foretune.errors import DataError, Place, UsageError

REASONING_COLUMNS = (*REASONING_KEYS, "chain_of_thought", "complex_cot", "cot")
"""Columns that hold what is thought before a row's answer"""
REASONED = ("multiple-choice", "alpaca", "prompt-completion", "question-answer")


def check_format(name: str | None) -> None:
    """Raise `UsageError` for a format that does not exist."""
    if name is not None and name not in FORMATS:
        raise UsageError(f"there is no data format {name!r}.", remedy=f"Formats: {', '.join(FORMATS)}.")


def find_layout(rows: Sequence[Raw], columns: Columns, named: str | None, place: Place) -> Layout:
    """The layout that fits most of ``rows``, of the ``named`` format or of the first that fits each row.

    Raises `DataError` with the columns there are when none fits.
    """
    candidates = [FORMATS[named]] if named else _in_order(columns)
    votes: Counter[Layout] = Counter()
    contexts: dict[Layout, str] = {}
    views = with_usual_names(rows)
    for row in views:
        found = (form.find(row, columns) for form in candidates)
        layout = next((layout for layout in found if layout is not None), None)
        if layout is None:
            continue
        core = replace(layout, context=None)
        votes[core] += 1
        if layout.context is not None:
            contexts.setdefault(core, layout.context)
    if votes:
        winner = votes.most_common(1)[0][0]
        systems = (first_column(row, columns.system, SYSTEM_COLUMNS) for row in views)
        system = next((name for name in systems if name is not None), None)
        tools = tool_column(views) if winner.label is None and winner.text is None else None
        reasoning = _reasoning_column(views) if winner.format in REASONED else None
        winner = replace(winner, context=contexts.get(winner), system=system, tools=tools, reasoning=reasoning)
        if winner.format == ONE_LABEL and named is None:
            winner = replace(winner, format=_label_format([value_of(row, winner.label or "") for row in views], place))
        return winner.named(_own_names(rows))
    raise _no_layout(rows, columns, named, place)


def _label_format(labels: Sequence[Any], place: Place) -> str:
    """Whether a text has one label or several. Raises `DataError` for labels without names."""
    if are_indicators(labels):
        raise DataError(
            "the labels are vectors of 0 and 1, which do not say what each place means.",
            place=place,
            remedy='Write the names of those that hold instead: ["anger", "joy"].',
        )
    return LABEL_SETS if are_several(labels) else ONE_LABEL


def _reasoning_column(rows: Sequence[Raw]) -> str | None:
    """The first usual column that holds nothing but text."""
    for name in REASONING_COLUMNS:
        values = [row[name] for row in rows if row.get(name) is not None]
        if values and all(isinstance(value, str) for value in values):
            return name
    return None


def with_usual_names(rows: Sequence[Raw]) -> list[Raw]:
    """``rows`` whose columns are found in lower case too."""
    own = _own_names(rows)
    return [{**{usual: row[name] for usual, name in own.items() if name in row}, **row} for row in rows]


def _own_names(rows: Sequence[Raw]) -> dict[str, str]:
    """Columns by their name in lower case, as spreadsheets write ``Question``; those that are so already left out."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {usual: name for name in reversed(names) if (usual := name.strip().lower()) not in names}


def _in_order(columns: Columns) -> list[Format]:
    """The formats in order of detection; a prompt column that no format knows makes it plain prompt-completion."""
    first = []
    if columns.label is None and (columns.prompt or columns.answer):
        first = ["translation", "messages", "sharegpt"]
        if columns.prompt not in (None, "instruction", *QUESTIONS):
            first.append("prompt-completion")
    return [FORMATS[name] for name in dict.fromkeys([*first, *FORMATS])]


def _no_layout(rows: Sequence[Raw], columns: Columns, named: str | None, place: Place) -> DataError:
    names = columns_of(rows)
    seen = f"the columns are: {', '.join(names)}" if names else "no row could be read"
    if named:
        return DataError(
            f"the rows are not in the format {named}; {seen}.",
            place=place,
            remedy=f"It looks like {FORMATS[named].about}.",
        )
    if {"chosen", "rejected"} <= set(names):
        texts = all(isinstance(row.get("chosen"), str | None) for row in rows)
        prompt = next((f"--prompt-column {name} " for name in (*PROMPTS, *QUESTIONS) if name in names), "")
        said = "--text-column chosen" if texts and not prompt else f"{prompt}--answer-column chosen"
        return DataError(
            "these are preference pairs (chosen, rejected), which Foretune does not train on.",
            place=place,
            remedy=f"To train on what was chosen: {said}.",
        )
    return DataError(
        f"no known row format fits; {seen}.",
        place=place,
        remedy="Say which hold what: --prompt-column and --answer-column, or --text-column and --label-column (and "
        "--pair-column, where the label is about two texts).",
    )
