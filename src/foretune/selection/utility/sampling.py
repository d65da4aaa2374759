"""Fewer pairs: a sample of the rows that are asked, or only the nearest examples of each; and what that may cost.

*Rows.* A sum over all rows is estimated from m of them, drawn without replacement with chances in proportion to a
size and weighted by one over their chance (Horvitz & Thompson 1952; systematic sampling with unequal chances, Madow
1949). With the distance without an example as the size, the rows with the most to gain are asked more often: what an
example can gain a row is at most that distance.

*Neighbours.* A row is asked behind the k examples nearest to it alone, and behind a few others drawn at random, which
tell how much is missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foretune.seeding import generator

PROBED_PAIRS = 256
"""Pairs of rows with examples that are not among their neighbours, asked to see what is missed."""
_PIECE_ROWS = 2048
Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RowSample:
    """Rows and what each stands for."""

    rows: npt.NDArray[np.int64]
    """(m,) ascending"""
    weights: Floats
    """(m,) one over the chance of being drawn"""


def sample_rows(sizes: npt.ArrayLike, count: int, *, seed: int) -> RowSample:
    """``count`` of ``len(sizes)`` rows (all when there are no more), with chances in proportion to ``sizes`` ≥ 0.

    A row so large that its chance would exceed one is certain, and the rest is shared out again.
    """
    size = np.asarray(sizes, dtype=np.float64)
    if count >= len(size):
        return RowSample(np.arange(len(size)), np.ones(len(size)))
    if np.count_nonzero(size) < count:
        size = size + 1.0
    chance = np.zeros(len(size))
    certain = np.zeros(len(size), dtype=np.bool_)
    while True:
        free = count - certain.sum()
        chance[~certain] = free * size[~certain] / size[~certain].sum()
        chance[certain] = 1.0
        over = chance > 1.0
        if not over.any():
            break
        certain |= over
    random = generator(seed, "selection", "rows")
    order = random.permutation(len(size))
    ends = np.cumsum(chance[order])
    ends[-1] = count  # against rounding: so many are drawn
    marks = random.random() + np.arange(count)
    drawn = np.sort(order[np.searchsorted(ends, marks, side="right")])
    return RowSample(drawn, 1.0 / chance[drawn])


def standard_error(contributions: npt.ArrayLike, weights: npt.ArrayLike) -> float:
    """Of Σ w_i c_i as an estimate of the sum over all rows, as if rows were drawn with replacement: no less than true.

    NaN-free: zero for fewer than two rows.
    """
    parts = np.asarray(weights, np.float64) * np.asarray(contributions, np.float64)
    if len(parts) < 2:
        return 0.0
    return float(np.sqrt(len(parts) * parts.var(ddof=1)))


def neighbour_pairs(
    rows: Vectors, examples: Vectors, equal: npt.NDArray[np.int64] | None, neighbours: int
) -> list[list[int]]:
    """For every example the rows that have it among their ``neighbours`` nearest: vectors of length one, by cosine.

    rows: (m, width), examples: (n, width). ``equal``: (m,) -1 or the example that is the row itself and is passed over.
    """
    asked: list[list[int]] = [[] for _ in examples]
    count = min(neighbours, len(examples))
    for start in range(0, len(rows), _PIECE_ROWS):
        similar = rows[start : start + _PIECE_ROWS] @ examples.T
        if equal is not None:
            same = equal[start : start + _PIECE_ROWS]
            own = np.flatnonzero(same >= 0)
            similar[own, same[own]] = -np.inf
        nearest = np.argpartition(-similar, count - 1, axis=1)[:, :count] if count else np.empty((len(similar), 0), int)
        for offset, row in enumerate(nearest):
            for example in row:
                asked[int(example)].append(start + offset)
    return asked


def probes(asked: list[list[int]], rows: int, *, seed: int, count: int = PROBED_PAIRS) -> list[list[int]]:
    """As ``asked``: random pairs that are not in it."""
    random = generator(seed, "selection", "probes")
    there = [set(part) for part in asked]
    more: list[list[int]] = [[] for _ in asked]
    for _ in range(count if asked and rows else 0):
        example, row = int(random.integers(len(asked))), int(random.integers(rows))
        if row not in there[example]:
            there[example].add(row)
            more[example].append(row)
    return more
