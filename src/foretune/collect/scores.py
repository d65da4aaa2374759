"""What a collected run leaves in the experience: its points, the base model's scores on the same rows, its gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foretune.collect.cells import Cell
from foretune.evaluation.base import Answer
from foretune.evaluation.gain import GAIN, gain
from foretune.evaluation.metrics import METRICS
from foretune.execution.types import SPLITS
from foretune.experience.past import BASE
from foretune.experience.records import Seen
from foretune.search.types import Observation, Score
from foretune.study.results import scored
from foretune.study.tasks import StudyTask

VALIDATION, TEST = SPLITS[1:]
Measured = dict[str, tuple[float, float, int]]


@dataclass(frozen=True)
class BaseAnswers:
    """What the untouched base model did with a task's validation and test rows."""

    validation: tuple[Answer, ...]
    test: tuple[Answer, ...]

    def on(self, task: StudyTask, rows: Sequence[int]) -> Measured:
        """The loss on all validation rows and the task's metric on the answered ones, named as the base's."""
        found = {"loss": METRICS["loss"].score(self.validation)}
        counts = {"loss": len(self.validation)}
        chosen = set(rows)
        answered = [answer for answer in self.validation if answer.row in chosen]
        if answered and all(answer.prediction is not None for answer in answered):
            name = task.spec.metric
            found[name], counts[name] = METRICS[name].score(answered), len(answered)
        return {f"{BASE}{name}": (m.value, m.standard_error, counts[name]) for name, m in found.items()}


def seen_of(cell: Cell, observations: Sequence[Observation], base: BaseAnswers, answered_rows: int) -> list[Seen]:
    """The validation points of a run, at each rung that has a score."""
    asked = cell.answered(answered_rows)
    task = cell.task.task
    return [
        Seen(
            step=seen.step,
            split=VALIDATION,
            scores={**_measured(seen.metrics), **base.on(task, asked.get(seen.step, ()))},
            train_s=seen.train_s,
            eval_s=seen.eval_s,
            tokens=seen.tokens,
            train_cpu_s=seen.train_cpu_s,
            eval_cpu_s=seen.eval_cpu_s,
        )
        for seen in observations
        if seen.metrics
    ]


def tested(task: StudyTask, step: int, answers: Sequence[Answer], base: BaseAnswers) -> Seen:
    """The test point: scored with the weights of the lowest validation loss, which were those of ``step``."""
    scores = scored(answers, task)
    if (gained := gain(base.test, answers)) is not None:
        scores[GAIN] = gained
    before = {f"{BASE}{name}": score for name, score in scored(base.test, task).items()}
    return Seen(step, TEST, {**_measured(scores), **_measured(before)})


def _measured(scores: Mapping[str, Score]) -> Measured:
    return {name: (score.value, score.standard_error, score.n) for name, score in scores.items()}
