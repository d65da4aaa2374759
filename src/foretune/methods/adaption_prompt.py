"""Adaption prompts (LLaMA-Adapter, Zhang et al. 2023, 2303.16199): every attention looks at a prompt of its own, apart.

    y = W_o [ softmax(q Kᵀ/√d) V + g · softmax(q K_Pᵀ/√d) V_P ],    K_P = W_k P, V_P = W_v P, g = 0 at the start

K_P has no position, as in the paper and in peft. Here q is the query that the model's own attention uses, and the gated
part joins before the output projection; peft puts it behind, without W_o. Decoders whose attention has ``k_proj`` and
``v_proj``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foretune.catalogue.methods.sites import attentions_of
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.layer import Update
from foretune.methods.tuners.model import define
from foretune.methods.tuners.prefix import ApartPrefix, PrefixModel

START = 0.02


@dataclass
class AdaptionPromptConfig(AdapterConfig):
    """Settings of adaption prompts."""

    prompt: int = field(default=10, metadata={"help": "Learnt vectors of each attention."})

    method = "adaption_prompt"
    knob = "prompt"


class AdaptionPrompt(ApartPrefix):
    """The prompt P of one attention and its gate g."""

    def __init__(self, base: nn.Module, length: int) -> None:
        super().__init__(base)
        attention: Any = base
        self.__dict__["projections"] = (attention.k_proj, attention.v_proj)
        width = int(attention.config.hidden_size)
        self.prompt = nn.Parameter(torch.empty(length, width))
        self.gate = nn.Parameter(torch.empty(1))
        self.head_width = int(attention.head_dim)

    def reset(self) -> None:
        """Small normal vectors, a shut gate."""
        nn.init.normal_(self.prompt, std=START)
        nn.init.zeros_(self.gate)

    def opening(self) -> torch.Tensor:
        """(1,): g."""
        return self.gate

    def seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the prompt (key heads, length, width)."""
        keys, values = (project(self.prompt) for project in self.__dict__["projections"])
        return _heads(keys, self.head_width), _heads(values, self.head_width)


def _heads(projected: torch.Tensor, width: int) -> torch.Tensor:
    return projected.view(len(projected), -1, width).transpose(0, 1)


class AdaptionPromptModel(PrefixModel):
    """Every targeted attention module gets a prompt."""

    def build(self, config: Any, base: nn.Module, name: str) -> Update:
        """The prompt of the attention module called ``name``."""
        if not (hasattr(base, "k_proj") and hasattr(base, "v_proj")):
            raise TypeError(f"adaption prompts need an attention with k_proj and v_proj; {name} has none")
        return AdaptionPrompt(base, config.knob_of(name))


def build(request: Request) -> AdaptionPromptConfig:
    """The peft configuration."""
    names = attentions_of(request.targets)
    return AdaptionPromptConfig(target_modules=names, prompt=request.own["prompt"], task_type=request.task_type)


define(AdaptionPromptConfig, AdaptionPrompt, model=AdaptionPromptModel)
METHOD = AdapterMethod("adaption_prompt", build)
