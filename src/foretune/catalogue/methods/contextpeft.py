"""Context-PEFT (Hadji-Kyriacou & Arandjelović 2023, 2312.08900): one low-rank adapter for each context of a token."""

from __future__ import annotations

from dataclasses import replace

from foretune.catalogue.methods.base import ADAPTER_TRAITS, Declaration, low_rank_menu, low_rank_space, per_linear
from foretune.catalogue.space import Number

CONTEXTPEFT = Declaration(
    name="contextpeft",
    about="One low-rank adapter for each context (segment or task); every token goes through its own.",
    space=low_rank_space(
        "contextpeft",
        Number("contextpeft.tasks", 1, 256, 2, whole=True, about="Number of contexts: segments or tasks of the data."),
        Number("contextpeft.default_task", 0, 255, 0, whole=True, about="The context where none is given."),
    ),
    menu=low_rank_menu("contextpeft"),
    traits=replace(ADAPTER_TRAITS, merge="per_task"),
    rate_multiplier=10.0,
    short_run_multiplier=1.5,
    source="Hadji-Kyriacou & Arandjelović 2023 (2312.08900), with LoRA as the adapter; multipliers as for LoRA",
    knob="rank",
    formula="contexts·r(i+o)",
    count=per_linear(lambda i, o, r, own: int(own["tasks"]) * r * (i + o)),
    example={"rank": 4, "alpha": 8, "raised": 3, "tasks": 3, "default_task": 1},
    notes=("contexts come from the column data.columns.task",),
)
