"""LoRA-GA (Wang, Yu & Li 2024, 2407.05000): A and B start along the gradient of the full weight."""

from __future__ import annotations

from dataclasses import replace

from foretune.catalogue.methods.base import ADAPTER_TRAITS
from foretune.catalogue.methods.recipes import lora_recipe
from foretune.catalogue.space import Number

LORAGA = replace(
    lora_recipe(
        "loraga",
        "LoRA that starts along the gradient of the full weights on some training rows.",
        "Wang, Yu & Li 2024 (2407.05000), section 3; a tenth of LoRA's rate by a first trial (docs/log.md)",
        Number("loraga.gamma", 1.0, 1024.0, 16.0, log=True, about="The start's size is √o / gamma of a unit update."),
        traits=ADAPTER_TRAITS,
        rate_multiplier=1.0,
        notes=(
            "the start is taken off by a second, frozen pair instead of changing the base weights",
            "without training rows it starts as LoRA",
        ),
    ),
)
