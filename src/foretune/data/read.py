"""Reading data: from a file, a folder or a hub id to examples, or to an error that names the lines.

The reader is our own because common ones let types drift, keys change midway and broken bytes through. Here every
row becomes an `Example`, a bad row that stops the reading, or a bad row in the quarantine file: kept + quarantined =
read. Rows are streamed; what is held is the examples. Limits and definitions are in `lines`, `rows`, `tables` (what
a row is), `formats` (what its columns mean) and `labels` (which task it is).
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from foretune.data.columns import FOUND, Columns, check_named, value_of
from foretune.data.conversations import Draft, unread
from foretune.data.example import Example, Task
from foretune.data.find_layout import check_format, find_layout
from foretune.data.formats import FORMATS, Layout, Raw
from foretune.data.labels import check_task, decide, drift, kind_of
from foretune.data.problems import BadRow, Problem, Refused, refusal, write_quarantine
from foretune.data.rows import Row, split_name
from foretune.data.sources import QUARANTINE_ENDING, Source, locate
from foretune.errors import DataError, Place, UsageError

SAMPLED_ROWS = 200
"""Rows from which the format is found: enough that odd first rows decide nothing."""
MARK = "label"
"""The column by which feedback data (KTO) say whether an answer is wanted"""
SPLIT_COLUMN = "split"
"""A column of this name is the split column when all its sampled values are names of splits."""
OnBadRow = Literal["error", "quarantine"]


@dataclass(frozen=True)
class ReadResult:
    """What was read, as what, and what was wrong with it. ``rows_read`` = examples + ``quarantined``."""

    examples: tuple[Example, ...]
    format: str
    task: Task
    files: tuple[Path, ...]
    rows_read: int
    quarantined: int
    problems: tuple[Problem, ...]
    sha256: str
    notes: tuple[str, ...] = ()
    """What was decided without being told, in words."""
    quarantine: Path | None = None
    """Where the bad rows were written, if there were any."""


@dataclass
class _Kept:
    """A row that converted, until the task is decided."""

    draft: Draft
    extras: dict[str, str | None]
    place: Place
    split: str | None
    raw: bytes
    kinds: tuple[str | None, ...]


@dataclass
class _Reading:
    """The rows met so far."""

    kept: list[_Kept] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)

    def discard(self, positions: Mapping[int, str]) -> None:
        """Turn kept rows into bad rows, with the reason for each."""
        for position, what in positions.items():
            row = self.kept[position]
            self.bad.append(BadRow(Problem(row.place, what), row.raw))
        self.kept = [row for position, row in enumerate(self.kept) if position not in positions]


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Inside, cycles are not looked for: rows hold none, and the search through a growing heap takes half the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_without_collector()
def read(
    source: Path | str,
    *,
    format: str | None = None,
    columns: Columns = FOUND,
    task: str | None = None,
    like: str | None = None,
    on_bad_row: OnBadRow = "error",
    quarantine: Path | None = None,
    completed: Callable[[Raw, Layout], Raw] | None = None,
) -> ReadResult:
    """Read the examples in ``source``: a file, a folder, or a data set of the hub (``owner/name[:config]``).

    ``format`` (a key of `FORMATS`), ``columns`` and ``task`` say what is otherwise found; labels that may be classes or
    numbers are read ``like`` those of another task. ``on_bad_row``: stop with the first problems and their number, or
    write bad rows to ``quarantine`` (default: beside the source, ending ``.quarantine.jsonl``) and go on. ``completed``
    adds to each row, by the layout found, what it lacks. Raises `DataError` for data that cannot be used, `UsageError`
    for options.
    """
    check_format(format)
    said_task = check_task(task)
    if on_bad_row not in ("error", "quarantine"):
        raise UsageError(f"on_bad_row = {on_bad_row!r} is not an option.", remedy="Use error or quarantine.")
    found = locate(source)
    rows = found.rows()
    sample, good = _sample(rows)
    stream: Iterator[Row | BadRow] = itertools.chain(sample, rows)
    if not good:
        raise _nothing_good(sample, on_bad_row, quarantine, found)
    check_named(columns, good, Place(found.name))
    layout = find_layout(good, columns, format, Place(found.name))
    _check_wanted(good, layout, Place(found.name))
    split_column = columns.split or _split_column(good)
    if completed is not None:
        stream = _completed(stream, completed, layout)
    reading = _convert(stream, layout, columns, split_column, keep_raw=on_bad_row == "quarantine")
    _discard_drift(reading, layout, found.typed)
    decided, notes = _finish(reading, said_task, like, found)
    problems, written = _account(reading, on_bad_row, quarantine, found)
    return ReadResult(
        examples=tuple(_example(row) for row in reading.kept),
        format=layout.format,
        task=decided,
        files=tuple(path for path, _ in found.files),
        rows_read=len(reading.kept) + len(problems),
        quarantined=len(problems),
        problems=problems,
        sha256=found.sha256(),
        notes=(*found.notes, *_layout_notes(layout), *notes, *_unused(good, layout, columns, split_column)),
        quarantine=written,
    )


def _completed(
    rows: Iterator[Row | BadRow], complete: Callable[[Raw, Layout], Raw], layout: Layout
) -> Iterator[Row | BadRow]:
    for row in rows:
        yield replace(row, value=dict(complete(row.value, layout))) if isinstance(row, Row) else row


def _check_wanted(rows: Sequence[Mapping[str, Any]], layout: Layout, place: Place) -> None:
    """Raise `DataError` where answers are marked as wanted or not, as for KTO: not all of them are to be learnt."""
    if MARK in layout.used() or layout.answer is None is layout.turns:
        return
    marks = {str(row[MARK]).lower() for row in rows if MARK in row}
    if marks <= {"true", "false"} and "false" in marks:
        raise DataError(
            f"the column {MARK!r} marks answers as wanted (true) or not (false); all of them would be learnt.",
            place=place,
            remedy=f"Keep the rows that are wanted: jq -c 'select(.{MARK})' FILE > wanted.jsonl. If it means something"
            " else, rename it.",
        )


def _account(
    reading: _Reading, on_bad_row: OnBadRow, quarantine: Path | None, found: Source
) -> tuple[tuple[Problem, ...], Path | None]:
    """The problems in the order of the file and where the bad rows went; raises `DataError` when reading must stop."""
    reading.bad.sort(key=lambda row: (str(row.problem.place.path), row.problem.place.line or 0))
    problems = tuple(row.problem for row in reading.bad)
    if problems and on_bad_row == "error":
        raise refusal(found.name, problems, len(reading.kept) + len(problems))
    written = _set_aside(reading, quarantine, found)
    if not reading.kept:
        raise _all_bad(problems, written, found)
    return problems, written


def _sample(rows: Iterator[Row | BadRow]) -> tuple[list[Row | BadRow], list[Mapping[str, Any]]]:
    """Rows up to `SAMPLED_ROWS` good ones, and the values of the good ones."""
    sample: list[Row | BadRow] = []
    good: list[Mapping[str, Any]] = []
    for row in rows:
        sample.append(row)
        if isinstance(row, Row):
            good.append(row.value)
            if len(good) == SAMPLED_ROWS:
                break
    return sample, good


def _nothing_good(rows: list[Row | BadRow], on_bad_row: OnBadRow, quarantine: Path | None, found: Source) -> DataError:
    reading = _Reading(bad=[row for row in rows if isinstance(row, BadRow)])
    if reading.bad:
        _account(reading, on_bad_row, quarantine, found)  # raises: nothing was kept
    return DataError("there are no rows in it.", place=Place(found.name), remedy="Check the path.")


def _all_bad(problems: tuple[Problem, ...], written: Path | None, found: Source) -> DataError:
    return DataError(
        f"none of the {len(problems):,} rows can be used; they are in {written} with the reasons.",
        place=Place(found.name),
        remedy=f"The first: {problems[0]}.",
    )


def _convert(
    stream: Iterator[Row | BadRow], layout: Layout, columns: Columns, split_column: str | None, *, keep_raw: bool
) -> _Reading:
    reading = _Reading()
    convert = FORMATS[layout.format].convert
    texts = layout.text_columns() + ((layout.label,) if layout.label else ())
    for row in stream:
        if isinstance(row, BadRow):
            reading.bad.append(row)
            continue
        try:
            draft = convert(row.value, layout)
            extras = {
                "group": _extra(row.value, columns.group),
                "task": _extra(row.value, columns.task),
                "split": _split(row, split_column),
            }
        except Refused as refused:
            reading.bad.append(BadRow(Problem(row.place, refused.what), row.raw))
            continue
        kinds = tuple(kind_of(value_of(row.value, name)) for name in texts)
        raw = row.raw if keep_raw else b""
        reading.kept.append(_Kept(draft, extras, row.place, row.split, raw, kinds))
    return reading


def _extra(row: Mapping[str, Any], name: str | None) -> str | None:
    value = None if name is None else value_of(row, name)
    if value is None or value == "":
        return None
    if not isinstance(value, str | int | float):
        raise Refused(f"{name!r} must be one value, not {type(value).__name__}")
    return str(value)


def _split(row: Row, column: str | None) -> str | None:
    value = None if column is None else value_of(row.value, column)
    if value is None or value == "":
        return row.split
    name = split_name(value)
    if name is None:
        raise Refused(f"{column!r} is {str(value)[:40]!r}, which is not train, validation or test")
    return name


def _split_column(rows: list[Mapping[str, Any]]) -> str | None:
    values = [row[SPLIT_COLUMN] for row in rows if row.get(SPLIT_COLUMN) not in (None, "")]
    return SPLIT_COLUMN if values and all(split_name(value) for value in values) else None


def _discard_drift(reading: _Reading, layout: Layout, typed: bool) -> None:
    """Rows whose value is text where most have numbers, or the other way round, are bad rows."""
    if not typed:
        return
    names = layout.text_columns() + ((layout.label,) if layout.label else ())
    reasons: dict[int, str] = {}
    for column, name in enumerate(names):
        kinds = [row.kinds[column] for row in reading.kept]
        prevailing, drifted = drift(kinds)
        for position in drifted:
            reasons.setdefault(position, f"{name!r} is {kinds[position]} here but {prevailing} in most rows")
    reading.discard(reasons)


def _finish(reading: _Reading, task: Task | None, like: str | None, found: Source) -> tuple[Task, tuple[str, ...]]:
    if not reading.kept:
        return task or "generation", ()
    drafts = [row.draft for row in reading.kept]
    verdict = decide(drafts, task, like=like, typed=found.typed, place=Place(found.name))
    reasons: dict[int, str] = {}
    for position, row in enumerate(reading.kept):
        try:
            row.draft = verdict.finish(row.draft)
        except Refused as refused:
            reasons[position] = refused.what
    reading.discard(reasons)
    return verdict.task, verdict.notes


def _example(row: _Kept) -> Example:
    draft = row.draft
    return Example(draft.turns, draft.targets, label=draft.label, tools=draft.tools, place=row.place, **row.extras)


def _set_aside(reading: _Reading, quarantine: Path | None, found: Source) -> Path | None:
    if not reading.bad:
        return None
    name = Path(found.name)
    beside = name.parent if found.hub is None else Path()
    path = quarantine or beside / f"{name.name}{QUARANTINE_ENDING}"
    if path in [file for file, _ in found.files]:
        raise UsageError("the quarantine file is the data file itself.", remedy="Name another --quarantine file.")
    write_quarantine(path, reading.bad)
    return path


def _layout_notes(layout: Layout) -> tuple[str, ...]:
    """Which columns were taken for what; nothing for formats that say so themselves."""
    if layout.format == "translation":
        source, target = (str(name).removeprefix("translation.") for name in (layout.prompt, layout.answer))
        other_way = f"--prompt-column {target} --answer-column {source}"
        return (f"translated from {source!r} into {target!r}; the other way round: {other_way}.",)
    parts = {"prompt": layout.prompt, "context": layout.context, "answer": layout.answer}
    parts |= {"text": layout.text, "pair": layout.pair, "label": layout.label, "system": layout.system}
    parts |= {"choices": layout.choices, "tools": layout.tools, "reasoning": layout.reasoning}
    said = ", ".join(f"{purpose} = {name!r}" for purpose, name in parts.items() if name)
    return (f"columns: {said}.",) if said else ()


def _unused(
    rows: list[Mapping[str, Any]], layout: Layout, columns: Columns, split_column: str | None
) -> tuple[str, ...]:
    used = {name.split(".")[0] if not any(name in row for row in rows) else name for name in layout.used()}
    used |= {name for name in (columns.group, columns.task, split_column) if name}
    names = dict.fromkeys(name for row in rows for name in row)
    left = [name for name in names if name not in used]
    notes = (f"columns that are not used: {', '.join(left)}.",) if left else ()
    if layout.turns is None:
        return notes
    dropped = unread(turn for row in rows for turn in value_of(row, layout.turns) or ())
    return (*notes, f"keys of turns that are not used: {', '.join(dropped)}.") if dropped else notes
