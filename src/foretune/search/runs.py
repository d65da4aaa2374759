"""What a strategy sees and answers: runs with their curves, the budget, a cost forecast; proposals.

A strategy is a pure function of the `View`: it keeps no state of its own, so replaying a journal gives the same
decisions, and the wall clock cannot reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from foretune.search.budget import Budget
from foretune.search.types import FAILURES, Done, Score, Status, Wait

RunStatus = Literal["running", "idle", "finished"] | Status
"""``running``: under a lease. ``idle``: paused at a rung. ``finished``: at its horizon. Else how it ended."""

Cost = Callable[[Mapping[str, Any], int, int], float]
"""Forecast seconds of training and evaluation from one step to another: ``cost(config, from_step, to_step)``."""

Curve = dict[int, Mapping[str, Score]]
"""Scores by step."""

DEFAULT_ARM = "default"
"""The arm of the default LoRA, which is compared with whatever is chosen."""


@dataclass
class Run:
    """One configuration with one seed."""

    id: str
    config: Mapping[str, Any]
    seed: int
    horizon: int
    arm: str
    """What the strategy started it for: ``default``, ``portfolio``, ``extra``, or a cell of a grid."""
    why: str
    step: int = 0
    """How far it has come; a checkpoint of this step exists."""
    status: RunStatus = "running"
    curve: Curve = field(default_factory=dict)
    train_s: float = 0.0
    train_cpu_s: float = 0.0
    """Processor seconds of training"""
    eval_s: float = 0.0
    seconds: dict[int, float] = field(default_factory=dict)
    """Seconds of training and evaluation until each step at which it was measured"""
    tokens: int = 0
    peak_bytes: int = 0
    detail: str = ""

    @property
    def is_default(self) -> bool:
        """Whether it is the default LoRA's."""
        return self.arm == DEFAULT_ARM

    @property
    def failed(self) -> bool:
        """Whether it ended with a failure; a failure has no score."""
        return self.status in FAILURES

    @property
    def ended(self) -> bool:
        """Whether it can go no further."""
        return self.status not in ("running", "idle")

    def to_json(self) -> dict[str, Any]:
        """A JSON summary for reports."""
        curve = {
            str(step): {name: [s.value, s.standard_error, s.n] for name, s in sorted(scores.items())}
            for step, scores in sorted(self.curve.items())
        }
        fields = {name: value for name, value in vars(self).items() if name not in ("curve", "config", "seconds")}
        return {**fields, "config": dict(self.config), "curve": curve}


@dataclass(frozen=True)
class Start:
    """Begin a new run and take it to ``to_step``."""

    config: Mapping[str, Any]
    horizon: int
    to_step: int
    arm: str
    why: str
    seed: int = 0
    p_fail: float = 0.0
    """Expected odds that the run fails"""


@dataclass(frozen=True)
class Continue:
    """Take an idle run on to ``to_step``."""

    run: str
    to_step: int
    why: str


Proposal = Start | Continue | Wait | Done


@dataclass(frozen=True)
class View:
    """All that a strategy may look at."""

    seed: int
    runs: tuple[Run, ...]
    """In the order in which they were started."""
    budget: Budget
    held: float
    """Seconds, trials or steps promised to open leases."""
    cost: Cost

    def price(self, config: Mapping[str, Any], from_step: int, to_step: int, *, new: bool) -> float:
        """What a stretch costs in the budget's unit; ``new`` says that it starts a run."""
        if self.budget.kind == "time":
            return self.cost(config, from_step, to_step)
        return float(new) if self.budget.kind == "trials" else float(to_step - from_step)

    def affords(self, config: Mapping[str, Any], from_step: int, to_step: int, *, new: bool = False) -> bool:
        """Whether the budget covers a stretch beside what is already promised."""
        return self.budget.can_afford(self.price(config, from_step, to_step, new=new), self.held)


class Strategy(Protocol):
    """Decides what to do next; everything else is the core's."""

    @property
    def name(self) -> str:
        """Its name in journals and reports."""
        ...

    def propose(self, view: View) -> Proposal:
        """The next proposal: a pure function of ``view``."""
        ...

    def settings(self) -> dict[str, Any]:
        """Its settings as JSON: a journal is only resumed by a strategy with the same ones."""
        ...
