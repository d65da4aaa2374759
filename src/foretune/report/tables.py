"""The building blocks of the report's sections: tables, definition lists, nested values, foldable parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.report.markup import Markup, join, tag

MOST_ITEMS = 24  # longer lists of a profile are cut, with the number left out
LONGEST_CELL = 2000  # characters of one value shown
_DEEPEST = 6
_ROUND_DIGITS = 4


@dataclass(frozen=True)
class Section:
    """A part of the page: a heading, one sentence under it, and what follows."""

    title: str
    lead: Markup | str
    body: tuple[Markup | None, ...]


@dataclass(frozen=True)
class Column:
    """A table column; ``number`` aligns right with even digits."""

    title: str
    number: bool = False


def table(
    caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Any]], classes: Sequence[str] = ()
) -> Markup:
    """A table that scrolls sideways by itself on a small screen. ``classes`` are the rows' CSS classes."""
    head = [tag("th", column.title, scope="col", class_="number" if column.number else None) for column in columns]
    body = []
    for index, row in enumerate(rows):
        cells = [
            tag(
                "th" if place == 0 else "td",
                cell,
                scope="row" if place == 0 else None,
                class_="number" if column.number else None,
            )
            for place, (column, cell) in enumerate(zip(columns, row, strict=True))
        ]
        body.append(tag("tr", *cells, class_=(classes[index] or None) if index < len(classes) else None))
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *body))
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def folded(summary: str, *content: Markup | None, open_: bool = False) -> Markup:
    """A part that opens on a click; printed open."""
    return tag("details", tag("summary", summary), *content, open=open_)


def definitions(pairs: Iterable[tuple[str, Any]]) -> Markup:
    """Names with their values; a value that is None is left out."""
    return tag(
        "dl",
        *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value is not None and value != ""),
        class_="pairs",
    )


def words(name: str) -> str:
    """``"tokens_per_row"`` → "tokens per row"."""
    return name.replace("_", " ")


def shown(value: Any) -> str:
    """A scalar as text: numbers with few digits, long text cut with a remark."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 and value == int(value) else f"{value:.{_ROUND_DIGITS}g}"
    return clipped(str(value))


def clipped(text: str, limit: int = LONGEST_CELL) -> str:
    """``text`` cut to ``limit`` characters, saying how many were left out."""
    return text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit:,} more characters]"


def nested(value: Any, depth: int = 0) -> Markup:
    """Any JSON value: objects as definition lists (counts as bars), lists of objects as items, scalars as text."""
    if isinstance(value, Mapping) and value and depth < _DEEPEST:
        if _are_counts(value):
            return bars(value)
        items = list(value.items())[:MOST_ITEMS]
        pairs = [(words(str(name)), nested(item, depth + 1)) for name, item in items]
        return join([definitions(pairs), _left_out(len(value))])
    if isinstance(value, list | tuple) and value:
        if any(isinstance(item, Mapping | list | tuple) for item in value) and depth < _DEEPEST:
            entries = [tag("li", nested(item, depth + 1)) for item in value[:MOST_ITEMS]]
            return join([tag("ul", *entries, class_="items"), _left_out(len(value))])
        return join([", ".join(shown(item) for item in value[:MOST_ITEMS]), _left_out(len(value))])
    return join([shown(value) if not isinstance(value, Mapping | list | tuple) else "–"])


def _left_out(count: int) -> Markup | None:
    return tag("small", f" and {count - MOST_ITEMS:,} more") if count > MOST_ITEMS else None


def _are_counts(value: Mapping[str, Any]) -> bool:
    """Whole numbers that can be shares of one whole: at least three of them, none negative."""
    return len(value) > 2 and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value.values())


def bars(counts: Mapping[str, int]) -> Markup:
    """Counts as small horizontal bars with their numbers."""
    most = max(counts.values()) or 1
    rows = []
    for name, count in list(counts.items())[:MOST_ITEMS]:
        bar = tag("span", class_="bar", style=f"width:{100 * count / most:.1f}%")
        cells = (tag("td", tag("span", bar, class_="track")), tag("td", f"{count:,}", class_="number"))
        rows.append(tag("tr", tag("th", clipped(str(name), 80), scope="row"), *cells))
    return join([tag("table", tag("tbody", *rows), class_="bars"), _left_out(len(counts))])
