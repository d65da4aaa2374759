"""AdaLink (Wang et al. 2023, 2310.12100): e + W_up φ(W_down e) on the input embeddings, W_up = 0 at the start.

The paper's default is linear (φ the identity). The embedding table stays as it is, so a tied output layer is the
base's; encoder and decoder of a sequence-to-sequence model have an adapter each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.edit import ACTIVATIONS, EditConfig, EditModel, EditUpdate
from foretune.methods.tuners.model import define


@dataclass
class AdalinkConfig(EditConfig):
    """Settings of AdaLink."""

    width: int = field(default=64, metadata={"help": "Inner width."})
    activation: str = field(default="none", metadata={"help": "none, relu, gelu or silu."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the embeddings that are read."})

    method = "adalink"
    knob = "width"


class Adalink(EditUpdate):
    """W_up φ(W_down e)."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.down = nn.Parameter(torch.empty(config.width, outputs))
        self.up = nn.Parameter(torch.empty(outputs, config.width))
        self.activation = ACTIVATIONS[config.activation]

    def reset(self) -> None:
        """W_down Kaiming uniform, W_up = 0."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        nn.init.zeros_(self.up)

    def edit(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, time, width): what is added to the embeddings."""
        inner = self.activation(nn.functional.linear(self.dropout(hidden), self.down))
        return nn.functional.linear(inner, self.up)


def token_embeddings(model: Any) -> list[str]:
    """Names of the embedding modules that a model calls on its token ids: one, or one for each side."""
    if model.config.is_encoder_decoder:
        sides = (model.get_encoder(), model.get_decoder())
        called = [side.get_input_embeddings() for side in sides]
    else:
        called = [model.get_input_embeddings()]
    return [name for name, module in model.named_modules() if any(module is table for table in called)]


def build(request: Request) -> AdalinkConfig:
    """The peft configuration."""
    own = {name: request.own[name] for name in ("width", "activation", "dropout")}
    return AdalinkConfig(target_modules=token_embeddings(request.model), task_type=request.task_type, **own)


define(AdalinkConfig, Adalink, model=EditModel)
METHOD = AdapterMethod("adalink", build)
