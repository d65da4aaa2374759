"""Verdicts and numbers as sentences, and the honest choice of examples."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from foretune.report.record import AnswerPair, Comparison, Difference, Measure, MetricInfo, RunRecord
from foretune.report.wording import (
    change_of,
    choose_examples,
    difference_text,
    outcome,
    qualifications,
    value_text,
    verdict,
)

SHARE = MetricInfo("exact_match", "exact match", share=True)
LOSS = MetricInfo("loss", "loss", "lower", unit="nats per token")


def test_better(record: RunRecord) -> None:
    assert outcome(record) == "better"
    assert verdict(record) == (
        "On these 150 test rows, one seed: exact match 62 % against 4 % for the base model, "
        "difference +58 points [50, 66]."
    )
    assert qualifications(record)[0] == "No evidence of a difference from the default LoRA: +5 points [−1, 12]."


def test_no_evidence_comes_first(no_evidence: RunRecord) -> None:
    assert outcome(no_evidence) == "no evidence"
    assert verdict(no_evidence).startswith("No evidence that it is better than the base model: on these 150 test rows")
    assert "+1 points [−4, 6]" in verdict(no_evidence)


def test_worse_failed_and_not_compared(record: RunRecord) -> None:
    compared = record.comparison
    assert compared is not None
    *others, winner = compared.systems
    worse = replace(winner, differences=(Difference("exact_match", "base", -0.2, -0.3, -0.1, "worse"),))
    assert verdict(replace(record, comparison=replace(compared, systems=(*others, worse)))).startswith("It is worse")
    failed = tuple(replace(t, is_winner=False, status="diverged") for t in record.trials[:2])
    nothing = replace(record, trials=failed, comparison=replace(compared, systems=tuple(others)))
    assert verdict(nothing) == "No trial produced a usable result: 2 diverged."
    assert outcome(nothing) == "failed"
    alone = replace(record, comparison=None)
    assert outcome(alone) == "not compared" and "not compared" in verdict(alone)
    without_base = Comparison("test", 150, "exact_match", (SHARE,), (replace(winner, differences=()),))
    assert "it was not compared" in verdict(replace(record, comparison=without_base))


def test_decimals_follow_the_standard_error() -> None:
    assert value_text(SHARE, Measure(0.6234, 0.04), error=True) == "62 ± 4 %"
    assert value_text(SHARE, Measure(0.6234, 0.004), error=True) == "62.3 ± 0.4 %"
    assert value_text(LOSS, Measure(1.23456, 0.021), error=True) == "1.235 ± 0.021 nats per token"
    assert value_text(LOSS, Measure(1234.5, 80.0)) == "1,235 nats per token"  # halves go up, not to even
    assert value_text(SHARE, Measure(0.655, 0.03)) == "66 %"
    assert value_text(SHARE, Measure(1.0, 0.0), error=True) == "100.0 %"  # no error is not an error of none
    assert value_text(LOSS, None) == "–"
    assert difference_text(SHARE, Difference("x", "base", -0.001, -0.05, 0.05, "no evidence")) == "0 points [−5, 5]"
    assert difference_text(LOSS, Difference("x", "base", -1.47, -1.58, -1.36, "better"), unit=False) == (
        "−1.470 [−1.580, −1.360]"
    )


def test_change_by_correctness_then_score_and_direction() -> None:
    assert change_of(AnswerPair("", "", "", "", False, True)) == "improved"
    assert change_of(AnswerPair("", "", "", "", True, False, 0.0, 1.0)) == "worsened"
    assert change_of(AnswerPair("", "", "", "", score_before=0.1, score_after=0.4)) == "improved"
    assert change_of(AnswerPair("", "", "", "", score_before=0.1, score_after=0.4), "lower") == "worsened"
    assert change_of(AnswerPair("", "", "", "")) == "not judged"


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60),
    st.integers(min_value=4, max_value=12),
)
def test_examples_show_every_kind_of_change(pairs: list[tuple[bool, bool]], limit: int) -> None:
    answers = [AnswerPair(str(i), "", "", "", before, after) for i, (before, after) in enumerate(pairs)]
    chosen = choose_examples(answers, limit)
    assert len(chosen) == min(limit, len(answers))
    assert {change_of(pair) for pair in chosen} == {change_of(pair) for pair in answers}
    counts, available = Counter(map(change_of, chosen)), Counter(map(change_of, answers))
    for kind in counts:  # as even as what is there allows, and the first of each kind
        assert all(counts[kind] >= min(available[kind], other - 1) for other in counts.values())
        of_kind = [pair for pair in answers if change_of(pair) == kind]
        assert [pair for pair in chosen if change_of(pair) == kind] == of_kind[: counts[kind]]
