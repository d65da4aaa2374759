"""Context-parametric inversion (Goyal et al. 2024, 2410.10796): does a model still believe its context.

Fine-tuning on questions that need no context can teach a model to answer from memory even where the context says
otherwise; the paper sees reliance on the context rise and then fall while training goes on. The probe asks every
question behind a note that gives another row's answer, and measures the margin
log p(answer of the note) − log p(true answer), per answer token; positive means that the context wins. Over the
checkpoints of a run, a margin that falls while the task's loss falls is the inversion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foretune.data.example import Example, Turn
from foretune.errors import DataError
from foretune.evaluation.base import Answer
from foretune.seeding import generator

NOTE = "Note: {question} {answer}\n\nAccording to the note: {question}"


@dataclass(frozen=True)
class Margin:
    """Mean margin with its standard error over questions, in nats per token."""

    value: float
    standard_error: float
    context_wins: float
    """Share of questions where the note's answer is likelier"""
    questions: int


def conflicts(examples: Sequence[Example], seed: int = 0) -> list[Example]:
    """Two rows for every question behind a note with a wrong answer: the note's answer, then the true one.

    Wrong answers are those of other rows, drawn from ``seed``, of about the same length where there is a choice. Raises
    `DataError` when all answers are the same.
    """
    answers = sorted({example.answer for example in examples}, key=lambda answer: (len(answer), answer))
    if len(answers) < 2:
        raise DataError("all rows have the same answer, so no note can contradict it.", remedy="Give other rows.")
    draw = generator(seed, "inversion")
    rows = []
    for example in examples:
        at = answers.index(example.answer)
        near = [answer for answer in answers[max(0, at - 3) : at + 4] if answer != example.answer]
        wrong = near[int(draw.integers(len(near)))]
        question = NOTE.format(question=example.prompt, answer=wrong)
        for said in (wrong, example.answer):
            rows.append(Example((Turn("user", question), Turn("assistant", said)), targets=(1,)))
    return rows


def margin(answers: Sequence[Answer]) -> Margin:
    """The margin from the scored rows of `conflicts`. Raises `DataError` for rows without likelihood."""
    scores = []
    for answer in answers:
        if answer.nll is None or answer.tokens == 0:
            raise DataError(f"row {answer.row} has no likelihood.")
        scores.append(-answer.nll / answer.tokens)
    gaps = np.asarray(scores[0::2]) - np.asarray(scores[1::2])
    error = float(gaps.std(ddof=1) / len(gaps) ** 0.5) if len(gaps) > 1 else 0.0
    return Margin(float(gaps.mean()), error, float((gaps > 0).mean()), len(gaps))
