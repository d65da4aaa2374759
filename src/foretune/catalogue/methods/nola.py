"""NOLA (Koohpayegani et al. 2023, 2310.02556): LoRA's factors as mixtures of random bases."""

from __future__ import annotations

from foretune.catalogue.methods.base import (
    ADAPTER_TRAITS,
    Declaration,
    alpha,
    dropout,
    per_linear,
    raised,
    targets,
)
from foretune.catalogue.space import Choice, Number, Space

NOLA = Declaration(
    name="nola",
    about="LoRA whose factors are sums of frozen random matrices: only the coefficients are trained.",
    space=Space(
        (
            Number("nola.bases", 1, 4096, 64, log=True, whole=True, about="Random matrices behind each factor."),
            Number("nola.rank", 1, 256, 4, log=True, whole=True, about="Rank of the update."),
            alpha("nola", 8.0),
            dropout("nola"),
            targets("nola"),
            raised("nola"),
        )
    ),
    menu=Space((Choice("nola.bases", (32, 64, 256), 64), Choice("nola.rank", (4, 8, 16), 4))),
    traits=ADAPTER_TRAITS,
    rate_multiplier=100.0,
    short_run_multiplier=1.5,
    source="Koohpayegani et al. 2023 (2310.02556), equation 2; coefficients need the large rates of VeRA-like methods",
    knob="bases",
    formula="2k",
    count=per_linear(lambda i, o, k, own: 2 * k, knob="bases"),
    example={"bases": 6, "rank": 2, "raised": 3},
)
