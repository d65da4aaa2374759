"""Prompt tuning (Lester et al. 2021, 2104.08691): n learnt vectors before every row, begun as embeddings of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.model import define
from foretune.methods.tuners.prompt import PromptConfig, PromptModel, SoftPrompt, prompt_settings


@dataclass
class PromptTuningConfig(PromptConfig):
    """Settings of prompt tuning."""

    method = "prompt_tuning"


def build(request: Request) -> PromptTuningConfig:
    """The peft configuration."""
    return PromptTuningConfig(**prompt_settings(request, "prompt"))


define(PromptTuningConfig, SoftPrompt, model=PromptModel)
METHOD = AdapterMethod("prompt_tuning", build)
