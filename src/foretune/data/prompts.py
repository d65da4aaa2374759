"""Rows that are asked and not trained on: the prompts of a file, in any format that training reads.

The column of the prompts may be named. Otherwise a column ``prompt`` is taken, else the file is read as training would
read it and its answers and labels, given or still missing, are left aside, so that a test set can be answered as it is
(system turns and earlier turns included); else the first column that usually holds a question or a text, or a usual
pair of texts.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

from foretune.data.choices import ANSWERS
from foretune.data.columns import FOUND, Columns, columns_of, value_of
from foretune.data.conversations import role_of
from foretune.data.example import Example, Turn
from foretune.data.find_layout import find_layout, with_usual_names
from foretune.data.formats import LABEL_SETS, Layout, Raw, ask_choices, find_unanswered_choices
from foretune.data.lines import decoded, lines
from foretune.data.problems import Refused
from foretune.data.read import read
from foretune.data.rows import Row
from foretune.data.sources import locate
from foretune.data.usual_columns import QUESTIONS, TEXT_PAIRS, TEXTS
from foretune.errors import DataError, Place

PROMPT = "prompt"
USUAL = (*QUESTIONS, "instruction", "input", "problem", *TEXTS)
_SAMPLED = 64
_TO_COME = "to come"
_COMING = {"role": "assistant", "content": _TO_COME}


def read_prompts(
    path: Path, *, prompt: str | None = None, pair: str | None = None, task: str | None = None
) -> tuple[Example, ...]:
    """The rows of a file without their answers; ``prompt``, ``pair`` and ``task`` name columns.

    A pair of texts is two user turns. Raises `DataError` where no column can be taken for the prompts.
    """
    if path.suffix.lower() == ".txt":
        return _one_a_line(path)
    if prompt is None and (asked := _unanswered_choices(path, task)):
        return asked
    if prompt is None:
        prompt, pair = _find(path, pair)
    if prompt is None:
        return tuple(map(_unanswered, read(path, columns=Columns(pair=pair, task=task), completed=_answered).examples))
    rows = tuple(map(_unanswered, read(path, columns=Columns(text=prompt, task=task), completed=_answered).examples))
    if pair is None:
        return rows
    seconds = map(_unanswered, read(path, columns=Columns(text=pair), completed=_answered).examples)
    return tuple(replace(one, turns=one.turns + two.turns) for one, two in zip(rows, seconds, strict=True))


def _one_a_line(path: Path) -> tuple[Example, ...]:
    found = []
    for line in lines(path):
        try:
            text = decoded(line).strip()
        except Refused as refused:
            raise DataError(f"{refused.what}.", place=Place(path, line.number)) from None
        found += [Example((Turn("user", text),))] if text else []
    return tuple(found)


def _find(path: Path, pair: str | None) -> tuple[str | None, str | None]:
    """The columns of prompts and second texts; no prompt column where the file is read as for training."""
    rows = [row.value for row in itertools.islice(locate(path).rows(), _SAMPLED) if isinstance(row, Row)]
    columns = columns_of(rows)
    names = {name.strip().lower(): name for name in reversed(columns)}
    try:
        layout = find_layout(rows, Columns(pair=pair), None, Place(path))
    except DataError:
        layout = None
    in_turns = any(isinstance(row.get(names.get(PROMPT, PROMPT)), list) for row in rows)
    if PROMPT in names and not in_turns and (layout is None or layout.choices is None):
        return names[PROMPT], pair
    if layout is not None:
        return None, pair
    for first, second in TEXT_PAIRS:
        if first in names and second in names and pair in (None, names[second]):
            return names[first], names[second]
    usual = next((names[name] for name in USUAL if name in names), None)
    if usual is None:
        raise DataError(
            f"no column of prompts is found; the columns are: {', '.join(columns)}.",
            place=Place(path),
            remedy="Name it: --prompt-column (and --pair-column, for a classifier of pairs).",
        )
    return usual, pair


def _unanswered_choices(path: Path, task: str | None) -> tuple[Example, ...]:
    """Multiple choice without the right ones; nothing where the rows are something else, or are answered."""
    found = []
    for row in locate(path).rows():
        if not isinstance(row, Row):
            return ()
        (usual,) = with_usual_names([row.value])
        layout = find_unanswered_choices(usual, FOUND)
        if layout is None or any(usual.get(name) is not None for name in ANSWERS):
            return ()
        try:
            asked = ask_choices(usual, layout)
        except Refused:
            return ()
        own = None if task is None else row.value.get(task)
        found.append(Example((asked,), task=None if own is None else str(own)))
    return tuple(found)


def _answered(row: Raw, layout: Layout) -> Raw:
    """``row`` with something where its answer or label stands or is missing: it reads as a trained one."""
    if layout.turns is not None:
        turns = row.get(layout.turns)
        waits = isinstance(turns, list) and bool(turns) and role_of(turns[-1]) in ("user", "tool")
        return {**row, layout.turns: [*turns, _COMING]} if waits and turns else row
    if layout.choices is not None and layout.answer is not None:
        return {**row, layout.answer: 0}
    if layout.label is not None:
        return {**row, layout.label: [_TO_COME] if layout.format == LABEL_SETS else _TO_COME}
    if layout.answer is not None:
        in_turns = isinstance(value_of(row, layout.prompt or ""), list)
        return {**row, layout.answer: [_COMING] if in_turns else _TO_COME}
    return row


def _unanswered(row: Example) -> Example:
    turns = row.turns[: row.targets[-1]] if row.targets and row.turns[0].role != "text" else row.turns
    asked = tuple(Turn("user", turn.content) if turn.role == "text" else turn for turn in turns)
    return Example(asked, task=row.task, tools=row.tools)
