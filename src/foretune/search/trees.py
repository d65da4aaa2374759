"""Boosted trees over tables with missing values and categories: one place where scikit-learn is asked.

Columns in which fewer than two values are known say nothing and are left out (scikit-learn cannot bin them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretune.search.encoding import Floats, Indices

TREES = 80
LEARNING_RATE = 0.08
LEAVES = 15
FEWEST_IN_LEAF = (2, 10)
"""A leaf holds a thirtieth of the rows, within these bounds."""
ROWS_A_LEAF = 30
SHRINKAGE = 1.0


@dataclass(frozen=True)
class Trees:
    """A fitted ensemble."""

    columns: Indices
    model: Any
    """None where no column says anything: the mean then"""
    mean: float

    def predict(self, table: Floats) -> Floats:
        """(n,): predictions for the rows of ``table``, which has all columns."""
        if self.model is None:
            return np.full(len(table), self.mean)
        return np.asarray(self.model.predict(table[:, self.columns]))


def grow(table: Floats, target: Floats, categorical: Sequence[bool], seed: int, weight: Floats | None = None) -> Trees:
    """An ensemble for ``target`` (n,) from ``table`` (n, columns); ``categorical`` says which columns are codes."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    columns = np.asarray([k for k in range(table.shape[1]) if _varies(table[:, k])], dtype=np.int64)
    mean = float(np.average(target, weights=weight)) if len(target) else 0.0
    low, high = FEWEST_IN_LEAF
    if len(columns) == 0 or len(target) < 2 * low:
        return Trees(columns, None, mean)
    model = HistGradientBoostingRegressor(
        max_iter=TREES, learning_rate=LEARNING_RATE, max_leaf_nodes=LEAVES, l2_regularization=SHRINKAGE,
        min_samples_leaf=min(high, max(low, len(target) // ROWS_A_LEAF)), early_stopping=False,
        categorical_features=[categorical[k] for k in columns], random_state=seed % 2**32,
    )  # fmt: skip
    return Trees(columns, model.fit(table[:, columns], target, weight), mean)


def _varies(column: Floats) -> bool:
    known = column[np.isfinite(column)]
    return len(known) > 1 and bool((known != known[0]).any())
