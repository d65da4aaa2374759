"""Bottleneck adapters: y = h + s · W_up φ(W_down LN(x)), with W_up = 0 at the start.

x is the sub-layer's output h itself (after_attention, after_ffn, after_layer) or what the sub-layer reads
(parallel_attention, parallel_ffn); LN is the adapter's own layer norm, where the design has one. Designs: Bapna &
Firat 2019 (after each layer, as in Üstün & Cooper Stickland 2022), Houlsby et al. 2019, Pfeiffer et al. 2021, the
parallel adapter of He et al. 2022 (2110.04366, table 1), PeterRec's parallel insertion (Yuan et al. 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foretune.catalogue.methods.bottleneck import DESIGNS, has_norm, sites_word
from foretune.catalogue.methods.sites import sites_of
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.edit import ACTIVATIONS, EditConfig, EditModel, EditUpdate, Tap
from foretune.methods.tuners.model import define


@dataclass
class BottleneckConfig(EditConfig):
    """Settings of bottleneck adapters."""

    width: int = field(default=64, metadata={"help": "Inner width."})
    norm: bool = field(default=True, metadata={"help": "A layer norm in front of each adapter."})
    activation: str = field(default="relu", metadata={"help": "relu, gelu, silu or none."})
    scale: float = field(default=1.0, metadata={"help": "The adapter's output is multiplied by this."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})

    method = "bottleneck"
    knob = "width"


class Bottleneck(EditUpdate):
    """One adapter."""

    tap: Tap | None = None
    """Where its input is read, when that is not the edited output"""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        width = config.knob_of(name)
        self.norm = nn.LayerNorm(outputs) if config.norm else None
        self.down = nn.Linear(outputs, width)
        self.up = nn.Linear(width, outputs)
        self.activation = ACTIVATIONS[config.activation]
        self.scale = config.scale

    def reset(self) -> None:
        """W_down Kaiming uniform, everything else 0: the adapter adds nothing yet."""
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)
        if self.norm is not None:
            self.norm.reset_parameters()

    def edit(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, time, width): the adapter's output."""
        source = hidden if self.tap is None else self.tap.take().to(hidden.dtype)
        inner = source if self.norm is None else self.norm(source)
        output: torch.Tensor = self.up(self.activation(self.down(self.dropout(inner))))
        return output if self.scale == 1.0 else output * self.scale


def build(request: Request) -> BottleneckConfig:
    """The peft configuration."""
    own = request.own
    sites = sites_of(request.targets, sites_word(own))
    activation = DESIGNS[str(own["design"])].activation if own["activation"] == "design" else str(own["activation"])
    entries = {site.exit: site.entry for site in sites if site.entry}
    return BottleneckConfig(
        target_modules=[*entries.values(), *(site.exit for site in sites)],
        entries=entries,
        task_type=request.task_type,
        norm=has_norm(own),
        activation=activation,
        **{name: own[name] for name in ("width", "scale", "dropout")},
    )


define(BottleneckConfig, Bottleneck, model=EditModel)
METHOD = AdapterMethod("bottleneck", build)
