"""LoRA-SP, a reconstruction (Wu et al. 2024, 2403.08822): ΔW = (α/r)·B A with a seeded half of A and B frozen.

The paper freezes a random half of the LoRA parameters. Here the half is drawn by rank component: of the r components a
seeded half trains its row of A, the other half trains its column of B. A component whose A is trained has a frozen
random column of B and A = 0; one whose B is trained has a frozen random row of A and B = 0. So the update starts at
zero, every component can learn, and ½r(i+o) parameters are trained. (With two independent masks, a quarter of the
components would train A against a column of B that is frozen at zero, for ever without effect.)

The frozen halves are drawn again from the seed and the layer's name when the adapter is loaded; they are not stored.
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
class LoraspConfig(AdapterConfig):
    """Settings of LoRA-SP."""

    rank: int = field(default=16, metadata={"help": "Rank of the update."})
    alpha: float = field(default=32.0, metadata={"help": "The update is scaled by alpha / rank."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input."})

    method = "lorasp"


class LoraspUpdate(Update):
    """LoRA whose components train either their row of A or their column of B."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.rank, self.seed, self.name = config.knob_of(name), config.seed, name
        self.scale: float = config.alpha / self.rank
        self.a = nn.Parameter(torch.empty(self.rank // 2, inputs))
        self.b = nn.Parameter(torch.empty(outputs, self.rank - self.rank // 2))

    def reset(self) -> None:
        """Both trained halves start at zero."""
        nn.init.zeros_(self.a)
        nn.init.zeros_(self.b)

    def frozen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(rank − rank//2, inputs) rows of A and (outputs, rank//2) columns of B, as drawn; Kaiming uniform."""
        half, like = self.rank // 2, self.b
        rows = drawn(self.seed, f"{self.name}/a", (self.rank - half, self.inputs), 1 / math.sqrt(self.inputs), like)
        columns = drawn(self.seed, f"{self.name}/b", (self.outputs, half), 1 / math.sqrt(max(1, self.rank)), like)
        return rows, columns

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs): the two halves added."""
        rows, columns = self.frozen()
        x = self.dropout(x)
        return (linear(linear(x, self.a), columns) + linear(linear(x, rows), self.b)) * self.scale

    def delta(self) -> torch.Tensor:
        """(outputs, inputs) float."""
        rows, columns = self.frozen()
        return self.scale * (columns.float() @ self.a.float() + self.b.float() @ rows.float())


def build(request: Request) -> LoraspConfig:
    """The peft configuration."""
    return LoraspConfig(**request.settings("rank", "alpha", "dropout"))


define(LoraspConfig, LoraspUpdate)
METHOD = AdapterMethod("lorasp", build)
