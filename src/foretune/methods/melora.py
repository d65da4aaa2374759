"""MELoRA (Ren et al. 2024, 2402.17263, equations 3–4): ΔW = diag(B₁A₁, …, B_nA_n), scaled by α/r.

Inputs and outputs are cut into n equal parts; part k of the input gives part k of the output through a LoRA of rank r.
The whole has rank n·r for the parameters of rank r. A_k Kaiming uniform, B_k = 0. Where n does not divide both widths
of a layer, the largest smaller number that does is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foretune.catalogue.methods.melora import blocks
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.layer import Update
from foretune.methods.tuners.model import define


@dataclass
class MeloraConfig(AdapterConfig):
    """Settings of MELoRA."""

    rank: int = field(default=8, metadata={"help": "Rank of each small LoRA."})
    alpha: float = field(default=16.0, metadata={"help": "The update is scaled by alpha / rank."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input."})
    blocks: int = field(default=4, metadata={"help": "Number of small LoRAs, where they divide the widths."})

    method = "melora"


class MeloraUpdate(Update):
    """Small LoRAs on equal parts of the layer."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        rank, self.blocks = config.knob_of(name), blocks(inputs, outputs, config.blocks)
        self.scale: float = config.alpha / rank
        self.a = nn.Parameter(torch.empty(self.blocks, rank, inputs // self.blocks))
        self.b = nn.Parameter(torch.empty(self.blocks, outputs // self.blocks, rank))

    def reset(self) -> None:
        """A Kaiming uniform (over each part's width), B = 0."""
        bound = math.sqrt(1.0 / self.a.shape[-1])  # Kaiming uniform with a = √5: 1/√(fan in)
        nn.init.uniform_(self.a, -bound, bound)
        nn.init.zeros_(self.b)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs): every part through its own LoRA."""
        parts = self.dropout(x).reshape(*x.shape[:-1], self.blocks, -1)
        inner = torch.einsum("...ki,kri->...kr", parts, self.a)
        return torch.einsum("...kr,kor->...ko", inner, self.b).flatten(-2) * self.scale

    def delta(self) -> torch.Tensor:
        """(outputs, inputs) float: the block-diagonal matrix."""
        products = torch.bmm(self.b.float(), self.a.float())
        whole: torch.Tensor = torch.block_diag(*products)  # type: ignore[no-untyped-call]
        return self.scale * whole


def build(request: Request) -> MeloraConfig:
    """The peft configuration."""
    return MeloraConfig(**request.settings("rank", "alpha", "dropout", "blocks"))


define(MeloraConfig, MeloraUpdate)
METHOD = AdapterMethod("melora", build)
