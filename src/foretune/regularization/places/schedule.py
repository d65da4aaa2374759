"""From Fisher scores of a model's places to dropout rates: the schedule of the paper, and its controls.

``linear`` is that of Sharma et al. 2024 (2406.14005): places sorted by ascending score have rank r = 0 … n-1, and
p(r) = high - r · (high - low) / (n - 1), so the least informative place gets most dropout and the mean rate is
(high + low) / 2. The others tell what the ranking is good for: ``uniform`` has the same mean without a ranking,
``type-only`` gives every place the mean of its kind (the ranking separates kinds almost perfectly), ``reversed`` and
``random`` have the same rates on other places. ``log-proportional`` follows the logarithm of the score itself, and its
mean is its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from foretune.errors import UsageError
from foretune.seeding import generator


def rates(
    scores: Sequence[float], kinds: Sequence[str], schedule: str, *, high: float, low: float, seed: int = 0
) -> list[float]:
    """A rate for every place, in the order of ``scores``; equal scores keep their order.

    ``seed`` matters to ``random`` alone. Raises `UsageError` for a schedule that does not exist or scores that are not
    finite and above zero where their logarithm is needed.
    """
    if not all(math.isfinite(score) and score >= 0 for score in scores):
        raise UsageError("a Fisher score is negative or not finite.", remedy="Compute the rates again.")
    falling = linear(len(scores), high, low)
    ascending = sorted(range(len(scores)), key=lambda number: (scores[number], number))
    if schedule == "linear":
        return _assigned(ascending, falling)
    if schedule == "reversed":
        return _assigned(ascending, falling[::-1])
    if schedule == "random":
        order = generator(seed, "guided-dropout", "permutation").permutation(len(scores))
        return _assigned([int(number) for number in order], falling)
    if schedule == "uniform":
        return [(high + low) / 2] * len(scores)
    if schedule == "type-only":
        by_place = _assigned(ascending, falling)
        means = {k: math.fsum(r for r, own in zip(by_place, kinds, strict=True) if own == k) / kinds.count(k)
                 for k in dict.fromkeys(kinds)}  # fmt: skip
        return [means[kind] for kind in kinds]
    if schedule == "log-proportional":
        return _log_proportional(scores, high, low)
    raise UsageError(f"there is no schedule {schedule!r}.", remedy="See guided-dropout.schedule in the settings.")


def linear(count: int, high: float, low: float) -> list[float]:
    """Rates by rank: ``high`` at rank 0, ``low`` at the last."""
    if count == 1:
        return [(high + low) / 2]
    return [max(low, high - rank * (high - low) / (count - 1)) for rank in range(count)]  # rounding stays inside


def _assigned(order: Sequence[int], falling: Sequence[float]) -> list[float]:
    found = [0.0] * len(order)
    for rank, number in enumerate(order):
        found[number] = falling[rank]
    return found


def _log_proportional(scores: Sequence[float], high: float, low: float) -> list[float]:
    if min(scores) <= 0:
        raise UsageError(
            "a Fisher score is zero, and the schedule log-proportional needs its logarithm.",
            remedy="Use schedule=linear, or compute the scores on more text.",
        )
    logs = [math.log(score) for score in scores]
    least, span = min(logs), max(logs) - min(logs)
    return [high - (value - least) / span * (high - low) if span else (high + low) / 2 for value in logs]
