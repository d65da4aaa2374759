"""Which finalist is chosen (of equals the one that forgot less), and on which rows all are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from foretune.errors import TrainingError
from foretune.evaluation.base import Answer
from foretune.fit import account
from foretune.fit.choice import Judged, remembering
from foretune.fit.finals import System, answer_test_rows, chosen_by_validation
from foretune.fit.folder import RunFolder
from foretune.fit.schedule import End
from foretune.search.ranking import Finalist
from foretune.search.runs import Run
from foretune.search.types import Score


def _judged(run: str, shift: float, general: float, rows: int = 60) -> Judged:
    noise = np.random.default_rng(0).normal(0, 0.05, rows) + (np.random.default_rng(len(run)).normal(0, 0.2, rows))
    answers = tuple(Answer(i, "", "", nll=10 * (1.0 + shift + float(noise[i])), tokens=10) for i in range(rows))
    passages = tuple(Answer(i, "", "", nll=20 * (3.0 + general + 0.01 * (i % 5)), tokens=20) for i in range(40))
    return Judged(run, answers, passages)


def test_an_equal_that_forgot_less_is_chosen_and_the_reason_said():
    chosen, why = remembering(_judged("r1", 0.0, 0.5), [_judged("r02", 0.001, 0.1)])
    assert chosen == "r02" and "general text" in why and "0.400" in why


def test_a_clearly_better_loss_wins_whatever_was_forgotten():
    assert remembering(_judged("r1", 0.0, 0.5), [_judged("r02", 0.5, 0.0)]) == ("r1", "")


def test_equal_forgetting_changes_nothing():
    assert remembering(_judged("r1", 0.0, 0.2), [_judged("r02", 0.001, 0.2)]) == ("r1", "")


def test_without_general_text_validation_decides():
    plain = Judged("r02", _judged("r02", 0.001, 0.0).answers, ())
    assert remembering(_judged("r1", 0.0, 0.5), [plain]) == ("r1", "")


def evaluator(losses: dict[str, list[float]], root: Path) -> Any:
    """Answers by name: a loss for each of the first rows, as far as time reached."""

    def answers(name: str, payload: Any) -> dict[str, Any]:
        made = [Answer(row, "", "", nll=loss, tokens=1) for row, loss in enumerate(losses[name])]
        return {"answers": [vars(answer) for answer in made], "general": []}

    return SimpleNamespace(
        answers=answers, rows=lambda split, count: tuple(range(count)), folder=RunFolder(root),
        prepared=SimpleNamespace(task=SimpleNamespace(seed=0), rows={}),
    )  # fmt: skip


def finalist(name: str) -> Finalist:
    return Finalist(
        Run(name, {}, 0, 40, "default" if name == "r1" else "proposed", "", step=40), 40, Score(1.0, 0.1, 10)
    )


def test_finalists_are_compared_on_the_rows_that_all_answered(tmp_path, monkeypatch):
    """Time ends when the second has answered half of the rows: easy ones, but harder for it than for the first."""
    monkeypatch.setattr("foretune.fit.finals._readable", lambda evaluator, finalist: True)
    losses = {"validation-r1": [1.0] * 20 + [3.0] * 20, "validation-r2": [1.5] * 20}
    end = End(40, 40, 0, 0.0, general=False)
    first, second = chosen_by_validation(evaluator(losses, tmp_path), [finalist("r1"), finalist("r2")], end)
    assert (first["run"], first["loss"][0], first["loss"][2]) == ("r1", 1.0, 20)
    assert (second["run"], second["loss"][0], second["loss"][2]) == ("r2", 1.5, 20)
    for few in (1, 19):
        late = evaluator({**losses, "validation-r2": [0.1] * few}, tmp_path)
        alone = chosen_by_validation(late, [finalist("r1"), finalist("r2")], end)
        assert [row["run"] for row in alone] == ["r1"] and alone[0]["loss"][2] == 40, "so few are no comparison"
    assert "r2" in alone[0]["why"]


def test_one_late_system_does_not_take_the_rows_from_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("foretune.fit.finals._readable", lambda evaluator, finalist: True)
    end = End(200, 200, 3, 0.0, general=False)
    counts = {"test-base": 200, "test-winner": 200, "test-default": 120, "test-examples": 3}
    late = evaluator({name: [1.0] * count for name, count in counts.items()}, tmp_path)
    winner, default = finalist("r2").run, finalist("r1")
    systems, notes = answer_test_rows(late, winner, 40, default, end, generation=False)
    assert [(system.role, len(system.answers)) for system in systems] == [
        ("base", 120), ("winner", 120), ("default", 120),
    ]  # fmt: skip
    (note,) = notes
    assert "3 retrieved examples" in note and "3 of 200 test rows" in note
    early = evaluator({**{name: [1.0] * 200 for name in counts}, "test-winner": [1.0]}, tmp_path)
    with pytest.raises(TrainingError, match="time ended before"):
        answer_test_rows(early, winner, 40, default, end, generation=False)


def test_the_default_lora_s_test_score_is_remembered_at_the_step_that_answered():
    """Its loss had risen: the answers are those of step 20 of 40."""
    answers = tuple(Answer(row, "", "", nll=1.0, tokens=1) for row in range(9))
    model = SimpleNamespace(kind="encoder")
    outcome: Any = SimpleNamespace(
        prepared=SimpleNamespace(task=SimpleNamespace(metric="loss", model=model, task="regression")),
        systems=[System(role, role, answers) for role in ("base", "winner", "default")],
        candidates=[{"run": "r2", "step": 40}], runs=[finalist("r1").run, finalist("r2").run],
        default=replace(finalist("r1"), step=20),
    )  # fmt: skip
    assert [(run, step) for run, step, _ in account.tested(outcome)[1]] == [("r2", 40), ("r1", 20)]
