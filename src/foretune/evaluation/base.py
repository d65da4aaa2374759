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
    """A metric over rows. ``per_row`` holds one number a row, which paired comparisons use."""

    value: float
    standard_error: float
    per_row: tuple[float, ...]
    details: Mapping[str, Any] | None = None


class Metric(Protocol):
    """One way of scoring answers."""

    name: str
    direction: Direction
    needs_generation: bool
    unit: str

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The value with its standard error; raises `DataError` when a row lacks what it needs."""
        ...
