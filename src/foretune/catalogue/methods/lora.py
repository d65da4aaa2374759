"""LoRA (Hu et al. 2021, 2106.09685): y = W₀x + (α/r)·B A drop(x); A Kaiming uniform, B = 0."""

from __future__ import annotations

from foretune.catalogue.methods.base import Declaration, low_rank_space, per_linear
from foretune.catalogue.space import Choice, Space
from foretune.catalogue.traits import Traits

LORA = Declaration(
    name="lora",
    about="A low-rank update beside each chosen linear layer; the base stays frozen.",
    space=low_rank_space("lora"),
    menu=Space(
        (
            Choice("lora.rank", (8, 16, 32, 64), 16),
            Choice("lora.alpha", (16, 32, 64), 32),
            Choice("lora.dropout", (0.0, 0.05, 0.1), 0.0),
            Choice("lora.targets", ("all-linear", "attention", "mlp"), "all-linear"),
        )
    ),
    traits=Traits(
        identity_at_init=True, merge="exact", disables_to_base=True, packable=True, deterministic=True, servable=True
    ),
    rate_multiplier=10.0,
    short_run_multiplier=1.5,
    source="Hu et al. 2021 (2106.09685); multipliers: Schulman et al. 2025, 'LoRA Without Regret'",
    knob="rank",
    formula="r(i+o)",
    count=per_linear(lambda i, o, r, own: r * (i + o)),
    example={"rank": 4, "alpha": 8, "raised": 3},
)
