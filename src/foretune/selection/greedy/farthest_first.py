"""k-centre by farthest first: every next row is the one farthest from all chosen so far.

The largest distance of any row to its nearest chosen one is at most twice the smallest possible (Gonzalez 1985).
One pass over the embeddings a step, O(k·n·width). Ties go to the lowest index.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foretune.selection.greedy.checks import check_count, finite


@dataclass(frozen=True)
class Centres:
    """Rows in the order in which farthest first takes them."""

    indices: npt.NDArray[np.int64]
    """(chosen,)"""
    distances: npt.NDArray[np.float64]
    """(chosen,) distance to the nearest earlier centre; the first one's to the given centres, or inf without any"""
    radius: float
    """Distance of the worst-served row to its nearest centre"""


def farthest_first(
    embeddings: npt.ArrayLike, count: int, *, given: npt.ArrayLike | None = None, first: int | None = None
) -> Centres:
    """``count`` centres among ``embeddings``: (n, width), by Euclidean distance.

    ``given``: (m, width) are centres already there. Without them the first centre is ``first``, or the row nearest
    to the mean. Raises `DataError` for NaN or infinity, with the row.
    """
    points = finite(embeddings, "embeddings", 2)
    check_count(count, len(points))
    there = np.empty((0, points.shape[1])) if given is None else finite(given, "given", 2)
    squares = (points**2).sum(axis=1)
    nearest = np.full(len(points), np.inf)
    for centre in there:
        np.minimum(nearest, _squared(points, squares, centre), out=nearest)
    chosen, distances = np.empty(count, np.int64), np.empty(count)
    free = np.ones(len(points), dtype=np.bool_)
    for step in range(count):
        if step == 0 and not len(there):
            centre = _squared(points, squares, points.mean(axis=0)).argmin() if first is None else first
        else:
            centre = np.where(free, nearest, -1.0).argmax()
        chosen[step], distances[step] = centre, np.sqrt(nearest[centre])
        free[centre] = False
        np.minimum(nearest, _squared(points, squares, points[centre]), out=nearest)
    return Centres(chosen, distances, float(np.sqrt(nearest.max(initial=0.0))))


def _squared(
    points: npt.NDArray[np.float64], squares: npt.NDArray[np.float64], centre: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(n,) squared distances to ``centre``."""
    distance: npt.NDArray[np.float64] = squares - 2 * (points @ centre) + (centre**2).sum()
    return np.maximum(distance, 0.0)
