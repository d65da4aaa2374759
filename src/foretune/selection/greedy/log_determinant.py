"""Log-determinant: the most spread-out rows, by greedy maximum a posteriori of a determinantal point process.

    f(A) = log det(K_A + ridge · I)

The gain of j is log d_j² with d_j² the pivot that j would have in the Cholesky factor of K_A; a step updates all
pivots from the new row of the factor, O(n·k), O(n·k²) for the whole ranking (Chen, Zhang & Zhou 2018,
arXiv 1709.05135). Gains are negative where a pivot is below 1: that is no sign of harm. A pivot that rounding has
eaten up ends the search; those left follow by index with a gain of −inf in f, reported as chosen in no round.
Ties go to the lowest index. The kernel has to be symmetric, which is checked, not repaired.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foretune.errors import DataError, UsageError
from foretune.selection.greedy.checks import check_count, finite
from foretune.selection.greedy.facility_location import Ranking

SYMMETRY_TOLERANCE = 1e-5
"""Largest difference of k[i, j] and k[j, i], relative to the largest entry: float32 rounding of a product."""
SMALLEST_PIVOT = 1e-10
"""Relative to the largest diagonal entry; below it a pivot is rounding of float64, not information."""


def rank_by_log_determinant(similarity: npt.ArrayLike, count: int, *, ridge: float = 0.0) -> Ranking:
    """The first ``count`` of a symmetric positive semi-definite kernel: (n, n). Raises `DataError` for another one."""
    kernel = finite(similarity, "the kernel", 2)
    size = _checked(kernel)
    check_count(count, size)
    pivots = kernel.diagonal() + ridge
    limit = SMALLEST_PIVOT * max(float(pivots.max(initial=0.0)), np.finfo(np.float64).tiny)
    factor = np.zeros((count, size))
    chosen: list[int] = []
    gains: list[float] = []
    free = np.ones(size, dtype=np.bool_)
    for step in range(count):
        best = int(np.where(free, pivots, -np.inf).argmax())
        if pivots[best] <= limit:
            break
        chosen.append(best)
        gains.append(float(np.log(pivots[best])))
        free[best] = False
        row = kernel[best] - factor[:step, best] @ factor[:step]
        row[best] += ridge
        factor[step] = row / np.sqrt(pivots[best])
        pivots -= factor[step] ** 2
    found = len(chosen)
    chosen += [int(i) for i in np.flatnonzero(free)[: count - found]]
    rounds = np.where(np.arange(count) < found, 0, -1)
    return Ranking(
        indices=np.asarray(chosen, dtype=np.int64),
        gains=np.asarray(gains + [0.0] * (count - found)),
        rounds=rounds,
        n_positive=int((np.asarray(gains) > 0).sum()),
        objective=float(sum(gains)),
        nested=True,
        computed=size * found,
    )


def _checked(kernel: npt.NDArray[np.float64]) -> int:
    if kernel.shape[0] != kernel.shape[1]:
        raise UsageError(f"a log-determinant needs a square kernel, not one of shape {kernel.shape}.")
    apart = np.abs(kernel - kernel.T)
    if apart.size and apart.max() > SYMMETRY_TOLERANCE * max(float(np.abs(kernel).max()), np.finfo(np.float64).tiny):
        row, column = (int(i) for i in np.unravel_index(apart.argmax(), apart.shape))
        raise DataError(
            f"the kernel is not symmetric: {kernel[row, column]} at [{row}, {column}], "
            f"{kernel[column, row]} at [{column}, {row}].",
            remedy="Use facility location, which takes a direction, or a symmetric similarity such as the cosine.",
        )
    return int(kernel.shape[0])
