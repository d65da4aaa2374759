"""MTL-LoRA (Yang et al. 2024, 2410.09437, equations 4–6): LoRA for several tasks.

For a token of task t

    h = W₀ x + (α/r) Σ_j softmax(w_t / τ)_j · B_j Λ_t A x         A Kaiming uniform, Λ_t = I, B_j = 0, w_t = 0

The factor A and the n up-projections B_j are shared; the r×r matrix Λ_t and the mixture w_t are the task's own. Which
task a token belongs to comes from `foretune.methods.tuners.tasks`. For a fixed task the update is a matrix, so a
merge is exact for one task (``default_task``) and for that task only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from foretune.errors import UsageError
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.layer import Update
from foretune.methods.tuners.model import define
from foretune.methods.tuners.tasks import TaskModel, TaskUpdate


@dataclass
class MtlloraConfig(AdapterConfig):
    """Settings of MTL-LoRA."""

    rank: int = field(default=16, metadata={"help": "Rank of the update."})
    alpha: float = field(default=32.0, metadata={"help": "The update is scaled by alpha / rank."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input."})
    tasks: int = field(default=2, metadata={"help": "Number of tasks."})
    ups: int = field(default=3, metadata={"help": "Number of up-projections."})
    temperature: float = field(default=0.5, metadata={"help": "Temperature of the mixture."})
    default_task: int = field(default=0, metadata={"help": "Task where none is given."})
    task_names: list[str] = field(default_factory=list, metadata={"help": "Names of the tasks, by number."})

    method = "mtllora"


class MtlloraUpdate(TaskUpdate, Update):
    """Shared factors with a task's matrix and mixture between them."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        rank = config.knob_of(name)
        self.scale: float = config.alpha / rank
        self.temperature, self.default_task = config.temperature, config.default_task
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.empty(config.ups, outputs, rank))
        self.inner = nn.Parameter(torch.empty(config.tasks, rank, rank))
        self.mixture = nn.Parameter(torch.empty(config.tasks, config.ups))

    def reset(self) -> None:
        """A Kaiming uniform, Λ = I, B = 0, equal mixtures."""
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        nn.init.zeros_(self.b)
        nn.init.zeros_(self.mixture)
        with torch.no_grad():
            self.inner.copy_(torch.eye(self.inner.shape[-1], dtype=self.inner.dtype).expand_as(self.inner))

    def weights(self) -> torch.Tensor:
        """(tasks, ups) float: softmax(w / τ)."""
        return torch.softmax(self.mixture / self.temperature, dim=-1)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs) from (..., inputs): every token under its task."""
        tasks = self.task_ids(x)
        down = linear(self.dropout(x), self.a)
        if isinstance(tasks, int):
            turned, weights = linear(down, self.inner[tasks]), self.weights()[tasks]
            return linear(turned, torch.einsum("j,jor->or", weights, self.b)) * self.scale
        turned = torch.einsum("...r,...sr->...s", down, self.inner[tasks])
        mixed = torch.einsum("...j,...r->...jr", self.weights()[tasks], turned)
        return torch.einsum("...jr,jor->...o", mixed, self.b) * self.scale

    def delta(self) -> torch.Tensor:
        """(outputs, inputs) float: the update of the default task."""
        up = torch.einsum("j,jor->or", self.weights()[self.default_task], self.b)
        return self.scale * up.float() @ self.inner[self.default_task].float() @ self.a.float()


def build(request: Request) -> MtlloraConfig:
    """The peft configuration."""
    if int(request.own["default_task"]) >= int(request.own["tasks"]):
        raise UsageError("mtllora.default_task is no task.", remedy="Tasks count from 0 to mtllora.tasks - 1.")
    fields = ("rank", "alpha", "dropout", "tasks", "ups", "temperature", "default_task")
    return MtlloraConfig(**request.settings(*fields))


define(MtlloraConfig, MtlloraUpdate, model=TaskModel)
METHOD = AdapterMethod("mtllora", build)
