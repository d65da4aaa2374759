"""NOLA (Koohpayegani et al. 2023, 2310.02556, equation 2): ΔW = (α/r)·(Σ_j β_j B_j)(Σ_j α_j A_j).

A_j (r × i) and B_j (o × r) are frozen and drawn from a seed; the 2k coefficients are trained. Layers of one shape share
their bases, so that memory grows with the number of shapes and not of layers. α_j ~ N(0, 1/k) and β_j = 0 at the start.
The bases are uniform: A_j of LoRA's size, so that A starts as LoRA's does; B_j scaled by 1/√k, so that coefficients of
size one give entries of the same size whatever k is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.frozen import drawn
from foretune.methods.tuners.layer import Update
from foretune.methods.tuners.model import define


@dataclass
class NolaConfig(AdapterConfig):
    """Settings of NOLA."""

    bases: int = field(default=64, metadata={"help": "Random matrices behind each factor."})
    rank: int = field(default=4, metadata={"help": "Rank of the update."})
    alpha: float = field(default=8.0, metadata={"help": "The update is scaled by alpha / rank."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input."})

    method = "nola"
    knob = "bases"


class NolaUpdate(Update):
    """Coefficients of random bases."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.rank, self.seed = config.rank, config.seed
        self.scale: float = config.alpha / config.rank
        count = config.knob_of(name)
        self.for_a = nn.Parameter(torch.empty(count))
        self.for_b = nn.Parameter(torch.empty(count))

    def reset(self) -> None:
        """α_j ~ N(0, 1/k), β_j = 0."""
        nn.init.normal_(self.for_a, std=1 / math.sqrt(len(self.for_a)))
        nn.init.zeros_(self.for_b)

    def bases(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A_j (k, rank, inputs) and B_j (k, outputs, rank)."""
        count, like = len(self.for_a), self.for_a
        down = drawn(self.seed, "nola/a", (count, self.rank, self.inputs), 1 / math.sqrt(self.inputs), like)
        up = drawn(self.seed, "nola/b", (count, self.outputs, self.rank), 1 / math.sqrt(count), like)
        return down, up

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (rank, inputs) and B (outputs, rank)."""
        down, up = self.bases()
        return torch.einsum("k,kri->ri", self.for_a, down), torch.einsum("k,kor->or", self.for_b, up)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs)."""
        a, b = self.factors()
        return linear(linear(self.dropout(x), a), b) * self.scale

    def delta(self) -> torch.Tensor:
        """(outputs, inputs) float."""
        a, b = self.factors()
        return self.scale * b.float() @ a.float()


def build(request: Request) -> NolaConfig:
    """The peft configuration."""
    return NolaConfig(**request.settings("bases", "rank", "alpha", "dropout"))


define(NolaConfig, NolaUpdate)
METHOD = AdapterMethod("nola", build)
