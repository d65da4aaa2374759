"""Mixout (Lee et al. 2020, 1909.11299): input neurons fall back to their pre-trained weights at random.

With a mask M of one number an input neuron, Bernoulli(1 − p), a linear layer computes with
W_eff = ((1 − M) W0 + M W − p W0)/(1 − p) = W0 + M (W − W0)/(1 − p), whose mean is W. The mask is drawn once an update
and held over its micro-batches; evaluation sees W. A head that no pre-training made is left alone. It keeps a copy of
the base's linear weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from foretune.data.update import MicroBatch
from foretune.models.modules import role_of
from foretune.regularization.base import Context, Plan, Regularizer
from foretune.regularization.row_noise import on_device

NEEDS_FULL = "it mixes trained weights with the base's, and no dense linear layer is trained. Use method full."


class Mixout(Regularizer):
    """Mixed weights in every trained linear layer."""

    name = "mixout"

    def __init__(self, rate: float = 0.7) -> None:
        self.rate = rate
        self._layers: list[nn.Linear] = []
        self._origins: list[torch.Tensor] = []
        self._masks: list[torch.Tensor] = []
        self._step = -1

    def _found(self, context: Context) -> list[nn.Linear]:
        trained = set(map(id, context.weights))
        return [
            module
            for name, module in context.model.named_modules()
            if type(module) is nn.Linear and id(module.weight) in trained and role_of(name) != "head"
        ]

    def check(self, context: Context) -> Plan:
        """Refused where no linear layer itself is trained."""
        layers = self._found(context)
        if not layers or any("lora_" in name for name in context.names):
            return Plan(self.name, refusal=NEEDS_FULL)
        held = sum(layer.weight.nbytes for layer in layers)
        what = f"{self.rate:.0%} of the inputs of {len(layers)} layers fall back"
        return Plan(what, extra_bytes=held, shares_head=True)

    def setup(self, context: Context) -> None:
        """Remember the base's weights and let the layers mix while they train."""
        if self.rate == 0:
            return
        self._layers = self._found(context)
        self._origins = [layer.weight.detach().clone() for layer in self._layers]
        for number, layer in enumerate(self._layers):
            layer.__dict__["forward"] = self._forward(number, layer)

    def _forward(self, number: int, layer: nn.Linear) -> Any:
        def forward(x: torch.Tensor) -> torch.Tensor:
            if not layer.training or not self._masks:
                return linear(x, layer.weight, layer.bias)
            origin = self._origins[number]
            return linear(x, origin + self._masks[number] * (layer.weight - origin), layer.bias)

        return forward

    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """Draw the masks of an update at its first pass."""
        if step == self._step and self._masks:
            return
        self._step = step
        own = on_device(generator, batch.ids.device)
        self._masks = []
        for layer in self._layers:
            width = layer.weight.shape[1]
            mask = torch.empty(1, width, device=layer.weight.device).bernoulli_(1 - self.rate, generator=own)
            self._masks.append(mask.div_(1 - self.rate).to(layer.weight.dtype))

    def end_forward(self) -> None:
        """The masks end with the update."""
        self._masks = []

    def teardown(self) -> None:
        """Give the layers their own forward pass back."""
        for layer in self._layers:
            layer.__dict__.pop("forward", None)
        self._layers, self._origins = [], []

    def report(self) -> dict[str, float]:
        """Rate and layers."""
        return {"rate": self.rate, "layers": float(len(self._layers))}
