"""RecAdam (Chen et al. 2020, 2004.12651): the objective moves from staying at the pre-trained weights to the task.

λ(t) = 1/(1 + exp(−k (t/T − t0))) weighs the task, 1 − λ the quadratic pull ½γ‖w − w0‖², and both enter the update
outside Adam's moments: w ← w + λ · (Adam's step) − lr (1 − λ) γ (w − w0). ``midpoint`` t0 and ``speed`` k are in shares
of the run; a pull stronger than 1/lr stops at w0. A fresh head follows the task alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from foretune.data.update import MicroBatch
from foretune.regularization.base import Context, Plan, Regularizer
from foretune.regularization.lora_pairs import is_head


class Recadam(Regularizer):
    """The annealed step and the annealed pull."""

    name = "recadam"

    def __init__(self, pull: float = 5000.0, midpoint: float = 0.2, speed: float = 20.0) -> None:
        self.pull, self.midpoint, self.speed = pull, midpoint, speed
        self._origins: dict[int, torch.Tensor] = {}
        self._before: dict[int, torch.Tensor] = {}
        self._steps = 1
        self._step = 0

    def check(self, context: Context) -> Plan:
        """The memory of origins and of the weights before a step."""
        held = sum(master.numel() * 8 for master in context.masters)
        what = f"the task weighs one half after {self.midpoint:.0%} of the run"
        return Plan(what, extra_bytes=held, shares_head=True)

    def setup(self, context: Context) -> None:
        """Remember where the weights begin."""
        self._steps = max(1, context.total_steps)
        self._origins = {
            number: master.detach().clone()
            for number, master in enumerate(context.masters)
            if not is_head(context.names[number])
        }

    def task_share(self) -> float:
        """λ of the present update."""
        return 1 / (1 + math.exp(-self.speed * (self._step / self._steps - self.midpoint)))

    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """Note the step."""
        self._step = step

    def pre_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Keep the weights before the optimiser moves them."""
        self._before = {number: params[number].detach().clone() for number in self._origins}

    @torch.no_grad()
    def post_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Take λ of the optimiser's step and the rest of the pull."""
        share = self.task_share()
        pull = min(1.0, learning_rate * (1 - share) * self.pull)
        for number, before in self._before.items():
            gap = before - self._origins[number]
            params[number].copy_(before.lerp(params[number], share).sub_(gap, alpha=pull))
        self._before = {}

    def report(self) -> dict[str, float]:
        """λ at the last update."""
        return {"pull": self.pull, "task_share": self.task_share()}
