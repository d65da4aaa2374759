"""The base model with its nearest training rows in the prompt, which tells whether fine-tuning is worth it at all.

Neighbours are found by TF-IDF over words and character n-grams of the prompt (Salton and Buckley 1988; cosine), which
needs no model and no network. The same rows in the same order give the same shots: ties go to the earlier row. A row
is never its own shot, and neither is a row that says the same. This module picks shots; the template writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretune.data.example import Example, normalised
from foretune.errors import UsageError

WORD_NGRAMS = (1, 2)
CHARACTER_NGRAMS = (2, 4)
"""Within words: they find inflected forms, misspellings, and scripts without spaces."""
MAX_FEATURES = 200_000
"""N-grams kept of each kind, the most frequent first: bounds memory on large files."""
SIMILARITY_ENTRIES = 10_000_000
"""Test rows × training rows compared at once: 80 MB."""


def retrieve(
    train: Sequence[Example],
    queries: Sequence[Example],
    k: int,
    *,
    tokens: Callable[[Example], int] | None = None,
    room: Sequence[int] | None = None,
) -> list[tuple[Example, ...]]:
    """The ``k`` nearest training rows of each query, the nearest last (next to the question).

    ``tokens`` counts what a shot takes and ``room`` says, per query, how many tokens its shots may take together;
    a shot that does not fit is passed over for the next nearest. Fewer than ``k`` come back where there are not
    enough. Raises `UsageError` for a negative ``k`` or only one of ``tokens`` and ``room``.
    """
    if k < 0:
        raise UsageError(f"{k} shots cannot be retrieved.", remedy="Use 0 or more.")
    if (tokens is None) != (room is None) or (room is not None and len(room) != len(queries)):
        raise UsageError("shots fit only where both their tokens and the room of every query are known.")
    if k == 0 or not train or not queries:
        return [() for _ in queries]
    costs = None if tokens is None else [tokens(example) for example in train]
    said = [_said(example) for example in train]
    ids = [example.id for example in train]
    shots = []
    for number, ranked in enumerate(_neighbours(train, queries)):
        query = queries[number]
        free = None if room is None else room[number]
        chosen: list[int] = []
        taken = {_said(query)}
        for row in ranked:
            if len(chosen) == k:
                break
            if said[row] in taken or ids[row] == query.id:
                continue
            if costs is not None and free is not None:
                if costs[row] > free:
                    continue
                free -= costs[row]
            taken.add(said[row])
            chosen.append(int(row))
        shots.append(tuple(train[row] for row in reversed(chosen)))
    return shots


def _said(example: Example) -> tuple[str, str]:
    """Rows with the same of these repeat each other."""
    return normalised(example.prompt), normalised(example.answer)


def _neighbours(train: Sequence[Example], queries: Sequence[Example]) -> Iterator[NDArray[np.int64]]:
    """For each query, all training rows from the nearest to the farthest: (rows,) int64."""
    vectors = [_vectorised(train, queries, "word"), _vectorised(train, queries, "char_wb")]
    step = max(1, SIMILARITY_ENTRIES // len(train))
    for start in range(0, len(queries), step):
        block: NDArray[np.float64] = np.zeros((min(step, len(queries) - start), len(train)))
        for rows, asked in vectors:
            if rows is not None:
                block += (asked[start : start + step] @ rows.T).toarray()
        for similarities in block.round(12):  # sums in another order may differ in the last bits: not a reason
            yield np.argsort(-similarities, kind="stable")


def _vectorised(train: Sequence[Example], queries: Sequence[Example], analyzer: str) -> tuple[Any, Any]:
    """TF-IDF vectors of training rows and queries; (None, None) where no row has an n-gram."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    ngrams = WORD_NGRAMS if analyzer == "word" else CHARACTER_NGRAMS
    vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams, sublinear_tf=True, max_features=MAX_FEATURES)
    if analyzer == "word":
        vectorizer.set_params(token_pattern=r"\w+")  # one-letter words and digits count too
    try:
        rows = vectorizer.fit_transform([normalised(example.prompt) for example in train])
    except ValueError:  # an empty vocabulary: prompts without a single word
        return None, None
    return rows, vectorizer.transform([normalised(example.prompt) for example in queries])
