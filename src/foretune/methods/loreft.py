"""LoReFT (Wu et al. 2024, 2404.03592, equation 2): h + Rᵀ(W h + b − R h) on each layer's output.

R ∈ R^{r×d} has orthonormal rows, W ∈ R^{r×d}, b ∈ R^r. R is kept as a free matrix and made orthonormal by a QR
decomposition in float32 in each pass, with the diagonal of the triangular factor positive, which makes it unique.
At the start W = R and b = 0, so the edit is exactly zero; the released code draws W at random.

``positions``: all, or the first k of each row. The paper also edits the last positions of the prompt, which while
training differ from row to row; that is not offered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foretune.catalogue.methods.sites import sites_of
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.edit import EditConfig, EditModel, EditUpdate
from foretune.methods.tuners.model import define


@dataclass
class ReftConfig(EditConfig):
    """Settings of LoReFT and DiReFT."""

    rank: int = field(default=4, metadata={"help": "Rank of the subspace."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on what is edited in."})
    positions: str = field(default="all", metadata={"help": "all, or first:k."})


@dataclass
class LoreftConfig(ReftConfig):
    """Settings of LoReFT."""

    method = "loreft"


class ReftUpdate(EditUpdate):
    """What LoReFT and DiReFT share: the tensors' shapes and the positions."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        rank = config.knob_of(name)
        self.source = nn.Parameter(torch.empty(rank, outputs))
        self.bias = nn.Parameter(torch.empty(rank))
        self.first = 0 if config.positions == "all" else int(config.positions.partition(":")[2])

    def where(self, edit: torch.Tensor) -> torch.Tensor:
        """The edit (batch, time, width), zero at positions that are left alone."""
        if self.first == 0 or self.positions is None:
            return edit
        return edit * (self.positions.of(edit) < self.first)[..., None].to(edit.dtype)


class Loreft(ReftUpdate):
    """Rᵀ(W h + b − R h)."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.rotate = nn.Parameter(torch.empty_like(self.source))

    def reset(self) -> None:
        """R a random rotation's rows, W = R, b = 0."""
        nn.init.orthogonal_(self.rotate)
        with torch.no_grad():
            self.source.copy_(self.rotation())
        nn.init.zeros_(self.bias)

    def rotation(self) -> torch.Tensor:
        """(rank, width) float32 with orthonormal rows."""
        columns, triangle = torch.linalg.qr(self.rotate.float().T)
        rows: torch.Tensor = (columns * torch.sign(torch.diagonal(triangle))).T
        return rows

    def edit(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, time, width): the edit."""
        rotation = self.rotation().to(hidden.dtype)
        inner = nn.functional.linear(hidden, self.source - rotation, self.bias)
        return self.where(self.dropout(inner) @ rotation)


def sites(request: Request) -> dict[str, Any]:
    """The fields of a `ReftConfig`."""
    names = [site.exit for site in sites_of(request.targets, "after_layer")]
    own = {name: request.own[name] for name in ("rank", "dropout", "positions")}
    return {"target_modules": names, "task_type": request.task_type, **own}


def build(request: Request) -> LoreftConfig:
    """The peft configuration."""
    return LoreftConfig(**sites(request))


define(LoreftConfig, Loreft, model=EditModel)
METHOD = AdapterMethod("loreft", build)
