"""Rungs: the steps at which runs are measured and compared, and on how many validation rows.

Every run has its full-horizon schedule and is measured at {3, 6, 12, 25, 50, 100} % of its steps; being promoted
means to continue the same run from its checkpoint, never to train a short schedule of its own. The rows grow with
the rung in nested sets that are the same for every configuration, so runs at one rung are compared on equal rows.
Source: successive halving (Jamieson & Talwalkar 2016) with the pausing of freeze-thaw (Swersky et al. 2014).
"""

from __future__ import annotations

import itertools

import numpy as np

from foretune.seeding import generator

RUNG_PERCENT = (3, 6, 12, 25, 50, 100)
LEVELS = len(RUNG_PERCENT)
LAST_LEVEL = LEVELS - 1
FEWEST_ROWS = 64
"""Rows at the lowest rung: below this the noise of a mean loss hides what early rungs can tell."""
MOST_ROWS = 512
"""Rows at the last rung of a trial; the final re-evaluation uses all validation rows."""


def level_step(horizon: int, level: int) -> int:
    """The step of rung ``level`` (0 to 5) of a run of ``horizon`` steps; at least 1, the last is the horizon."""
    if horizon < 1:
        raise ValueError(f"a horizon has at least one step, not {horizon}")
    return max(1, -(-RUNG_PERCENT[level] * horizon // 100))


def rungs(horizon: int) -> tuple[int, ...]:
    """The distinct rung steps, increasing; short runs have fewer than six."""
    return tuple(sorted({level_step(horizon, level) for level in range(LEVELS)}))


def rungs_between(horizon: int, from_step: int, to_step: int) -> tuple[int, ...]:
    """The rung steps in (from_step, to_step]."""
    return tuple(step for step in rungs(horizon) if from_step < step <= to_step)


def evaluation_counts(total: int, *, fewest: int = FEWEST_ROWS, most: int = MOST_ROWS) -> tuple[int, ...]:
    """Validation rows at each of the six rungs of ``total``: doubling from rung to rung, at least ``fewest``."""
    if total < 1:
        raise ValueError("there is no validation row")
    last = min(total, max(most, fewest))
    halvings = (LAST_LEVEL - level for level in range(LEVELS))
    return tuple(min(last, max(fewest, -(-last // 2**halving))) for halving in halvings)


def evaluation_rows(
    total: int, horizon: int, step: int, seed: int, *, fewest: int = FEWEST_ROWS, most: int = MOST_ROWS
) -> tuple[int, ...]:
    """The validation rows (indices below ``total``, sorted) on which a run of ``horizon`` steps is scored at ``step``.

    They depend on the rung and the seed alone: each rung's rows contain those of the rung before. A step that is no
    rung gets the rows of the last rung before it.
    """
    reached = [level for level in range(LEVELS) if level_step(horizon, level) <= step]
    counts = evaluation_counts(total, fewest=fewest, most=most)
    return first_rows(total, counts[reached[-1] if reached else 0], seed)


def first_rows(total: int, count: int, seed: int) -> tuple[int, ...]:
    """``count`` of ``total`` validation rows, sorted: more of them contain fewer."""
    order: np.ndarray[tuple[int], np.dtype[np.int64]] = generator(seed, "evaluation-rows").permutation(total)
    return tuple(sorted(int(row) for row in order[:count]))


def next_level(horizon: int, step: int, first: int = 0) -> int:
    """The lowest level, from ``first`` on, whose step lies beyond ``step``; the last level if there is none."""
    levels = itertools.chain(range(first, LEVELS), (LAST_LEVEL,))
    return next((level for level in levels if level_step(horizon, level) > step), LAST_LEVEL)
