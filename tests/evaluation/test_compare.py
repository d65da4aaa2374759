"""Paired comparison: coverage by simulation, McNemar by hand, degenerate rows, power against simulation."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from foretune.errors import UsageError
from foretune.evaluation.base import Answer, MetricResult
from foretune.evaluation.compare import NO_EVIDENCE, Comparison, compare, detectable_difference, rows_needed
from foretune.evaluation.metrics import METRICS
from foretune.evaluation.paired import holm, paired_interval, smallest_detectable_effect


def result(values: "np.typing.ArrayLike") -> MetricResult:
    rows = np.asarray(values, dtype=float)
    return MetricResult(float(rows.mean()), 0.1, tuple(rows.tolist()))


def binary(both: int, only_a: int, only_b: int, neither: int) -> tuple[MetricResult, MetricResult]:
    a = [1.0] * both + [1.0] * only_a + [0.0] * only_b + [0.0] * neither
    b = [1.0] * both + [0.0] * only_a + [1.0] * only_b + [0.0] * neither
    return result(a), result(b)


def test_mcnemar_by_hand() -> None:
    a, b = binary(50, 1, 9, 40)
    compared = compare(a, b)
    # 2·P(X ≤ 1), X ~ Bin(10, ½) = 2·11/1024
    assert compared.p_value == pytest.approx(22 / 1024)
    assert compared.difference == pytest.approx(-0.08)
    # Bonett–Price: p̃ = 2/102, 10/102
    centre, total = -8 / 102, 12 / 102
    width = stats.norm.ppf(0.975) * math.sqrt((total - centre**2) / 102)
    assert (compared.low, compared.high) == pytest.approx((centre - width, centre + width))
    assert compared.verdict == "worse"
    assert compare(b, a).verdict == "better"
    assert compare(b, a, direction="lower").verdict == "worse"


def test_no_discordant_rows_still_give_an_honest_interval() -> None:
    a, b = binary(20, 0, 0, 0)
    compared = compare(a, b)
    assert compared.p_value == 1.0 and compared.verdict == NO_EVIDENCE
    assert compared.low is not None and compared.high is not None and compared.low < 0 < compared.high


@pytest.mark.parametrize(("shape", "n"), [("normal", 12), ("skewed", 40)])
def test_bootstrap_intervals_cover_the_truth(shape: str, n: int) -> None:
    random = np.random.default_rng(5)
    truth, covered, repetitions = 0.3, 0, 250
    for _ in range(repetitions):
        shared = random.normal(0, 3, n)
        noise = random.normal(0, 1, n) if shape == "normal" else random.exponential(1, n) - 1
        compared = compare(result(shared + truth + noise), result(shared), seed=int(random.integers(1000)))
        assert compared.low is not None and compared.high is not None
        covered += compared.low <= truth <= compared.high
    assert 0.91 <= covered / repetitions <= 0.98


def test_verdicts_are_wrong_in_at_most_five_percent_without_a_difference() -> None:
    random = np.random.default_rng(6)
    claims = {"bootstrap": 0, "binary": 0}
    for _ in range(200):
        shared = random.normal(0, 3, 30)
        claims["bootstrap"] += (
            compare(result(shared + random.normal(0, 1, 30)), result(shared + random.normal(0, 1, 30))).verdict
            != NO_EVIDENCE
        )
        skill = random.random(80)
        claims["binary"] += (
            compare(result(random.random(80) < skill), result(random.random(80) < skill)).verdict != NO_EVIDENCE
        )
    assert claims["bootstrap"] <= 200 * 0.09 and claims["binary"] <= 200 * 0.07


def test_interval_of_a_mean_is_close_to_students() -> None:
    random = np.random.default_rng(7)
    differences = random.normal(0.2, 1, 25)
    compared = compare(result(differences), result(np.zeros(25)))
    _, low, high = paired_interval(differences.tolist())
    assert (compared.low, compared.high) == pytest.approx((low, high), abs=0.06)
    assert compared.p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.05)


def test_loss_is_compared_as_a_ratio_with_its_tokens() -> None:
    random = np.random.default_rng(8)
    tokens = random.integers(1, 200, 60)
    base = tokens * random.gamma(5, 0.4, 60)

    def scored(nll: np.ndarray) -> MetricResult:
        rows = [
            Answer(i, "?", "x", nll=float(v), tokens=int(t)) for i, (v, t) in enumerate(zip(nll, tokens, strict=True))
        ]
        return METRICS["loss"].score(rows)

    a, b = scored(base * 0.9), scored(base)
    compared = compare(a, b, direction="lower")
    assert compared.difference == pytest.approx(-0.1 * base.sum() / tokens.sum())
    assert compared.verdict == "better"
    # ten times the weight of the rows where a is worse turns the verdict: rows are not counted alike
    tilted = scored(np.where(tokens > 100, base * 1.2, base * 0.7))
    assert compare(tilted, b, direction="lower").difference > 0
    assert np.mean(np.asarray(tilted.per_row) - np.asarray(b.per_row)) < compare(tilted, b).difference


def test_groups_widen_the_interval_of_related_rows() -> None:
    random = np.random.default_rng(9)
    covered = {"rows": 0, "groups": 0}
    groups = [f"document {i // 10}" for i in range(150)]
    for _ in range(150):
        shift = np.repeat(random.normal(0, 1, 15), 10) + random.normal(0, 0.3, 150)
        for name, keys in (("rows", None), ("groups", groups)):
            compared = compare(result(shift), result(np.zeros(150)), groups=keys)
            assert compared.low is not None and compared.high is not None
            covered[name] += compared.low <= 0 <= compared.high
    assert covered["groups"] >= 150 * 0.89
    assert covered["rows"] <= 150 * 0.75
    assert compare(result(shift), result(np.zeros(150)), groups=groups).n == 15


def test_corpus_metrics_are_resampled_as_themselves() -> None:
    rows = [Answer(i, "?", f"the cat number {i} sat on the mat", f"the cat number {i} sat on a mat") for i in range(30)]
    worse = [Answer(i, "?", row.reference, "the dog") for i, row in enumerate(rows)]
    for name in ("bleu", "chrf", "macro_f1", "balanced_accuracy"):
        a, b = METRICS[name].score(rows), METRICS[name].score(worse)
        assert compare(a, b).difference == pytest.approx(a.value - b.value)
    compared = compare(METRICS["bleu"].score(rows), METRICS["bleu"].score(worse))
    assert compared.verdict == "better" and "bleu" in compared.method


def test_degenerate_comparisons_claim_nothing() -> None:
    assert compare(result([0.4]), result([0.7])).verdict == NO_EVIDENCE
    assert compare(result([0.4]), result([0.7])).low is None
    same = compare(result([0.1, 0.5, 0.9]), result([0.1, 0.5, 0.9]))
    assert (same.difference, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert compare(result([1.0]), result([0.0])).verdict == NO_EVIDENCE
    assert compare(result([0.5, 0.6, 0.7]), result([0.1, 0.2, 0.3])).verdict == NO_EVIDENCE  # three rows prove nothing
    one_group = compare(result([0.5, 0.6]), result([0.1, 0.3]), groups=["x", "x"])
    assert one_group.verdict == NO_EVIDENCE and one_group.n == 1


def test_comparison_is_seeded_and_survives_json() -> None:
    random = np.random.default_rng(10)
    a, b = result(random.normal(0, 1, 50)), result(random.normal(0, 1, 50))
    assert compare(a, b, seed=3) == compare(a, b, seed=3)
    assert compare(a, b, seed=3).low != compare(a, b, seed=4).low
    compared = compare(a, b)
    assert Comparison(**json.loads(json.dumps(compared.to_json()))) == compared


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(UsageError, match="3 rows cannot be paired with 2"):
        compare(result([1, 2, 3]), result([1, 2]))
    with pytest.raises(UsageError, match="no rows"):
        compare(MetricResult(0, 0, ()), MetricResult(0, 0, ()))
    with pytest.raises(UsageError, match="right or wrong"):
        compare(result([0.5, 1]), result([0, 1]), kind="mcnemar")
    with pytest.raises(UsageError, match="grouped"):
        compare(result([1, 0]), result([0, 1]), kind="mcnemar", groups=["a", "b"])
    with pytest.raises(UsageError, match="confidence"):
        compare(result([1, 0]), result([0, 1]), confidence=95)
    with pytest.raises(UsageError, match="group keys"):
        compare(result([1, 0]), result([0, 1]), groups=["a"])


def test_smallest_detectable_effect_is_found_at_its_power() -> None:
    random = np.random.default_rng(11)
    for n in (5, 40):
        effect = smallest_detectable_effect(2.0, n)
        samples = random.normal(effect, 2.0, (4000, n))
        found = (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean()
        assert found == pytest.approx(0.8, abs=0.025)
    assert smallest_detectable_effect(1.0, 1000) == pytest.approx(2.8016 / math.sqrt(1000), rel=0.005)
    assert smallest_detectable_effect(0.0, 5) == 0.0
    assert detectable_difference(80, 0.2) == smallest_detectable_effect(0.2, 80)
    with pytest.raises(UsageError, match="n = 1"):
        smallest_detectable_effect(1.0, 1)


def test_rows_needed_inverts_the_detectable_difference() -> None:
    for difference in (1.5, 0.3, 0.05):
        n = rows_needed(difference, 1.0)
        assert detectable_difference(n, 1.0) <= difference < detectable_difference(n - 1, 1.0)
    assert rows_needed(100.0, 1.0) == 2
    random = np.random.default_rng(12)
    samples = random.normal(smallest_detectable_effect(1.0, 2), 1.0, (4000, 2))
    assert (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.025)
    with pytest.raises(UsageError):
        rows_needed(0.0, 1.0)


def test_paired_interval_equals_scipy_and_holm_equals_the_textbook() -> None:
    values = [0.3, -0.1, 0.5, 0.2]
    mean, low, high = paired_interval(values)
    reference = stats.ttest_1samp(values, 0).confidence_interval()
    assert (mean, low, high) == pytest.approx((0.225, reference.low, reference.high))
    with pytest.raises(UsageError):
        paired_interval([0.1])
    with pytest.raises(UsageError):
        paired_interval([0.1, math.nan])
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()
