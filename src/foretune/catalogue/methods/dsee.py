"""DSEE (Chen et al. 2021, 2111.00160): a low-rank update and a sparse one on a fixed support."""

from __future__ import annotations

from foretune.catalogue.methods.base import ADAPTER_TRAITS, Declaration, low_rank_menu, low_rank_space, per_linear
from foretune.catalogue.space import Number

DSEE = Declaration(
    name="dsee",
    about="LoRA and a few free entries of the weight, the largest ones.",
    space=low_rank_space(
        "dsee",
        Number("dsee.entries", 1, 1_000_000, 64, log=True, whole=True, about="Free entries of each layer's weight."),
    ),
    menu=low_rank_menu("dsee"),
    traits=ADAPTER_TRAITS,
    rate_multiplier=10.0,
    short_run_multiplier=1.5,
    source="Chen et al. 2021 (2111.00160), equation 3, with its 64 entries; multipliers as for LoRA",
    knob="rank",
    formula="r(i+o) + N",
    count=per_linear(lambda i, o, r, own: r * (i + o) + min(int(own["entries"]), i * o)),
    example={"rank": 3, "entries": 20, "raised": 3},
)
