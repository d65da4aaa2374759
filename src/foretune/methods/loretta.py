"""LoRETTA by representation (Yang et al. 2024, 2402.11417, section 3.2): ΔW = (α/b)·B A with tensor-train factors.

A (b × i) is a train over the modes (i₁, i₂, i₃, b) with i = i₁i₂i₃, and B (o × b) over (b, o₁, o₂, o₃):

    A[s, (j₁ j₂ j₃)] = G₁[1, j₁, :] G₂[:, j₂, :] G₃[:, j₃, :] G₄[:, s, 1]

The modes are the most even three factors of a width. The cores are normal, of a size that gives A the variance of
LoRA's start; the last core of B is zero, so the update is too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from foretune.catalogue.methods.loretta import down_modes, train_shapes, up_modes
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.layer import Update
from foretune.methods.tuners.model import define


@dataclass
class LorettaConfig(AdapterConfig):
    """Settings of LoRETTA."""

    rank: int = field(default=5, metadata={"help": "Rank inside the tensor trains."})
    bottleneck: int = field(default=8, metadata={"help": "Rank of the update."})
    alpha: float = field(default=16.0, metadata={"help": "The update is scaled by alpha / bottleneck."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input."})

    method = "loretta"


def contract(cores: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensor (n₁, …, n_K) of a train of cores (r_{k−1}, n_k, r_k)."""
    whole = cores[0]
    for core in cores[1:]:
        whole = torch.tensordot(whole, core, dims=1)
    return whole.squeeze(0).squeeze(-1)


class LorettaUpdate(Update):
    """LoRA factors as tensor trains."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        rank, self.bottleneck = config.knob_of(name), config.bottleneck
        self.scale: float = config.alpha / self.bottleneck
        down = train_shapes(down_modes(inputs, self.bottleneck), rank)
        up = train_shapes(up_modes(outputs, self.bottleneck), rank)
        self.down = nn.ParameterList([nn.Parameter(torch.empty(shape)) for shape in down])
        self.up = nn.ParameterList([nn.Parameter(torch.empty(shape)) for shape in up])

    def reset(self) -> None:
        """Normal cores with the variance of LoRA's A; B's last core is zero."""
        spread_normal(self.down, 1.0 / (3.0 * self.inputs))  # Kaiming uniform with a = √5 has this variance
        spread_normal(self.up, 1.0 / (3.0 * self.bottleneck))
        nn.init.zeros_(self.up[-1])

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (bottleneck, inputs) and B (outputs, bottleneck)."""
        a = contract(list(self.down)).reshape(self.inputs, self.bottleneck).T
        b = contract(list(self.up)).reshape(self.bottleneck, self.outputs).T
        return a, b

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs)."""
        a, b = self.factors()
        return linear(linear(self.dropout(x), a), b) * self.scale

    def delta(self) -> torch.Tensor:
        """(outputs, inputs) float."""
        a, b = self.factors()
        return self.scale * b.float() @ a.float()


def spread_normal(cores: nn.ParameterList, variance: float) -> None:
    """Cores whose train has entries of that variance: K factors, and a sum over every inner rank."""
    sums = math.prod(core.shape[-1] for core in cores)
    deviation = (variance / sums) ** (0.5 / len(cores))
    for core in cores:
        nn.init.normal_(core, std=deviation)


def build(request: Request) -> LorettaConfig:
    """The peft configuration."""
    return LorettaConfig(**request.settings("rank", "bottleneck", "alpha", "dropout"))


define(LorettaConfig, LorettaUpdate)
METHOD = AdapterMethod("loretta", build)
