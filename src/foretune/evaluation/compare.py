"""Is one model better than another on these rows? A paired difference, its interval, and the verdict in words.

Both models answered the same rows, so rows are resampled together and the metric is computed again for each model
in each resample. The interval is the expanded percentile bootstrap (Hesterberg 2015, "What Teachers Should Know
About the Bootstrap", section 4.3.3): percentiles are taken further out so that few rows get Student's width. When
every row is right or wrong, the p-value is McNemar's exact test (McNemar 1947) and the interval is Bonett and
Price's (2012) adjusted Wald interval for paired proportions, which stays honest when no row or few rows differ.

It speaks of these rows only: not of other seeds (see `evaluation.paired`) and not of other data.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from foretune.errors import UsageError
from foretune.evaluation.aggregate import AGGREGATES, Array, resamples, statistics_of
from foretune.evaluation.base import Direction, MetricResult
from foretune.evaluation.paired import smallest_detectable_effect

Kind = Literal["auto", "bootstrap", "mcnemar"]
Verdict = Literal["better", "worse", "no evidence of a difference"]
NO_EVIDENCE: Verdict = "no evidence of a difference"

RESAMPLES = 10_000
FEWEST_RESAMPLES = 1_000
DRAWS = 100_000_000
"""Resamples × rows at most (about two seconds); beyond 10,000 rows there are fewer resamples."""
LEAST_UNITS = 2


@dataclass(frozen=True)
class Comparison:
    """Model a against model b: ``difference`` is a − b in the metric's unit."""

    difference: float
    low: float | None
    """Lower end of the interval; None where the rows cannot support one (a single row or group)"""
    high: float | None
    p_value: float
    """Two-sided; 1.0 where nothing can be tested"""
    method: str
    n: int
    """Rows, or groups when the rows are grouped"""
    verdict: Verdict
    """Of a against b, with the metric's direction in mind"""
    confidence: float = 0.95

    def to_json(self) -> dict[str, Any]:
        """A JSON form; ``Comparison(**value)`` reads it back."""
        return asdict(self)


def compare(
    a: MetricResult,
    b: MetricResult,
    *,
    kind: Kind = "auto",
    direction: Direction = "higher",
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two results of one metric on the same rows in the same order.

    ``kind="auto"`` takes McNemar's test when every row is right or wrong, else the paired bootstrap. ``groups``
    (one key a row) keeps related rows together, as rows of one document are not independent; grouped rows always
    take the bootstrap. Raises `UsageError` when the results cannot be paired.
    """
    _check_pairing(a, b, groups, confidence)
    codes = None if groups is None else _codes(groups)
    units = len(a.per_row) if codes is None else int(codes.max()) + 1
    if kind == "mcnemar" and not _binary(a, b):
        raise UsageError("McNemar's test needs a metric that calls each row right or wrong.", remedy="Use bootstrap.")
    if kind == "mcnemar" and codes is not None:
        raise UsageError("McNemar's test takes rows as independent; these are grouped.", remedy="Use bootstrap.")
    if kind == "mcnemar" or (kind == "auto" and codes is None and _binary(a, b)):
        return _mcnemar(a, b, direction, confidence)
    difference = a.value - b.value
    if units < LEAST_UNITS:
        return Comparison(difference, None, None, 1.0, "too few rows to test", units, NO_EVIDENCE, confidence)
    if a.per_row == b.per_row and a.statistics == b.statistics:
        return Comparison(0.0, 0.0, 0.0, 1.0, "identical on every row", units, NO_EVIDENCE, confidence)
    draws = _paired_differences(a, b, codes, units, seed)
    low, high, p_value = _expanded_percentile(draws, units, confidence)
    verdict = _verdict(difference, low, high, p_value, direction, confidence)
    method = f"paired bootstrap of {a.aggregate} ({len(draws):,} resamples of {'rows' if codes is None else 'groups'})"
    return Comparison(difference, low, high, p_value, method, units, verdict, confidence)


def detectable_difference(n: int, sd: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true difference that ``n`` rows find with probability ``power``.

    ``sd`` is the standard deviation over rows of the paired difference. Raises `UsageError` for n < 2.
    """
    return smallest_detectable_effect(sd, n, power=power, alpha=alpha)


def rows_needed(difference: float, sd: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """The fewest rows that detect ``difference``: the inverse of `detectable_difference`."""
    if not difference > 0:
        raise UsageError(f"a difference of {difference} cannot be detected.", remedy="Ask for a positive difference.")
    quantiles = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    n = max(LEAST_UNITS, math.floor((quantiles * sd / difference) ** 2))  # the normal answer: never too many
    while detectable_difference(n, sd, power=power, alpha=alpha) > difference:
        n += 1
    return n


def _check_pairing(a: MetricResult, b: MetricResult, groups: Sequence[Hashable] | None, confidence: float) -> None:
    if len(a.per_row) != len(b.per_row):
        raise UsageError(
            f"{len(a.per_row)} rows cannot be paired with {len(b.per_row)}.", remedy="Score both on the same rows."
        )
    if not a.per_row:
        raise UsageError("there are no rows to compare.", remedy="Score both models on at least one row.")
    if a.aggregate != b.aggregate:
        raise UsageError(f"{a.aggregate} cannot be compared with {b.aggregate}.", remedy="Use one metric for both.")
    if groups is not None and len(groups) != len(a.per_row):
        raise UsageError(f"{len(groups)} group keys for {len(a.per_row)} rows.", remedy="Give one key a row.")
    if not 0 < confidence < 1:
        raise UsageError(f"a confidence of {confidence} is outside 0 to 1.", remedy="Use 0.95.")


def _codes(groups: Sequence[Hashable]) -> NDArray[np.int64]:
    """(rows,): the number of each row's group, in order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in groups], dtype=np.int64)


def _binary(a: MetricResult, b: MetricResult) -> bool:
    return a.aggregate == "mean" and set(a.per_row) | set(b.per_row) <= {0.0, 1.0}


def _mcnemar(a: MetricResult, b: MetricResult, direction: Direction, confidence: float) -> Comparison:
    """McNemar's exact test; Bonett and Price 2012, equation 3: one pseudo-row in each discordant cell."""
    n = len(a.per_row)
    only_a = sum(x > y for x, y in zip(a.per_row, b.per_row, strict=True))
    only_b = sum(x < y for x, y in zip(a.per_row, b.per_row, strict=True))
    p_value = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    centre = share_a - share_b
    width = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt((share_a + share_b - centre**2) / (n + 2))
    low, high = max(-1.0, centre - width), min(1.0, centre + width)
    difference = (only_a - only_b) / n
    verdict = _verdict(difference, low, high, p_value, direction, confidence)
    method = f"McNemar's exact test ({only_a} rows right only in a, {only_b} only in b)"
    return Comparison(difference, low, high, p_value, method, n, verdict, confidence)


def _paired_differences(
    a: MetricResult, b: MetricResult, codes: NDArray[np.int64] | None, units: int, seed: int
) -> Array:
    """(resamples,): the metric of a minus that of b, rows resampled together."""
    aggregate, rows_a, rows_b = AGGREGATES[a.aggregate], statistics_of(a), statistics_of(b)
    count = max(FEWEST_RESAMPLES, min(RESAMPLES, DRAWS // len(rows_a)))
    chunks = resamples(units, count, seed=seed, stream="compare", codes=codes)
    return np.concatenate([aggregate(weights, rows_a) - aggregate(weights, rows_b) for weights in chunks])


def _expanded_percentile(draws: Array, units: int, confidence: float) -> tuple[float, float, float]:
    """(low, high, two-sided p-value): the interval excludes zero where the bootstrap's p-value is small.

    A bootstrap of three rows that point one way would be sure of it. So the p-value is never below that of the
    sign test with all signs alike, 2^(1−n): no claim at 95 % on fewer than six rows.
    """
    stretch = math.sqrt(units / (units - 1))
    student = stats.t(units - 1)
    tail = float(stats.norm.cdf(stretch * student.ppf((1 - confidence) / 2)))
    low, high = (float(end) for end in np.quantile(draws, [tail, 1 - tail]))
    beyond = min((draws <= 0).sum(), (draws >= 0).sum())
    one_sided = (float(beyond) + 1) / (len(draws) + 1)
    p_value = 2 * float(student.cdf(stats.norm.ppf(min(one_sided, 0.5)) / stretch))
    return low, high, min(1.0, max(p_value, 2.0 ** (1 - units)))


def _verdict(
    difference: float, low: float, high: float, p_value: float, direction: Direction, confidence: float
) -> Verdict:
    """A difference is claimed only where interval and p-value agree on it."""
    if low <= 0 <= high or p_value > 1 - confidence:
        return NO_EVIDENCE
    return "better" if (difference > 0) == (direction == "higher") else "worse"
