"""Why a configuration is tried, in words that a user can check: numbers of tasks and runs, expected loss, odds."""

from __future__ import annotations

import math

import numpy as np

from foretune.search.belief import Belief
from foretune.search.fidelity import LAST_LEVEL, RUNG_PERCENT, next_level
from foretune.search.runs import Run
from foretune.search.task_prior import TaskPrior

FEW = 3
"""Fewer tasks are not quoted as evidence."""
LIKELY_TO_FAIL = 0.1


def beginning(prior: TaskPrior, place: int, belief: Belief | None) -> str:
    """Why pool member ``place`` is begun."""
    config = prior.pool[place]
    rate = float(config.get("learning_rate") or math.nan)
    what = f"{config['method']} at {rate:.3g}"
    parts = [what]
    if (evidence := because(prior, place)) and belief is None:
        return f"{what} {evidence}"
    if evidence:
        parts.append(evidence)
    if belief is None:
        parts.append("around the rule's learning rate: there is no experience yet")
        return ", ".join(parts)
    low, mean, high = belief.interval(place, None, LAST_LEVEL)
    parts.append(f"most expected improvement per second; {expected(low, mean, high)}")
    if (odds := prior.odds[place]) > LIKELY_TO_FAIL:
        parts.append(f"odds of failure {odds:.0%}")
    return ", ".join(parts)


def because(prior: TaskPrior, place: int) -> str:
    """The evidence of earlier tasks and of rules; empty where there is too little."""
    rule = f"by the rule: {prior.citations[place]}" if place in prior.citations else ""
    return ", and ".join(part for part in (_earlier(prior, place), rule) if part)


def _earlier(prior: TaskPrior, place: int) -> str:
    wins, counted = prior.verdicts.get(place, (0, 0))
    if counted >= FEW and 2 * wins > counted:
        return f"because on {wins} of {counted} similar tasks the run nearest to it beat the median run"
    if prior.transfer is not None:
        return f"by {prior.runs} runs on {prior.tasks} earlier tasks"
    return ""


def going_on(belief: Belief, run: Run, place: int, number: int) -> str:
    """Why a paused run goes on to its next rung."""
    low, mean, high = belief.interval(place, number, LAST_LEVEL)
    level = next_level(run.horizon, run.step)
    return f"most expected improvement per second; {expected(low, mean, high)}; on to {RUNG_PERCENT[level]} %"


def expected(low: float, mean: float, high: float) -> str:
    """A gain and its interval as the loss it stands for, beside the base's."""
    values = [100 * (1 - math.exp(-np.clip(gain, -5, 5))) for gain in (mean, low, high)]
    return f"loss expected {values[0]:.0f} % below the base's ({values[1]:.0f} to {values[2]:.0f} %)"
