"""A metric of one's own: a function that gives answers numbers, checked, with a standard error.

    from foretune.evaluation.metrics import own_metric

    @own_metric(share=True)
    def same_digits(answer):
        return digits(answer.prediction) == digits(answer.reference)

Its file is named with ``--plugin``, the metric with ``--metric same_digits``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.data.example import Example
from foretune.errors import ForetuneError, UsageError
from foretune.evaluation.base import SHARE, Answer, Direction, MetricResult
from foretune.evaluation.metrics.rows import mean_of, prediction_of, require_rows

FEW = 2
"""So many right answers are scored before anything is trained, to see whether the function works at all."""


@dataclass(frozen=True)
class OwnMetric:
    """The mean of the numbers that ``function`` gives to answers."""

    name: str
    function: Callable[[Any], Any]
    """From an `Answer` (``prompt``, ``reference``, ``prediction``) to a number; with ``together`` from a list of them
    to as many numbers"""
    together: bool = False
    direction: Direction = "higher"
    unit: str = ""
    """`SHARE` where every number has to lie between 0 and 1"""
    needs_generation: bool = True

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The mean with its standard error. Raises `DataError` for no rows or a row without prediction, and
        `UsageError` where the function fails or gives something that is no score."""
        require_rows(rows, self.name)
        for row in rows:
            prediction_of(row, self.name)
        given = self._called(list(rows), None) if self.together else [self._called(row, row.row) for row in rows]
        values = zip(self._as_many(given, rows), rows, strict=True)
        per_row = tuple(self._checked(value, row.row) for value, row in values)
        scale = 1.0 if self.unit == SHARE else max(1.0, *map(abs, per_row))
        return mean_of(per_row, scale=scale)

    def try_out(self, examples: Sequence[Example]) -> None:
        """Score the first answers as if they had been written, so that a mistake is found before anything is trained.

        Raises as `score` does.
        """
        right = [Answer(number, each.prompt, each.answer, each.answer) for number, each in enumerate(examples[:FEW])]
        if right:
            self.score(right)

    def _called(self, given: Any, row: int | None) -> Any:
        try:
            return self.function(given)
        except ForetuneError:
            raise
        except Exception as error:  # somebody else's code
            where = "" if row is None else f" on the answer to row {row}"
            raise self._refused(f"raised {type(error).__name__}{where}: {error}") from error

    def _as_many(self, given: Any, rows: Sequence[Answer]) -> Sequence[Any]:
        try:
            values = list(given)
        except TypeError:
            raise self._refused(f"gave {type(given).__name__} for {len(rows)} answers") from None
        if len(values) != len(rows):
            raise self._refused(f"gave {len(values)} numbers for {len(rows)} answers")
        return values

    def _checked(self, value: Any, row: int) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise self._refused(f"gave {value!r} for the answer to row {row}") from None
        if not math.isfinite(number) or (self.unit == SHARE and not 0 <= number <= 1):
            raise self._refused(f"gave {number} for the answer to row {row}")
        return number

    def _refused(self, what: str) -> UsageError:
        wanted = "a number from 0 to 1" if self.unit == SHARE else "a finite number"
        got = "a list of answers and returns as many" if self.together else "an answer and returns"
        remedy = f"It gets {got}: {wanted}{' each' if self.together else ''}."
        return UsageError(f"the metric {self.name!r} {what}.", remedy=remedy)
