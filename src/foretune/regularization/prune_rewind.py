"""Prune a learnt prefix and begin again with what is left, after E²VPT (Han et al. 2023, 2307.13770, section 3.3).

Until step ``at`` · total the prefix trains as it is and every position i is scored by Σ |∂L/∂ρ_i| over the updates, ρ_i
being its switch. Then the ``share`` of positions with the lowest scores, over all layers together, is switched off for
good, and all keys and values go back to where they started (rewinding), with fresh moments. Works with methods whose
prefix has switches (``e2vpt``). The paper also prunes parts of a vector; that is not done here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foretune.regularization.base import Context, Plan, Regularizer

SWITCH = "open"
"""The attribute of a module that holds the switches of its positions."""


class PruneRewind(Regularizer):
    """Scores positions by the gradient of their switches, prunes once, rewinds."""

    name = "prune-rewind"

    def __init__(self, share: float = 0.5, at: float = 0.3) -> None:
        self.share = share
        self.at = at
        self._modules: list[Any] = []
        self._places: dict[int, int] = {}
        self._first: list[torch.Tensor] = []
        self._scores: list[torch.Tensor] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._when = 0
        self._step = 0

    def check(self, context: Context) -> Plan:
        """Needs a prefix with switches."""
        found = _switched(context.model)
        if not found:
            return Plan(self.name, refusal="there is no prefix whose positions can be switched off; use method e2vpt.")
        positions = sum(module.open.numel() for module in found)
        return Plan(f"{round(self.share * positions)} of {positions} learnt positions go at {self.at:.0%} of the run")

    def setup(self, context: Context) -> None:
        """Remember where everything started."""
        self._modules = _switched(context.model)
        self._places = {id(weight): place for place, weight in enumerate(context.weights)}
        self._first = [master.detach().clone() for master in context.masters]
        self._scores = [torch.zeros(module.open.numel()) for module in self._modules]
        self._when = max(1, round(self.at * context.total_steps))

    def wrap_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimiser as it is; its moments are dropped when the prefix is rewound."""
        self._optimizer = optimizer
        return optimizer

    def pre_forward(self, step: int, batch: Any, generator: torch.Generator) -> None:
        """Remember the step."""
        self._step = step

    def pre_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Add what this update asked of every switch."""
        for module, score in zip(self._modules, self._scores, strict=True):
            if module.asked is not None:
                score += module.asked.abs().cpu()
                module.asked = None

    def post_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """At its step: switch off the least of all, and rewind."""
        if self._step + 1 != self._when:
            return
        together = torch.cat(self._scores)
        gone = torch.zeros(len(together), dtype=torch.bool)
        gone[together.argsort(stable=True)[: round(self.share * len(together))]] = True
        with torch.no_grad():
            for master, first in zip(params, self._first, strict=True):
                master.copy_(first)
                if self._optimizer is not None:
                    self._optimizer.state.pop(master, None)
            for module, part in zip(self._modules, torch.split(gone, list(map(len, self._scores))), strict=True):
                params[self._places[id(module.open)]][part.to(params[0].device)] = 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Scores so far, and where everything started."""
        scores = {f"score/{i}": score for i, score in enumerate(self._scores)}
        return scores | {f"first/{i}": first for i, first in enumerate(self._first)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back `state_dict`."""
        self._scores = [state[f"score/{i}"].clone() for i in range(len(self._scores))]
        self._first = [state[f"first/{i}"].clone().to(first.device) for i, first in enumerate(self._first)]

    def report(self) -> dict[str, float]:
        """How many positions are left."""
        return {"positions_left": float(sum(int((module.open != 0).sum()) for module in self._modules))}


def is_switch(name: str) -> bool:
    """Whether a trainable tensor holds switches: what is off stays off, so nothing may pull it back."""
    return name.rpartition(".")[2] == SWITCH


def _switched(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(getattr(module, SWITCH, None), torch.nn.Parameter)]
