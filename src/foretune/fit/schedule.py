"""What things will take, from the probe's speeds: steps, rungs, the phases at the end; and the orders for workers.

The end of a run (re-evaluation, comparison, export) is reserved before the search begins, so that it is inside the
time budget. Where the end as asked for would take more than a quarter of the budget, fewer rows are compared; where
even that is more than half of what is left after the probe, still fewer, so that something can be trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from foretune.evaluation.metrics import METRICS
from foretune.execution.orders import InitialWeights, TrialOrder
from foretune.execution.types import Job, TaskSpec
from foretune.fit.effort import ANSWERED_RUNGS, Effort, measured_steps
from foretune.fit.folder import RunFolder
from foretune.search.fidelity import LEVELS, evaluation_rows, first_rows
from foretune.search.types import Lease

END_SHARE = 0.25
"""The end may take this share of a time budget; fewer rows are compared where it would take more."""
FEWEST_TEST_ROWS = 24
"""Fewer compared rows say next to nothing."""
LEFT_SHARE = 0.5
"""Of the time that is left after the probe; where the end takes more, better little said than nothing made."""
FEWEST_AT_ALL = 8
EXPORT_S = 20.0
"""Writing and verifying an adapter, the report: seconds on a slow disk, the verifying worker's start included."""
FINALISTS = 2
SHOT_FACTOR = 1.0
"""A retrieved example costs about as much as the question it stands before."""
GENERAL_ROWS = 64
"""Rows of the general text sample, in units of a row of the task."""
PREVIOUS_ROWS = 64
"""The most rows that the model was trained on before, by which is told what of them was lost"""


@dataclass(frozen=True)
class Speeds:
    """What the probe measured on this machine with this model and these rows."""

    train_rows_per_s: float
    score_rows_per_s: float
    answer_s: float
    load_s: float = 0.0

    @classmethod
    def of(cls, probe: Mapping[str, Any]) -> Speeds:
        """From the probe's result."""
        return cls(probe["train_rows_per_s"], probe["score_rows_per_s"], probe["answer_s"], probe.get("load_s", 0.0))


@dataclass(frozen=True)
class End:
    """What happens after the search, and the seconds kept for it."""

    validation_rows: int
    test_rows: int
    shots: int
    reserve_s: float
    note: str = ""
    general: bool = True
    """Whether losses on general text are compared, for what was forgotten"""


def plan_end(
    speeds: Speeds,
    *,
    rows: Mapping[str, int],
    most_rows: int,
    shots: int,
    generation: bool,
    time_s: float | None,
    used_s: float = 0.0,
) -> End:
    """How many rows the end evaluates, and its reserve; ``used_s`` of ``time_s`` were used before the search."""
    validation = min(rows["validation"], most_rows)
    test = min(rows["test"], most_rows)
    answer_s = speeds.answer_s if generation else 0.0

    def seconds(tests: int, examples: int, general: bool = True) -> float:
        row_s = 1 / speeds.score_rows_per_s
        elsewhere = (2 + FINALISTS) * GENERAL_ROWS + 2 * min(PREVIOUS_ROWS, rows.get("previous", 0))
        systems = 3 * tests * (row_s + answer_s) + general * elsewhere * row_s
        shown = tests * (row_s + answer_s) * (1 + SHOT_FACTOR * examples) if examples else 0.0
        return FINALISTS * validation * row_s + systems + shown + EXPORT_S

    note, general = "", True
    if time_s is not None:
        while seconds(test, shots) > END_SHARE * time_s and test > FEWEST_TEST_ROWS:
            test = max(FEWEST_TEST_ROWS, int(0.8 * test))
        if seconds(test, shots) > END_SHARE * time_s and shots:
            shots = 0
            note = "The base with retrieved examples was left out: the time budget does not hold it. "
        most = LEFT_SHARE * (time_s - used_s)
        if seconds(test, shots) > most:
            general = False
            note += "What was forgotten was not measured: the time budget does not hold it. "
        while seconds(test, shots, general) > most and test > FEWEST_AT_ALL:
            test = max(FEWEST_AT_ALL, int(0.8 * test))
        if test < min(rows["test"], most_rows):
            note += f"{test} of {rows['test']} test rows are compared, so that the end fits into the time budget."
    return End(validation, test, shots, seconds(test, shots, general), note, general)


def before_export(left_s: float | None) -> float | None:
    """What of the time that is left may go into comparing: all but the export, and half where that is nearly all."""
    return None if left_s is None else max(left_s - EXPORT_S, left_s / 2)


@dataclass(frozen=True)
class Schedule:
    """Costs and orders of trials on one task."""

    task: TaskSpec
    folder: RunFolder
    validation_rows: int
    speeds: Speeds
    effort: Effort
    generation: bool

    def rows_at(self, horizon: int, step: int) -> tuple[int, ...]:
        """The validation rows scored at a step."""
        fewest, most = self.effort.fewest_rows, self.effort.most_rows
        return evaluation_rows(self.validation_rows, horizon, step, self.task.seed, fewest=fewest, most=most)

    def rungs_rows(self) -> tuple[tuple[int, ...], ...]:
        """The validation rows scored at each of the six rungs."""
        counts = self.effort.counts(self.validation_rows)
        return tuple(first_rows(self.validation_rows, counts[level], self.task.seed) for level in range(LEVELS))

    def answered_at(self, horizon: int, step: int) -> tuple[int, ...]:
        """The validation rows answered for the primary metric at a step."""
        if self.task.metric in ("loss", "loss_per_byte"):
            return ()
        rows = self.rows_at(horizon, step)
        if not METRICS[self.task.metric].needs_generation or self.task.model.kind == "encoder":
            return rows
        last = measured_steps(horizon)[-ANSWERED_RUNGS:]
        if not self.generation or step not in last:
            return ()
        return first_rows(self.validation_rows, min(self.effort.answered_rows, len(rows)), self.task.seed)

    @property
    def written_rows(self) -> tuple[int, ...]:
        """The validation rows to which runs write answers on their way: the same for all."""
        horizon = 1  # the last rung is answered whatever the horizon
        writes = METRICS[self.task.metric].needs_generation and self.task.model.kind != "encoder"
        return self.answered_at(horizon, horizon) if writes else ()

    def measured(self, horizon: int, from_step: int, to_step: int) -> tuple[int, ...]:
        """The steps in (from_step, to_step] at which a run is evaluated: its measured rungs, and the last step."""
        rungs = {step for step in measured_steps(horizon) if from_step < step <= to_step}
        return tuple(sorted(rungs | {to_step}))

    def training_s(self, config: Mapping[str, Any], steps: int) -> float:
        """Forecast seconds of training, at the pace of the default LoRA."""
        return steps * int(config["rows_per_update"]) / self.speeds.train_rows_per_s

    def evaluation_s(self, from_step: int, to_step: int, horizon: int) -> float:
        """Forecast seconds of the evaluations from one step to another."""
        seconds = 0.0
        for step in self.measured(horizon, from_step, to_step):
            seconds += len(self.rows_at(horizon, step)) / self.speeds.score_rows_per_s
            if self.task.model.kind != "encoder":
                seconds += len(self.answered_at(horizon, step)) * self.speeds.answer_s
        return seconds

    def evaluation_share(self, config: Mapping[str, Any], horizon: int) -> float:
        """The share of a whole run that its evaluations take."""
        evaluated = self.evaluation_s(0, horizon, horizon)
        return evaluated / (evaluated + self.training_s(config, horizon))

    def cost(self, config: Mapping[str, Any], from_step: int, to_step: int, horizon: int, slower: float = 1.0) -> float:
        """Forecast seconds of training and evaluation from one step to another.

        ``slower`` is how much longer a row takes to train than with the default LoRA, which the probe measured.
        """
        trained = slower * self.training_s(config, to_step - from_step)
        return trained + self.evaluation_s(from_step, to_step, horizon)

    def order(
        self,
        lease: Lease,
        limit_s: float | None,
        *,
        pause_at: int | None = None,
        initial_weights: InitialWeights | None = None,
    ) -> Job:
        """The worker's job for a lease.

        ``pause_at``: a step at which to pause, not evaluated until then. ``initial_weights``: weights to begin at.
        """
        steps = self.measured(lease.horizon, lease.from_step if pause_at is None else pause_at, lease.to_step)
        trial = TrialOrder(
            lease=replace(lease, rungs=steps),
            folder=self.folder.trial(lease.run),
            evaluation_rows={step: self.rows_at(lease.horizon, step) for step in steps},
            metric_rows={step: rows for step in steps if (rows := self.answered_at(lease.horizon, step))},
            selection_seed=self.task.seed,
            pause_at=pause_at,
            initial_weights=initial_weights,
        )
        return Job(f"{lease.id}.{lease.attempt}", "train", self.task, trial.to_json(), limit_s)
