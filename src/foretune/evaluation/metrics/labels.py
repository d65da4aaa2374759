"""Classification and calibration: right labels, fair to rare classes, and honest probabilities.

Classes are compared as written, white space at the ends aside. Calibration is of the predicted class, the only
probability an `Answer` holds: expected calibration error with equal-width bins (Guo et al. 2017, equation 3, 15
bins as there), the top-label Brier score (mean squared difference between that probability and being right), and
the log-loss of the true class where it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foretune.errors import DataError
from foretune.evaluation.base import SHARE, Answer, Direction, MetricResult
from foretune.evaluation.metrics.rows import from_rows, prediction_of, require_rows, value_error

CALIBRATION_BINS = 15


def same_class(prediction: str, reference: str) -> float:
    """1 when the predicted class is the reference's."""
    return float(prediction.strip() == reference.strip())


@dataclass(frozen=True)
class ClassMetric:
    """A metric of the confusion matrix, over the classes that the references hold."""

    name: str
    unit: str = SHARE
    direction: Direction = "higher"
    needs_generation: bool = True

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The metric with its bootstrap error; ``per_row`` is right or wrong. Raises `DataError`."""
        require_rows(rows, self.name)
        pairs = [(row.reference.strip(), prediction_of(row, self.name).strip()) for row in rows]
        classes = sorted({reference for reference, _ in pairs})
        numbers = {name: float(i) for i, name in enumerate(classes)}
        nowhere = float(len(classes))  # predicted, but no row's class
        statistics = tuple((numbers[reference], numbers.get(said, nowhere)) for reference, said in pairs)
        per_row = tuple(float(reference == said) for reference, said in pairs)
        outside = sum(said not in numbers for _, said in pairs)
        return from_rows(self.name, statistics, per_row, scale=1.0,
                         details={"classes": classes, "predicted_outside": outside})  # fmt: skip


@dataclass(frozen=True)
class BrierMetric:
    """The top-label Brier score: mean squared difference between the predicted class's probability and being right."""

    name: str = "brier"
    unit: str = "squared probability"
    direction: Direction = "lower"
    needs_generation: bool = True

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The mean with its standard error. Raises `DataError` for a row without prediction or probability."""
        require_rows(rows, self.name)
        per_row = tuple(
            (_probability(row) - same_class(prediction_of(row, self.name), row.reference)) ** 2 for row in rows
        )
        return MetricResult(math.fsum(per_row) / len(per_row), value_error(per_row, scale=1.0), per_row)


@dataclass(frozen=True)
class CalibrationMetric:
    """The expected calibration error with `CALIBRATION_BINS` bins of equal width (Guo et al. 2017, equation 3).

    Its value is biased upwards on few rows, equally for what is compared on the same rows.
    """

    name: str = "calibration_error"
    unit: str = SHARE
    direction: Direction = "lower"
    needs_generation: bool = True

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The error with its bootstrap error; ``per_row`` is right minus probability. Raises `DataError`."""
        require_rows(rows, self.name)
        sure = [_probability(row) for row in rows]
        missed = tuple(
            same_class(prediction_of(row, self.name), row.reference) - p for row, p in zip(rows, sure, strict=True)
        )
        statistics = tuple((float(_bin(p, CALIBRATION_BINS)), gap) for p, gap in zip(sure, missed, strict=True))
        return from_rows(self.name, statistics, missed, scale=1.0, details={"bins": CALIBRATION_BINS})


@dataclass(frozen=True)
class CalibrationBin:
    """Rows whose probability lies in (low, high]."""

    low: float
    high: float
    rows: int
    confidence: float
    """Mean probability of the predicted class"""
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be believed; every number is better when lower."""

    expected_error: float
    brier: float
    log_loss: float | None
    """Nats; None where a row lacks the likelihood of its true class"""
    bins: tuple[CalibrationBin, ...]
    """The bins that hold rows"""
    n: int

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return asdict(self)


def calibration(rows: Sequence[Answer], *, bins: int = CALIBRATION_BINS) -> Calibration:
    """Calibration of predicted classes. Raises `DataError` for a row without probability or outside [0, 1]."""
    require_rows(rows, "calibration")
    right = [same_class(prediction_of(row, "calibration"), row.reference) for row in rows]
    sure = [_probability(row) for row in rows]
    members: list[list[int]] = [[] for _ in range(bins)]
    for i, probability in enumerate(sure):
        members[_bin(probability, bins)].append(i)
    filled = tuple(
        CalibrationBin(
            b / bins, (b + 1) / bins, len(held),
            math.fsum(sure[i] for i in held) / len(held), math.fsum(right[i] for i in held) / len(held),
        )
        for b, held in enumerate(members) if held
    )  # fmt: skip
    expected = math.fsum(b.rows * abs(b.accuracy - b.confidence) for b in filled) / len(rows)
    brier = math.fsum((p - hit) ** 2 for p, hit in zip(sure, right, strict=True)) / len(rows)
    losses = [row.nll for row in rows if row.nll is not None]
    log_loss = math.fsum(losses) / len(losses) if len(losses) == len(rows) else None
    return Calibration(expected, brier, log_loss, filled, len(rows))


def _bin(probability: float, bins: int) -> int:
    """The bin (low, high] that holds a probability; 0 lies in the first."""
    return max(0, math.ceil(probability * bins) - 1)


def _probability(row: Answer) -> float:
    if row.probability is None or not 0.0 <= row.probability <= 1.0:
        raise DataError(
            f"row {row.row} has no probability in 0 to 1 for its class ({row.probability}).",
            remedy="Only a head for labels gives one: use an encoder, or choose another --metric.",
        )
    return row.probability
