"""Raw rows out of CSV, TSV, Parquet and saved ``datasets`` folders.

CSV has no types and no marks to find one's way back after damage, so: the delimiter is the one that gives the
first lines the same number of fields; the header must be there; a row with another number of fields is a bad row, a
row of empty fields (spreadsheets append them) is a blank line; after a quote that never closes, reading resumes at
the line after the one that opened it. In Parquet and Arrow files the "line" of a place is the row's number.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foretune.data.lines import Line, decoded, lines
from foretune.data.problems import BadRow, Problem, Refused
from foretune.data.rows import Row
from foretune.errors import DataError, Place

DELIMITERS = (",", ";", "\t", "|")
_SNIFFED_LINES = 50
_FIELD_LIMIT_BYTES = 2**31 - 1
"""The csv module's own limit of 128 kB a field is lifted; lines are limited in `lines` already."""
_REWINDS = 50
"""Unclosed quotes after which reading goes on; each can cost a pass over the rest of the file."""
_BATCH_ROWS = 1024


def sniff_delimiter(path: Path) -> str:
    """The delimiter under which the most of the first lines have as many fields as the header has.

    A first line ``sep=;`` (spreadsheets write it) decides at once.
    """
    csv.field_size_limit(_FIELD_LIMIT_BYTES)
    head = [
        line.content.decode("utf-8", "replace").replace("\r", " ")
        for line in itertools.islice(lines(path), _SNIFFED_LINES)
    ]
    head = [line for line in head if line.strip()]
    if head and (named := re.fullmatch(r"sep=(.)", head[0])):
        return named.group(1)
    best, best_score = DELIMITERS[0], (0.0, 0)
    for delimiter in DELIMITERS if head else ():
        try:
            records = list(csv.reader((line + "\n" for line in head), delimiter=delimiter))
        except csv.Error:
            continue
        width = len(records[0]) if records else 0
        agree = sum(len(record) == width for record in records) / max(len(records), 1)
        if width > 1 and (agree, width) > best_score:
            best, best_score = delimiter, (agree, width)
    return best


def delimited(path: Path, split: str | None = None, *, delimiter: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of a CSV or TSV file; all values are text. Raises `DataError` for a missing or unusable header."""
    csv.field_size_limit(_FIELD_LIMIT_BYTES)
    mark = delimiter or sniff_delimiter(path)
    records = _Records(path, mark)
    header: list[str] | None = None
    for record in records:
        if isinstance(record, BadRow):
            if header is None:
                raise DataError(f"the header cannot be read: {record.problem.what}.", place=record.problem.place)
            yield record
            continue
        fields, place, raw = record
        if header is None:
            if not re.fullmatch(rb"sep=.", raw):
                header = _header(fields, place)
        elif len(fields) != len(header):
            noun = "field" if len(fields) == 1 else "fields"
            what = f"{len(fields)} {noun} where the header has {len(header)} (is a {mark!r} inside a field unquoted?)"
            yield BadRow(Problem(place, what), raw)
        else:
            yield Row(dict(zip(header, fields, strict=True)), place, raw, split)


def _header(fields: list[str], place: Place) -> list[str]:
    names = [name.strip() or f"column {number}" for number, name in enumerate(fields, 1)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"the header names the column {twice[0]!r} twice.", place=place, remedy="Rename one of them.")
    return names


class _Records:
    """The records of a delimited file with their places and bytes, resuming after a record that cannot be read."""

    def __init__(self, path: Path, delimiter: str) -> None:
        self.path = path
        self.delimiter = delimiter
        self._source = lines(path)
        self._again: deque[Line] = deque()
        self._taken: list[Line] = []
        self._flaw: Problem | None = None
        self._rewinds = 0

    def __iter__(self) -> Iterator[tuple[list[str], Place, bytes] | BadRow]:
        reader = self._reader()
        while True:
            self._taken, self._flaw = [], None
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield self._unreadable(str(error))
                reader = self._reader()
                continue
            if self._flaw is not None:
                yield BadRow(self._flaw, self._raw())
            elif any(field.strip() for field in fields):
                yield fields, Place(self.path, self._taken[0].number), self._raw()

    def _reader(self) -> Iterator[list[str]]:
        return csv.reader(self._feed(), delimiter=self.delimiter, strict=True)

    def _feed(self) -> Iterator[str]:
        while True:
            line = self._again.popleft() if self._again else next(self._source, None)
            if line is None:
                return
            self._taken.append(line)
            try:
                text = decoded(line)
            except Refused as refused:
                place = Place(self.path, line.number, refused.column)
                self._flaw = self._flaw or Problem(place, refused.what)
                text = line.content.replace(b"\0", b"").decode("utf-8", "replace")
            yield text + "\n"

    def _raw(self) -> bytes:
        return b"\n".join(line.content for line in self._taken)

    def _unreadable(self, message: str) -> BadRow:
        """The record that failed. When it ran over several lines only its first is bad; the others are read again."""
        first = self._taken[0]
        opened = len(self._taken) > 1 or "unexpected end" in message
        what = "a quote is opened here and not closed properly" if opened else f"not a CSV record: {message}"
        column = first.content.decode("utf-8", "replace").rfind('"') + 1 if opened else None
        if len(self._taken) > 1 and self._rewinds < _REWINDS:
            self._rewinds += 1
            self._again.extendleft(reversed(self._taken[1:]))
            self._taken = self._taken[:1]
        if self._flaw is not None and self._flaw.place.line == first.number:
            return BadRow(self._flaw, self._raw())
        return BadRow(Problem(Place(self.path, first.number, column or None), what), self._raw())


def parquet(path: Path, split: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of a Parquet file, a batch in memory at a time; class numbers become class names where it has them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            names = _class_names(table.schema_arrow.metadata)
            yield from _table_rows(_checked(table.iter_batches(_BATCH_ROWS)), path, split, names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable_table(path, "Parquet", error) from error


def arrow(path: Path, split: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of one Arrow file of a saved ``datasets`` folder (stream or file layout)."""
    import pyarrow as pa

    try:
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(pa.memory_map(str(path)))
            try:
                table = stack.enter_context(pa.ipc.open_stream(source))
                batches: Iterator[Any] = iter(table)
            except pa.ArrowInvalid:
                table = stack.enter_context(pa.ipc.open_file(source))
                batches = (table.get_batch(number) for number in range(table.num_record_batches))
            names = _class_names(table.schema.metadata)
            yield from _table_rows(_checked(batches), path, split, names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable_table(path, "Arrow", error) from error


def _checked(batches: Iterable[Any]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each batch, after a check of its offsets and of its text: reading a damaged one can crash Python."""
    for batch in batches:
        batch.validate(full=True)
        yield batch.to_pylist()


def _table_rows(
    batches: Iterator[list[dict[str, Any]]], path: Path, split: str | None, names: Mapping[str, list[str]]
) -> Iterator[Row | BadRow]:
    for number, value in enumerate(itertools.chain.from_iterable(batches), 1):
        yield table_row(value, Place(path, number), split, names)


def table_row(value: dict[str, Any], place: Place, split: str | None, names: Mapping[str, list[str]]) -> Row | BadRow:
    """One row of a typed table, with class numbers turned into the ``names`` of their column (-1 is no label)."""
    named = dict(value)
    for column, classes in names.items():
        if isinstance(numbers := named.get(column), list):
            named[column] = [_class_name(number, classes) for number in numbers]
        else:
            named[column] = _class_name(numbers, classes)
    raw = json.dumps(value, ensure_ascii=False, default=repr).encode("utf-8", "surrogateescape")
    return Row(named, place, raw, split)


def _class_name(number: Any, classes: Sequence[str]) -> Any:
    if not isinstance(number, int):
        return number
    return classes[number] if 0 <= number < len(classes) else None


def classes_of(feature: Any) -> list[str]:
    """The class names of a column of ``datasets``, or of the lists in it; none where it holds something else.

    ``feature`` is one of its features or what it writes into a file for one.
    """
    if isinstance(feature, list):
        return classes_of(feature[0]) if len(feature) == 1 else []
    if not isinstance(feature, Mapping):
        feature = {"_type": type(feature).__name__, **getattr(feature, "__dict__", {})}
    if feature.get("_type") in ("Sequence", "List", "LargeList"):
        return classes_of(feature.get("feature"))
    return list(feature["names"]) if feature.get("_type") == "ClassLabel" else []


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Class names by column, from what ``datasets`` writes into a file's metadata; empty where there is none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {column: names for column, feature in features.items() if (names := classes_of(feature))}
    except (KeyError, ValueError, TypeError):
        return {}


def _unreadable_table(path: Path, kind: str, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError("this file does not exist.", place=Place(path), remedy="Check the path.")
    return DataError(
        f"this is not a readable {kind} file ({str(error).splitlines()[0]}).",
        place=Place(path),
        remedy="Copy or download it again: a cut-off file cannot be read in part.",
    )
