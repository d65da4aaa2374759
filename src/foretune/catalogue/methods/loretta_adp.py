"""LoRETTA by adapters (Yang et al. 2024, 2402.11417, section 3.1): Houlsby's adapters with tensor-train projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foretune.catalogue.methods.base import Declaration, Target, Widths, dropout, rank
from foretune.catalogue.methods.bottleneck import EDIT_TRAITS
from foretune.catalogue.methods.loretta import down_modes, train_shapes, up_modes
from foretune.catalogue.methods.sites import SITES_PATTERN, sites_of
from foretune.catalogue.space import Choice, Number, Space, Text

Shapes = list[tuple[int, int, int]]


def core_shapes(width: int, inner: int, train_rank: int) -> tuple[Shapes, Shapes]:
    """The cores of an adapter's projections down (width to inner) and up (inner to width)."""
    return train_shapes(down_modes(width, inner), train_rank), train_shapes(up_modes(width, inner), train_rank)


def _count(targets: Sequence[Target], model: Widths, own: Mapping[str, Any]) -> int:
    down, up = core_shapes(model.width, int(own["width"]), int(own["rank"]))
    each = sum(before * n * after for before, n, after in down + up) + int(own["width"]) + model.width
    return len(sites_of(targets, str(own["sites"]))) * each


LORETTA_ADP = Declaration(
    name="loretta_adp",
    about="Bottleneck adapters whose projections are tensor trains: far fewer parameters.",
    space=Space(
        (
            rank("loretta_adp", 5, high=128, about="Rank inside the tensor trains."),
            Number("loretta_adp.width", 1, 4096, 64, log=True, whole=True, about="Inner width of each adapter."),
            Text("loretta_adp.sites", "after_attention+after_ffn", SITES_PATTERN, about="Sites, joined by +."),
            dropout("loretta_adp"),
        )
    ),
    menu=Space((Choice("loretta_adp.rank", (2, 5, 10, 20), 5),)),
    traits=EDIT_TRAITS,
    rate_multiplier=20.0,
    short_run_multiplier=1.5,
    source="Yang et al. 2024 (2402.11417), section 3.1; rates of their table 8 are about twice LoRA's",
    knob="rank",
    formula="sites·(Σ r_{k−1} n_k r_k over both trains + m + d)",
    count=_count,
    family="sublayer",
    example={"rank": 3, "width": 4},
)
