"""MoRA (Jiang et al. 2024, 2405.12130): ΔW x = decompress(M · compress(x)) with a square M ∈ R^{r̂×r̂}, M = 0.

r̂ = ⌊√((i+o)·r) + ½⌋ gives the square as many entries as LoRA of rank r. Inputs and outputs are cut into groups of r̂
(the last one short). Two of the paper's compressions:

    sharing   (type 1, equation 6)   compress adds the groups up; decompress repeats the result over the groups
    rotation  (type 6, equation 9)   every group g of the input is multiplied by M after a rotary rotation by g·θ_j,
                                     θ_j = 10000^(−2j/r̂); the groups' results lie side by side over the outputs, cut
                                     at the end or repeated from the start

Both are linear in x, so the update is a matrix and merges exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foretune.catalogue.methods.mora import square_size
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.layer import Update
from foretune.methods.tuners.model import define

APART, SUMMED = "apart", "summed"
"""Rotated groups are multiplied apart. Adapters that do not say so are of a version that multiplied their sum."""
ROTARY_BASE = 10_000.0
"""Base of the rotation frequencies, as in RoFormer (2104.09864), which the paper follows."""


@dataclass
class MoraConfig(AdapterConfig):
    """Settings of MoRA."""

    rank: int = field(default=16, metadata={"help": "The square has as many entries as LoRA of this rank."})
    kind: str = field(default="rotation", metadata={"help": "sharing (type 1) or rotation (type 6)."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input."})
    groups: str = field(default=SUMMED, metadata={"help": "Whether rotated groups are multiplied apart or summed."})

    method = "mora"


class MoraUpdate(Update):
    """A square matrix on sums of groups, or on every rotated group."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.size = square_size(inputs, outputs, config.knob_of(name))
        self.rotated = config.kind == "rotation"
        self.summed = not self.rotated or config.groups == SUMMED
        if self.rotated and self.size % 2:
            self.turned = self.size - 1  # the last coordinate has no partner and is not turned
        else:
            self.turned = self.size
        self.square = nn.Parameter(torch.empty(self.size, self.size))

    def reset(self) -> None:
        """M = 0."""
        nn.init.zeros_(self.square)

    def _groups(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., groups, size), the last group filled with zeros."""
        padding = -self.inputs % self.size
        return nn.functional.pad(x, (0, padding)).reshape(*x.shape[:-1], -1, self.size)

    def _rotate(self, groups: torch.Tensor) -> torch.Tensor:
        """Rotate the coordinate pairs (2j, 2j+1) of group g by g·θ_j."""
        half = self.turned // 2
        theta = ROTARY_BASE ** (-2 * torch.arange(half, device=groups.device, dtype=torch.float32) / self.size)
        angle = torch.arange(groups.shape[-2], device=groups.device, dtype=torch.float32)[:, None] * theta
        cos, sin = angle.cos().to(groups.dtype), angle.sin().to(groups.dtype)
        even, odd = groups[..., 0 : self.turned : 2], groups[..., 1 : self.turned : 2]
        pairs = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
        return torch.cat((pairs, groups[..., self.turned :]), dim=-1)

    def compress(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., rows for the square, size): one row for sharing, one for each group for rotation."""
        groups = self._groups(x)
        rows = self._rotate(groups) if self.rotated else groups
        return rows.sum(-2, keepdim=True) if self.summed else rows

    def _spread(self, y: torch.Tensor) -> torch.Tensor:
        """(..., rows, size) -> (..., outputs), side by side, repeated where they are too short."""
        y = y.flatten(-2)
        times = -(-self.outputs // y.shape[-1])
        return y.repeat(*(1 for _ in y.shape[:-1]), times)[..., : self.outputs]

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs): compress, multiply, spread."""
        return self._spread(nn.functional.linear(self.compress(self.dropout(x)), self.square))

    def delta(self) -> torch.Tensor:
        """(outputs, inputs): the update on the unit vectors."""
        unit = torch.eye(self.inputs, device=self.square.device)
        return self._spread(self.compress(unit) @ self.square.float().T).T


def build(request: Request) -> MoraConfig:
    """The peft configuration."""
    return MoraConfig(**request.settings("rank", "kind", "dropout"), groups=APART)


define(MoraConfig, MoraUpdate)
METHOD = AdapterMethod("mora", build)
