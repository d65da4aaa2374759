"""What every metric shares: checking the rows, and a value with its standard error from numbers of the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretune.errors import DataError, TrainingError
from foretune.evaluation import aggregate
from foretune.evaluation.base import SHARE, Answer, Direction, MetricResult

PSEUDO_ROWS = 4
"""Agresti and Coull 1998: a share of n rows is judged as if two more had succeeded and two more failed."""


def require_rows(rows: Sequence[Answer], metric: str) -> None:
    """Raise `DataError` when there is nothing to score."""
    if not rows:
        raise DataError(f"{metric} has no rows to score.", remedy="Give at least one row.")


def prediction_of(row: Answer, metric: str) -> str:
    """The row's prediction, or a `DataError` that names the row."""
    if row.prediction is None:
        raise DataError(f"row {row.row} has no prediction, which {metric} needs.", remedy="Generate answers first.")
    return row.prediction


def value_error(values: Sequence[float], *, scale: float) -> float:
    """The standard error of the mean of ``values`` that lie in [0, scale]; never 0.

    Right-or-wrong rows, rows that are all alike and a single row are judged with four pseudo-rows: ten right of ten
    is not certainty, and searches divide by this number.
    """
    rows = np.asarray(values, dtype=np.float64)
    if np.ptp(rows) == 0 or set(np.unique(rows)) <= {0.0, scale}:
        rows = np.concatenate([rows, [0.0, 0.0, scale, scale]])
        return float(rows.std() / math.sqrt(len(rows)))
    return float(rows.std(ddof=1) / math.sqrt(len(rows)))


def from_rows(
    name: str,
    statistics: tuple[tuple[float, ...], ...],
    per_row: tuple[float, ...],
    *,
    scale: float,
    details: Mapping[str, Any] | None = None,
) -> MetricResult:
    """The result of aggregate ``name``: its value, and its bootstrap error (see `value_error` for too few rows)."""
    rows = np.asarray(statistics, dtype=np.float64)
    value = aggregate.whole(name, rows)
    error = aggregate.bootstrap_error(name, rows) if len(rows) > 1 else 0.0
    if error == 0.0:
        error = value_error([value] * len(rows), scale=scale)
    return checked(MetricResult(value, error, per_row, details, name, statistics), name)


def checked(result: MetricResult, metric: str) -> MetricResult:
    """``result`` if its numbers are finite; NaN and infinity are never a score."""
    if not (math.isfinite(result.value) and math.isfinite(result.standard_error)):
        raise TrainingError(
            f"{metric} is {result.value} ± {result.standard_error}, which is no score.",
            remedy="The model's outputs are not finite: it has diverged.",
        )
    return result


def mean_of(per_row: Sequence[float], *, scale: float = 1.0, details: Mapping[str, Any] | None = None) -> MetricResult:
    """The mean of the rows' numbers with its standard error; ``scale`` as in `value_error`."""
    mean = math.fsum(per_row) / len(per_row)
    return MetricResult(mean, value_error(per_row, scale=scale), tuple(per_row), details)


@dataclass(frozen=True)
class ShareMetric:
    """The mean over rows of a number in [0, 1] made from prediction and reference."""

    name: str
    measure: Callable[[str, str], float]
    unit: str = SHARE
    direction: Direction = "higher"
    needs_generation: bool = True

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The mean with its standard error. Raises `DataError` for no rows or a row without prediction."""
        require_rows(rows, self.name)
        per_row = tuple(self.measure(prediction_of(row, self.name), row.reference) for row in rows)
        return mean_of(per_row)
