"""MELoRA (Ren et al. 2024, 2402.17263): a block-diagonal update of several small LoRAs."""

from __future__ import annotations

import math

from foretune.catalogue.methods.base import ADAPTER_TRAITS, Declaration, low_rank_menu, low_rank_space, per_linear
from foretune.catalogue.space import Number


def blocks(inputs: int, outputs: int, wanted: int) -> int:
    """How many blocks a layer is cut into: the largest number up to ``wanted`` that divides both widths."""
    common = math.gcd(inputs, outputs)
    return max(n for n in range(1, min(wanted, common) + 1) if common % n == 0)


MELORA = Declaration(
    name="melora",
    about="Small LoRAs side by side on parts of the layer: a higher rank for the same parameters.",
    space=low_rank_space(
        "melora",
        Number("melora.blocks", 1, 64, 4, log=True, whole=True, about="Small LoRAs, where they divide the widths."),
        default_rank=8,
        default_alpha=16.0,
    ),
    menu=low_rank_menu("melora"),
    traits=ADAPTER_TRAITS,
    rate_multiplier=10.0,
    short_run_multiplier=1.5,
    source="Ren et al. 2024 (2402.17263), equations 3 and 4; multipliers as for LoRA",
    knob="rank",
    formula="r(i+o), of rank n·r",
    count=per_linear(lambda i, o, r, own: r * (i + o)),
    example={"rank": 2, "raised": 3},
)
