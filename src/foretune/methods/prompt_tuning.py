"""Prompt tuning (Lester et al. 2021, 2104.08691): n learnt vectors before every row, begun as embeddings of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.model import define
from foretune.methods.tuners.prompt import PromptConfig, PromptModel, PromptUpdate, prompt_settings


@dataclass
class PromptTuningConfig(PromptConfig):
    """Settings of prompt tuning."""

    method = "prompt_tuning"


class SoftPrompt(PromptUpdate):
    """The vectors."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.prompt = nn.Parameter(torch.empty(config.prompt, outputs))

    def reset(self) -> None:
        """The embeddings of tokens drawn at random."""
        with torch.no_grad():
            self.prompt.copy_(self.embedded(self.some_tokens(len(self.prompt))))

    def vectors(self) -> torch.Tensor:
        """(1, length, width)."""
        return self.prompt[None]


def build(request: Request) -> PromptTuningConfig:
    """The peft configuration."""
    return PromptTuningConfig(**prompt_settings(request, "prompt"))


define(PromptTuningConfig, SoftPrompt, model=PromptModel)
METHOD = AdapterMethod("prompt_tuning", build)
