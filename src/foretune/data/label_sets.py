"""Several labels of one text, as an answer: their names in alphabetical order, such as ``anger; joy``, or ``none``.

Heads for labels choose one class. A language model can name as many as hold, so such rows are questions to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foretune.data.problems import Refused
from foretune.data.strict_json import described

SEPARATOR = ";"
NONE = "none"
_INDICATORS = frozenset({0, 1})


def written(value: Any, column: str) -> str:
    """The labels in a row's ``column`` (a list, or one) as an answer. Raises `Refused` for what are no labels."""
    labels = value if isinstance(value, list) else [value]
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
            raise Refused(f"{column!r} holds {described(label)} among its labels")
        if SEPARATOR in str(label):
            raise Refused(f"the label {str(label)[:40]!r} has a semicolon, which stands between labels")
    names = sorted({str(label).strip() for label in labels}, key=lambda name: (name.casefold(), name))
    return f"{SEPARATOR} ".join(names) or NONE


def named_in(text: str, separators: str = SEPARATOR) -> frozenset[str]:
    """The labels that an answer names, folded in case; any of the ``separators`` may stand between them."""
    for separator in separators[1:]:
        text = text.replace(separator, separators[0])
    return frozenset(name for part in text.split(separators[0]) if (name := " ".join(part.casefold().split())))


def are_several(values: Sequence[Any]) -> bool:
    """Whether a column holds sets of labels: lists mostly, and not always of one."""
    lists = [value for value in values if isinstance(value, list)]
    return 2 * len(lists) > len(values) and any(len(value) != 1 for value in lists)


def are_indicators(values: Sequence[Any]) -> bool:
    """Whether these are vectors that say 0 or 1 of every label without its name."""
    lengths = {len(value) if isinstance(value, list) else 0 for value in values}
    if len(lengths) != 1 or lengths & {0, 1}:
        return False
    marks = [mark for value in values for mark in value]
    counted = any(value.count(0) > 1 or value.count(1) > 1 for value in values)
    return counted and all(isinstance(mark, int | float) and mark in _INDICATORS for mark in marks)
