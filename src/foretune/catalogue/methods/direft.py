"""DiReFT (Wu et al. 2024, 2404.03592): LoReFT without the orthogonality and without the difference."""

from __future__ import annotations

from foretune.catalogue.methods.base import Declaration
from foretune.catalogue.methods.bottleneck import EDIT_TRAITS
from foretune.catalogue.methods.loreft import reft_count, reft_space
from foretune.catalogue.space import Choice, Space

DIREFT = Declaration(
    name="direft",
    about="A low-rank edit of each layer's output.",
    space=reft_space("direft"),
    menu=Space((Choice("direft.rank", (4, 8, 16), 4),)),
    traits=EDIT_TRAITS,
    rate_multiplier=10.0,
    short_run_multiplier=1.5,
    source="Wu et al. 2024 (2404.03592), equation 3",
    knob="rank",
    formula="f(2rd+r), f layers",
    count=reft_count,
    family="edit",
    example={"rank": 3},
)
