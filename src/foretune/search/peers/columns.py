"""The pool as a search space for other packages: its columns, and the member nearest to what they propose."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretune.errors import UsageError
from foretune.search.encoding import Encoding, Floats
from foretune.search.task_prior import TaskPrior


@dataclass(frozen=True)
class Columns:
    """Columns that vary over the pool."""

    encoding: Encoding
    places: Floats
    rows: tuple[Mapping[str, float | str], ...]

    @classmethod
    def of(cls, prior: TaskPrior) -> Columns:
        """The columns of a pool."""
        encoding = Encoding.of(prior.rows)
        return cls(encoding, encoding.dense(prior.rows), prior.rows)

    @property
    def numbers(self) -> dict[str, tuple[float, float]]:
        """Range of each number that varies."""
        spans = zip(self.encoding.numbers, self.encoding.low, self.encoding.high, strict=True)
        return {name: (low, high) for name, low, high in spans if high > low}

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """Words of each category that varies."""
        return {name: words for name, words in self.encoding.categories if len(words) > 1}

    def values(self, place: int) -> dict[str, Any]:
        """The columns of a member."""
        return self.values_of(self.rows[place])

    def values_of(self, row: Mapping[str, float | str]) -> dict[str, Any]:
        """The columns of a described configuration; a number that it lacks is in the middle."""
        found: dict[str, Any] = {}
        for name, (low, high) in self.numbers.items():
            value = row.get(name)
            known = isinstance(value, float) and np.isfinite(value)
            found[name] = min(max(float(value or 0.0), low), high) if known else (low + high) / 2
        for name, words in self.categories.items():
            word = row.get(name)
            found[name] = word if word in words else words[0]
        return found

    def nearest(self, values: Mapping[str, Any], free: Collection[int]) -> int:
        """The member of ``free`` nearest to what was proposed."""
        point = self.encoding.dense([values])[0]
        listed = list(free)
        return listed[int(np.argmin(((self.places[listed] - point) ** 2).sum(1)))]


def needed(package: str) -> UsageError:
    """The error for a peer whose package is not installed."""
    return UsageError(f"this strategy needs {package}.", remedy="Install the extra: pip install 'foretune[peers]'.")
