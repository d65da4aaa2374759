"""P-tuning (Liu et al. 2021, 2103.10385): the prompt is what a small network makes of n learnt vectors.

    P = W₃ ReLU(W₂ ReLU(W₁ E + b₁) + b₂) + b₃

The network is peft's (its ``MLP``); the paper's bidirectional LSTM is not here. The adapter keeps it whole, so that
training can go on from a stored one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.model import define
from foretune.methods.tuners.prompt import PromptConfig, PromptModel, PromptUpdate, prompt_settings


@dataclass
class PTuningConfig(PromptConfig):
    """Settings of p-tuning."""

    hidden: int = field(default=128, metadata={"help": "Inner width of the network."})

    method = "p_tuning"


class EncodedPrompt(PromptUpdate):
    """The vectors and their network."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.prompt = nn.Parameter(torch.empty(config.prompt, outputs))
        widths = (outputs, config.hidden, config.hidden, outputs)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))

    def reset(self) -> None:
        """Normal vectors, layers as torch begins them."""
        nn.init.normal_(self.prompt)
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]

    def vectors(self) -> torch.Tensor:
        """(1, length, width)."""
        first, second, last = self.layers
        made: torch.Tensor = last(torch.relu(second(torch.relu(first(self.prompt)))))
        return made[None]


def build(request: Request) -> PTuningConfig:
    """The peft configuration."""
    return PTuningConfig(**prompt_settings(request, "prompt", "hidden"))


define(PTuningConfig, EncodedPrompt, model=PromptModel)
METHOD = AdapterMethod("p_tuning", build)
