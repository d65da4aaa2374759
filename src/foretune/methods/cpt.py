"""CPT (Blau et al. 2024, 2410.17222): training rows before every row, whose embeddings may move a little.

    P_i = E[c_i] + δ_i · min(1, ε_i / ‖δ_i‖),    ε_i = ε √(d / 2048),    δ = 0 at the start

c are the first n tokens of calibration rows, answers included; those of answers do not move. Without rows c is drawn at
random. Left out of the paper: its loss on the answers inside the context, with weights that decay, and an ε of its own
for the template's tokens, which are not told apart from the rest here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.model import define
from foretune.methods.tuners.prompt import PromptConfig, PromptModel, PromptUpdate, prompt_settings

WIDTH_OF_EPSILON = 2048
"""The width that ε is given for"""
UNTRAINED = -100
"""The label of tokens that are no answer"""


@dataclass
class CptConfig(PromptConfig):
    """Settings of CPT."""

    epsilon: float = field(default=0.1, metadata={"help": "Longest move of an embedding, at width 2048."})
    tokens: list[int] = field(default_factory=list, metadata={"help": "The context; drawn at random when empty."})
    still: list[int] = field(default_factory=list, metadata={"help": "Places in the context that do not move."})

    method = "cpt"


class ContextPrompt(PromptUpdate):
    """The moves δ; the context's tokens are in the configuration."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.moved = nn.Parameter(torch.empty(config.prompt, outputs))
        self.longest = config.epsilon * (outputs / WIDTH_OF_EPSILON) ** 0.5
        if not config.tokens:
            config.tokens = self.some_tokens(config.prompt).tolist()
        self.tokens = torch.tensor(config.tokens)
        still = torch.ones(config.prompt, 1)
        still[config.still] = 0
        self.moves = still

    def reset(self) -> None:
        """δ = 0."""
        nn.init.zeros_(self.moved)

    def vectors(self) -> torch.Tensor:
        """(1, length, width)."""
        norms = torch.linalg.vector_norm(self.moved.float(), dim=-1, keepdim=True).clamp_min(self.longest)
        factor = (self.longest / norms * self.moves.to(norms.device)).to(self.moved.dtype)
        moved: torch.Tensor = self.embedded(self.tokens) + factor * self.moved
        return moved[None]


def context_of(rows: Iterable[Mapping[str, Any]], length: int) -> tuple[list[int], list[int]]:
    """(the first ``length`` tokens of rows one after the other, the places among them that are answers)."""
    tokens: list[int] = []
    answers: list[int] = []
    for batch in rows:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        labels = batch.get("labels", torch.full_like(batch["input_ids"], UNTRAINED))
        for token, label in zip(batch["input_ids"][mask].tolist(), labels[mask].tolist(), strict=True):
            if label != UNTRAINED:
                answers.append(len(tokens))
            tokens.append(token)
        if len(tokens) >= length:
            break
    return tokens[:length], [place for place in answers if place < length]


def build(request: Request) -> CptConfig:
    """The peft configuration, with the context from the calibration rows where there are some."""
    settings = prompt_settings(request, "prompt", "epsilon")
    length = int(settings["prompt"])

    def look(calibration: Iterable[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        tokens, still = context_of(calibration, length)
        if len(tokens) < length:
            tokens, still = [], []
        return {"tokens": torch.tensor(tokens, dtype=torch.long), "still": torch.tensor(still, dtype=torch.long)}

    config = CptConfig(**settings)
    if (found := request.from_rows(look)) is not None:
        config.tokens, config.still = found["tokens"].tolist(), found["still"].tolist()
    return config


define(CptConfig, ContextPrompt, model=PromptModel)
METHOD = AdapterMethod("cpt", build)
