"""The stages of DELIFT as objectives: what is maximised over a pool, given a target and previous data.

    neither            fl     instruction tuning: every row is represented
    --target           flmi   task-specific: also what helps with the target
    --previous         flcg   continual: only what earlier data do not represent
    both               flcmi  what the target needs and earlier data lack

after Agarwal et al. 2024 (arXiv 2411.04425); the functions are in `selection.greedy.facility_location`. Where the
similarities come from is the caller's: utility or embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foretune.data.example import Example
from foretune.errors import UsageError
from foretune.selection.base import Cost, Request, Selection
from foretune.selection.greedy import facility_location as functions
from foretune.selection.greedy import kernel as kernels
from foretune.selection.greedy.facility_location import Problem, Ranking
from foretune.selection.greedy.kernel import Kernel

Settings = Mapping[str, Any]
Floats = npt.NDArray[Any]


@dataclass(frozen=True)
class Similar:
    """What an objective is made of; parts that it does not need are None."""

    kernel: Kernel
    """s[row, candidate] over the pool, or the part of its rows that was asked"""
    weight: Floats | None = None
    """(rows,) what each asked row stands for"""
    target: Callable[[], Floats] | None = None
    """s[target, candidate]: (targets, pool)"""
    from_target: Callable[[], Floats] | None = None
    """s[row, target]: (rows, targets)"""
    from_previous: Callable[[], Floats] | None = None
    """s[row, previous]: (rows, previous)"""


def objective_of(settings: Settings, request: Request) -> str:
    """The objective that is asked for, or the stage's. Raises `UsageError` where its data are missing."""
    name = str(settings["objective"])
    if name == "auto":
        known = (bool(request.target), bool(request.previous))
        name = {(False, False): "fl", (True, False): "flmi", (False, True): "flcg", (True, True): "flcmi"}[known]
    for option, needs, rows in (
        ("--target", name in ("flmi", "fl1mi", "fl2mi", "flcmi"), request.target),
        ("--previous", name in ("flcg", "flcmi"), request.previous),
    ):
        if needs and not rows:
            raise UsageError(f"the objective {name} needs {option.removeprefix('--')} rows.", remedy=f"Give {option}.")
    return name


def problem_of(name: str, similar: Similar, settings: Settings) -> Problem:
    """The objective called ``name`` over ``similar``."""
    eta, nu, weight = float(settings["eta"]), float(settings["nu"]), similar.weight
    target, from_target, from_previous = similar.target, similar.from_target, similar.from_previous
    if name == "flmi" and target:
        return functions.flmi(similar.kernel, target(), eta=eta, weight=weight)
    if name == "fl1mi" and from_target:
        return functions.fl1mi(similar.kernel, from_target(), eta=eta, weight=weight)
    if name == "fl2mi" and target:
        return functions.fl2mi(kernels.dense(target()), eta=eta)
    if name == "flcg" and from_previous:
        return functions.flcg(similar.kernel, from_previous(), nu=nu, weight=weight)
    if name == "flcmi" and from_previous and from_target:
        return functions.flcmi(similar.kernel, from_previous(), from_target(), nu=nu, eta=eta, weight=weight)
    return functions.fl(similar.kernel, weight=weight)


def ranked(problem: Problem, request: Request) -> Ranking:
    """Greedy for a count of rows, or for a budget of answer tokens."""
    if request.budget_tokens is None:
        return functions.rank(problem, request.count)
    return functions.rank_by_cost(problem, np.maximum(request.costs, 1), float(request.budget_tokens))


def selection_of(name: str, ranking: Ranking, manifest: Mapping[str, Any], tokens: int = 0) -> Selection:
    """The ranking as a selection."""
    return Selection(
        tuple(int(index) for index in ranking.indices),
        name,
        gains=tuple(float(gain) for gain in ranking.gains),
        nested=ranking.nested,
        n_positive=ranking.n_positive,
        objective=ranking.objective,
        cost=Cost(tokens=tokens),
        manifest={**manifest, "n_positive": ranking.n_positive, "rounds": int(ranking.rounds.max(initial=-1)) + 1},
    )


def answered(rows: Sequence[Example]) -> list[Example]:
    """The rows with an answer, which alone can help or be helped."""
    return [row for row in rows if row.answer.strip()]
