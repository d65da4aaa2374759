"""LoRA-FA (Zhang et al. 2023, 2308.03303): A stays as it was drawn, only B is trained."""

from __future__ import annotations

from foretune.catalogue.methods.base import per_linear
from foretune.catalogue.methods.recipes import lora_recipe
from foretune.catalogue.space import Choice

LORAFA = lora_recipe(
    "lorafa",
    "LoRA with a frozen A: half the parameters, and inputs need not be kept for A's gradient.",
    "Zhang et al. 2023 (2308.03303) and peft's LoRA-FA optimiser; multipliers as for LoRA",
    Choice("lorafa.corrected", (True, False), True, about="Gradient of B turned towards full tuning's, by (A Aᵀ)⁻¹."),
    formula="r·o",
    count=per_linear(lambda i, o, r, own: r * o),
)
