"""DePT (Shi & Lipani 2023, 2309.05173, section 2.2): a short soft prompt and a low-rank change of the embeddings.

    [P ; E + (A B)]        P ∈ R^{m×d},  A ∈ R^{s×r},  B ∈ R^{r×d}: row j of A B is added at position j < s

P starts as the embeddings of random tokens, B = 0. P and (A, B) have learning rates of their own.

How the prompt gets before the row: `foretune.methods.tuners.prompt`. The change of the embeddings goes by a token's
position in its row, whatever the layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.attachment import PeftAttachment
from foretune.methods.tuners.model import define
from foretune.methods.tuners.prompt import PromptConfig, PromptModel, SoftPrompt, prompt_settings


@dataclass
class DeptConfig(PromptConfig):
    """Settings of DePT."""

    rank: int = field(default=45, metadata={"help": "Rank of the change of the embeddings."})
    positions: int = field(default=256, metadata={"help": "Positions whose embeddings change."})

    method = "dept"
    knob = "rank"


class Dept(SoftPrompt):
    """The prompt, and what is added to the embeddings."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.a = nn.Parameter(torch.empty(config.positions, config.rank))
        self.b = nn.Parameter(torch.empty(config.rank, outputs))

    def reset(self) -> None:
        """P from the table of embeddings, A Kaiming uniform, B = 0."""
        super().reset()
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        nn.init.zeros_(self.b)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, time, width): the change at the first positions, zero behind them."""
        positions = self.row_positions
        if positions is None:
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        change = nn.functional.embedding(positions.clamp(0, len(self.a) - 1), self.a) @ self.b
        return change * (positions < len(self.a))[..., None].to(change.dtype)


def build(request: Request) -> DeptConfig:
    """The peft configuration."""
    return DeptConfig(**prompt_settings(request, "prompt", "rank", "positions"))


def start(attachment: PeftAttachment, request: Request) -> None:
    """Give the prompt its own learning rate."""
    ratio = float(request.own["rate_ratio"])
    attachment.rate_factor = lambda name: ratio if name.endswith(".prompt") else 1.0


define(DeptConfig, Dept, model=PromptModel)
METHOD = AdapterMethod("dept", build, start)
