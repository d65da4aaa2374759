"""Facility location and its five relatives through one exact greedy.

With row weights w, a floor lo, a cap hi and a bonus b per candidate, all six functions are

    f(A)    = Σ_{j∈A} b_j + Σ_i w_i [ max(lo_i, min(hi_i, max_{j∈A} s_ij)) − lo_i ]
    gain(j) = b_j + Σ_i w_i · max( min(s_ij, hi_i) − cur_i, 0 ),    cur_i(∅) = lo_i

=======  ======================================================  =============  =============  =============
name     what it is                                              lo             hi             b
=======  ======================================================  =============  =============  =============
`fl`     Σ_i max_A s_ij                                          0              ∞              0
`flcg`   Σ_i max(max_A s_ij − ν max_E s_ik, 0)                   ν max_E s_ik   ∞              0
`flmi`   Σ_i max_A s_ij + η Σ_{j∈A} max_T s_qj                   0              ∞              η max_T s_qj
`fl1mi`  Σ_i min(max_A s_ij, η max_Q s_iq)                       0              η max_Q s_iq   0
`fl2mi`  Σ_{q∈Q} max_A s_qj + η Σ_{j∈A} max_Q s_qj; rows are Q   0              ∞              η max_Q s_qj
=======  ======================================================  =============  =============  =============

and `flcmi`, Σ_i max(min(max_A s_ij, η max_Q s_iq) − ν max_P s_ip, 0), has lo = ν max_P s_ip and hi = η max_Q s_iq.

`fl`, `flmi` and `flcg` are the stages of DELIFT (Agarwal et al. 2024, arXiv 2411.04425) as its paper prints them;
`fl1mi` and `fl2mi` are what submodlib calls FacilityLocation(Variant)MutualInformation, and its reference code runs
the first (Iyer et al. 2021; Kaushal et al. 2022).

Gains run out once every row is covered: `Ranking.n_positive` says after how many. The rows are then uncovered and
a second round begins among the rest, and so on, so that a ranking can be as long as the pool; what gains nothing
even alone comes last, by its row sum, then its index. Functions with a bonus have no second round: what has no gain
left comes last in the same order.

What this does not do: make the kernel (`foretune.selection.utility`), or maximise with guarantees other than
greedy's: 1 − 1/e of the optimum for a count (Nemhauser, Wolsey & Fisher 1978), (1 − 1/e)/2 for a cost budget, where
the better of cost-scaled and plain greedy is returned (Leskovec et al. 2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foretune.errors import UsageError
from foretune.selection.greedy.checks import check_count, finite
from foretune.selection.greedy.kernel import Kernel

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """A function of the family: what to maximise."""

    kernel: Kernel
    floor: Floats
    """(rows,) lo"""
    cap: Floats
    """(rows,) hi"""
    weight: Floats
    """(rows,) w"""
    bonus: Floats
    """(candidates,) b"""

    @property
    def limits(self) -> tuple[Floats, Floats]:
        """Cap and weight as the compiled loops take them: empty where they change nothing."""
        if np.isinf(self.cap).all() and (self.weight == 1).all():
            return np.empty(0), np.empty(0)
        return self.cap, self.weight

    @property
    def restarts(self) -> bool:
        """Whether covered rows are uncovered for further rounds."""
        return not self.bonus.any()


@dataclass(frozen=True)
class Ranking:
    """What a greedy chose, best first."""

    indices: npt.NDArray[np.int64]
    """(chosen,) candidates, unique"""
    gains: Floats
    """(chosen,) what each added to its round's objective when it was chosen"""
    rounds: npt.NDArray[np.int64]
    """(chosen,) from 0; -1 for what gained nothing"""
    n_positive: int
    """How many the first round chose, each with a positive gain: all that the function can tell apart"""
    objective: float
    """f of what the first round chose"""
    nested: bool
    """Whether the first k of a ranking are what a budget of k gives"""
    computed: int
    """Gains computed; naive greedy computes candidates × chosen"""


def fl(kernel: Kernel, *, weight: npt.ArrayLike | None = None) -> Problem:
    """Facility location: every row is represented by its best chosen candidate."""
    return _problem(kernel, weight=weight)


def flcg(kernel: Kernel, previous: npt.ArrayLike, *, nu: float = 1.0, weight: npt.ArrayLike | None = None) -> Problem:
    """Conditional gain over data that is already there. ``previous``: s[row, previous], (rows, previous)."""
    return _problem(kernel, floor=nu * _best_of_rows(previous, kernel.rows, "previous"), weight=weight)


def flmi(kernel: Kernel, target: npt.ArrayLike, *, eta: float = 1.0, weight: npt.ArrayLike | None = None) -> Problem:
    """Mutual information with a target as DELIFT prints it. ``target``: s[target, candidate], (targets, candidates)."""
    return _problem(kernel, bonus=eta * _best_of_candidates(target, kernel.candidates), weight=weight)


def fl1mi(kernel: Kernel, target: npt.ArrayLike, *, eta: float = 1.0, weight: npt.ArrayLike | None = None) -> Problem:
    """Mutual information capped by what the target represents. ``target``: s[row, target], (rows, targets)."""
    return _problem(kernel, cap=eta * _best_of_rows(target, kernel.rows, "target"), weight=weight)


def fl2mi(kernel: Kernel, *, eta: float = 1.0, weight: npt.ArrayLike | None = None) -> Problem:
    """Mutual information in both directions; ``kernel`` is that of the target alone, s[target, candidate]."""
    return _problem(kernel, bonus=eta * kernel.maxima(), weight=weight)


def flcmi(
    kernel: Kernel,
    previous: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    nu: float = 1.0,
    eta: float = 1.0,
    weight: npt.ArrayLike | None = None,
) -> Problem:
    """`fl1mi` of a target, conditioned on previous data; shapes as in `flcg` and `fl1mi`."""
    floor = nu * _best_of_rows(previous, kernel.rows, "previous")
    return _problem(kernel, floor=floor, cap=eta * _best_of_rows(target, kernel.rows, "target"), weight=weight)


def _problem(
    kernel: Kernel,
    *,
    floor: Floats | None = None,
    cap: Floats | None = None,
    bonus: Floats | None = None,
    weight: npt.ArrayLike | None = None,
) -> Problem:
    weights = np.ones(kernel.rows) if weight is None else finite(weight, "weight", 1)
    if weights.shape != (kernel.rows,) or (weights < 0).any():
        raise UsageError(f"there must be a weight of at least 0 for each of {kernel.rows} rows.")
    return Problem(
        kernel,
        np.zeros(kernel.rows) if floor is None else floor,
        np.full(kernel.rows, np.inf) if cap is None else cap,
        weights,
        np.zeros(kernel.candidates) if bonus is None else bonus,
    )


def _best_of_rows(similarity: npt.ArrayLike, rows: int, name: str) -> Floats:
    """(rows,) the largest s of each row over the columns of ``similarity``; 0 when it has none."""
    array = finite(similarity, name, 2)
    if array.shape[0] != rows:
        raise UsageError(f"{name} has {array.shape[0]} rows; the kernel has {rows}.")
    return array.max(axis=1) if array.shape[1] else np.zeros(rows)


def _best_of_candidates(similarity: npt.ArrayLike, candidates: int) -> Floats:
    array = finite(similarity, "target", 2)
    if array.shape[1] != candidates:
        raise UsageError(f"the target's kernel has {array.shape[1]} candidates; the pool's has {candidates}.")
    return array.max(axis=0) if array.shape[0] else np.zeros(candidates)


def covered(problem: Problem, chosen: Sequence[int] | npt.NDArray[Any]) -> Floats:
    """(rows,) what ``chosen`` covers of each row, before its weight: max(lo, min(hi, max_A s_ij)) − lo."""
    best = np.full(problem.kernel.rows, -np.inf)
    for candidate in chosen:
        rows, values = problem.kernel.column(int(candidate))
        best[rows] = np.maximum(best[rows], values)
    above: Floats = np.maximum(problem.floor, np.minimum(problem.cap, best)) - problem.floor
    return above


def evaluate(problem: Problem, chosen: Sequence[int] | npt.NDArray[Any]) -> float:
    """f(A) by its definition, in any order of A."""
    bonus = problem.bonus[np.asarray(chosen, np.int64)].sum()
    return float(bonus + (problem.weight * covered(problem, chosen)).sum())


def rank(problem: Problem, count: int, *, candidates: npt.ArrayLike | None = None) -> Ranking:
    """The first ``count`` candidates in greedy's order, chosen among ``candidates`` (indices; default all).

    The ranking is nested. Raises `UsageError` for a count that is negative or larger than the pool.
    """
    pool = _pool(problem, candidates)
    check_count(count, len(pool))
    ones = np.ones(problem.kernel.candidates)
    return _greedy(problem, pool, count, ones, float(count), scale=ones, nested=True)


def rank_by_cost(
    problem: Problem, costs: npt.ArrayLike, budget: float, *, candidates: npt.ArrayLike | None = None
) -> Ranking:
    """As many as fit into ``budget``, where candidate j costs ``costs[j]`` (such as its answer tokens).

    Greedy by gain per cost, and plain greedy that passes over what does not fit; the larger objective is returned
    (see the module). Not nested: another budget may choose others. Raises `UsageError` for costs that are not positive.
    """
    pool = _pool(problem, candidates)
    prices = finite(costs, "costs", 1)
    if prices.shape != (problem.kernel.candidates,) or (prices <= 0).any():
        raise UsageError("every candidate needs a cost above zero.")
    if not budget >= 0:
        raise UsageError(f"a budget of {budget} cannot be spent.")
    scaled = _greedy(problem, pool, len(pool), prices, budget, scale=prices, nested=False)
    plain = _greedy(problem, pool, len(pool), prices, budget, scale=np.ones_like(prices), nested=False)
    return scaled if scaled.objective >= plain.objective else plain


def _pool(problem: Problem, candidates: npt.ArrayLike | None) -> npt.NDArray[np.int64]:
    if candidates is None:
        return np.arange(problem.kernel.candidates)
    pool = np.unique(np.asarray(candidates, dtype=np.int64))
    if len(pool) and not (pool[0] >= 0 and pool[-1] < problem.kernel.candidates):
        raise UsageError(f"candidates are numbered from 0 to {problem.kernel.candidates - 1}.")
    return pool


def _greedy(
    problem: Problem,
    pool: npt.NDArray[np.int64],
    count: int,
    costs: Floats,
    budget: float,
    *,
    scale: Floats,
    nested: bool,
) -> Ranking:
    from foretune.selection.greedy.compiled import lazy_greedy

    chosen, gains, rounds, computed = lazy_greedy(
        *problem.kernel.arrays, problem.floor, *problem.limits, problem.bonus, pool, count, costs, budget,
        scale, problem.restarts,
    )  # fmt: skip
    n_positive = int((rounds == 0).sum())
    rest = _rest(problem, np.setdiff1d(pool, chosen), costs, budget - costs[chosen].sum(), count - len(chosen))
    return Ranking(
        indices=np.concatenate([chosen, rest]),
        gains=np.concatenate([gains, np.zeros(len(rest))]),
        rounds=np.concatenate([rounds, np.full(len(rest), -1)]),
        n_positive=n_positive,
        objective=float(gains[:n_positive].sum()),
        nested=nested,
        computed=int(computed),
    )


def _rest(
    problem: Problem, left: npt.NDArray[np.int64], costs: Floats, budget: float, count: int
) -> npt.NDArray[np.int64]:
    """Those without any gain that still fit, by row sum (largest first), then index."""
    from foretune.selection.greedy.compiled import column_sums

    if not count or not len(left) or costs[left].min() > budget:
        return left[:0]
    sums = column_sums(*problem.kernel.arrays, left, problem.weight)
    taken: list[int] = []
    for candidate in left[np.argsort(-sums, kind="stable")]:
        if costs[candidate] <= budget and len(taken) < count:
            taken.append(int(candidate))
            budget -= costs[candidate]
    return np.asarray(taken, dtype=np.int64)
