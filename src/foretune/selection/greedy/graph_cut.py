"""Graph cut: rows that are like the pool and unlike each other.

    f(A) = Σ_{i∈D} Σ_{j∈A} s_ij − λ Σ_{j,k∈A} s_jk

Monotone for λ ≤ ½ on a symmetric non-negative kernel, submodular for any λ (Iyer & Bilmes 2013). A gain needs what
the chosen ones have in common with each candidate, which one vector keeps: O(n) a step, so greedy is exact and not
lazy. With an asymmetric kernel both directions count. Ties go to the lowest index.
"""

from __future__ import annotations

import numpy as np

from foretune.errors import UsageError
from foretune.selection.greedy.checks import check_count
from foretune.selection.greedy.facility_location import Ranking
from foretune.selection.greedy.kernel import Kernel

DEFAULT_TRADE_OFF = 0.4
"""λ: below the ½ up to which f is monotone"""


def rank_by_graph_cut(kernel: Kernel, count: int, *, trade_off: float = DEFAULT_TRADE_OFF) -> Ranking:
    """The first ``count`` of a square kernel (dense or sparse; rows and candidates are the same) by exact greedy.

    Gains may turn negative for λ > ½; the ranking goes on, and ``n_positive`` says where they do.
    """
    size = kernel.candidates
    if kernel.rows != size:
        raise UsageError(f"graph cut compares the pool with itself; the kernel is {kernel.rows} by {size}.")
    check_count(count, size)
    outgoing = _transposed(kernel)
    likeness, own = np.zeros(size), np.zeros(size)
    for candidate in range(size):
        rows, values = kernel.column(candidate)
        likeness[candidate] = values.sum()
        own[candidate] = values[rows == candidate].sum()
    left = likeness - trade_off * own
    chosen, gains = np.empty(count, np.int64), np.empty(count)
    for step in range(count):
        best = int(left.argmax())
        chosen[step], gains[step] = best, left[best]
        for rows, values in (kernel.column(best), outgoing.column(best)):
            left[rows] -= trade_off * values
        left[best] = -np.inf
    positive = int((gains > 0).cumprod().sum())
    return Ranking(chosen, gains, np.zeros(count, np.int64), positive, float(gains.sum()), True, size * count)


def _transposed(kernel: Kernel) -> Kernel:
    """The kernel with rows and candidates exchanged; dense ones are copied."""
    if kernel.is_dense:
        return Kernel(kernel.candidates, kernel.rows, np.ascontiguousarray(kernel.values.T))
    from scipy.sparse import csc_array

    from foretune.selection.greedy.kernel import sparse

    shape = (kernel.rows, kernel.candidates)
    return sparse(csc_array((kernel.values[0], kernel.row_of, kernel.starts), shape=shape).T)
