"""What a selection kept, in numbers that are the same for every selector: no model, only the texts.

Similarity is the cosine of TF-IDF vectors over words of question and answer. For a kept set A of a pool D:

    coverage     mean over D of the similarity to the nearest row of A (1: everything has a like row among the kept)
    redundancy   mean over A of the similarity to the nearest other row of A (1: every kept row repeats another)
    relevance    mean over A of the similarity to the nearest target row

each beside the mean over `DRAWS` random subsets of the same size. The map is the plane of the two leading singular
vectors of the same vectors (latent semantic analysis), so distances on it are rough. Beyond `MOST_ROWS` rows a seeded
sample stands for the pool; the portrait says so. It judges nothing: training does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretune.data.example import Example, normalised
from foretune.seeding import generator

MOST_ROWS = 4000
"""Rows of the pool, and of the kept, that are compared; (4000, 4000) similarities are 128 MB in pieces."""
MOST_DOTS = 1500
"""Rows on the map: more cannot be told apart."""
DRAWS = 5
"""Random subsets that a measure is compared with."""
SHOWN = 6
"""Rows shown as examples, of the kept and of the dropped."""
SHOWN_CHARACTERS = 400
_PIECE_ROWS = 500
Rows = NDArray[np.int64]


def portrait(
    examples: Sequence[Example],
    kept: Sequence[int],
    tokens: Sequence[int],
    *,
    target: Sequence[Example] = (),
    scores: Sequence[float] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Facts about the ``kept`` rows (best first) among ``examples``; ``tokens`` are the answer tokens of every row."""
    draw = generator(seed, "portrait")
    lengths = np.asarray(tokens, dtype=np.float64)
    chosen = np.asarray(kept, dtype=np.int64)
    pool = _sampled(np.arange(len(examples)), draw)
    randoms = [np.sort(draw.choice(len(examples), len(chosen), replace=False)) for _ in range(DRAWS)]
    facts: dict[str, Any] = {
        "rows": len(examples),
        "kept": len(chosen),
        "row_share": len(chosen) / max(1, len(examples)),
        "answer_tokens": {
            "pool_mean": _mean(lengths),
            "kept_mean": _mean(lengths[chosen]),
            "random_mean": _mean(np.asarray([_mean(lengths[rows]) for rows in randoms])),
            "kept_share": float(lengths[chosen].sum() / max(1.0, lengths.sum())),
        },
        "sources": _sources(examples, chosen),
        "compared_rows": len(pool),
    }
    vectors = _vectors([*examples, *target])
    if vectors is not None and len(chosen):
        facts |= _measures(vectors, len(examples), pool, chosen, randoms, len(target), draw)
        facts["map"] = _map(vectors, len(examples), chosen, draw)
    facts["examples"] = _shown(examples, chosen, scores, draw)
    return facts


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _sampled(rows: Rows, draw: np.random.Generator) -> Rows:
    return rows if len(rows) <= MOST_ROWS else np.sort(draw.choice(rows, MOST_ROWS, replace=False))


def source_of(row: Example) -> str:
    """Where a row says it comes from: its task, else its file."""
    if row.task is not None:
        return row.task
    return "" if row.place is None else str(row.place.path).rpartition("/")[2]


def _sources(examples: Sequence[Example], chosen: Rows) -> dict[str, dict[str, int]]:
    """Rows and kept rows of each source; nothing where there is only one."""
    pool = Counter(map(source_of, examples))
    kept = Counter(source_of(examples[int(i)]) for i in chosen)
    if len(pool) < 2:
        return {}
    return {name: {"rows": count, "kept": kept[name]} for name, count in pool.most_common()}


def _vectors(examples: Sequence[Example]) -> Any:
    """(rows, words) unit TF-IDF vectors; None where no row has a word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [normalised(f"{row.prompt}\n{row.answer}") for row in examples]
    try:
        return TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True, max_features=100_000).fit_transform(texts)
    except ValueError:  # an empty vocabulary
        return None


def _nearest(vectors: Any, rows: Rows, among: Rows, *, other: bool = False) -> NDArray[np.float64]:
    """(rows,) similarity of each row to the nearest of ``among``; with ``other`` a row is not its own nearest."""
    best = np.zeros(len(rows))
    if not len(among):
        return best
    right = vectors[among].T.tocsc()
    for start in range(0, len(rows), _PIECE_ROWS):
        part = rows[start : start + _PIECE_ROWS]
        similar = (vectors[part] @ right).toarray()
        if other:
            similar[part[:, None] == among[None, :]] = 0.0
        best[start : start + len(part)] = similar.max(axis=1)
    return best


def _measures(
    vectors: Any,
    rows: int,
    pool: Rows,
    chosen: Rows,
    randoms: Sequence[Rows],
    targets: int,
    draw: np.random.Generator,
) -> dict[str, Any]:
    goal = np.arange(rows, rows + targets)

    def measured(kept: Rows) -> dict[str, float]:
        kept = _sampled(kept, draw)
        found = {
            "coverage": _mean(_nearest(vectors, pool, kept)),
            "redundancy": _mean(_nearest(vectors, kept, kept, other=True)),
        }
        if targets:
            found["relevance"] = _mean(_nearest(vectors, kept, goal))
        return found

    own = measured(chosen)
    drawn = [measured(kept) for kept in randoms]
    return {
        name: {
            "kept": value,
            "random": float(np.mean([one[name] for one in drawn])),
            "random_sd": float(np.std([one[name] for one in drawn], ddof=1)),
        }
        for name, value in own.items()
    }


def _map(vectors: Any, rows: int, chosen: Rows, draw: np.random.Generator) -> dict[str, Any]:
    """Coordinates of a sample of rows, those kept marked, and of the target rows."""
    from sklearn.decomposition import TruncatedSVD

    if min(vectors.shape) < 3:
        return {}
    shown = np.arange(rows)
    if rows > MOST_DOTS:
        shown = np.sort(draw.choice(rows, MOST_DOTS, replace=False))
    places = np.concatenate([shown, np.arange(rows, vectors.shape[0])])
    plane = TruncatedSVD(2, random_state=int(draw.integers(2**31))).fit(vectors).transform(vectors[places])
    inside = set(map(int, chosen))
    dots = [
        [round(float(x), 4), round(float(y), 4), "target" if i >= rows else "kept" if int(i) in inside else "dropped"]
        for i, (x, y) in zip(places, plane, strict=True)
    ]
    return {"dots": dots, "sampled": len(shown) < rows}


def _shown(
    examples: Sequence[Example], chosen: Rows, scores: Sequence[float] | None, draw: np.random.Generator
) -> dict[str, list[dict[str, Any]]]:
    """The first kept rows with their scores, and dropped rows drawn at random."""
    gone = np.setdiff1d(np.arange(len(examples)), chosen)
    dropped = draw.choice(gone, min(SHOWN, len(gone)), replace=False) if len(gone) else gone

    def told(row: int, place: int | None) -> dict[str, Any]:
        example = examples[row]
        score = None if scores is None or place is None or not np.isfinite(scores[place]) else float(scores[place])
        where = "" if example.place is None else str(example.place)
        prompt, answer = example.prompt[:SHOWN_CHARACTERS], example.answer[:SHOWN_CHARACTERS]
        return {"row": row, "place": where, "prompt": prompt, "answer": answer, "score": score}

    return {
        "kept": [told(int(row), place) for place, row in enumerate(chosen[:SHOWN])],
        "dropped": [told(int(row), None) for row in np.sort(dropped)],
    }
