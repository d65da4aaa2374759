"""Which columns of a row hold what: names the user said, and looking values up by name.

A name may be a path with dots (``translation.en``) into nested objects; a column with the dots in its own name wins.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from foretune.catalogue.languages import Languages, parse_pair
from foretune.config.spec import DataSettings
from foretune.errors import DataError, Place


@dataclass(frozen=True)
class Columns:
    """Column names that the user said; None leaves a column to be found."""

    prompt: str | None = None
    answer: str | None = None
    label: str | None = None
    text: str | None = None
    pair: str | None = None
    """The second text, where a label is about two"""
    task: str | None = None
    group: str | None = None
    split: str | None = None
    system: str | None = None
    languages: Languages | None = None
    """Source and target where a row holds a text in several languages; not the name of a column"""

    def named(self) -> dict[str, str]:
        """The names that were said, by what they hold."""
        said = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "languages"}
        return {name: value for name, value in said.items() if value is not None}


FOUND = Columns()
"""Nothing was said: every column is found."""


def said_in(settings: DataSettings) -> Columns:
    """The columns that settings name, and the languages they say."""
    pair = None if settings.languages is None else parse_pair(settings.languages)
    return Columns(**settings.columns.model_dump(), languages=pair)


def has(row: Mapping[str, Any], name: str) -> bool:
    """Whether ``row`` has the column ``name`` (its value may be null)."""
    if name in row:
        return True
    head, _, tail = name.partition(".")
    inner = row.get(head)
    return bool(tail) and isinstance(inner, Mapping) and has(inner, tail)


def value_of(row: Mapping[str, Any], name: str) -> Any:
    """The value of column ``name``, or None where the row does not have it."""
    if name in row:
        return row[name]
    head, _, tail = name.partition(".")
    inner = row.get(head)
    return value_of(inner, tail) if tail and isinstance(inner, Mapping) else None


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The column names of ``rows`` in order of first appearance; nested ones follow their parent with a dot."""
    names: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            names[name] = None
            if isinstance(value, Mapping):
                names.update(dict.fromkeys(f"{name}.{inner}" for inner in value))
    return list(names)


def check_named(columns: Columns, rows: list[Mapping[str, Any]], place: Place) -> None:
    """Raise `DataError` for a named column that no row has, with those that exist and the nearest name."""
    existing = columns_of(rows)
    for purpose, name in columns.named().items():
        if not any(has(row, name) or _inside_translation(row, name) for row in rows):
            near = difflib.get_close_matches(name.lower(), [other.lower() for other in existing], n=1, cutoff=0.6)
            meant = next((other for other in existing if near and other.lower() == near[0]), None)
            hint = f" Did you mean {meant!r}?" if meant else ""
            raise DataError(
                f"there is no column {name!r} (said as the {purpose} column).{hint}",
                place=place,
                remedy=f"The columns are: {', '.join(existing)}.",
            )


def _inside_translation(row: Mapping[str, Any], name: str) -> bool:
    inner = row.get("translation")
    return isinstance(inner, Mapping) and name in inner
