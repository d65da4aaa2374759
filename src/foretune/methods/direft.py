"""DiReFT (Wu et al. 2024, 2404.03592, equation 3): h + W₂ᵀ(W₁ h + b) on each layer's output.

W₁, W₂ ∈ R^{r×d}; W₂ = 0 and b = 0 at the start, so the edit is zero. Positions as for LoReFT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.loreft import ReftConfig, ReftUpdate, sites
from foretune.methods.tuners.edit import EditModel
from foretune.methods.tuners.model import define


@dataclass
class DireftConfig(ReftConfig):
    """Settings of DiReFT."""

    method = "direft"


class Direft(ReftUpdate):
    """W₂ᵀ(W₁ h + b)."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.target = nn.Parameter(torch.empty_like(self.source))

    def reset(self) -> None:
        """W₁ Kaiming uniform, W₂ = 0, b = 0."""
        nn.init.kaiming_uniform_(self.source, a=math.sqrt(5))
        nn.init.zeros_(self.target)
        nn.init.zeros_(self.bias)

    def edit(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, time, width): the edit."""
        inner = nn.functional.linear(hidden, self.source, self.bias)
        return self.where(self.dropout(inner) @ self.target)


def build(request: Request) -> DireftConfig:
    """The peft configuration."""
    return DireftConfig(**sites(request))


define(DireftConfig, Direft, model=EditModel)
METHOD = AdapterMethod("direft", build)
