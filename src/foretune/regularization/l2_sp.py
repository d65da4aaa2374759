"""L2-SP (Li et al. 2018, 1802.01483): a pull towards the pre-trained weights, decoupled from the optimiser.

w ← w − lr · λ (w − w0) after the optimiser's step, as decoupled weight decay pulls towards zero (Loshchilov and Hutter
2019): Adam does not rescale it. An adapter starts as the base, so w0 is where it began. LoRA's product counts, not its
factors: the penalty ½‖s B A‖²_F = ½ s² tr((BᵀB)(AAᵀ)) has the gradients s² BᵀB A and s² B AAᵀ, in rank × rank products.
A fresh head is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foretune.regularization.base import Context, Plan, Regularizer
from foretune.regularization.lora_pairs import LoraPair, is_head, lora_pairs


class L2Sp(Regularizer):
    """The pull on every trained tensor but a head's."""

    name = "l2-sp"

    def __init__(self, weight: float = 0.01) -> None:
        self.weight = weight
        self._pairs: list[LoraPair] = []
        self._origins: dict[int, torch.Tensor] = {}
        self._distance = 0.0

    def check(self, context: Context) -> Plan:
        """What is pulled, and the memory that origins take."""
        pairs = lora_pairs(context)
        paired = {number for pair in pairs for number in pair.numbers}
        alone = [m for n, m in enumerate(context.masters) if n not in paired and not is_head(context.names[n])]
        held = sum(master.numel() * 4 for master in alone)
        return Plan(f"a pull of {self.weight:g} on {len(pairs)} products and {len(alone)} tensors", extra_bytes=held)

    def setup(self, context: Context) -> None:
        """Remember where the weights begin."""
        if self.weight == 0:
            return
        self._pairs = lora_pairs(context)
        paired = {number for pair in self._pairs for number in pair.numbers}
        self._origins = {
            number: master.detach().clone()
            for number, master in enumerate(context.masters)
            if number not in paired and not is_head(context.names[number])
        }

    @torch.no_grad()
    def post_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Pull the masters."""
        strength = learning_rate * self.weight
        distance = 0.0
        for number, origin in self._origins.items():
            gap = params[number] - origin
            distance += float(gap.pow(2).sum())
            params[number].sub_(gap, alpha=strength)
        for pair in self._pairs:
            down, up = (params[number] for number in pair.numbers)
            for_up, for_down = up.T @ up, down @ down.T
            square = pair.scale**2
            distance += square * float((for_up * for_down).sum())
            pulled = down - strength * square * (for_up @ down)
            up.sub_(up @ for_down, alpha=strength * square)
            down.copy_(pulled)
        self._distance = distance**0.5

    def report(self) -> dict[str, float]:
        """The strength and how far the weights are from where they began."""
        return {"weight": self.weight, "distance": self._distance}
