"""Flat-LoRA (Li et al. 2024, 2409.14396): noise on the merged weights, so that LoRA settles where the loss is flat.

Every update each adapted layer computes with W0 + E + s·BA, E ~ N(0, σ²) by output row with σ = f_t · ρ/√n_in · ‖(W0
+ s·BA)_row‖ and f_t = ½(1 − cos πt/T), growing over the run. E is drawn once an update and held over its
micro-batches. The frozen weights are not written: the layer's forward pass takes the noisy copy while it trains, and
the copies (as large as the adapted base weights) are let go after the update.
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
from foretune.regularization.row_noise import on_device

NO_PAIRS = "no plain LoRA layer is trained here. Use --set training.method=lora, or dropout."
NOT_DENSE = "noise on the base's weights needs dense linear layers, and {} is a {}. Load it without --quantize."


class FlatLora(Regularizer):
    """Noisy copies of the adapted base weights."""

    name = "flat-lora"

    def __init__(self, rho: float = 0.05) -> None:
        self.rho = rho
        self._pairs: list[LoraPair] = []
        self._noisy: dict[int, torch.Tensor] = {}
        self._step = -1
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
        held = sum(pair.base.weight.nbytes for pair in pairs)  # type: ignore[misc]
        return Plan(f"noise of ρ = {self.rho:g} on {len(pairs)} merged weights", extra_bytes=int(held))

    def setup(self, context: Context) -> None:
        """Let the adapted layers take the noisy copy while they train."""
        self._steps = max(1, context.total_steps)
        self._pairs = lora_pairs(context) if self.rho > 0 else []
        for number, pair in enumerate(self._pairs):
            pair.base.__dict__["forward"] = self._forward(number, pair.base)

    def _forward(self, number: int, base: Any) -> Any:
        def forward(x: torch.Tensor) -> torch.Tensor:
            weight = self._noisy.get(number) if base.training else None
            return linear(x, base.weight if weight is None else weight, base.bias)

        return forward

    @torch.no_grad()
    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """Draw the noise of an update at its first pass."""
        if step == self._step and self._noisy:
            return
        self._step = step
        self._size = self.rho * (1 - math.cos(math.pi * step / self._steps)) / 2
        if self._size == 0:
            return
        own = on_device(generator, batch.ids.device)
        for number, pair in enumerate(self._pairs):
            weight: torch.Tensor = pair.base.weight  # type: ignore[assignment]
            merged = torch.addmm(weight, pair.up.to(weight.dtype), pair.down.to(weight.dtype), alpha=pair.scale)
            spread = merged.float().norm(dim=1) * (self._size / weight.shape[1] ** 0.5)
            noise = torch.randn(weight.shape, generator=own, device=weight.device, dtype=torch.float32)
            self._noisy[number] = noise.mul_(spread[:, None]).add_(weight).to(weight.dtype)

    def end_forward(self) -> None:
        """Let go of the noisy copies."""
        self._noisy.clear()

    def teardown(self) -> None:
        """Give the layers their own forward pass back."""
        for pair in self._pairs:
            pair.base.__dict__.pop("forward", None)
        self._pairs = []

    def report(self) -> dict[str, float]:
        """ρ as set and its size at the last update."""
        return {"rho": self.rho, "last_size": self._size}
