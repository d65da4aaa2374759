"""How long every run of a search is: the steps asked for, or fewer where the budget could not hold a comparison.

The default LoRA is trained in whole as the baseline. Where that alone would take more than 35 % of the budget, or a
portfolio pass and one full continuation would no longer fit beside it, every configuration gets the same shorter
horizon, with its schedule shortened likewise, so that all remain comparable. Where that horizon would be very short,
one configuration gets all the budget holds: three times the steps do more than the best of some short runs. It is the
first of the portfolio, at the rule's learning rate for so many steps, and not the default LoRA, whose rate is one for
long runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.errors import BudgetError
from foretune.search.budget import ROUNDING, UNITS, Budget
from foretune.search.fidelity import LAST_LEVEL, RUNG_PERCENT, level_step
from foretune.search.runs import Cost
from foretune.units import format_duration

LARGEST_SHARE = 0.35
"""The default LoRA may take this share of the whole budget."""
MARGIN = 1.15
"""Room for a forecast that turns out too low by the error expected after the probe."""
EARLY_LEVEL = 2
"""The rung (12 % of the steps) at which the portfolio is compared first: there the loss already ranks well."""
FEWEST_EARLY_STEPS = 5
"""Fewer steps are no comparison: the first have hardly moved the weights, whatever the rate."""
COMPARED_SHARE = 0.4
"""A shortened horizon has to be this share of the steps that one run alone would get, unless it is long. In the runs
that ship (13 to 70 steps), LoRA at the rule's rate has at its end a lower validation loss than the best of three
rates at a quarter of the steps on 18 of 18 tasks, at half of them on the 6 causal tasks and 3 of 12 others."""
LONG_STEPS = 30
"""From here on runs are compared whatever their share: those measured above were shorter, or not much longer."""
SHORT_STEPS = 100 * FEWEST_EARLY_STEPS // RUNG_PERCENT[EARLY_LEVEL]
"""In shorter runs the early rung lies later, so that one step more may cost less."""
WARM_UP_MARGIN = 1.5
"""A run must be this far beyond its warm-up before its learning rate shows."""


@dataclass(frozen=True)
class Horizon:
    """Steps of every run, and why."""

    steps: int
    full_steps: int
    why: str
    alone: bool = False
    """Whether the budget holds one run and no comparison"""

    @property
    def shortened(self) -> bool:
        """Whether the budget forced fewer steps than were asked for."""
        return self.steps < self.full_steps


def early_level(steps: int, warmup_share: float = 0.0) -> int:
    """The rung at which a run of ``steps`` steps is first compared: `EARLY_LEVEL`, or later in short runs and long
    warm-ups, where configurations cannot differ yet."""
    for level in range(EARLY_LEVEL, LAST_LEVEL):
        step = level_step(steps, level)
        if step >= FEWEST_EARLY_STEPS and step >= WARM_UP_MARGIN * warmup_share * steps:
            return level
    return LAST_LEVEL


def total_steps(train_rows: int, config: Mapping[str, Any]) -> int:
    """Optimiser steps of ``config`` over ``train_rows`` rows: every epoch's last update may be short.

    A last fraction of an epoch counts its updates rounded up. Raises `BudgetError` when there is no row.
    """
    if train_rows < 1:
        raise BudgetError("there is no training row.", remedy="Give more rows, or keep a larger share of them.")
    updates = -(-train_rows // int(config["rows_per_update"]))
    exact = float(config["epochs"]) * updates
    return max(1, -int(-(exact - ROUNDING * exact) // 1))


def horizon(
    full_steps: int, budget: Budget, cost: Cost, baseline: Mapping[str, Any], portfolio: Sequence[Mapping[str, Any]]
) -> Horizon:
    """The shared horizon for ``baseline`` (trained in whole) and ``portfolio`` under what is left of ``budget``.

    ``cost`` gives forecast seconds. Raises `BudgetError` when not even one step of the baseline fits.
    """
    if budget.kind == "trials":
        return Horizon(full_steps, full_steps, f"Every run has the {full_steps} steps that were asked for.")

    def price(config: Mapping[str, Any], from_step: int, to_step: int) -> float:
        return cost(config, from_step, to_step) if budget.kind == "time" else float(to_step - from_step)

    shared = budget.workers if budget.kind == "time" else 1

    def fits(steps: int) -> bool:
        early = level_step(steps, early_level(steps))
        whole, passes = price(baseline, 0, steps), [price(config, 0, early) for config in portfolio]
        finish = max((price(config, early, steps) for config in portfolio if early < steps), default=0.0)
        longest = max(whole, max(passes, default=0.0) + finish)
        return (
            whole <= LARGEST_SHARE * budget.total * (1 + ROUNDING)
            and budget.can_afford(MARGIN * longest)
            and MARGIN * (whole + sum(passes) + finish) <= budget.left() * shared * (1 + ROUNDING)
        )

    asked = price(baseline, 0, full_steps)
    amount = format_duration(asked) if budget.kind == "time" else f"{full_steps} steps"
    share = f"{100 * asked / budget.total:.0f} % of the budget"
    if fits(full_steps):
        return Horizon(full_steps, full_steps, f"The default LoRA is forecast to take {amount}, {share}.")
    steps = _largest(fits, full_steps, surely=SHORT_STEPS)
    lone = portfolio[0] if portfolio else baseline
    alone = _largest(lambda n: budget.can_afford(price(lone, 0, n)), full_steps)
    if alone == 0:
        raise BudgetError(
            f"one step takes {price(lone, 0, 1):.3g} {UNITS[budget.kind]}; "
            f"{budget.left():.3g} are left beside what is kept for the end.",
            remedy="Give a larger budget, a smaller model or shorter rows.",
        )
    if steps < min(LONG_STEPS, COMPARED_SHARE * alone):
        return Horizon(
            alone,
            full_steps,
            f"The budget holds {alone} of {full_steps} steps of one configuration and no comparison beside it.",
            alone=True,
        )
    return Horizon(
        steps,
        full_steps,
        f"The default LoRA would take {amount}, {share}; so every configuration gets the same shortened horizon of "
        f"{steps} of {full_steps} steps, which leaves room to compare {len(portfolio)} others and finish the best.",
    )


def _largest(fits: Callable[[int], bool], most: int, surely: int = 0) -> int:
    """The largest number in 1..most that fits, 0 if none, for a condition that only gets harder beyond ``surely``."""
    if surely and (most <= surely or not fits(surely)):
        return next((steps for steps in range(min(most, surely), 0, -1) if fits(steps)), 0)
    low, high = surely, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
