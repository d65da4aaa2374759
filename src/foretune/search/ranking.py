"""Comparing runs: at one rung, and at the end; when a validation loss has clearly risen.

All scores are of the metric that is passed by name and lower is better (the validation loss: on 63 public runs its
value at a tenth of a run ranks the final accuracy far better than an early accuracy does). A run at one rung was
scored on the same rows as every other; standard errors are treated as independent, which on shared rows is cautious.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from foretune.search.fidelity import LAST_LEVEL, LEVELS, level_step
from foretune.search.menu import Menu
from foretune.search.runs import Run
from foretune.search.types import Score

CLEAR = 2.0
"""Differences beyond this many standard errors are taken as real."""


@dataclass(frozen=True)
class Finalist:
    """A run with the step that speaks for it."""

    run: Run
    step: int
    score: Score


def score_at(run: Run, level: int, metric: str) -> Score | None:
    """The run's score at rung ``level``, or None where it has none there."""
    return run.curve.get(level_step(run.horizon, level), {}).get(metric)


def leads(run: Run, others: Iterable[Run], metric: str) -> bool:
    """Whether no other has a lower score than ``run`` at the last rung it has reached; False where it has no score."""
    level = max((k for k in range(LEVELS) if level_step(run.horizon, k) <= run.step), default=-1)
    own = score_at(run, level, metric) if level >= 0 else None
    if own is None:
        return False
    rivals = (score_at(other, level, metric) for other in others if other.id != run.id)
    return all(rival is None or rival.value >= own.value for rival in rivals)


def clearly_above(score: Score, other: Score) -> bool:
    """Whether ``score`` exceeds ``other`` by more than `CLEAR` standard errors of the difference.

    An error of zero is one that was not given (imported results): where either is missing nothing is clear.
    """
    errors = score.standard_error, other.standard_error
    return min(errors) > 0 and score.value - other.value > CLEAR * math.hypot(*errors)


def best_seen(run: Run, metric: str) -> tuple[int, Score] | None:
    """The step with the run's lowest score so far, the later one of equals."""
    seen = [(step, scores[metric]) for step, scores in run.curve.items() if metric in scores and step <= run.step]
    return min(seen, key=lambda pair: (pair[1].value, -pair[0]), default=None)


def last_seen(run: Run, metric: str) -> tuple[int, Score] | None:
    """The last step at which the run was scored."""
    seen = [(step, scores[metric]) for step, scores in run.curve.items() if metric in scores and step <= run.step]
    return max(seen, key=lambda pair: pair[0], default=None)


def has_risen(run: Run, metric: str) -> bool:
    """Whether the last score lies clearly above the run's own best: it over-fits and need not go on."""
    best, last = best_seen(run, metric), last_seen(run, metric)
    return best is not None and last is not None and clearly_above(last[1], best[1])


def ranking_at(runs: Iterable[Run], level: int, metric: str) -> list[Run]:
    """The runs that have a score at rung ``level`` and did not fail, best first; equal scores in starting order."""
    scored = [(score.value, run) for run in runs if not run.failed and (score := score_at(run, level, metric))]
    return [run for _, run in sorted(scored, key=lambda pair: pair[0])]


def agrees(config: Mapping[str, Any], fixed: Mapping[str, Any], menu: Menu) -> bool:
    """Whether ``config`` has what the user fixed, and nothing that the user left out."""
    return menu.offers(config) and all(config.get(key, value) == value for key, value in fixed.items())


def finalists(runs: Iterable[Run], metric: str, count: int | None = None) -> list[Finalist]:
    """The runs to re-evaluate, best first, each at its last scored step, or at its best where the score had risen.

    Runs that came furthest go first: scores of different rungs are on different rows and schedules. A finished run
    and one that was ended because its score rose are alike. Failed runs are left out.
    """
    candidates: list[tuple[int, float, Finalist]] = []
    for run in runs:
        last = last_seen(run, metric)
        if run.failed or last is None:
            continue
        risen = has_risen(run, metric)
        step, score = (best_seen(run, metric) or last) if risen else last
        level = LAST_LEVEL if risen else max(k for k in range(LEVELS) if k == 0 or level_step(run.horizon, k) <= step)
        candidates.append((-level, score.value, Finalist(run, step, score)))
    ordered = [entry for _, _, entry in sorted(candidates, key=lambda item: item[:2])]
    return ordered if count is None else ordered[:count]
