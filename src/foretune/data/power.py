"""What a number of rows can show: the smallest difference between two models that a paired test will find.

Two models answer the same n rows; a row counts as right or wrong. Only rows on which they disagree speak. With ψ the
share of such rows, a two-sided test at 5 % finds a true difference δ with 80 % power when (Connor 1987, Biometrics
43, 207–211)

    n = (z₀.₉₇₅ √ψ + z₀.₈ √(ψ − δ²))² / δ²

The assumption is ψ: two tuned versions of one model are taken to disagree on one row in ten (`DISCORDANCE`); more
disagreement needs more rows. For metrics with a value a row (loss, chrF) the unit is the standard deviation of the
row-by-row difference: n = ((z₀.₉₇₅ + z₀.₈) / δ)².
"""

from __future__ import annotations

import math

DISCORDANCE = 0.1
"""Share of rows on which one model is right and the other wrong."""
Z_TWO_SIDED_5 = 1.959964
"""97.5 % quantile of the standard normal distribution."""
Z_POWER_80 = 0.841621
"""80 % quantile of the standard normal distribution."""
_HALVINGS = 60
"""Bisection steps: the interval [0, 1] shrinks below 1e-18."""


def rows_needed(difference: float, discordance: float = DISCORDANCE) -> int:
    """Rows that detect a ``difference`` of shares (0 < difference ≤ 1) with 80 % power.

    A difference larger than ``discordance`` implies more disagreement: then all of it goes one way (ψ = δ).
    """
    share = max(discordance, difference)
    root = Z_TWO_SIDED_5 * math.sqrt(share) + Z_POWER_80 * math.sqrt(share - difference**2)
    return math.ceil((root / difference) ** 2)


def detectable_difference(rows: int, discordance: float = DISCORDANCE) -> float | None:
    """The smallest difference of shares that ``rows`` detect; None when not even the largest is."""
    low, high = 0.0, 1.0
    if rows < rows_needed(high, discordance):
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if rows_needed(middle, discordance) <= rows else (middle, high)
    return high


def detectable_effect(rows: int) -> float | None:
    """The smallest mean difference that ``rows`` detect, in standard deviations of the row-by-row difference."""
    return (Z_TWO_SIDED_5 + Z_POWER_80) / math.sqrt(rows) if rows > 1 else None


def in_words(rows: int, split: str, *, counted: bool) -> str:
    """One sentence: what ``rows`` rows of ``split`` can show, and how many more would show half of it.

    ``counted``: rows are right or wrong (points of accuracy); else they have values (standard deviations).
    """
    if not counted:
        effect = detectable_effect(rows)
        if effect is None:
            return f"{rows} {split} rows detect no difference."
        return (
            f"{rows:,} {split} rows detect a mean difference of {effect:.2f} standard deviations of the row-by-row "
            f"difference; {3 * rows:,} more would detect {effect / 2:.2f}."
        )
    difference = detectable_difference(rows)
    if difference is None:
        return f"{rows} {split} rows detect no difference, however large."
    more = rows_needed(difference / 2) - rows
    return (
        f"{rows:,} {split} rows detect a difference of {_points(difference)} points; "
        f"{more:,} more would detect {_points(difference / 2)}."
    )


def _points(share: float) -> str:
    points = 100 * share
    return f"{points:.1f}" if points < 10 else f"{points:.0f}"
