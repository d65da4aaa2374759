"""From rows to one number, for many weightings of the rows at once.

Every metric here is a function of weighted rows: all weights one gives the metric, the counts of a bootstrap
resample give the metric of that resample. So one vectorised function a metric serves the value, its standard error
and the paired comparison, and a corpus metric is resampled as itself, not as a mean of row scores (Koehn 2004).

Each aggregate takes ``weights: (resamples, rows)`` and ``rows: (rows, k)`` and gives ``(resamples,)`` finite
numbers. BLEU and chrF follow sacreBLEU's formulas (exponential smoothing; average of precisions and recalls over
the orders that occur); a test holds them to sacreBLEU's own scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from foretune.evaluation.base import MetricResult
from foretune.seeding import generator

Array = NDArray[np.float64]
Aggregate = Callable[[Array, Array], Array]

PERCENT = 100.0
BLEU_ORDERS = 4
CHRF_BETA = 2.0
RESAMPLES_FOR_ERROR = 1_000
"""Resamples behind a standard error: its own relative error is then about 1/sqrt(2·1000) = 2 %."""
CHUNK_ENTRIES = 4_000_000
"""Resamples × rows handled at once: 32 MB of weights."""


def _quotient(top: Array, bottom: Array) -> Array:
    """``top / bottom``, 0 where the bottom is 0."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def mean(weights: Array, rows: Array) -> Array:
    """The weighted mean of column 0."""
    return _quotient(weights @ rows[:, 0], weights.sum(axis=1))


def ratio(weights: Array, rows: Array) -> Array:
    """Sum of column 0 over sum of column 1 (nats over tokens, bits over bytes)."""
    return _quotient(weights @ rows[:, 0], weights @ rows[:, 1])


def bleu(weights: Array, rows: Array) -> Array:
    """Corpus BLEU, 0–100, from columns (length, reference length, 4 matches, 4 totals); Papineni et al. 2002.

    An order without a match counts as half, a quarter, … of one match ("exp" smoothing); no match at all is 0.
    """
    sums = weights @ rows
    length, reference = sums[:, 0], sums[:, 1]
    matches, totals = sums[:, 2 : 2 + BLEU_ORDERS], sums[:, 2 + BLEU_ORDERS :]
    halvings = 2.0 ** np.cumsum((matches == 0) & (totals > 0), axis=1)
    smoothed = np.where(matches > 0, matches, 1.0 / halvings)
    scored = (totals > 0).all(axis=1) & (matches > 0).any(axis=1)
    logs = np.log(_quotient(smoothed, totals), out=np.zeros_like(totals), where=totals > 0)
    penalty = np.exp(np.minimum(0.0, 1.0 - reference / np.maximum(length, 1.0)))
    return np.where(scored, PERCENT * penalty * np.exp(logs.mean(axis=1)), 0.0)


def chrf(weights: Array, rows: Array) -> Array:
    """Corpus chrF++, 0–100, from columns (hypothesis, reference, match) per n-gram order; Popović 2017."""
    sums = (weights @ rows).reshape(len(weights), -1, 3)
    hypothesis, reference, match = sums[..., 0], sums[..., 1], sums[..., 2]
    used = (hypothesis > 0) & (reference > 0)
    orders = used.sum(axis=1).astype(np.float64)
    precision = _quotient(np.where(used, _quotient(match, hypothesis), 0.0).sum(axis=1), orders)
    recall = _quotient(np.where(used, _quotient(match, reference), 0.0).sum(axis=1), orders)
    factor = CHRF_BETA**2
    return np.asarray(PERCENT * _quotient((1 + factor) * precision * recall, factor * precision + recall))


def _class_sums(weights: Array, rows: Array) -> tuple[Array, Array, Array]:
    """(hits, predicted, actual), each (resamples, classes), over the classes that the references hold."""
    classes = np.unique(rows[:, 0])
    actual = (rows[:, :1] == classes).astype(np.float64)
    predicted = (rows[:, 1:2] == classes).astype(np.float64)
    return weights @ (actual * predicted), weights @ predicted, weights @ actual


def macro_f1(weights: Array, rows: Array) -> Array:
    """The mean F1 of the classes present in the references; columns (reference class, predicted class)."""
    hits, predicted, actual = _class_sums(weights, rows)
    f1 = np.where(actual > 0, _quotient(2 * hits, predicted + actual), 0.0)
    return _quotient(f1.sum(axis=1), (actual > 0).sum(axis=1).astype(np.float64))


def balanced_accuracy(weights: Array, rows: Array) -> Array:
    """The mean recall of the classes present in the references; columns as for `macro_f1`."""
    hits, _, actual = _class_sums(weights, rows)
    return _quotient(_quotient(hits, actual).sum(axis=1), (actual > 0).sum(axis=1).astype(np.float64))


def _correlation(weights: Array, x: Array, y: Array) -> Array:
    """Weighted Pearson correlation; ``x`` and ``y`` are (rows,) or (resamples, rows). 0 without variation."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    spread = np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1))
    # centring a constant leaves rounding noise of about 1e-16 of its size, never a real spread
    noise = np.finfo(np.float64).eps * total[:, 0] * np.abs(x).max(initial=1.0) * np.abs(y).max(initial=1.0)
    product = (weights * x * y).sum(axis=1)
    quotient = np.divide(product, spread, out=np.zeros_like(product), where=spread > noise)
    return np.asarray(np.clip(quotient, -1.0, 1.0))


def pearson(weights: Array, rows: Array) -> Array:
    """Pearson's correlation of columns 0 and 1 (standardised first, so that their scale is no concern)."""
    standard = standardised(rows[:, 0]), standardised(rows[:, 1])
    return _correlation(weights, *standard)


def standardised(values: Array) -> Array:
    """``values`` with mean 0 and standard deviation 1; zeros where they do not vary."""
    if values.min() == values.max():
        return np.zeros_like(values)
    scaled = values / np.abs(values).max()  # squares of huge numbers would overflow
    return np.asarray((scaled - scaled.mean()) / scaled.std())


def weighted_ranks(weights: Array, values: Array) -> Array:
    """(resamples, rows): ranks of ``values: (rows,)`` in each resample, ties sharing their mean rank."""
    order = np.argsort(values, kind="stable")
    _, starts, inverse = np.unique(values[order], return_index=True, return_inverse=True)
    tied = np.add.reduceat(weights[:, order], starts, axis=1)
    mean_rank = np.cumsum(tied, axis=1) - tied + (tied + 1) / 2
    ranks = np.empty_like(weights)
    ranks[:, order] = mean_rank[:, inverse]
    return ranks


def spearman(weights: Array, rows: Array) -> Array:
    """Spearman's rank correlation of columns 0 and 1, ranked anew in every resample."""
    return _correlation(weights, weighted_ranks(weights, rows[:, 0]), weighted_ranks(weights, rows[:, 1]))


def calibration_error(weights: Array, rows: Array) -> Array:
    """Expected calibration error from columns (bin, right minus probability): Σ over bins |Σ gaps| / rows."""
    inside = (rows[:, :1] == np.unique(rows[:, 0])).astype(np.float64)
    return _quotient(np.abs(weights @ (inside * rows[:, 1:2])).sum(axis=1), weights.sum(axis=1))


AGGREGATES: dict[str, Aggregate] = {
    "mean": mean,
    "ratio": ratio,
    "bleu": bleu,
    "chrf": chrf,
    "macro_f1": macro_f1,
    "balanced_accuracy": balanced_accuracy,
    "calibration_error": calibration_error,
    "pearson": pearson,
    "spearman": spearman,
}


def statistics_of(result: MetricResult) -> Array:
    """(rows, k): what the aggregate of ``result`` reads."""
    return np.asarray(result.statistics or [[value] for value in result.per_row], dtype=np.float64)


def whole(name: str, rows: Array) -> float:
    """The aggregate ``name`` over all rows, each counted once."""
    return float(AGGREGATES[name](np.ones((1, len(rows))), rows)[0])


def resamples(
    units: int, count: int, *, seed: int, stream: str, codes: NDArray[np.int64] | None = None
) -> Iterator[Array]:
    """Bootstrap weights in chunks of (some, rows): how often each row is in a resample.

    ``units`` things are drawn with replacement: rows, or with ``codes: (rows,)`` groups of rows, which then come
    and go together.
    """
    random = generator(seed, "bootstrap", stream)
    rows = units if codes is None else len(codes)
    step = max(1, CHUNK_ENTRIES // max(rows, 1))
    for start in range(0, count, step):
        size = min(step, count - start)
        drawn = random.integers(0, units, size=(size, units))
        flat = (drawn + units * np.arange(size)[:, None]).ravel()
        weights = np.bincount(flat, minlength=size * units).reshape(size, units).astype(np.float64)
        yield weights if codes is None else weights[:, codes]


def bootstrap_error(name: str, rows: Array, *, seed: int = 0) -> float:
    """The standard error of aggregate ``name`` over ``rows`` by a seeded bootstrap."""
    values = [AGGREGATES[name](w, rows) for w in resamples(len(rows), RESAMPLES_FOR_ERROR, seed=seed, stream="error")]
    return float(np.concatenate(values).std(ddof=1))
