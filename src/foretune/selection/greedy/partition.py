"""Facility location for pools too large for one exact greedy: sampled candidates, or partitions ranked apart.

*Stochastic greedy* (Mirzasoleiman et al. 2015) looks, in every step, at a random sample of (n/k)·ln(1/ε) candidates;
expected value (1 − 1/e − ε) of the optimum, in n·ln(1/ε) gains whatever k is. *GreeDi* (Mirzasoleiman et al. 2013)
deals the candidates out at random, ranks every part by itself, in other processes or on other machines, and ranks
the union of what they chose; the best part's own choice is returned where it is better. Neither is nested.

What this does not do: deal out the rows; every part sees all of them, through a file that it maps into memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from foretune.errors import UsageError
from foretune.files import atomic_folder
from foretune.seeding import generator
from foretune.selection.base import BlockMap
from foretune.selection.greedy import kernel as kernels
from foretune.selection.greedy.checks import check_count
from foretune.selection.greedy.facility_location import Problem, Ranking, evaluate, rank

SHORTFALL = 0.05
"""ε of stochastic greedy: what it may lose against greedy, in expectation; three passes over the pool."""
_ARRAYS = ("floor", "cap", "weight", "bonus")


def rank_by_samples(problem: Problem, count: int, *, seed: int, shortfall: float = SHORTFALL) -> Ranking:
    """``count`` candidates by stochastic greedy; ties go to the lowest index of a sample.

    There are no further rounds: once nothing in a sample gains, members of samples follow with a gain of zero.
    """
    from foretune.selection.greedy.compiled import best_of, cover

    pool = problem.kernel.candidates
    check_count(count, pool)
    if not 0 < shortfall < 1:
        raise UsageError(f"a shortfall of {shortfall} is not between 0 and 1.")
    random = generator(seed, "selection", "stochastic greedy")
    size = math.ceil(pool / max(count, 1) * math.log(1 / shortfall))
    left = np.arange(pool)
    current, (cap, weight) = problem.floor.copy(), problem.limits
    chosen, gains, computed = np.empty(count, np.int64), np.empty(count), 0
    for done in range(count):
        places = random.choice(pool - done, size=min(size, pool - done), replace=False, shuffle=False)
        sample = left[places]
        best, gains[done] = best_of(*problem.kernel.arrays, current, cap, weight, problem.bonus, sample)
        chosen[done] = best
        computed += len(sample)
        cover(*problem.kernel.arrays, best, current, cap)
        left[places[np.flatnonzero(sample == best)[0]]] = left[pool - done - 1]
    positive = int((gains > 0).sum())
    return Ranking(chosen, gains, np.zeros(count, np.int64), positive, float(gains.sum()), False, computed)


def save(problem: Problem, folder: Path) -> None:
    """Write the problem to ``folder`` (replaced whole), for processes that rank a part of it."""
    with atomic_folder(folder) as aside:
        kernels.save(problem.kernel, aside)
        for name in _ARRAYS:
            getattr(problem, name).tofile(aside / f"{name}.bin")


@cache
def load(folder: Path) -> Problem:
    """The problem in ``folder``; its kernel is mapped into memory."""
    arrays = {name: np.fromfile(folder / f"{name}.bin", dtype=np.float64) for name in _ARRAYS}
    return Problem(kernels.load(folder), **arrays)


def rank_in_parts(folder: Path, count: int, *, parts: int, seed: int, blocks: BlockMap) -> Ranking:
    """``count`` candidates of the problem saved in ``folder`` by GreeDi, every part a block of work."""
    problem = load(folder)
    if not 1 <= parts <= problem.kernel.candidates:
        raise UsageError(f"{problem.kernel.candidates} candidates cannot be dealt into {parts} parts.")
    shuffled = generator(seed, "selection", "parts").permutation(problem.kernel.candidates)
    dealt = [[int(candidate) for candidate in np.sort(part)] for part in np.array_split(shuffled, parts)]
    found = list(blocks.map(partial(rank_part, folder=str(folder), count=count), dealt))
    best = max(found, key=lambda part: evaluate(problem, part))
    merged = rank(problem, count, candidates=np.concatenate([np.asarray(part, np.int64) for part in found]))
    if len(best) == count and evaluate(problem, best) > evaluate(problem, merged.indices):
        merged = rank(problem, count, candidates=best)
    return replace(merged, nested=False)


def rank_part(candidates: Sequence[int], *, folder: str, count: int) -> list[int]:
    """What greedy chooses among ``candidates`` alone: the work of one block."""
    ranking = rank(load(Path(folder)), min(count, len(candidates)), candidates=candidates)
    return [int(index) for index in ranking.indices]
