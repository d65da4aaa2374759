"""What is scored (`Answer`) and what scores it (`Metric`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Answer:
    """What a model did with one row. Fields that were not measured are None; numbers are finite."""

    row: int
    """Index of the row within its split."""
    prompt: str
    reference: str
    prediction: str | None = None
    """The generated text, or the predicted class or number as text."""
    nll: float | None = None
    """Summed negative log-likelihood (nats) of the reference answer's tokens, end of turn included."""
    tokens: int = 0
    """Tokens that ``nll`` sums over."""
    bytes: int = 0
    """UTF-8 bytes of the reference answer."""
    probability: float | None = None
    """Classification: the probability given to the predicted class (for calibration)."""

    def to_json(self) -> dict[str, Any]:
        """A JSON form; ``Answer(**value)`` reads it back."""
        from dataclasses import asdict

        return asdict(self)


@dataclass(frozen=True)
class MetricResult:
    """A metric over rows. ``per_row`` holds one number a row: what the metric says of that row alone.

    ``aggregate`` names the function in `evaluation.aggregate` that makes ``value`` from ``statistics``, so that a
    paired comparison resamples rows and computes the metric itself again (BLEU of a resample, not a mean of BLEUs).
    """

    value: float
    standard_error: float
    per_row: tuple[float, ...]
    details: Mapping[str, Any] | None = None
    aggregate: str = "mean"
    statistics: tuple[tuple[float, ...], ...] = ()
    """(rows, k): what ``aggregate`` reads; empty when it reads ``per_row``"""


SHARE = "share of 1"
"""The unit of metrics from 0 to 1 that are shown in percent."""


class Metric(Protocol):
    """One way of scoring answers."""

    @property
    def name(self) -> str:
        """Its name in `evaluation.metrics.METRICS`."""
        ...

    @property
    def direction(self) -> Direction:
        """Whether higher or lower is better."""
        ...

    @property
    def needs_generation(self) -> bool:
        """Whether rows need a prediction (else a likelihood)."""
        ...

    @property
    def unit(self) -> str:
        """What one is."""
        ...

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The value with its standard error; raises `DataError` when a row lacks what it needs."""
        ...
