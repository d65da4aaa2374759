"""LoReFT (Wu et al. 2024, 2404.03592): each layer's output is edited inside a learnt low-rank subspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foretune.catalogue.methods.base import Declaration, Target, Widths, dropout, rank
from foretune.catalogue.methods.bottleneck import EDIT_TRAITS
from foretune.catalogue.methods.sites import sites_of
from foretune.catalogue.space import Choice, Parameter, Space, Text

POSITIONS = r"all|first:[1-9]\d*"


def reft_space(method: str) -> Space:
    """rank, dropout, positions."""
    positions = Text(
        f"{method}.positions", "all", POSITIONS, about="Positions that are edited: all, or first:4 of every row."
    )
    usual: tuple[Parameter, ...] = (rank(method, 4, about="Rank of the subspace."), dropout(method), positions)
    return Space(usual)


def reft_count(targets: Sequence[Target], model: Widths, own: Mapping[str, Any]) -> int:
    """f(2rd + r) for f edited layers."""
    each = 2 * int(own["rank"]) * model.width + int(own["rank"])
    return len(sites_of(targets, "after_layer")) * each


LOREFT = Declaration(
    name="loreft",
    about="An edit of each layer's output within a learnt low-rank subspace.",
    space=reft_space("loreft"),
    menu=Space((Choice("loreft.rank", (4, 8, 16), 4),)),
    traits=EDIT_TRAITS,
    rate_multiplier=10.0,
    short_run_multiplier=1.5,
    source="Wu et al. 2024 (2404.03592), equation 2; its learning rates are 4e-4 to 9e-4 on 7B models",
    knob="rank",
    formula="f(2rd+r), f layers",
    count=reft_count,
    family="edit",
    example={"rank": 3},
    notes=("starts as the identity (W = R, b = 0), which the released code does not", "no positions at a prompt's end"),
)
