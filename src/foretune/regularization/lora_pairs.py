"""The A and B of every LoRA layer, with their masters and scale: for regularizers that look at the product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foretune.regularization.base import Context


@dataclass(frozen=True)
class LoraPair:
    """One adapted linear layer: W = W0 + scale · B A."""

    name: str
    base: nn.Module
    """The frozen layer"""
    down: torch.Tensor
    """A, (rank, in): the copy that the model computes with"""
    up: torch.Tensor
    """B, (out, rank)"""
    scale: float
    numbers: tuple[int, int]
    """Positions of A and B among the context's masters"""


def lora_pairs(context: Context) -> list[LoraPair]:
    """All plain LoRA layers whose A and B are both trained, in the model's order."""
    positions = {id(weight): number for number, weight in enumerate(context.weights)}
    pairs = []
    for name, module in context.model.named_modules():
        downs, ups = (module._modules.get(part) for part in ("lora_A", "lora_B"))
        if not isinstance(downs, nn.ModuleDict) or not isinstance(ups, nn.ModuleDict):
            continue
        layer: Any = module
        for adapter in downs:
            down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            if id(down) in positions and id(up) in positions and adapter not in getattr(layer, "lora_variant", {}):
                numbers = (positions[id(down)], positions[id(up)])
                pairs.append(LoraPair(name, layer.base_layer, down, up, float(layer.scaling[adapter]), numbers))
    return pairs


def is_head(name: str) -> bool:
    """Whether a trainable tensor belongs to a head that no pre-training made."""
    from foretune.models.modules import role_of

    return role_of(name.rpartition(".")[0].removeprefix("base_model.model.")) == "head"
