"""The pool's columns in ConfigSpace, the language of DEHB and SMAC, and rungs as their budgets.

Budgets double from rung to rung, as ours do. What a configuration lacks is in the middle of its column: conditions are
left out, because a proposal only has to lie near a member of the pool.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from foretune.search.baselines.halving import FIRST_LEVEL
from foretune.search.fidelity import LAST_LEVEL
from foretune.search.peers.columns import Columns

ETA = 2
LOWEST, HIGHEST = 1.0, float(2 ** (LAST_LEVEL - FIRST_LEVEL))


def config_space(columns: Columns, seed: int) -> Any:
    """A ``ConfigurationSpace`` of the columns."""
    from ConfigSpace import Categorical, ConfigurationSpace, Float

    space = ConfigurationSpace(seed=seed)
    space.add(*(Float(name, span) for name, span in columns.numbers.items()))
    space.add(*(Categorical(name, words) for name, words in columns.categories.items()))
    return space


def level_at(budget: float) -> int:
    """The rung that a budget stands for."""
    return min(LAST_LEVEL, FIRST_LEVEL + round(math.log2(budget / LOWEST)))


def values_of(config: Any) -> Mapping[str, Any]:
    """A configuration as plain numbers and words."""
    return {name: str(value) if isinstance(value, str) else float(value) for name, value in dict(config).items()}
