from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretune.errors import BudgetError
from foretune.search.budget import Budget
from foretune.search.fidelity import evaluation_counts, evaluation_rows, level_step, rungs, rungs_between
from foretune.search.horizon import total_steps
from foretune.search.pace import Pace
from foretune.search.ranking import clearly_above, finalists, has_risen, ranking_at
from foretune.search.runs import Run
from foretune.search.types import Score


@pytest.mark.parametrize(
    ("horizon", "expected"),
    [
        (100, (3, 6, 12, 25, 50, 100)),
        (300, (9, 18, 36, 75, 150, 300)),
        (1, (1,)),
        (2, (1, 2)),
        (7, (1, 2, 4, 7)),
        (33, (1, 2, 4, 9, 17, 33)),
    ],
)
def test_rungs_by_hand(horizon, expected):
    assert rungs(horizon) == expected


@given(st.integers(1, 100_000))
def test_rungs_are_distinct_increasing_and_end_at_the_horizon(horizon):
    steps = rungs(horizon)
    assert list(steps) == sorted(set(steps)) and steps[0] >= 1 and steps[-1] == horizon
    for level, percent in enumerate((3, 6, 12, 25, 50, 100)):
        assert 0 <= level_step(horizon, level) - percent * horizon / 100 < 1


def test_rungs_of_a_lease_leave_out_its_start():
    assert rungs_between(100, 12, 50) == (25, 50)
    with pytest.raises(ValueError):
        rungs(0)


def test_evaluation_rows_double_and_never_exceed_what_there_is():
    assert evaluation_counts(10_000) == (64, 64, 64, 128, 256, 512)
    assert evaluation_counts(10_000, most=4096) == (128, 256, 512, 1024, 2048, 4096)
    assert evaluation_counts(80) == (64, 64, 64, 64, 64, 80)
    assert evaluation_counts(5) == (5,) * 6
    with pytest.raises(ValueError):
        evaluation_counts(0)


@given(st.integers(1, 700), st.integers(1, 400), st.integers(0, 3))
def test_evaluation_rows_are_nested_and_the_same_for_equal_rungs(total, horizon, seed):
    before: set[int] = set()
    for step in rungs(horizon):
        rows = evaluation_rows(total, horizon, step, seed)
        assert len(set(rows)) == len(rows) and before <= set(rows) <= set(range(total))
        before = set(rows)
    assert len(before) == min(total, 512)
    assert evaluation_rows(total, horizon, horizon, seed) == evaluation_rows(total, 2 * horizon, 2 * horizon, seed)


def test_steps_by_hand():
    assert total_steps(1600, {"rows_per_update": 16, "epochs": 3}) == 300
    assert total_steps(1601, {"rows_per_update": 16, "epochs": 3}) == 303
    assert total_steps(1600, {"rows_per_update": 16, "epochs": 0.5}) == 50
    assert total_steps(3, {"rows_per_update": 16, "epochs": 0.001}) == 1
    assert total_steps(1000, {"rows_per_update": 10, "epochs": 1.1}) == 110  # not 111 by rounding


@pytest.mark.parametrize("total", [0, -1, float("nan"), float("inf")])
def test_a_senseless_budget_is_refused(total):
    with pytest.raises(BudgetError):
        Budget("time", total)
    with pytest.raises(BudgetError):
        Budget("time", 10, reserve=10)
    with pytest.raises(BudgetError):
        Budget("coffee", 10)  # type: ignore[arg-type]


def test_several_workers_share_the_time_but_no_trial_gets_more_than_is_left():
    budget = Budget("time", 100, reserve=20, workers=4)
    assert budget.can_afford(80) and not budget.can_afford(81)
    assert budget.can_afford(80, held=240) and not budget.can_afford(80, held=241)
    budget.charge(30)
    assert budget.left() == 50 and budget.can_afford(50) and not budget.can_afford(51)
    with pytest.raises(ValueError):
        budget.charge(float("nan"))


def test_the_pace_settles_on_the_true_factor_and_outliers_are_bounded():
    pace = Pace()
    assert pace.factor == 1.0
    pace.observe(10, 20)
    assert 1.2 < pace.factor < 2.0
    for _ in range(40):
        pace.observe(10, 20)
    assert pace.factor == pytest.approx(2.0, rel=0.05)
    pace.observe(0, 5)
    pace.observe(5, 0)
    assert pace.factor == pytest.approx(2.0, rel=0.05)
    pace = Pace()
    pace.observe(1, 1e9)
    assert pace.factor <= 50


def run(name: str, losses: dict[int, float], *, status="idle", horizon=100, error=0.01) -> Run:
    curve = {step: {"loss": Score(value, error, 64)} for step, value in losses.items()}
    return Run(name, {}, 0, horizon, "extra", "", step=max(losses, default=0), status=status, curve=curve)


def test_rising_needs_two_standard_errors():
    assert not clearly_above(Score(1.02, 0.01, 9), Score(1.0, 0.01, 9))
    assert clearly_above(Score(1.03, 0.01, 9), Score(1.0, 0.01, 9))
    assert has_risen(run("a", {25: 1.0, 50: 1.1}), "loss")
    assert not has_risen(run("a", {25: 1.0, 50: 1.1}, error=0.1), "loss")
    assert not has_risen(run("a", {}), "loss")


def test_ranking_leaves_failures_out_and_finalists_prefer_finished_runs():
    good, bad = run("good", {12: 1.0, 100: 0.5}, status="finished"), run("bad", {12: 1.2, 100: 0.7}, status="finished")
    early, failed = run("early", {12: 0.4}), run("failed", {12: 0.1}, status="diverged")
    over = run("over", {12: 1.0, 25: 0.3, 50: 0.9})
    everyone = [bad, early, failed, good, over]
    assert [r.id for r in ranking_at(everyone, 2, "loss")] == ["early", "good", "over", "bad"]
    assert [(f.run.id, f.step) for f in finalists(everyone, "loss")] == [
        ("over", 25),
        ("good", 100),
        ("bad", 100),
        ("early", 12),
    ]


def test_a_point_told_late_beyond_the_run_is_no_final_score():
    ahead = run("ahead", {12: 1.0})
    ahead.curve[50] = {"loss": Score(0.1, 0.01, 64)}
    assert [(f.step, f.score.value) for f in finalists([ahead], "loss")] == [(12, 1.0)]
    assert not math.isnan(ahead.curve[50]["loss"].value)


def test_the_search_imports_no_torch():
    code = (
        "import sys, foretune.search.zero_shot, foretune.search.grid, foretune.search.ask_tell;"
        "import foretune.experience.store, foretune.experience.parquet;"
        "assert not {'torch', 'transformers', 'scipy', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
