"""Parallel texts out of translators' files: TMX, PO, and folders of JSON trees with the same keys.

=======================  =========================================================================================
``.tmx``                 a unit is a row ``{"translation": {"en": …, "de": …}}``, tags inside a segment left out
``.po``                  an entry is a row ``source``, ``target``; fuzzy, obsolete and empty ones are no rows
folder of ``de.json`` …  texts under the same keys are a row ``{"translation": {…}, "key": …}``; others are left out
=======================  =========================================================================================

XML is read as a stream by expat, with entity declarations refused: nothing a file declares is expanded or fetched.
Which language is the source is for `formats` and the caller to say.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat

from foretune.data.lines import decoded, lines
from foretune.data.problems import BadRow, Problem, Refused
from foretune.data.rows import Row
from foretune.errors import DataError, Place

KEY_MARK = "\x1f"
"""Joins the keys of nested objects; no key of people's files holds it."""
TREE_FILE = re.compile(r"([a-z]{2,3}(?:[-_][A-Za-z0-9]+)*)\.json")
_CHUNK_BYTES = 1 << 16
_INLINE = frozenset({"bpt", "ept", "ph", "it", "ut", "sub"})
"""TMX elements inside a segment that hold markup of the original, not text."""


# -- trees of keys


def leaves(value: Any, path: str = "") -> dict[str, str]:
    """Every text in nested objects by its path of keys, white space folded."""
    if isinstance(value, str):
        return {path: " ".join(value.split())}
    if not isinstance(value, dict):
        return {}
    return {
        key: text for name, inner in value.items() for key, text in leaves(inner, f"{path}{KEY_MARK}{name}").items()
    }


def is_tree_folder(files: list[Path]) -> bool:
    """Whether files are one JSON object of texts a language: ``en.json`` and ``pt-BR.json``, and no others."""
    return len(files) > 1 and all(TREE_FILE.fullmatch(path.name) for path in files) and all(map(_is_tree, files))


def _is_tree(path: Path) -> bool:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and bool(leaves(value))


def trees(files: list[Path]) -> Iterator[Row | BadRow]:
    """A row for every key that all languages have a text under, in the order of the first file."""
    texts = {path.stem: leaves(json.loads(path.read_text(encoding="utf-8-sig"))) for path in files}
    first, *others = texts
    for number, (key, text) in enumerate(texts[first].items(), start=1):
        segment = {first: text, **{name: texts[name].get(key, "") for name in others}}
        if all(segment.values()):
            value = {"translation": segment, "key": key.strip(KEY_MARK).replace(KEY_MARK, ".")}
            yield Row(value, Place(files[0], number), json.dumps(value, ensure_ascii=False).encode(), None)


# -- TMX


def tmx(path: Path, split: str | None = None) -> Iterator[Row | BadRow]:
    """The units of a TMX file; one with fewer than two languages is a bad row. Raises `DataError` for broken XML."""
    reader = _Tmx(path, split)
    with _opened(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            reader.feed(chunk)
            yield from reader.taken()
        reader.feed(b"", last=True)
        yield from reader.taken()


def _opened(path: Path) -> IO[bytes]:
    try:
        if path.suffix.lower() in (".gz", ".gzip"):
            return gzip.open(path, "rb")  # type: ignore[return-value]
        return path.open("rb")
    except OSError as error:
        raise DataError(f"this file cannot be opened: {error.strerror}.", place=Place(path)) from error


class _Tmx:
    """Collects units while expat reads."""

    def __init__(self, path: Path, split: str | None) -> None:
        self.path, self.split = path, split
        self._rows: list[Row | BadRow] = []
        self._unit: dict[str, str] | None = None
        self._line = 0
        self._language = ""
        self._text: list[str] | None = None
        self._markup = 0
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.EntityDeclHandler = self._refuse_entity

    def feed(self, chunk: bytes, *, last: bool = False) -> None:
        """Read on. Raises `DataError`."""
        try:
            self._parser.Parse(chunk, last)
        except (expat.ExpatError, OSError, EOFError) as error:
            line = getattr(error, "lineno", None)
            raise DataError(
                f"this is not readable XML ({error}).", place=Place(self.path, line), remedy="Export it again as TMX."
            ) from error

    def taken(self) -> list[Row | BadRow]:
        """The units read since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def _refuse_entity(self, name: str, *_: Any) -> None:
        raise DataError(
            f"the file declares an entity ({name}), which is not read.",
            place=Place(self.path, self._parser.CurrentLineNumber),
            remedy="Remove the declarations from its head; translations need none.",
        )

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "tu":
            self._unit, self._line = {}, self._parser.CurrentLineNumber
        elif name == "tuv":
            self._language = attributes.get("xml:lang") or attributes.get("lang") or ""
        elif name == "seg":
            self._text, self._markup = [], 0
        elif name in _INLINE:
            self._markup += 1

    def _end(self, name: str) -> None:
        if name in _INLINE:
            self._markup -= 1
        elif name == "seg" and self._text is not None:
            text = " ".join("".join(self._text).split())
            if self._unit is not None and self._language and text:
                self._unit.setdefault(_short(self._language), text)
            self._text = None
        elif name == "tu" and self._unit is not None:
            self._finish(self._unit)
            self._unit = None

    def _finish(self, unit: dict[str, str]) -> None:
        place = Place(self.path, self._line)
        raw = json.dumps(unit, ensure_ascii=False).encode()
        if len(unit) < 2:
            self._rows.append(BadRow(Problem(place, f"a unit with {len(unit)} language(s), not two"), raw))
        else:
            self._rows.append(Row({"translation": unit}, place, raw, self.split))

    def _characters(self, data: str) -> None:
        if self._text is not None and not self._markup:
            self._text.append(data)


def _short(language: str) -> str:
    """``EN-us`` as ``en-us``: one name for a language, whatever its case."""
    return language.lower().replace("_", "-")


# -- PO

_KEYWORD = re.compile(r'(msgctxt|msgid_plural|msgid|msgstr(?:\[\d+\])?)\s+(".*")\s*$')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


def po(path: Path, split: str | None = None) -> Iterator[Row | BadRow]:
    """The translated entries of a gettext file. A plural gives two rows: the singular, and the last of the plurals."""
    entry: dict[str, str] = {}
    raw: list[bytes] = []
    keyword, start, fuzzy = "", 0, False
    for line in lines(path):
        try:
            text = decoded(line).strip()
        except Refused as refused:
            yield BadRow(Problem(Place(path, line.number, refused.column), refused.what), line.content)
            continue
        begins = text.startswith(("#", "msgctxt")) or (text.startswith("msgid ") and keyword.startswith("msgstr"))
        if (not text or begins) and any(name.startswith("msgstr") for name in entry):
            yield from _entry(entry, fuzzy, Place(path, start), b"\n".join(raw), split)
            entry, raw, keyword, fuzzy = {}, [], "", False
        if text.startswith("#"):
            fuzzy = fuzzy or (text.startswith("#,") and "fuzzy" in text)
            continue
        if not text:
            continue
        start = start if entry else line.number
        raw.append(line.content)
        match = _KEYWORD.fullmatch(text)
        if match:
            keyword = match[1]
            entry[keyword] = _unquoted(match[2])
        elif text.startswith('"') and text.endswith('"') and keyword:
            entry[keyword] += _unquoted(text)
        else:
            yield BadRow(Problem(Place(path, line.number), "a line that is no part of a PO entry"), line.content)
    yield from _entry(entry, fuzzy, Place(path, start), b"\n".join(raw), split)


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), text[1:-1])


def _entry(
    entry: Mapping[str, str], fuzzy: bool, place: Place, raw: bytes, split: str | None
) -> Iterator[Row | BadRow]:
    source = entry.get("msgid", "")
    if fuzzy or not source:  # the header's msgid is empty
        return
    plurals = [name for name in entry if name.startswith("msgstr[")]
    pairs = [(source, entry.get("msgstr", entry[plurals[0]] if plurals else ""))]
    if plurals and "msgid_plural" in entry:
        pairs.append((entry["msgid_plural"], entry[plurals[-1]]))
    for original, translated in pairs:
        if translated:
            context = {"context_of_use": entry["msgctxt"]} if "msgctxt" in entry else {}
            yield Row({"source": original, "target": translated, **context}, place, raw, split)
