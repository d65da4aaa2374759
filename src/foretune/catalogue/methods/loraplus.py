"""LoRA+ (Hayou, Ghosh & Yu 2024, 2402.12354): B learns faster than A."""

from __future__ import annotations

from foretune.catalogue.methods.recipes import lora_recipe
from foretune.catalogue.space import Choice, Number, Space

LORAPLUS = lora_recipe(
    "loraplus",
    "LoRA whose B learns at a multiple of A's learning rate.",
    "Hayou, Ghosh & Yu 2024 (2402.12354), ratio 2 to 16; the rate is A's, so it starts below LoRA's",
    Number("loraplus.ratio", 1.0, 64.0, 8.0, log=True, about="Learning rate of B over that of A."),
    menu=Space((Choice("loraplus.rank", (8, 16, 32, 64), 16), Choice("loraplus.ratio", (2.0, 4.0, 8.0, 16.0), 8.0))),
    rate_multiplier=4.0,
)
