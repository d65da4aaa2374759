"""Raw rows out of JSON Lines, JSON and plain text files: dictionaries with their places, nothing interpreted yet.

Every row that is met is yielded, as `Row` or as `BadRow`; blank lines are not rows. A JSON file that is one array
is decoded element by element, so each row has its line; a syntax error inside it ends the file (nothing after it can
be trusted), which a JSON Lines file survives.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretune.data.lines import Line, decoded, lines, whole_text
from foretune.data.problems import BadRow, Problem, Refused
from foretune.data.strict_json import Reader, as_object
from foretune.errors import DataError, Place

ROW_KEYS = ("data", "rows", "examples", "instances", "items")
"""Keys of a JSON object under which its list of rows is looked for; split names serve as well."""
_PARAGRAPH_SHARE = 0.02
"""Blank lines per line of text from which blank lines separate documents rather than being accidents."""
_BLANK = " \t\r\n"

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation", "eval": "validation",
    "evaluation": "validation", "development": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names of splits as people write them, and ours. ``eval`` is validation: trainers look at it while training."""


@dataclass(frozen=True)
class Row:
    """One row as it was in the file."""

    value: dict[str, Any]
    place: Place
    raw: bytes
    split: str | None = None
    """The split that the file, folder or section named, or None."""


def split_name(name: object) -> str | None:
    """Our name for a split written as ``name``, or None when it is not the name of a split."""
    return SPLIT_NAMES.get(name.strip().lower()) if isinstance(name, str) else None


def json_lines(path: Path, split: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of a JSON Lines file, one line held in memory at a time."""
    reader = Reader()
    for line in lines(path):
        if not line.content.strip() and not line.cut:
            continue
        try:
            yield Row(reader.row(decoded(line)), Place(path, line.number), line.content, split)
        except Refused as refused:
            torn = "" if line.ended else " (the last line has no line end: the file seems to be cut off here)"
            place = Place(path, line.number, refused.column)
            yield BadRow(Problem(place, refused.what + torn), line.content)


def json_document(path: Path, split: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of a ``.json`` file: an array, an object that holds one, or JSON Lines under that name."""
    head = list(itertools.islice((line for line in lines(path) if line.content.strip()), 2))
    if head and _is_row(head[0], alone=len(head) == 1):
        yield from json_lines(path, split)
        return
    text = whole_text(path)
    start = _skip(text, 0)
    if start == len(text):
        return
    if text[start] == "[":
        yield from _Document(path, text).array(start, split)
    elif text[start] == "{":
        yield from _Document(path, text).sections(start, split)
    else:
        raise DataError(
            "this JSON file holds neither a list of rows nor an object.",
            place=Place(path, 1, start + 1),
            remedy='Write rows as [{…}, {…}], {"data": [{…}]} or one object a line.',
        )


def _is_row(line: Line, *, alone: bool) -> bool:
    """Whether the first line is a row of JSON Lines, rather than all or part of one document."""
    try:
        value = Reader().row(decoded(line))
    except Refused:
        return False
    return not (alone and any(isinstance(value.get(key), list) for key in (*ROW_KEYS, *SPLIT_NAMES)))


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position


class _Document:
    """Walks one JSON text, counting lines as it goes."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.text = text
        self._reader = Reader()
        self._line = 1
        self._line_start = 0
        self._counted = 0

    def place(self, position: int) -> Place:
        """Line and column of ``position``; positions must not decrease from call to call by more than a line."""
        if position > self._counted:
            newlines = self.text.count("\n", self._counted, position)
            if newlines:
                self._line += newlines
                self._line_start = self.text.rfind("\n", self._counted, position) + 1
            self._counted = position
        return Place(self.path, self._line, position - self._line_start + 1)

    def array(self, start: int, split: str | None) -> Iterator[Row | BadRow]:
        """The elements of the array whose bracket is at ``start``; what follows it must be white space."""
        end = yield from self._elements(start, split)
        if _skip(self.text, end) != len(self.text):
            raise self._broken("something follows the end of the list", _skip(self.text, end))

    def sections(self, start: int, split: str | None) -> Iterator[Row | BadRow]:
        """The rows under `ROW_KEYS` or split names of the object whose brace is at ``start``."""
        found, position = False, self._after(start + 1, "")
        while self._at(position) != "}":
            key, position, _ = self._value(position)
            position = self._after(self._expect(position, ":"), "")
            section = split_name(key)
            if self._at(position) == "[" and (key in ROW_KEYS or section is not None):
                found = True
                position = yield from self._elements(position, section or split)
            else:
                _, position, _ = self._value(position)
            position = self._next(position, "}")
        if _skip(self.text, position + 1) != len(self.text):
            raise self._broken("something follows the end of the object", _skip(self.text, position + 1))
        if not found:
            raise DataError(
                f"this JSON object holds no list of rows under {', '.join(ROW_KEYS[:3])} or the name of a split.",
                place=Place(self.path),
                remedy='Write rows as [{…}, {…}], {"data": [{…}]} or one object a line.',
            )

    def _elements(self, start: int, split: str | None) -> Generator[Row | BadRow, None, int]:
        position = self._after(start + 1, "")
        while self._at(position) != "]":
            place = self.place(position)
            value, end, flaw = self._value(position)
            raw = self.text[position:end].encode("utf-8", "surrogateescape")
            try:
                if flaw is not None:
                    raise flaw
                yield Row(as_object(value), Place(self.path, place.line), raw, split)
            except Refused as refused:
                where = place if refused.column is None else self.place(refused.column - 1)
                yield BadRow(Problem(where, refused.what), raw)
            position = self._next(end, "]")
        return position + 1

    def _value(self, position: int) -> tuple[Any, int, Refused | None]:
        try:
            return self._reader.value_at(self.text, position)
        except Refused as refused:
            raise self._broken(refused.what, position if refused.column is None else refused.column - 1) from None

    def _at(self, position: int) -> str:
        if position >= len(self.text):
            raise self._broken("the file ends in the middle: it seems to be cut off", len(self.text))
        return self.text[position]

    def _after(self, position: int, character: str) -> int:
        return _skip(self.text, position + len(character))

    def _expect(self, position: int, character: str) -> int:
        position = _skip(self.text, position)
        if self._at(position) != character:
            raise self._broken(f"expecting {character!r}", position)
        return position + 1

    def _next(self, position: int, closing: str) -> int:
        """Past the comma to the next element, or to the closing bracket."""
        position = _skip(self.text, position)
        if self._at(position) == closing:
            return position
        position = _skip(self.text, self._expect(position, ","))
        if self._at(position) == closing:
            raise self._broken("a comma with nothing after it", position)
        return position

    def _broken(self, what: str, position: int) -> DataError:
        return DataError(
            f"{what}; nothing after this point of a JSON list can be read.",
            place=self.place(position),
            remedy="Correct it, or write one object a line (.jsonl): then bad rows can be set aside.",
        )


def documents(path: Path, split: str | None = None) -> Iterator[Row | BadRow]:
    """The documents of a plain text file as rows ``{"text": …}``.

    Documents are separated by blank lines where there is one for every fifty lines of text or more; else each line
    is a document.
    """
    paragraphs = separates_by_blank_lines(path)
    block: list[Line] = []
    for line in itertools.chain(lines(path), [Line(0, b"", True)]):
        if line.content.strip() or line.cut:
            block.append(line)
            if paragraphs:
                continue
        if block:
            yield _document(path, block, split)
            block = []


def separates_by_blank_lines(path: Path) -> bool:
    """Whether blank lines between text are frequent enough to separate documents."""
    text = blank = pending = 0
    for line in lines(path):
        if line.content.strip():
            text, blank, pending = text + 1, blank + pending, 0
        elif text:
            pending = 1
    return blank > 0 and blank >= _PARAGRAPH_SHARE * text


def _document(path: Path, block: list[Line], split: str | None) -> Row | BadRow:
    raw = b"\n".join(line.content for line in block)
    parts = []
    for line in block:
        try:
            parts.append(decoded(line))
        except Refused as refused:
            return BadRow(Problem(Place(path, line.number, refused.column), refused.what), raw)
    return Row({"text": "\n".join(parts)}, Place(path, block[0].number), raw, split)
