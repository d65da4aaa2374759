"""Flat-LoRA (Li et al. 2024, 2409.14396): noise on the merged weights, so that LoRA settles where the loss is flat.

Every update each adapted layer computes with W0 + E + s·BA, E ~ N(0, σ²) by output row with σ = f_t · ρ/√n_in · ‖(W0
+ s·BA)_row‖ and f_t = ½(1 − cos πt/T), growing over the run. E is the same for all micro-batches of an update. Neither
E nor a noisy copy of the weights is held, and the frozen weights are not written: a layer draws its noise from a seed
when it computes, and again on the way back (`weight_noise`). Works with whatever trains plain products BA beside dense
weights: LoRA and its kin that differ in start, scale or learning rate.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from foretune.data.update import MicroBatch
from foretune.regularization.base import Context, Plan, Regularizer
from foretune.regularization.lora_pairs import LoraPair, lora_pairs
from foretune.seeding import derive

NO_PAIRS = "no plain LoRA layer is trained here. Use --set training.method=lora, or dropout."
NOT_DENSE = "noise on the base's weights needs dense linear layers, and {} is a {}. Load it without --quantize."


class FlatLora(Regularizer):
    """Noise on the weights that the adapted layers compute with."""

    name = "flat-lora"

    def __init__(self, rho: float = 0.05) -> None:
        self.rho = rho
        self._pairs: list[LoraPair] = []
        self._spreads: list[torch.Tensor] = []
        """(out,) float32 of every pair, in the update that is under way"""
        self._seeds: list[int] = []
        self._steps = 1
        self._size = 0.0

    def check(self, context: Context) -> Plan:
        """Refused without LoRA layers on dense weights."""
        pairs = lora_pairs(context)
        if not pairs:
            return Plan(self.name, refusal=NO_PAIRS)
        for pair in pairs:
            if type(pair.base) is not nn.Linear:
                return Plan(self.name, refusal=NOT_DENSE.format(pair.name, type(pair.base).__name__))
        return Plan(f"noise of ρ = {self.rho:g} on {len(pairs)} merged weights", shares_head=True)

    def setup(self, context: Context) -> None:
        """Let the adapted layers compute with noise while they train."""
        self._steps = max(1, context.total_steps)
        self._pairs = lora_pairs(context) if self.rho > 0 else []
        for number, pair in enumerate(self._pairs):
            pair.base.__dict__["forward"] = self._forward(number, pair.base)

    def _forward(self, number: int, base: Any) -> Any:
        from foretune.regularization.weight_noise import NoisyLinear

        def forward(x: torch.Tensor) -> torch.Tensor:
            if not base.training or not self._spreads:
                return linear(x, base.weight, base.bias)
            noise = self._spreads[number], self._seeds[number]
            return NoisyLinear.apply(x, base.weight, base.bias, *noise)  # type: ignore[no-any-return, no-untyped-call]

        return forward

    @torch.no_grad()
    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """Choose the noise of an update at its first pass."""
        self._size = self.rho * (1 - math.cos(math.pi * step / self._steps)) / 2
        if self._spreads or self._size == 0:
            return
        for number, pair in enumerate(self._pairs):
            weight: torch.Tensor = pair.base.weight  # type: ignore[assignment]
            merged = torch.addmm(weight, pair.up.to(weight.dtype), pair.down.to(weight.dtype), alpha=pair.scale)
            self._spreads.append(merged.float().norm(dim=1) * (self._size / weight.shape[1] ** 0.5))
            self._seeds.append(derive(generator.initial_seed(), number))

    def end_forward(self) -> None:
        """The noise ends with the update."""
        self._spreads, self._seeds = [], []

    def teardown(self) -> None:
        """Give the layers their own forward pass back."""
        for pair in self._pairs:
            pair.base.__dict__.pop("forward", None)
        self._pairs = []

    def report(self) -> dict[str, float]:
        """ρ as set and its size at the last update."""
        return {"rho": self.rho, "last_size": self._size}
