"""Rules of thumb as part of what is believed before any run: they raise or lower members of the pool a little.

The literature's rules and those that studies measured (``priors.yaml``) arrive as `Hint` values. A member that has all
of a hint's settings that exist for it is expected to be better by the hint's weight, one of a method to be avoided to
be worse; runs on the task correct both. What was moved carries the rule's citation into plans and reasons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretune.search.encoding import Floats

WEIGHTS: Mapping[str, float] = {"measured": 0.5, "strong": 0.4, "medium": 0.25, "weak": 0.1}
"""Spreads that a rule of each strength is worth: the largest is half of what a decade in the learning rate costs."""
NEAR = 0.1
"""Numbers agree within a tenth."""


@dataclass(frozen=True)
class Hint:
    """One rule for this task."""

    settings: Mapping[str, Any]
    avoid: tuple[str, ...] = ()
    citation: str = ""
    strength: str = "medium"

    def sign(self, config: Mapping[str, Any]) -> int:
        """+1 for a configuration that the rule means, −1 for one that it warns of, else 0."""
        if config.get("method") in self.avoid:
            return -1
        known = [name for name in self.settings if name in config]
        return int(bool(known) and all(_agree(config[name], self.settings[name]) for name in known))


@dataclass(frozen=True)
class Moved:
    """What hints do to a pool."""

    shift: Floats
    """(n,): spreads"""
    citations: Mapping[int, str] = field(default_factory=dict)
    """For the members that a hint means"""


def moved(hints: Sequence[Hint], pool: Sequence[Mapping[str, Any]]) -> Moved:
    """The effect of ``hints`` on ``pool``."""
    shift, cited = np.zeros(len(pool)), dict[int, list[str]]()
    for hint in hints:
        for place, config in enumerate(pool):
            sign = hint.sign(config)
            shift[place] += sign * WEIGHTS[hint.strength]
            if sign > 0 and hint.citation:
                cited.setdefault(place, []).append(hint.citation)
    return Moved(shift, {place: "; ".join(said) for place, said in cited.items()})


def _agree(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=NEAR)
    return bool(one == other)
