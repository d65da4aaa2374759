"""The untouched base model on the validation rows: what every run's scores are compared with.

Its losses are taken once on all rows that a run can be scored on. Where the metric needs written answers, the base
answers once the rows that runs answer on their way. A run's score is remembered beside the base's on the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foretune.evaluation.base import Answer
from foretune.evaluation.metrics import METRICS
from foretune.fit.finals import Evaluator, on_rows
from foretune.fit.schedule import Schedule
from foretune.search.types import Score


@dataclass(frozen=True)
class Base:
    """What the base did."""

    answers: tuple[Answer, ...]
    """With a loss; with a prediction where that needs no writing"""
    written: tuple[Answer, ...] = ()
    """With what it wrote"""

    def loss(self, rows: Sequence[int]) -> Score:
        """Its loss on ``rows`` (all it has where time ended before them)."""
        return _scored("loss", on_rows(self.answers, rows))

    def metric(self, name: str, rows: Sequence[int]) -> Score | None:
        """Its score of another metric; None where it did not answer all ``rows``."""
        for answers in (self.written, self.answers):
            found = [answer for answer in answers if answer.row in set(rows) and answer.prediction is not None]
            if rows and len(found) == len(rows):
                return _scored(name, found)
        return None

    def at(self, schedule: Schedule, horizon: int, step: int) -> dict[str, Score]:
        """Its scores on the rows that a run of ``horizon`` steps is scored on at ``step``, by metric."""
        found = {"loss": self.loss(schedule.rows_at(horizon, step))}
        name = schedule.task.metric
        if name != "loss" and (score := self.metric(name, schedule.answered_at(horizon, step))) is not None:
            found[name] = score
        return found


def _scored(name: str, answers: Sequence[Answer]) -> Score:
    result = METRICS[name].score(answers)
    return Score(result.value, result.standard_error, len(answers))


def answered(evaluator: Evaluator, rows: int, written: Sequence[int] = ()) -> Base:
    """The base on ``rows`` validation rows, and what it writes on those ``written``. Each is asked once a fit."""
    scored = _answers(evaluator.base_validation(rows)["answers"])
    if not written:
        return Base(scored)
    payload = {"split": "validation", "rows": list(written), "generation": True}
    return Base(scored, _answers(evaluator.answers("validation-base-written", payload)["answers"]))


def _answers(values: Sequence[dict[str, object]]) -> tuple[Answer, ...]:
    return tuple(Answer(**value) for value in values)  # type: ignore[arg-type]
