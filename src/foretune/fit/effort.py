"""How much is evaluated on the way of a run: validation rows at each rung, which rungs, how many written answers.

Evaluations serve the comparison of runs, so they may take a third of a run at most: where forecast speeds and a short
run leave less room, fewer rows are scored and answered. All runs of a fit share one effort, and its rows are nested and
the same for every configuration; the best are scored again on all validation rows (`fit.finals`), so that a small
effort costs the search sharpness and the result no honesty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from foretune.errors import BudgetError
from foretune.search.fidelity import FEWEST_ROWS, LEVELS, evaluation_counts, level_step, rungs
from foretune.search.horizon import FEWEST_EARLY_STEPS

EVALUATION_SHARE = 1 / 3
"""Evaluations may take this share of a run."""
ANSWERED_RUNGS = 2
"""Answers are written at the last rungs alone: there the metric has moved."""


@dataclass(frozen=True)
class Effort:
    """What is evaluated on the way of every run of a fit."""

    most_rows: int
    """Validation rows scored at the last rung; half as many at the one before, and so on"""
    fewest_rows: int = FEWEST_ROWS
    """Never fewer, where there are so many"""
    answered_rows: int = 24
    """Validation rows answered (not only scored) at each of the last two rungs"""

    def counts(self, validation_rows: int) -> tuple[int, ...]:
        """(6,): rows scored at each rung of ``validation_rows``."""
        return evaluation_counts(validation_rows, fewest=self.fewest_rows, most=self.most_rows)


FULL = Effort(most_rows=200)
EFFORTS = (FULL, Effort(128, 64, 16), Effort(64, 32, 16), Effort(32, 32, 8), Effort(32, 32, 0))
"""From the sharpest to the cheapest. Below 32 rows the noise of a mean loss is as large as what rates differ by."""


def offered(most_rows: int, *, fixed: bool) -> tuple[Effort, ...]:
    """The efforts with at most ``most_rows`` rows; the first alone where it is ``fixed``: the user chose the number."""
    first = Effort(most_rows, min(FEWEST_ROWS, most_rows))
    if fixed:
        return (first,)
    return (first, *(effort for effort in EFFORTS if effort.most_rows < most_rows or not effort.answered_rows))


def measured_steps(horizon: int) -> tuple[int, ...]:
    """The rungs at which a run is evaluated: without those of the first few steps, which compare nothing."""
    return tuple(step for step in rungs(horizon) if step >= min(FEWEST_EARLY_STEPS, horizon))


def rung_rows(counts: Sequence[int], horizon: int) -> tuple[int, ...]:
    """(6,): of the ``counts`` at each rung those of a run of ``horizon`` steps; 0 where it is not evaluated, and where
    the next rung is at the same step."""
    measured = measured_steps(horizon)
    steps = [level_step(horizon, level) for level in range(LEVELS)]
    return tuple(
        count if step in measured and step not in steps[level + 1 :] else 0
        for level, (step, count) in enumerate(zip(steps, counts, strict=True))
    )


Planned = TypeVar("Planned")


def settled(efforts: Sequence[Effort], planned: Callable[[Effort], tuple[Planned, float]]) -> Planned:
    """The first plan whose evaluations take at most a third of a run; else that of the last effort.

    ``planned`` gives the plan under an effort and the share of a run that evaluations take in it; it may raise
    `BudgetError`.
    """
    for effort in efforts[:-1]:
        try:
            found, share = planned(effort)
        except BudgetError:  # not even one step fits beside so many evaluated rows
            continue
        if share <= EVALUATION_SHARE:
            return found
    return planned(efforts[-1])[0]
