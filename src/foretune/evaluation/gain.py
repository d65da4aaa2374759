"""The gain over the untouched base model: log(base loss / loss) on the same rows, with the error of the pairs.

It has a unit of its own (a gain of 0.1 is a loss about a tenth lower), so that runs on different tasks can be learnt
from together and a single observation already means something. Both losses are sums over the same rows; the error is
the delta method's for the ratio of two sums over paired rows (Cochran 1977, Sampling Techniques, section 6.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from foretune.search.types import Score

GAIN = "gain"
FEWEST_PAIRS = 2


class RowLoss(Protocol):
    """A row's summed loss."""

    @property
    def row(self) -> int:
        """Index of the row within its split."""
        ...

    @property
    def nll(self) -> float | None:
        """Summed loss in nats (squared error for regression)."""
        ...


def gain(base: Iterable[RowLoss], tuned: Iterable[RowLoss]) -> Score | None:
    """The gain on the rows of ``tuned``; None where the base lacks one of them, or a loss is not positive."""
    before = {score.row: score.nll for score in base}
    pairs = [(before.get(score.row), score.nll) for score in tuned]
    known = [(old, new) for old, new in pairs if old is not None and new is not None]
    if len(known) < len(pairs) or len(pairs) < FEWEST_PAIRS:
        return None
    old, new = np.asarray(known, dtype=np.float64).T
    if not (np.isfinite(old).all() and np.isfinite(new).all()) or old.sum() <= 0 or new.sum() <= 0:
        return None
    influence = old / old.mean() - new / new.mean()
    error = float(influence.std(ddof=1)) / math.sqrt(len(known))
    return Score(math.log(old.sum() / new.sum()), error, len(known))
