"""How much one solved example in the prompt changes a row's own answer: self-utility and MIWV.

With d(i | ctx) = √(mean over the answer's tokens of (1 − p_t)²), DELIFT's distance (2411.04425), and L the mean loss:

    self-utility   UF_ii = d(i | x_i) − d(i | x_i, example i itself in context)        highest first
    miwv           L(i | nearest neighbour of i in context) − L(i)                      highest first (2511.07074)

The nearest neighbour is the other row of highest cosine. MIWV keeps rows that an example of their kind does not help;
DELIFT's kernel would keep the examples that do help: the signs are opposite, and a study should say which is better.
Both need two forward passes a row, O(n), where the whole kernel needs n².
"""

from __future__ import annotations

import numpy as np

from foretune.selection.base import BlockMap, Request, Selection
from foretune.selection.declared import Declared
from foretune.selection.embeddings import Vectors, embed, embedding_bench
from foretune.selection.likelihoods import likelihoods, with_shot

_PIECE_ROWS = 2048


class SelfUtility(Declared):
    """The diagonal of DELIFT's utility kernel."""

    name = "self-utility"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """Rows whose own answer in the prompt brings the model closest to it come first."""
        bench = request.model
        alone = likelihoods(request, bench.encode(request.examples), "answer-losses")
        shown = likelihoods(request, with_shot(bench, request.examples, request.examples), "answers-shown-losses")
        return self.by_score(request, alone.distance - shown.distance)


class Miwv(Declared):
    """Loss with the nearest neighbour in the prompt, minus loss without."""

    name = "miwv"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """A pool of one row has no neighbour: its score is 0."""
        if len(request.examples) < 2:
            return self.by_score(request, np.zeros(len(request.examples)))
        bench = request.model
        embedder = embedding_bench(request, request.settings(self.name)["embedder"])
        vectors = embed(request, request.examples, bench=embedder)
        neighbours = nearest_others(vectors)
        alone = likelihoods(request, bench.encode(request.examples), "answer-losses")
        shots = [request.examples[i] for i in neighbours]
        shown = likelihoods(request, with_shot(bench, request.examples, shots), "neighbours-shown-losses")
        return self.by_score(request, shown.loss - alone.loss)


def nearest_others(vectors: Vectors) -> list[int]:
    """The other row of highest cosine for every row: vectors are (rows, width) of length one; ties to the lower row."""
    nearest: list[int] = []
    for start in range(0, len(vectors), _PIECE_ROWS):
        similar = vectors[start : start + _PIECE_ROWS] @ vectors.T
        own = np.arange(len(similar))
        similar[own, start + own] = -np.inf
        nearest += [int(i) for i in similar.argmax(axis=1)]
    return nearest
