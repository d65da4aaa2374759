"""DSEE (Chen et al. 2021, 2111.00160, equation 3): ΔW = (α/r)·U V + S, with S sparse on a fixed support.

The support of a layer is the N entries of W₀ that are largest in size, found when the adapter is attached and stored
with it; for quantised weights, whose sizes are not at hand, it is drawn. V Kaiming uniform, U = 0, S = 0. What the
paper does besides (pruning the base) is not done here: the base stays as it is.
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
from foretune.methods.tuners.layer import Update, transposed
from foretune.methods.tuners.model import define
from foretune.seeding import torch_generator


@dataclass
class DseeConfig(AdapterConfig):
    """Settings of DSEE."""

    rank: int = field(default=16, metadata={"help": "Rank of the low-rank part."})
    alpha: float = field(default=32.0, metadata={"help": "The low-rank part is scaled by alpha / rank."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input."})
    entries: int = field(default=64, metadata={"help": "Free entries of each layer's weight."})

    method = "dsee"


class DseeUpdate(Update):
    """A low-rank matrix and single entries."""

    support: torch.Tensor

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        rank = config.knob_of(name)
        self.scale: float = config.alpha / rank
        self.v = nn.Parameter(torch.empty(rank, inputs))
        self.u = nn.Parameter(torch.empty(outputs, rank))
        count = min(config.entries, inputs * outputs)
        self.values = nn.Parameter(torch.empty(count))
        self.register_buffer("support", _support(base, inputs * outputs, count, config.seed, name))

    def reset(self) -> None:
        """V Kaiming uniform, U = 0, S = 0."""
        nn.init.kaiming_uniform_(self.v, a=math.sqrt(5))
        nn.init.zeros_(self.u)
        nn.init.zeros_(self.values)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs): the low-rank part, and every free entry times its input."""
        x = self.dropout(x)
        rows, columns = self.support // self.inputs, self.support % self.inputs
        added = linear(linear(x, self.v), self.u) * self.scale
        return added.index_add(-1, rows, x[..., columns] * self.values)

    def delta(self) -> torch.Tensor:
        """(outputs, inputs) float."""
        dense = self.scale * self.u.float() @ self.v.float()
        return dense.reshape(-1).index_add(0, self.support, self.values.float()).reshape(dense.shape)


def _support(base: nn.Module, size: int, count: int, seed: int, name: str) -> torch.Tensor:
    """(count,) int64: flat places in the weight (outputs, inputs), in rising order."""
    weight: Any = getattr(base, "weight", None)
    if weight is None or not weight.is_floating_point() or weight.numel() != size or weight.is_meta:
        chosen = torch.randperm(size, generator=torch_generator(seed, "init", f"{name}/support"))[:count]
    else:
        plain = weight.detach().T if transposed(base) else weight.detach()
        chosen = plain.abs().reshape(-1).topk(count).indices.cpu()
    return chosen.sort().values


def build(request: Request) -> DseeConfig:
    """The peft configuration."""
    return DseeConfig(**request.settings("rank", "alpha", "dropout", "entries"))


define(DseeConfig, DseeUpdate)
METHOD = AdapterMethod("dsee", build)
