"""HTML and SVG as values: ``tag("td", text)`` escapes every child that is not already `Markup`.

Whatever comes from a data file, a model's answer or a file name reaches the page through here, so nothing can be
forgotten. Control characters and lone surrogates, which HTML cannot hold, are shown as replacement characters, and
so are the invisible characters that reverse the reading order.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")
_VOID = frozenset({"br", "hr", "img", "meta", "link", "input"})

Child = object
"""A `Markup`, or anything whose ``str`` is escaped; None is left out."""


class Markup(str):
    """Text that is already HTML."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """``text`` as HTML text, also safe inside a double-quoted attribute."""
    return Markup(html.escape(_UNSHOWABLE.sub("\ufffd", str(text)), quote=True))


def join(children: Iterable[Child], between: str = "") -> Markup:
    """The children in a row; those that are not `Markup` are escaped."""
    pieces = (child if isinstance(child, Markup) else escape(child) for child in children if child is not None)
    return Markup(between.join(pieces))


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """An element. ``class_`` gives class, ``stroke_width`` stroke-width; None and False leave an attribute out."""
    written = "".join(
        f" {_attribute(key)}" + ("" if value is True else f'="{escape(_plain(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _plain(value: object) -> object:
    """Coordinates with two decimals: a hundredth of a pixel cannot be seen."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") or "0"
    return value


def link_id(text: str) -> str:
    """A fragment identifier made of letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
