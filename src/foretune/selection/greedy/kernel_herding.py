"""Kernel herding: rows whose running mean follows the mean of the pool.

With features φ and their mean μ: take x = argmax ⟨w, φ(x)⟩, then w ← w + μ − φ(x), from w = μ. The mean of the first
k differs from μ by O(1/k), where random rows give O(1/√k) (Chen, Welling & Smola 2010). Rows are taken once each
here; ties go to the lowest index. O(k·n·width).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foretune.selection.greedy.checks import check_count, finite


def herd(features: npt.ArrayLike, count: int) -> npt.NDArray[np.int64]:
    """(count,) rows of ``features``: (n, width) in herding order. Raises `DataError` for NaN or infinity."""
    points = finite(features, "features", 2)
    check_count(count, len(points))
    chosen = np.empty(count, np.int64)
    if not count:
        return chosen
    towards_mean = points @ points.mean(axis=0)
    score = towards_mean.copy()  # ⟨w, φ(x)⟩ of every row
    taken = np.zeros(len(points), dtype=np.bool_)
    for step in range(count):
        best = np.where(taken, -np.inf, score).argmax()
        chosen[step] = best
        taken[best] = True
        score += towards_mean - points @ points[best]
    return chosen
