"""LoRA-SP (Wu et al. 2024, 2403.08822): a drawn half of LoRA's parameters is frozen; a reconstruction."""

from __future__ import annotations

from foretune.catalogue.methods.base import ADAPTER_TRAITS, Declaration, low_rank_menu, low_rank_space, per_linear

LORASP = Declaration(
    name="lorasp",
    about="LoRA with a drawn half of its parameters frozen: half the gradients and optimiser state.",
    space=low_rank_space("lorasp"),
    menu=low_rank_menu("lorasp"),
    traits=ADAPTER_TRAITS,
    rate_multiplier=10.0,
    short_run_multiplier=1.5,
    source="Wu et al. 2024 (2403.08822); masks by row and column are our reconstruction; multipliers as for LoRA",
    knob="rank",
    formula="½r(i+o)",
    count=per_linear(lambda i, o, r, own: (r // 2) * i + (r - r // 2) * o),
    evidence="reconstruction",
    example={"rank": 4, "raised": 3},
    notes=("rows of A are trained where columns of B are frozen, so that no component is dead",),
)
