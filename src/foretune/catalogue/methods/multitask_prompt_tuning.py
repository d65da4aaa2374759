"""Multitask prompt tuning (Wang et al. 2023, 2303.02861)."""

from __future__ import annotations

from foretune.catalogue.methods.prompts import before_rows, length
from foretune.catalogue.space import Number

_NAME = "multitask_prompt_tuning"

MULTITASK_PROMPT_TUNING = before_rows(
    _NAME,
    "A prompt that all tasks share, scaled for each by a low-rank matrix of its own.",
    "Wang et al. 2023 (2303.02861), without its distillation",
    knob=length(_NAME, "prompt", 20, "Learnt vectors before the row."),
    more=(
        Number(f"{_NAME}.tasks", 1, 1024, 2, whole=True, about="Number of tasks."),
        Number(f"{_NAME}.rank", 1, 64, 1, whole=True, about="Rank of a task's scale."),
        Number(f"{_NAME}.default_task", 0, 1023, 0, whole=True, about="Task where none is given."),
    ),
    formula="n·d + T·r(n+d)",
    count=lambda targets, model, own: (
        int(own["prompt"]) * model.width + int(own["tasks"]) * int(own["rank"]) * (int(own["prompt"]) + model.width)
    ),
    example={"prompt": 3, "rank": 2},
)
