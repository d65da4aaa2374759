"""Multitask prompt tuning (Wang et al. 2023, 2303.02861): a shared prompt, scaled for each task by a low-rank matrix.

    P_t = P ⊙ (U_t V_t)        U_t ∈ R^{n×r}, V_t ∈ R^{r×d}; rows of a column `task` each get the prompt of theirs

As in peft, U and V start small (normal, 0.02). The paper's distillation from prompts of single tasks is not here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foretune.errors import UsageError
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.layer import Update
from foretune.methods.tuners.model import define
from foretune.methods.tuners.prompt import PromptConfig, PromptModel, SoftPrompt, prompt_settings
from foretune.methods.tuners.tasks import ATTRIBUTE, TaskModel, TaskUpdate

START = 0.02


@dataclass
class MultitaskPromptTuningConfig(PromptConfig):
    """Settings of multitask prompt tuning."""

    tasks: int = field(default=2, metadata={"help": "Number of tasks."})
    rank: int = field(default=1, metadata={"help": "Rank of a task's scale."})
    default_task: int = field(default=0, metadata={"help": "Task where none is given."})
    task_names: list[str] = field(default_factory=list, metadata={"help": "Names of the tasks, by number."})

    method = "multitask_prompt_tuning"


class TaskPrompt(TaskUpdate, SoftPrompt):
    """The shared prompt and the tasks' scales."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.default_task = config.default_task
        self.columns = nn.Parameter(torch.empty(config.tasks, config.prompt, config.rank))
        self.rows = nn.Parameter(torch.empty(config.tasks, config.rank, outputs))

    def reset(self) -> None:
        """The prompt from the table of embeddings, small scales."""
        super().reset()
        nn.init.normal_(self.columns, std=START)
        nn.init.normal_(self.rows, std=START)

    def vectors(self) -> torch.Tensor:
        """(1 or batch, length, width): the prompt of every row's task."""
        ids = None if self.context is None else self.context.ids
        tasks = torch.tensor([self.default_task]) if ids is None else ids.reshape(len(ids), -1)[:, 0]
        tasks = tasks.to(self.prompt.device)
        return self.prompt * (self.columns[tasks] @ self.rows[tasks])


class MultitaskPromptModel(PromptModel, TaskModel):
    """The prompt reads the tasks of the call."""

    def build(self, config: Any, base: nn.Module, name: str) -> Update:
        """The update of the module called ``name``, connected to the tasks of this model."""
        update = PromptModel.build(self, config, base, name)
        if isinstance(update, TaskPrompt):
            update.context = getattr(self.model, ATTRIBUTE)
        return update


def build(request: Request) -> MultitaskPromptTuningConfig:
    """The peft configuration."""
    if int(request.own["default_task"]) >= int(request.own["tasks"]):
        raise UsageError("multitask_prompt_tuning.default_task is no task.", remedy="Tasks count from 0.")
    return MultitaskPromptTuningConfig(**prompt_settings(request, "prompt", "tasks", "rank", "default_task"))


define(MultitaskPromptTuningConfig, TaskPrompt, model=MultitaskPromptModel)
METHOD = AdapterMethod("multitask_prompt_tuning", build)
