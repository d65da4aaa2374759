"""Selectors that compare rows by embeddings: for a target, for coverage, for the mean, for what is typical and odd.

rds-plus   (Ivison et al. 2025, 2503.01807)  position-weighted means, cosine to every target row; the targets take turns
           and each takes its most similar row that is still free; a row's score is its highest similarity
k-centre   (Sener & Savarese 2018, 1708.00489)  farthest first in Euclidean distance
herding    (Welling 2009; IDM 2307.09742 matches mean embeddings)  rows whose running mean follows the pool's mean
deft-ucs   (Das & Khetan 2023, 2310.16776)  k-means; of every cluster the share α nearest to its centre and 1−α farthest
deita      (Liu et al. 2023, 2312.15685)  by a score, a row is added when its cosine to all chosen is below a threshold

DEITA's scores come from two tuned scorers that are not public packages; here quality × complexity is stood in for by
IFD or answer length (``deita.score``), which the name of the setting says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foretune.seeding import derive
from foretune.selection.base import BlockMap, Request, Selection
from foretune.selection.declared import Declared, Floats
from foretune.selection.embeddings import Vectors, embed, embedding_bench
from foretune.selection.greedy.farthest_first import farthest_first
from foretune.selection.greedy.kernel_herding import herd

_PIECE_ROWS = 2048
Rows = NDArray[np.int64]


def round_robin(similarity: Floats, count: int) -> tuple[list[int], list[float]]:
    """(rows, similarities) taken in turns: similarity is (targets, rows), and each target takes its best free row.

    Ties go to the lower row. A target's second turn comes after everybody's first.
    """
    order = np.argsort(-similarity, axis=1, kind="stable")
    next_of = np.zeros(len(order), dtype=np.int64)
    taken = np.zeros(similarity.shape[1], dtype=np.bool_)
    rows: list[int] = []
    values: list[float] = []
    while len(rows) < min(count, similarity.shape[1]):
        for target in range(len(order)):
            if len(rows) == count:
                break
            while next_of[target] < similarity.shape[1] and taken[order[target, next_of[target]]]:
                next_of[target] += 1
            if next_of[target] == similarity.shape[1]:
                continue
            row = int(order[target, next_of[target]])
            taken[row] = True
            rows.append(row)
            values.append(float(similarity[target, row]))
    return rows, values


class RdsPlus(Declared):
    """Round robin over the target rows."""

    name = "rds-plus"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """Scores are similarities to the target that took the row."""
        settings = request.settings(self.name)
        bench = embedding_bench(request, settings["embedder"])
        pool, target = (
            embed(request, rows, bench=bench, pooling=settings["pooling"], what=what)
            for rows, what in ((request.examples, "embeddings"), (request.target, "target-embeddings"))
        )
        rows, values = round_robin((target @ pool.T).astype(np.float64), request.count)
        return Selection(tuple(rows), self.name, scores=tuple(values))


class KCentre(Declared):
    """Farthest first."""

    name = "k-centre"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """Gains are the distances at which rows were taken; rows of ``previous`` are centres from the start."""
        settings = request.settings(self.name)
        bench = embedding_bench(request, settings["embedder"])
        pool = embed(request, request.examples, bench=bench)
        given = embed(request, request.previous, bench=bench, what="previous-embeddings") if request.previous else None
        found = farthest_first(pool, request.count, given=given)
        gains = tuple(float(value) if np.isfinite(value) else 0.0 for value in found.distances)
        return Selection(tuple(map(int, found.indices)), self.name, gains=gains, objective=found.radius)


class Herding(Declared):
    """Kernel herding to the mean of the pool, or of the target where there is one."""

    name = "herding"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """Follows the pool's mean embedding."""
        bench = embedding_bench(request, request.settings(self.name)["embedder"])
        pool = embed(request, request.examples, bench=bench)
        return Selection(tuple(map(int, herd(pool, request.count))), self.name)


class DeftUcs(Declared):
    """Typical and odd rows of every cluster."""

    name = "deft-ucs"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """Clusters give rows in proportion to their size; the order is typical rows first, cluster after cluster."""
        settings = request.settings(self.name)
        bench = embedding_bench(request, settings["embedder"])
        pool = embed(request, request.examples, bench=bench)
        clusters = min(int(settings["clusters"]), len(pool))
        labels, distances = cluster(pool, clusters, derive(request.seed, "selection", self.name) % 2**31)
        rows = near_and_far(labels, distances, request.count, float(settings["near_share"]))
        return Selection(tuple(rows), self.name, nested=False, manifest={"clusters": clusters})


def cluster(pool: Vectors, clusters: int, seed: int) -> tuple[Rows, Floats]:
    """(cluster of every row, Euclidean distance to its centre) by k-means."""
    from warnings import catch_warnings, simplefilter

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with catch_warnings():  # fewer distinct rows than clusters is a fact about the pool, not a problem
        simplefilter("ignore", ConvergenceWarning)
        model = KMeans(clusters, n_init=4, random_state=seed).fit(pool.astype(np.float64))
    centres = model.cluster_centers_[model.labels_]
    return model.labels_.astype(np.int64), np.linalg.norm(pool - centres, axis=1).astype(np.float64)


def near_and_far(labels: Rows, distances: Floats, count: int, near_share: float) -> list[int]:
    """Of every cluster its share of ``count``: α of it nearest to the centre, the rest farthest from it.

    Shares follow the clusters' sizes, largest remainders first. Ties go to the lower row.
    """
    sizes = np.bincount(labels)
    wanted = count * sizes / max(1, len(labels))
    given = np.floor(wanted).astype(np.int64)
    for number in np.argsort(-(wanted - given), kind="stable")[: count - int(given.sum())]:
        given[number] += 1
    near: list[int] = []
    far: list[int] = []
    for number, share in enumerate(given):
        members = np.flatnonzero(labels == number)
        members = members[np.argsort(distances[members], kind="stable")]
        typical = round(near_share * int(share))
        near += [int(i) for i in members[:typical]]
        far += [int(i) for i in members[::-1][: int(share) - typical]]
    return near + far


class Deita(Declared):
    """By score, without rows like those already chosen."""

    name = "deita"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """Rows passed over come after all others, in order of their scores; ``n_positive`` counts the others."""
        settings = request.settings(self.name)
        bench = embedding_bench(request, settings["embedder"])
        pool = embed(request, request.examples, bench=bench)
        scores = self._scores(request, settings["score"])
        order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
        different, alike = filtered(pool, [int(i) for i in order], request.count, float(settings["threshold"]))
        rows = (different + alike)[: request.count]
        return Selection(
            tuple(rows),
            self.name,
            scores=tuple(float(scores[i]) if np.isfinite(scores[i]) else -np.inf for i in rows),
            n_positive=min(len(different), request.count),
            manifest={"passed_over": len(alike)},
        )

    def _scores(self, request: Request, score: str) -> Floats:
        if score == "longest":
            return np.asarray([row.targets for row in request.model.encode(request.examples)], dtype=np.float64)
        from foretune.selection.ifd import difficult_first, difficulty

        return difficult_first(difficulty(request, request.model))


def filtered(pool: Vectors, order: Sequence[int], count: int, threshold: float) -> tuple[list[int], list[int]]:
    """(rows unlike all before them, rows passed over) along ``order``, until ``count`` are found.

    pool: (rows, width) of length one; unlike is a cosine below ``threshold``.
    """
    chosen: list[int] = []
    passed: list[int] = []
    nearest = np.full(len(pool), -1.0)
    for row in order:
        if len(chosen) == count:
            break
        if nearest[row] < threshold:
            chosen.append(row)
            np.maximum(nearest, pool @ pool[row], out=nearest)
        else:
            passed.append(row)
    return chosen, passed
