"""ProMoT (Wang et al. 2023, 2211.00635): the task's form goes into a prompt first, then the model learns what is left.

Tuning on one task makes a model answer everything in that task's form. ProMoT first trains a prompt alone, which takes
the form, and then the model behind the prompt, which stands still; questions of other kinds are asked without the
prompt. Both stages are parts of one run (``first`` of the updates for the prompt). The model's part is a LoRA here, so
that the base stays what it is; with ``with_prompt: false`` in the adapter's adapter_config.json it answers without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.attachment import PeftAttachment
from foretune.methods.tuners.layer import Update, widths_of
from foretune.methods.tuners.model import define
from foretune.methods.tuners.prompt import PromptConfig, PromptModel, SoftPrompt, prompt_settings


@dataclass
class PromotConfig(PromptConfig):
    """Settings of ProMoT."""

    rank: int = field(default=16, metadata={"help": "Rank of the model's part."})
    alpha: float = field(default=32.0, metadata={"help": "The model's part is scaled by alpha / rank."})
    with_prompt: bool = field(default=True, metadata={"help": "Whether rows have the prompt before them."})

    method = "promot"
    knob = "rank"


class LowRank(Update):
    """The model's part: s·B A, B = 0 at the start."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        rank = config.knob_of(name)
        self.scale: float = config.alpha / rank
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.empty(outputs, rank))

    def reset(self) -> None:
        """A Kaiming uniform, B = 0."""
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        nn.init.zeros_(self.b)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs)."""
        return nn.functional.linear(nn.functional.linear(x, self.a) * self.scale, self.b)

    def delta(self) -> torch.Tensor:
        """(outputs, inputs) float."""
        return self.scale * self.b.float() @ self.a.float()


class SwitchedPrompt(SoftPrompt):
    """A prompt that can be left out."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.shown = bool(config.with_prompt)

    def vectors(self) -> torch.Tensor:
        """(1, length, width); no vector where the prompt is left out."""
        return super().vectors()[:, : None if self.shown else 0]


class PromotModel(PromptModel):
    """The embedding holds the prompt, attention modules see it, linear layers have their part."""

    def build(self, config: Any, base: nn.Module, name: str) -> Update:
        """The update of the module called ``name``."""
        inputs, outputs = widths_of(base)
        return LowRank(base, inputs, outputs, config, name) if inputs else super().build(config, base, name)


def build(request: Request) -> PromotConfig:
    """The peft configuration."""
    settings = prompt_settings(request, "prompt", "rank", "alpha")
    settings["target_modules"] = [*settings["target_modules"], *request.names]
    return PromotConfig(**settings, knob_pattern=request.pattern)


def start(attachment: PeftAttachment, request: Request) -> None:
    """Give each part its stage, and the prompt its own learning rate."""
    first, ratio = float(request.own["first"]), float(request.own["rate_ratio"])
    attachment.window = lambda name: (0.0, first) if name.endswith(".prompt") else (first, 1.0)
    attachment.rate_factor = lambda name: ratio if name.endswith(".prompt") else 1.0


define(PromotConfig, SwitchedPrompt, model=PromotModel)
METHOD = AdapterMethod("promot", build, start)
