"""Extrapolation (Lin et al. 2020, 2006.05720): the gradient is taken a step ahead and applied where the weights are.

Every update computes at w − η̂ · g_prev, with the last update's gradient, and moves w by the gradient found there.
The weights are put back, bit for bit, before the optimiser sees them. η̂ is a length along the raw gradient. The
first update has no last gradient and is a plain one. The last gradient is part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from foretune.data.update import MicroBatch
from foretune.regularization.base import Context, Plan, Regularizer


class Extrapolation(Regularizer):
    """The step ahead and back."""

    name = "extrapolation"

    def __init__(self, step: float = 0.1) -> None:
        self.step = step
        self._names: tuple[str, ...] = ()
        self._weights: tuple[torch.Tensor, ...] = ()
        self._last: dict[str, torch.Tensor] = {}
        self._stash: list[torch.Tensor] = []
        self._size = 0.0

    def check(self, context: Context) -> Plan:
        """The memory of the last gradient and of the weights that are put back."""
        held = sum(weight.numel() * 8 for weight in context.weights)
        return Plan(f"gradients {self.step:g} ahead along the last one", extra_bytes=held, shares_head=True)

    def setup(self, context: Context) -> None:
        """Know the weights that the model computes with."""
        self._names, self._weights = context.names, context.weights

    @torch.no_grad()
    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """Step ahead at the first pass of an update."""
        if self._stash or not self._last or self.step == 0:
            return
        self._stash = [weight.detach().clone() for weight in self._weights]
        for name, weight in zip(self._names, self._weights, strict=True):
            if name in self._last:
                weight.sub_(self._last[name].to(weight), alpha=self.step)

    @torch.no_grad()
    def end_forward(self) -> None:
        """Put the weights back."""
        for weight, before in zip(self._weights, self._stash, strict=bool(self._stash)):
            weight.copy_(before)
        self._stash = []

    def pre_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Keep this update's gradient for the next."""
        pairs = zip(self._names, params, strict=True)
        self._last = {name: param.grad.detach().clone() for name, param in pairs if param.grad is not None}
        self._size = float(sum(gradient.pow(2).sum() for gradient in self._last.values())) ** 0.5

    def teardown(self) -> None:
        """Put the weights back where an update was given up."""
        self.end_forward()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The last gradient by tensor name."""
        return dict(self._last)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back the last gradient."""
        self._last = {name: tensor.clone() for name, tensor in state.items()}

    def report(self) -> dict[str, float]:
        """η̂ and how far the last step ahead reaches."""
        return {"step": self.step, "last_length": self.step * self._size}
