"""Intervals, verdicts and pooling, on simulated studies and on cases computed by hand."""

import numpy as np
import pytest
from scipy import stats

from foretune.study.statistics import (
    compare_arms,
    compare_over_tasks,
    detectable_before,
    pooled_values,
    spread,
)

STUDIES = 600
ARMS = ("a", "b", "c")


def simulated(random: np.random.Generator, seeds: int, effect: float = 0.0) -> dict[str, dict[int, float]]:
    """Outcomes of one block: pairs share a large effect of their seed; arm a is better (lower) by ``effect``."""
    shared = random.normal(0, 5, seeds)
    values = {
        arm: dict(enumerate(shared + random.normal(0, 1, seeds) - (effect if arm == "a" else 0)))
        for arm in ("control", *ARMS)
    }
    return {arm: {int(s): float(v) for s, v in results.items()} for arm, results in values.items()}


def test_the_interval_covers_and_false_claims_are_rare() -> None:
    random = np.random.default_rng(1)
    covered, claimed = 0, 0
    for _ in range(STUDIES):
        found = compare_arms(simulated(random, 5), "control", "lower", expected=5)
        covered += sum(d.low <= 0 <= d.high for d in found if d.low is not None and d.high is not None)
        claimed += any(d.verdict != "not resolved" for d in found)
    # binomial limits at 99.9 % around 0.95 of the intervals and 0.05 of the studies
    assert abs(covered / (len(ARMS) * STUDIES) - 0.95) < 0.025
    assert claimed / STUDIES <= 0.05 + 3.3 * np.sqrt(0.05 * 0.95 / STUDIES)


def test_a_planted_effect_of_one_and_a_half_times_the_detectable_one_is_found() -> None:
    random = np.random.default_rng(2)
    detectable = detectable_before(4, 5, np.sqrt(2))
    assert detectable is not None
    found = 0
    for _ in range(STUDIES):
        first = compare_arms(simulated(random, 5, 1.5 * detectable), "control", "lower", expected=5)[0]
        assert first.verdict != "worse"
        found += first.verdict == "better"
    assert found / STUDIES >= 0.8


def test_a_difference_by_hand() -> None:
    control, arm = {0: 1.0, 1: 2.0, 2: 3.0, 3: 9.0}, {0: 1.5, 1: 2.1, 2: 3.6, 4: 0.0}
    (found,) = compare_arms({"c": control, "a": arm}, "c", "lower", expected=5)
    reference = stats.ttest_rel([1.5, 2.1, 3.6], [1.0, 2.0, 3.0])
    interval = reference.confidence_interval(0.95)
    assert (found.pairs, found.dropped, found.wins, found.losses) == (3, 2, 0, 3)
    assert (found.mean, found.p_value) == pytest.approx((0.4, reference.pvalue))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.verdict == "not resolved"
    assert found.claim.startswith("not resolved (3 pairs, smallest detectable effect")


@pytest.mark.parametrize(("direction", "verdict"), [("lower", "worse"), ("higher", "better")])
def test_a_verdict_minds_the_metrics_direction(direction: str, verdict: str) -> None:
    arm = {seed: seed + 1.0 + 0.01 * (-1) ** seed for seed in range(6)}
    control = {seed: float(seed) for seed in range(6)}
    (found,) = compare_arms({"c": control, "a": arm}, "c", direction, expected=6)  # type: ignore[arg-type]
    assert found.verdict == verdict == found.claim


def test_holm_takes_back_a_claim_that_holds_alone() -> None:
    random = np.random.default_rng(0)
    control = dict.fromkeys(range(5), 0.0)
    weak = {seed: 1.0 + 0.7 * z for seed, z in enumerate(stats.zscore(random.normal(size=5), ddof=1))}
    noise = {f"n{i}": {seed: float(z) for seed, z in enumerate(random.normal(size=5))} for i in range(9)}
    (alone,) = compare_arms({"c": control, "a": weak}, "c", "higher", expected=5)
    among = compare_arms({"c": control, "a": weak, **noise}, "c", "higher", expected=5)[0]
    assert alone.verdict == "better"
    assert among.low is not None and among.low > 0 and among.verdict == "not resolved"


@pytest.mark.parametrize("pairs", [0, 1])
def test_too_few_pairs_have_no_interval_and_say_so(pairs: int) -> None:
    values = dict.fromkeys(range(pairs), 1.0)
    (found,) = compare_arms({"c": values, "a": values}, "c", "lower", expected=3)
    assert (found.low, found.p_value, found.dropped) == (None, 1.0, 3 - pairs)
    assert "at least 2 needed" in found.claim


def test_equal_differences_of_few_pairs_are_no_certainty() -> None:
    control, arm = dict.fromkeys(range(3), 0.0), dict.fromkeys(range(3), 1 / 16)
    (found,) = compare_arms({"c": control, "a": arm}, "c", "higher", expected=3)
    assert found.p_value == 0.25 and found.verdict == "not resolved"
    for pairs in (2, 3):  # equal but for the last bit of 0.85 - 0.8 and 0.75 - 0.7
        shares = [(0.8, 0.85), (0.7, 0.75), (0.6, 0.65)][:pairs]
        control, arm = ({n: pair[side] for n, pair in enumerate(shares)} for side in (0, 1))
        (found,) = compare_arms({"c": control, "a": arm}, "c", "higher", expected=pairs)
        assert found.p_value == 2.0 ** (1 - pairs) and found.verdict == "not resolved" and found.sd == 0.0


def test_what_is_told_before_is_what_is_told_after() -> None:
    """At Holm's strictest step: verdicts are corrected, so what they can find is too."""
    random = np.random.default_rng(5)
    block = simulated(random, 10)
    found = compare_arms(block, "control", "lower", expected=10)
    over = compare_over_tasks({a: {(f"t{s}", 0): v for s, v in values.items()} for a, values in block.items()},
                              "control", "lower", 10)  # fmt: skip
    for difference in (*found, *over):
        assert difference.detectable == detectable_before(1 + len(ARMS), 10, difference.sd)


def test_pooling_averages_sizes_within_a_task_and_seed_and_drops_what_is_incomplete() -> None:
    blocks = {
        ("m", "t", "8"): {"c": {0: 1.0, 1: 1.0}, "a": {0: 2.0, 1: 5.0}},
        ("m", "t", "64"): {"c": {0: 3.0, 1: 3.0}, "a": {0: 6.0}},
        ("m", "u", "8"): {"c": {0: 0.0, 1: 0.0}, "a": {0: 1.0, 1: 1.0}},
        ("m", "u", "64"): {"c": {0: 0.0, 1: 0.0}, "a": {0: 3.0, 1: 1.0}},
    }
    pooled = pooled_values(blocks, "c")
    assert pooled["a"] == {("t", 0): 4.0, ("u", 0): 2.0, ("u", 1): 1.0}
    (found,) = compare_arms(pooled, "c", "lower", expected=4)
    assert (found.pairs, found.dropped) == (3, 1)
    assert found.mean == pytest.approx(((4 - 2) + 2 + 1) / 3)


def test_tasks_as_repetitions_need_three_and_compare_their_means() -> None:
    blocks = {("m", f"t{i}", "8"): {"c": {0: 0.0, 1: 0.0}, "a": {0: float(i), 1: i + 2.0}} for i in range(3)}
    pooled = pooled_values(blocks, "c")
    assert compare_over_tasks(pooled, "c", "lower", 2) == ()
    (found,) = compare_over_tasks(pooled, "c", "lower", 3)
    assert (found.pairs, found.mean) == (3, pytest.approx(2.0))
    assert found.sd == pytest.approx(1.0)


def test_the_spread_is_within_blocks_around_each_arms_own_mean() -> None:
    blocks = {
        ("m", "t", "8"): {"c": {0: 0.0, 1: 0.0}, "a": {0: 10.0, 1: 12.0}},
        ("m", "u", "8"): {"c": {0: 0.0, 1: 0.0, 2: 0.0}, "a": {0: -5.0, 1: -5.0, 2: -2.0}},
    }
    assert spread(blocks, "c") == pytest.approx(np.sqrt((2.0 + 6.0) / 3))
    assert spread({("m", "t", "8"): {"c": {0: 0.0}, "a": {0: 1.0}}}, "c") is None


def test_the_detectable_effect_before_any_variance_is_in_units_of_the_spread() -> None:
    assert detectable_before(2, 1, None) is None
    alone, scaled = detectable_before(2, 5, None), detectable_before(2, 5, 0.5)
    assert alone is not None and scaled == pytest.approx(0.5 * alone)
    # power 0.8 of the noncentral t, checked directly
    critical = stats.t.ppf(0.975, 4)
    assert stats.nct.sf(critical, 4, alone * np.sqrt(5)) == pytest.approx(0.8, abs=1e-3)
    several = detectable_before(5, 5, None)
    assert several is not None and several > alone
