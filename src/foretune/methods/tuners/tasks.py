"""How the task of a token reaches the layers: one shared place that the forward pass fills and updates read.

A transformers model takes no task ids, so they travel beside it. The tuner keeps a `Tasks` and puts a hook on the model
that takes the keyword ``tasks`` out of a call; `using` sets them for calls that go around the model's own forward
(the training loop calls the backbone, generation checks its keywords). They stay until they are set again, so that a
layer recomputed in the backward pass (gradient checkpointing) sees the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from foretune.methods.tuners.layer import Update
from foretune.methods.tuners.model import AdapterModel

ATTRIBUTE = "foretune_tasks"
KEYWORD = "tasks"


class Tasks:
    """Task ids of the present call: (batch,) or (batch, time) int64, or None for every layer's default."""

    def __init__(self) -> None:
        self.ids: torch.Tensor | None = None


class TaskUpdate:
    """What an update needs to read its tokens' tasks."""

    default_task: int
    context: Tasks | None = None

    def task_ids(self, x: torch.Tensor) -> int | torch.Tensor:
        """The tasks of ``x`` (batch, time, width): one for all, or (batch, 1 or time) int64."""
        ids = None if self.context is None else self.context.ids
        if ids is None:
            return self.default_task
        if ids.ndim == 1:
            ids = ids.reshape(-1, *(1 for _ in x.shape[1:-1]))
        if ids.shape[0] not in (1, x.shape[0]) or (ids.ndim > 1 and ids.shape[1] not in (1, x.shape[1])):
            raise ValueError(f"task ids of shape {tuple(ids.shape)} do not fit an input of shape {tuple(x.shape)}")
        return ids.expand(x.shape[:-1])


class TaskModel(AdapterModel):
    """A tuner whose updates share one `Tasks`."""

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if not hasattr(model, ATTRIBUTE):
            setattr(model, ATTRIBUTE, Tasks())
            self._handle = model.register_forward_pre_hook(_take_tasks, with_kwargs=True)

    def build(self, config: Any, base: nn.Module, name: str) -> Update:
        """The update, connected to the tasks of this model."""
        update: Any = super().build(config, base, name)
        update.context = getattr(self.model, ATTRIBUTE)
        made: Update = update
        return made

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        model: nn.Module = super()._unload_and_optionally_merge(*args, **kwargs)
        self._handle.remove()
        if hasattr(model, ATTRIBUTE):
            delattr(model, ATTRIBUTE)
        return model


def name_tasks(attachment: Any, names: Sequence[str]) -> None:
    """Have an adapter that reads tasks remember what they are called, so that it can be asked for one by name."""
    if hasattr(getattr(attachment, "model", None), ATTRIBUTE):
        attachment.peft_model.active_peft_config.task_names = list(names)


def named_tasks(adapted: Any) -> tuple[str, ...]:
    """The names of a loaded adapter's tasks, by number; empty for one that reads none or whose rows named none."""
    return tuple(getattr(getattr(adapted, "active_peft_config", None), "task_names", ()))


def _take_tasks(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if KEYWORD in kwargs:
        tasks: Tasks = getattr(model, ATTRIBUTE)
        tasks.ids = kwargs.pop(KEYWORD)
    return args, kwargs
