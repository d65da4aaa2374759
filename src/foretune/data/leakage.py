"""Rows of one given split that are in another: found by duplicate cluster and by group.

Test is never touched: what leaks is removed from training, and from validation what is in test.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.data.deduplicate import Clusters
from foretune.data.example import Example

_PRECEDENCE = ("test", "validation", "train")
"""A row that is in several splits stays in the first of these."""


@dataclass(frozen=True)
class Leak:
    """A row of ``split`` that is also in ``other``. ``row`` and ``twin`` count in the examples that were split."""

    row: int
    split: str
    other: str
    twin: int
    because: str

    def to_json(self, examples: Sequence[Example]) -> dict[str, Any]:
        """A JSON form with places instead of row numbers."""
        return {
            "split": self.split,
            "place": str(examples[self.row].place or self.row),
            "also_in": self.other,
            "twin": str(examples[self.twin].place or self.twin),
            "because": self.because,
        }


def leaks(examples: Sequence[Example], split_of: Sequence[str], cluster: Clusters) -> tuple[Leak, ...]:
    """The leaks between splits, one a row at most, in the order of the rows.

    ``split_of``: train, validation or test for each row. ``cluster``: (rows,) int64.
    """
    by_cluster = _first_in_split(split_of, lambda row: int(cluster[row]))
    by_group = _first_in_split(split_of, lambda row: examples[row].group)
    found = []
    for row, split in enumerate(split_of):
        for other in _PRECEDENCE[: _PRECEDENCE.index(split)]:
            twin = by_cluster[other].get(int(cluster[row]))
            because = "the same or nearly the same row"
            group = examples[row].group
            if twin is None and group is not None:
                twin, because = by_group[other].get(group), "the same group"
            if twin is not None:
                found.append(Leak(row, split, other, twin, because))
                break
    return tuple(found)


def _first_in_split(split_of: Sequence[str], key: Callable[[int], Any]) -> dict[str, dict[Any, int]]:
    first: dict[str, dict[Any, int]] = defaultdict(dict)
    for row, split in enumerate(split_of):
        if (value := key(row)) is not None:
            first[split].setdefault(value, row)
    return first
