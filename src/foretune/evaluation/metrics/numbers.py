"""Metrics of numbers: regression, and the likelihood of the reference answer.

A prediction that cannot be read as a number (a language model may answer "good") counts as the mean of the
references, that is, as no skill, and ``details`` says how many did. A prediction that never varies correlates with
nothing: 0. References that never vary cannot be correlated with: `DataError`.

Likelihoods are ratios over rows (nats / tokens, bits / bytes), so long answers count as much as they are long; the
standard error is the ratio estimator's, rows being the units drawn (Cochran 1977, equation 2.46).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foretune.errors import DataError
from foretune.evaluation.aggregate import Array, standardised, weighted_ranks, whole
from foretune.evaluation.base import Answer, Direction, MetricResult
from foretune.evaluation.metrics.rows import checked, from_rows, prediction_of, require_rows

NATS_PER_BIT = math.log(2)
LARGEST_CORRELATION = 1.0
_NUMBER = re.compile(r"[-+−]?(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)(?:\.\d+)?|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")


def number(text: str) -> float | None:
    """The first number in ``text`` (12,500 is one); None when there is none or it is not finite."""
    found = _NUMBER.search(text)
    value = None if found is None else float(found.group().replace("−", "-").replace(",", ""))
    return value if value is not None and math.isfinite(value) else None


def _pairs(rows: Sequence[Answer], metric: str) -> tuple[Array, dict[str, int]]:
    """(rows, 2): prediction and reference; and how many predictions could not be read."""
    require_rows(rows, metric)
    references = [_reference(row, metric) for row in rows]
    predictions = [number(prediction_of(row, metric)) for row in rows]
    no_skill = math.fsum(references) / len(references)
    unread = sum(value is None for value in predictions)
    pairs = [(no_skill if said is None else said, wanted) for said, wanted in zip(predictions, references, strict=True)]
    return np.asarray(pairs, dtype=np.float64), {"unreadable_predictions": unread}


def _reference(row: Answer, metric: str) -> float:
    value = number(row.reference)
    if value is None:
        raise DataError(
            f"{metric} compares numbers, and the answer of row {row.row} is {row.reference[:40]!r}.",
            remedy="Give every row a number, or choose another --metric.",
        )
    return value


@dataclass(frozen=True)
class Correlation:
    """Pearson's or Spearman's correlation; ``per_row`` are products of standard scores, whose mean is the value."""

    name: Literal["pearson", "spearman"]
    unit: str = "correlation"
    direction: Direction = "higher"
    needs_generation: bool = True

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The correlation with its bootstrap error. Raises `DataError`."""
        pairs, details = _pairs(rows, self.name)
        if pairs[:, 1].min() == pairs[:, 1].max():
            raise DataError(f"{self.name} is undefined: every reference is the same.",
                            remedy="Use mae or mse, or rows whose references differ.")  # fmt: skip
        ranked = pairs
        if self.name == "spearman":
            once = np.ones((1, len(pairs)))
            ranked = np.column_stack([weighted_ranks(once, pairs[:, column])[0] for column in (0, 1)])
        products = standardised(ranked[:, 0]) * standardised(ranked[:, 1])
        statistics = tuple((float(said), float(wanted)) for said, wanted in pairs)
        per_row = tuple(map(float, products))
        return from_rows(self.name, statistics, per_row, scale=LARGEST_CORRELATION, details=details)


@dataclass(frozen=True)
class ErrorMetric:
    """The mean of |prediction − reference| to a power: 1 is mae, 2 is mse."""

    name: str
    power: int
    unit: str
    direction: Direction = "lower"
    needs_generation: bool = True

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The mean error with its standard error. Raises `DataError`."""
        pairs, details = _pairs(rows, self.name)
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow is refused by `checked`
            errors = np.abs(pairs[:, 0] - pairs[:, 1]) ** self.power
            value, n = float(errors.mean()), len(errors)
            error = float(errors.std(ddof=1)) / math.sqrt(n) if n > 1 else value
        return checked(MetricResult(value, error, tuple(map(float, errors)), details), self.name)


@dataclass(frozen=True)
class LikelihoodMetric:
    """Negative log-likelihood of the references per token (nats) or per byte (bits)."""

    name: str
    per: Literal["tokens", "bytes"]
    unit: str
    direction: Direction = "lower"
    needs_generation: bool = False

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The ratio with its standard error; ``statistics`` are (numerator, denominator). Raises `DataError`.

        The error of a single row, which shows no spread, is the value itself.
        """
        require_rows(rows, self.name)
        table = np.asarray([self._parts(row) for row in rows], dtype=np.float64)
        value = self._value(table)
        residuals = table[:, 0] - value * table[:, 1]
        n, size = len(table), float(table[:, 1].mean())
        error = math.sqrt(float((residuals**2).sum()) / ((n - 1) * n)) / size if n > 1 else abs(value)
        per_row = tuple(float(top / max(bottom, 1.0)) for top, bottom in table)
        statistics = tuple((float(top), float(bottom)) for top, bottom in table)
        details: dict[str, int] = {self.per: int(table[:, 1].sum())}
        return checked(MetricResult(value, error, per_row, details, "ratio", statistics), self.name)

    def _parts(self, row: Answer) -> tuple[float, float]:
        if row.nll is None or (self.per == "tokens" and row.tokens < 1):
            raise DataError(f"row {row.row} has no likelihood, which {self.name} needs.",
                            remedy="Score the reference answers first.")  # fmt: skip
        if self.per == "tokens":
            return row.nll, float(row.tokens)
        return row.nll / NATS_PER_BIT, float(row.bytes)

    def _value(self, table: Array) -> float:
        if table[:, 1].sum() <= 0:
            raise DataError(f"{self.name}: the reference answers are empty.", remedy="Use loss, or rows with answers.")
        return whole("ratio", table)
