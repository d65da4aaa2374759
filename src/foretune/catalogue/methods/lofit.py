"""LoFiT (Yin, Ye & Durrett 2024, 2406.01563): an offset on the outputs of a few chosen attention heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foretune.catalogue.methods.base import ADAPTER_TRAITS, Declaration, Target, Widths
from foretune.catalogue.methods.sites import sites_of
from foretune.catalogue.space import Choice, Number, Space


def chosen_heads(layers: int, heads: int, share: float) -> int:
    """How many heads get an offset: the share of all, at least one."""
    return max(1, round(share * layers * heads))


def _count(targets: Sequence[Target], model: Widths, own: Mapping[str, Any]) -> int:
    return chosen_heads(len(sites_of(targets, "after_attention")), model.heads, float(own["share"])) * model.head_dim


LOFIT = Declaration(
    name="lofit",
    about="An offset on the outputs of the few attention heads that matter most; merges exactly.",
    space=Space(
        (
            Number("lofit.share", 1e-4, 1.0, 0.03, log=True, about="Share of all heads that get an offset."),
            Choice(
                "lofit.selection",
                ("gradient", "random"),
                "gradient",
                about="By the loss's gradient on training rows (random where there are none), or random.",
            ),
        )
    ),
    menu=Space((Choice("lofit.share", (0.03, 0.1, 0.3), 0.03),)),
    traits=ADAPTER_TRAITS,
    rate_multiplier=50.0,
    short_run_multiplier=1.0,
    source="Yin, Ye & Durrett 2024 (2406.01563): top 3 % of the heads; rate: 1e-3 to 5e-3, as other vectors",
    formula="K·d_head, K = ⌊share·L·heads⌉",
    count=_count,
    evidence="reconstruction",
    family="edit",
    example={"share": 0.4},
    notes=("heads are ranked by one gradient instead of the paper's trained scales with an L1 penalty",),
)
