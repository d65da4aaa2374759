"""The odds that a configuration fails (diverges, runs out of memory, crashes): logistic regression on earlier runs.

Learning rate relative to the rule, its square, size, kind of schedule and method enter as `Encoding.dense` has them;
shrinkage keeps methods without failures near the base rate. A failure seen on the task itself counts at once: the
same method at the same or a higher rate (for memory: the same or a larger rank) is expected to fail again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foretune.search.encoding import RANK, RATE, Encoding, Floats
from foretune.search.past_tasks import PastTask
from foretune.search.runs import Run

BASE_RATE = 0.03
"""Odds of failure where no earlier run tells: one in thirty."""
STRENGTH = 0.5
"""Inverse shrinkage of the coefficients."""
FEWEST_FAILURES = 3
PRIOR_RUNS = 30.0
"""The base rate counts like so many runs."""
SEEN_TO_FAIL = 0.9
"""Odds for what is at least as extreme as a run of this task that failed."""


def failure_odds(tasks: Sequence[PastTask], encoding: Encoding, rows: Sequence[Mapping[str, float | str]]) -> Floats:
    """(rows,): probability that a run of each described configuration fails."""
    curves = [curve for task in tasks for curve in task.curves]
    failed = np.asarray([curve.failed for curve in curves], dtype=bool)
    usual = (failed.sum() + BASE_RATE * PRIOR_RUNS) / (len(curves) + PRIOR_RUNS)
    if failed.sum() < FEWEST_FAILURES or failed.all():
        return np.full(len(rows), float(usual))
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=STRENGTH, max_iter=500)
    model.fit(_inputs(encoding, [curve.row for curve in curves]), failed)
    return np.asarray(model.predict_proba(_inputs(encoding, rows))[:, 1])


def _inputs(encoding: Encoding, rows: Sequence[Mapping[str, float | str]]) -> Floats:
    """Dense columns, and how far the rate lies above and below the rule's, squared: extremes fail."""
    rate = np.asarray([float(row.get(RATE, np.nan)) for row in rows])
    rate = np.where(np.isfinite(rate), rate, 0.0)
    return np.column_stack([encoding.dense(rows), np.maximum(rate, 0) ** 2, np.minimum(rate, 0) ** 2])


def seen_failures(
    odds: Floats, rows: Sequence[Mapping[str, Any]], runs: Sequence[Run], places: Sequence[int]
) -> Floats:
    """``odds`` of the pool after the failures among ``runs``, which are pool members ``places``."""
    found = odds.copy()
    for run, place in zip(runs, places, strict=True):
        if not run.failed:
            continue
        column = RANK if run.status == "oom" else RATE
        own = rows[place]
        for number, row in enumerate(rows):
            if row.get("method") == own.get("method") and row.get(column, 0.0) >= own.get(column, 0.0):
                found[number] = max(found[number], SEEN_TO_FAIL)
    return found
