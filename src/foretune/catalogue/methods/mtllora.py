"""MTL-LoRA (Yang et al. 2024, 2410.09437): one A, a task's own r×r matrix, and a task's own mix of several B."""

from __future__ import annotations

from dataclasses import replace

from foretune.catalogue.methods.base import ADAPTER_TRAITS, Declaration, low_rank_menu, low_rank_space, per_linear
from foretune.catalogue.space import Number

MTLLORA = Declaration(
    name="mtllora",
    about="LoRA for several tasks at once: shared factors, a small matrix and a mixture for each task.",
    space=low_rank_space(
        "mtllora",
        Number("mtllora.tasks", 1, 1024, 2, whole=True, about="Number of tasks."),
        Number("mtllora.ups", 1, 64, 3, whole=True, about="Number of up-projections that are mixed."),
        Number("mtllora.temperature", 0.01, 100, 0.5, log=True, about="Temperature of the mixture."),
        Number("mtllora.default_task", 0, 1023, 0, whole=True, about="Task where none is given, and task of a merge."),
    ),
    menu=low_rank_menu("mtllora"),
    traits=replace(ADAPTER_TRAITS, merge="per_task"),
    rate_multiplier=10.0,
    short_run_multiplier=1.5,
    source="Yang et al. 2024 (2410.09437), equations 4 to 6; multipliers as for LoRA",
    knob="rank",
    formula="r·i + n·r·o + T·r² + T·n",
    count=per_linear(
        lambda i, o, r, own: (
            r * i + int(own["ups"]) * r * o + int(own["tasks"]) * r * r + int(own["tasks"]) * int(own["ups"])
        )
    ),
    example={"rank": 4, "raised": 3},
)
