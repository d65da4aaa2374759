"""L2-SP (Li et al. 2018, 1802.01483): a pull towards the pre-trained weights, decoupled from the optimiser.

w ← w − lr · λ (w − w0) after the optimiser's step, as decoupled weight decay pulls towards zero (Loshchilov and Hutter
2019): Adam does not rescale it. An adapter starts as the base, so w0 is where it began. Of LoRA the product counts, not
the factors: the penalty ½‖s (B A − B0 A0)‖²_F, with B0 A0 the product at the start (zero, or what PiSSA and OLoRA have
taken out of the base), has the gradients s² (B AAᵀ − B0 A0Aᵀ) and s² (BᵀB A − BᵀB0 A0): only products with the rank on
one side. A fresh head is left alone, and so are the switches of a learnt prefix (`prune_rewind`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foretune.regularization.base import Context, Plan, Regularizer
from foretune.regularization.lora_pairs import LoraPair, is_head, lora_pairs
from foretune.regularization.prune_rewind import is_switch


class L2Sp(Regularizer):
    """The pull on every trained tensor but a head's."""

    name = "l2-sp"

    def __init__(self, weight: float = 0.01) -> None:
        self.weight = weight
        self._pairs: list[LoraPair] = []
        self._paired: set[int] = set()
        self._origins: dict[int, torch.Tensor] = {}
        self._distance = 0.0

    def check(self, context: Context) -> Plan:
        """What is pulled, and the memory that origins take."""
        pairs = lora_pairs(context)
        paired = {number for pair in pairs for number in pair.numbers}
        alone = {n for n in range(len(context.masters)) if n not in paired and _is_pulled(context.names[n])}
        held = sum(4 * context.masters[n].numel() for n in paired | alone)
        what = f"a pull of {self.weight:g} on {len(pairs)} products and {len(alone)} tensors"
        return Plan(what, extra_bytes=held, shares_head=True)

    def setup(self, context: Context) -> None:
        """Remember where the weights begin."""
        if self.weight == 0:
            return
        self._pairs = lora_pairs(context)
        self._paired = {number for pair in self._pairs for number in pair.numbers}
        self._origins = {
            number: master.detach().clone()
            for number, master in enumerate(context.masters)
            if number in self._paired or _is_pulled(context.names[number])
        }

    @torch.no_grad()
    def post_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Pull the masters."""
        strength = learning_rate * self.weight
        distance = 0.0
        for number, origin in self._origins.items():
            if number not in self._paired:
                gap = params[number] - origin
                distance += float(gap.pow(2).sum())
                params[number].sub_(gap, alpha=strength)
        for pair in self._pairs:
            (down, up), (down0, up0) = ([side[n] for n in pair.numbers] for side in (params, self._origins))
            square = pair.scale**2
            for_up = up @ (down @ down.T) - up0 @ (down0 @ down.T)
            for_down = (up.T @ up) @ down - (up.T @ up0) @ down0
            along_start = (up.T @ up0) * (down @ down0.T) - (up0.T @ up0) * (down0 @ down0.T)
            distance += square * max(0.0, float((for_up * up).sum() - along_start.sum()))  # ‖G‖² = ⟨G, BA⟩ − ⟨G, B0A0⟩
            up.sub_(for_up, alpha=strength * square)
            down.sub_(for_down, alpha=strength * square)
        self._distance = distance**0.5

    def report(self) -> dict[str, float]:
        """The strength and how far the weights are from where they began."""
        return {"weight": self.weight, "distance": self._distance}


def _is_pulled(name: str) -> bool:
    return not is_head(name) and not is_switch(name)
