"""What a forecast is asked about: the data's size, the settings of the runs, the budget, what a probe measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from foretune.cost.correction import Correction
from foretune.cost.machine import Machine
from foretune.cost.memory import Layout
from foretune.cost.operations import RowTokens
from foretune.cost.rates import Rates
from foretune.cost.shapes import ModelShapes

BudgetKind = Literal["time", "trials", "steps"]
Deploy = Literal["adapter", "merged", "gguf"]


@dataclass(frozen=True)
class DataSize:
    """Rows of each split and the mean row."""

    train_rows: int
    validation_rows: int
    test_rows: int
    row: RowTokens


@dataclass(frozen=True)
class RunSettings:
    """One run of training: what the first configuration does."""

    trainable: int
    full: bool = False
    rows_per_update: int = 16
    epochs: float = 3.0
    step_factor: float = 1.0
    """What its method's passes take over LoRA's (`catalogue.methods.measured`)"""

    def steps(self, rows: int) -> int:
        """Optimiser steps of a full run over ``rows`` rows: whole updates, the last of an epoch may be short."""
        return max(1, round(self.epochs * -(-rows // self.rows_per_update)))


@dataclass(frozen=True)
class EvaluationSettings:
    """How much is scored, and how."""

    max_rows: int = 200
    generation: bool = False
    max_answer_tokens: int = 128
    retrieved_examples: int = 0
    rung_rows: tuple[int, ...] = (64, 64, 64, 128, 256, 512)
    """Validation rows scored at each rung, at most; what is there counts"""
    rung_scored: int | None = None
    """Validation rows scored on the way of one run, in all; those of every rung when None"""
    rung_answers: int = 0
    """Validation rows answered on the way of one full run"""


@dataclass(frozen=True)
class Measured:
    """What a probe with the weights loaded found."""

    train_tokens_per_s: float
    score_tokens_per_s: float
    peak_bytes: int = 0
    load_s: float = 0.0
    answer_s: float = 0.0
    """Seconds to write one answer; 0 where none was written"""


@dataclass(frozen=True)
class Budget:
    """What ends the search. ``total`` counts seconds, trials or optimiser steps by ``kind``."""

    kind: BudgetKind
    total: float


@dataclass(frozen=True)
class SelectionWork:
    """What choosing the rows takes, before training."""

    scored_tokens: float = 0.0
    trained_tokens: float = 0.0
    comparisons: float = 0.0
    """Multiplications of comparing rows with each other"""

    def __add__(self, other: SelectionWork) -> SelectionWork:
        """Both, one after the other."""
        return SelectionWork(
            self.scored_tokens + other.scored_tokens,
            self.trained_tokens + other.trained_tokens,
            self.comparisons + other.comparisons,
        )


@dataclass(frozen=True)
class ForecastRequest:
    """Everything a forecast is made from."""

    shapes: ModelShapes
    machine: Machine
    rates: Rates
    data: DataSize
    layout: Layout
    run: RunSettings
    """The configuration that is advised"""
    budget: Budget
    baseline: RunSettings | None = None
    """The default LoRA, which runs first; None when it is ``run`` itself"""
    selection: SelectionWork | None = None
    """Choosing the rows to train on; None where all are trained on or nothing is scored for it"""
    horizon_steps: int | None = None
    """Steps that the search gives every run; None to shorten runs here where the time budget demands it"""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    workers: int = 1
    price_per_hour: float | None = None
    deploy: Deploy = "adapter"
    fetch_bytes: int = 0
    """Bytes to download before the model can be loaded; 0 when it is here"""
    measured: Measured | None = None
    spent_s: float = 0.0
    """Seconds of the budget that were used when the probe had ended; 0 before"""
    correction: Correction = field(default_factory=Correction)

    @property
    def first_run(self) -> RunSettings:
        """The first trial: the default LoRA."""
        return self.baseline or self.run
