"""Between finalists that are equal on validation the one that forgot less is chosen, and only then."""

from __future__ import annotations

import numpy as np

from foretune.evaluation.base import Answer
from foretune.fit.choice import Judged, remembering


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
