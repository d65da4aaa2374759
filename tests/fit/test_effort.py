"""How much is evaluated on the way of a run: a third of it at most, on nested rows, nothing at the first few steps."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretune.catalogue.models import ModelReference
from foretune.catalogue.priors import DEFAULT_LORA
from foretune.errors import BudgetError
from foretune.execution.types import TaskSpec
from foretune.fit.effort import EFFORTS, EVALUATION_SHARE, FULL, Effort, measured_steps, offered, rung_rows, settled
from foretune.fit.folder import RunFolder
from foretune.fit.schedule import Schedule, Speeds

TASK = TaskSpec("task", "generation", ModelReference("model", "causal"), "exact_match")


def schedule(effort: Effort, score: float, answer_s: float, tmp_path) -> Schedule:
    return Schedule(TASK, RunFolder(tmp_path), 300, Speeds(4.0, score, answer_s), effort, True)


@given(
    score=st.floats(0.5, 200.0), answer_s=st.floats(0.0, 4.0), horizon=st.integers(4, 400),
)  # fmt: skip
def test_evaluations_take_a_third_of_a_run_or_the_least_there_is(tmp_path_factory, score, answer_s, horizon):
    root = tmp_path_factory.getbasetemp()

    def planned(effort: Effort) -> tuple[Effort, float]:
        return effort, schedule(effort, score, answer_s, root).evaluation_share(DEFAULT_LORA, horizon)

    chosen = settled(EFFORTS, planned)
    assert planned(chosen)[1] <= EVALUATION_SHARE or chosen == EFFORTS[-1]
    richer = EFFORTS[: EFFORTS.index(chosen)]
    assert all(planned(effort)[1] > EVALUATION_SHARE for effort in richer)


def test_the_forecast_of_a_run_is_training_plus_what_is_evaluated(tmp_path):
    plan = schedule(Effort(32, 32, 8), score=10.0, answer_s=0.5, tmp_path=tmp_path)
    config = {**DEFAULT_LORA, "rows_per_update": 8}
    assert measured_steps(20) == (5, 10, 20)
    training = 20 * 8 / 4.0
    assert plan.cost(config, 0, 20, 20) == pytest.approx(training + 3 * 32 / 10.0 + 2 * 8 * 0.5)
    assert plan.cost(config, 5, 10, 20, slower=2.0) == pytest.approx(2 * 5 * 8 / 4.0 + 32 / 10.0 + 8 * 0.5)


def test_rungs_of_the_first_few_steps_are_left_out_and_rows_are_nested(tmp_path):
    assert measured_steps(13) == (7, 13) and measured_steps(400) == (12, 24, 48, 100, 200, 400)
    assert measured_steps(3) == (3,)
    assert rung_rows(FULL.counts(1000), 13) == (0, 0, 0, 0, 100, 200)
    assert rung_rows(Effort(32, 32, 0).counts(20), 400) == (20,) * 6
    plan = schedule(FULL, 10.0, 0.0, tmp_path)
    rows = [set(plan.rows_at(400, step)) for step in measured_steps(400)]
    assert [len(part) for part in rows] == [64, 64, 64, 64, 100, 200]
    assert all(early <= late for early, late in itertools.pairwise(rows))
    assert [len(part) for part in plan.rungs_rows()] == [64, 64, 64, 64, 100, 200]


def test_a_number_that_a_person_chose_is_kept():
    assert offered(150, fixed=True) == (Effort(150, 64),)
    assert offered(16, fixed=True) == (Effort(16, 16),)
    assert [effort.most_rows for effort in offered(100, fixed=False)] == [100, 64, 32, 32]


def test_an_effort_that_leaves_no_step_is_passed_over():
    def planned(effort: Effort) -> tuple[int, float]:
        if effort.answered_rows:
            raise BudgetError("no step fits.")
        return effort.most_rows, 0.9

    assert settled(EFFORTS, planned) == 32
    with pytest.raises(BudgetError):
        settled(EFFORTS[:2], planned)
