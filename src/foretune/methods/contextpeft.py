"""Context-PEFT (Hadji-Kyriacou & Arandjelović 2023, 2312.08900): y = h + (α/r)·B_c A_c x for a token of context c.

Every context (a segment, a modality, a task) has a low-rank adapter of its own, chosen token by token. Contexts reach
the layers as tasks do (`foretune.methods.tuners.tasks`): from a column of the data, or as the keyword ``tasks`` of a
call, (batch,) or (batch, time). For one context the update is a matrix and merges exactly.
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
class ContextpeftConfig(AdapterConfig):
    """Settings of Context-PEFT."""

    rank: int = field(default=16, metadata={"help": "Rank of each context's adapter."})
    alpha: float = field(default=32.0, metadata={"help": "Updates are scaled by alpha / rank."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input."})
    tasks: int = field(default=2, metadata={"help": "Number of contexts."})
    default_task: int = field(default=0, metadata={"help": "The context where none is given."})
    task_names: list[str] = field(default_factory=list, metadata={"help": "Names of the tasks, by number."})

    method = "contextpeft"


class Contextpeft(TaskUpdate, Update):
    """A pair (A_c, B_c) for each context."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        rank = config.knob_of(name)
        self.scale: float = config.alpha / rank
        self.default_task = config.default_task
        self.a = nn.Parameter(torch.empty(config.tasks, rank, inputs))
        self.b = nn.Parameter(torch.empty(config.tasks, outputs, rank))

    def reset(self) -> None:
        """Every A Kaiming uniform, every B = 0."""
        for a in self.a:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        nn.init.zeros_(self.b)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs) from (..., inputs): every token through the adapter of its context."""
        tasks = self.task_ids(x)
        x = self.dropout(x)
        if isinstance(tasks, int):
            return linear(linear(x, self.a[tasks]), self.b[tasks]) * self.scale
        added = 0 * hidden.to(x.dtype)
        for context in sorted(set(tasks.flatten().tolist())):
            here = (tasks == context)[..., None].to(x.dtype)
            added = added + linear(here * linear(x, self.a[context]), self.b[context])
        return added * self.scale

    def delta(self) -> torch.Tensor:
        """(outputs, inputs) float: the update of the default context."""
        return self.scale * self.b[self.default_task].float() @ self.a[self.default_task].float()


def build(request: Request) -> ContextpeftConfig:
    """The peft configuration."""
    if int(request.own["default_task"]) >= int(request.own["tasks"]):
        raise UsageError(
            "contextpeft.default_task is no context.", remedy="They count from 0 to contextpeft.tasks - 1."
        )
    return ContextpeftConfig(**request.settings("rank", "alpha", "dropout", "tasks", "default_task"))


define(ContextpeftConfig, Contextpeft, model=TaskModel)
METHOD = AdapterMethod("contextpeft", build)
