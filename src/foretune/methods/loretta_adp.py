"""LoRETTA by adapters (Yang et al. 2024, 2402.11417, section 3.1): h + U φ(D h + c) + b with tensor-train D and U.

Houlsby's places (after attention and after the feed-forward layer), GELU between; the trains are those of
`foretune.methods.loretta`, the last core of U is zero at the start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, linear

from foretune.catalogue.methods.loretta_adp import core_shapes
from foretune.catalogue.methods.sites import sites_of
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.loretta import contract, spread_normal
from foretune.methods.tuners.edit import EditConfig, EditModel, EditUpdate, Tap
from foretune.methods.tuners.model import define


@dataclass
class LorettaAdpConfig(EditConfig):
    """Settings of LoRETTA's adapters."""

    rank: int = field(default=5, metadata={"help": "Rank inside the tensor trains."})
    width: int = field(default=64, metadata={"help": "Inner width."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})

    method = "loretta_adp"


class LorettaAdp(EditUpdate):
    """One adapter."""

    tap: Tap | None = None
    """Where its input is read, when that is not the edited output"""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.width = config.width
        down, up = core_shapes(outputs, config.width, config.knob_of(name))
        self.down = nn.ParameterList([nn.Parameter(torch.empty(shape)) for shape in down])
        self.up = nn.ParameterList([nn.Parameter(torch.empty(shape)) for shape in up])
        self.inner_bias = nn.Parameter(torch.empty(config.width))
        self.bias = nn.Parameter(torch.empty(outputs))

    def reset(self) -> None:
        """Normal cores with the variance of a Kaiming uniform projection; U's last core and the biases are zero."""
        spread_normal(self.down, 1.0 / (3.0 * self.outputs))
        spread_normal(self.up, 1.0 / (3.0 * self.width))
        for tensor in (self.up[-1], self.inner_bias, self.bias):
            nn.init.zeros_(tensor)

    def edit(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, time, width): the adapter's output."""
        source = hidden if self.tap is None else self.tap.take().to(hidden.dtype)
        down = contract(list(self.down)).reshape(self.outputs, self.width).T
        up = contract(list(self.up)).reshape(self.width, self.outputs).T
        return linear(gelu(linear(self.dropout(source), down, self.inner_bias)), up, self.bias)


def build(request: Request) -> LorettaAdpConfig:
    """The peft configuration."""
    own = request.own
    sites = sites_of(request.targets, str(own["sites"]))
    entries = {site.exit: site.entry for site in sites if site.entry}
    return LorettaAdpConfig(
        target_modules=[*entries.values(), *(site.exit for site in sites)],
        entries=entries,
        task_type=request.task_type,
        **{name: own[name] for name in ("rank", "width", "dropout")},
    )


define(LorettaAdpConfig, LorettaAdp, model=EditModel)
METHOD = AdapterMethod("loretta_adp", build)
