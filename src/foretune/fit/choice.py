"""Between finalists that validation cannot tell apart, the one that forgot less.

The best by validation loss wins unless another is not clearly worse (the interval of the paired difference holds zero)
and its loss on the general text is clearly lower (the paired interval excludes zero). What decided is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foretune.evaluation.base import Answer
from foretune.evaluation.compare import compare
from foretune.evaluation.forgetting import forgetting
from foretune.evaluation.metrics import METRICS

FEWEST = 2
"""Rows or passages below which nothing is compared."""


@dataclass(frozen=True)
class Judged:
    """A finalist with its answers."""

    run: str
    answers: tuple[Answer, ...]
    """On validation rows"""
    general: tuple[Answer, ...]
    """On the general text; empty where it was not scored"""


def remembering(best: Judged, others: Sequence[Judged], *, seed: int = 0) -> tuple[str, str]:
    """(run to choose, why another than the best by validation is chosen or ""), ``others`` in order of their loss."""
    for other in others:
        if not _equal_on_validation(best, other, seed) or not _comparable(best.general, other.general):
            continue
        difference = forgetting(other.general, best.general, seed=seed)
        if difference.verdict == "better":
            return other.run, (
                f"{other.run} was chosen before {best.run}: validation cannot tell them apart, and its loss on general"
                f" text is {-difference.difference:.3f} nats lower."
            )
    return best.run, ""


def _equal_on_validation(best: Judged, other: Judged, seed: int) -> bool:
    rows = {answer.row for answer in best.answers} & {answer.row for answer in other.answers}
    if len(rows) < FEWEST:
        return False
    loss = METRICS["loss"]
    results = [loss.score([a for a in judged.answers if a.row in rows]) for judged in (other, best)]
    difference = compare(results[0], results[1], direction=loss.direction, seed=seed)
    return difference.low is not None and difference.low <= 0.0


def _comparable(one: Sequence[Answer], other: Sequence[Answer]) -> bool:
    return len(one) >= FEWEST and [answer.row for answer in one] == [answer.row for answer in other]
