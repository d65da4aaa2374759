"""What a search may spend: seconds, trials or optimiser steps, less a reserve for what follows it.

Time is wall time as the ledger reconstructs it from the measured seconds of the observations; a pause of the whole
job, in which nothing runs, is not charged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from foretune.errors import BudgetError

BudgetKind = Literal["time", "trials", "steps"]
UNITS: dict[BudgetKind, str] = {"time": "s", "trials": "trials", "steps": "steps"}
ROUNDING = 1e-9
"""Relative slack that keeps a sum of floating-point seconds from missing its own total."""


@dataclass
class Budget:
    """An account. ``total`` and ``reserve`` are in seconds of wall time, trials or steps."""

    kind: BudgetKind
    total: float
    reserve: float = 0.0
    """Kept for the final re-evaluation and comparison; a search never plans with it."""
    workers: int = 1
    spent: float = 0.0
    """Seconds of wall time, trials or steps."""

    def __post_init__(self) -> None:
        if self.kind not in UNITS:
            raise BudgetError(f"a budget is in {', '.join(UNITS)}, not in {self.kind!r}.")
        if not (math.isfinite(self.total) and math.isfinite(self.reserve)) or self.reserve < 0 or self.workers < 1:
            raise BudgetError(
                f"a budget of {self.total} with {self.reserve} in reserve and {self.workers} workers makes no sense."
            )
        if self.total <= self.reserve:
            raise BudgetError(
                f"a budget of {self.total:g} {UNITS[self.kind]} leaves nothing to search with: "
                f"{self.reserve:g} are reserved for the evaluation at the end.",
                remedy="Give a larger budget.",
            )

    @property
    def capacity(self) -> float:
        """What a search may spend in all."""
        return self.total - self.reserve

    def charge(self, amount: float) -> None:
        """Book ``amount`` as spent. Raises `ValueError` for a negative or non-finite one."""
        if not math.isfinite(amount) or amount < 0:
            raise ValueError(f"{amount} cannot be charged")
        self.spent += amount

    def left(self) -> float:
        """What is not spent; never negative."""
        return max(0.0, self.capacity - self.spent)

    def can_afford(self, amount: float, held: float = 0.0) -> bool:
        """Whether ``amount`` more fits beside what is spent and what open leases still hold.

        In time it has to fit into the wall time left, and all work together into that of all workers.
        """
        slack, shared = self.capacity * ROUNDING, self.workers if self.kind == "time" else 1
        return amount <= self.left() + slack and amount + held <= self.left() * shared + slack

    def to_json(self) -> dict[str, Any]:
        """A JSON summary for reports."""
        return {
            "kind": self.kind,
            "total": self.total,
            "reserve": self.reserve,
            "workers": self.workers,
            "spent": self.spent,
            "unit": UNITS[self.kind],
        }
