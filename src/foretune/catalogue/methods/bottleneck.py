"""Bottleneck adapters: small two-layer networks after or beside sub-layers, in the designs of five papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foretune.catalogue.methods.base import ADAPTER_TRAITS, Declaration, Target, Widths, dropout
from foretune.catalogue.methods.sites import SITES_PATTERN, sites_of
from foretune.catalogue.space import Choice, Number, Space, Text

EDIT_TRAITS = replace(ADAPTER_TRAITS, merge="no")
"""An edit of activations: nothing of it can become a weight."""


@dataclass(frozen=True)
class Design:
    """Where a paper's adapters sit and what they are made of."""

    sites: str
    norm: bool
    """Whether the adapter has a layer norm of its own in front"""
    activation: str


DESIGNS: Mapping[str, Design] = {
    "after_layer": Design("after_layer", True, "relu"),
    "houlsby": Design("after_attention+after_ffn", False, "gelu"),
    "pfeiffer": Design("after_ffn", False, "relu"),
    "parallel": Design("parallel_ffn", False, "relu"),
    "peterrec": Design("parallel_attention+parallel_ffn", True, "gelu"),
}
"""after_layer: Bapna & Firat 2019, used by Üstün & Cooper Stickland 2022 · houlsby: Houlsby et al. 2019 · pfeiffer:
Pfeiffer et al. 2021 · parallel: He et al. 2022 · peterrec: Yuan et al. 2020, its parallel insertion"""

ACTIVATIONS = ("design", "relu", "gelu", "silu", "none")


def sites_word(own: Mapping[str, Any]) -> str:
    """The sites of a configuration: its own word, or its design's."""
    return DESIGNS[str(own["design"])].sites if own["sites"] == "design" else str(own["sites"])


def has_norm(own: Mapping[str, Any]) -> bool:
    """Whether each adapter has its own layer norm."""
    return DESIGNS[str(own["design"])].norm if own["norm"] == "design" else own["norm"] == "yes"


def adapter_count(width: int, inner: int, *, norm: bool) -> int:
    """2dm + m + d, and 2d for the norm: m(2d+1) + 3d with it."""
    return 2 * width * inner + inner + width + (2 * width if norm else 0)


def _count(targets: Sequence[Target], model: Widths, own: Mapping[str, Any]) -> int:
    each = adapter_count(model.width, int(own["width"]), norm=has_norm(own))
    return len(sites_of(targets, sites_word(own))) * each


BOTTLENECK = Declaration(
    name="bottleneck",
    about="Small two-layer networks after or beside the sub-layers (Houlsby, Pfeiffer, parallel, after each layer).",
    space=Space(
        (
            Number("bottleneck.width", 1, 16384, 64, log=True, whole=True, about="Inner width of each adapter."),
            Choice("bottleneck.design", tuple(DESIGNS), "after_layer", about="Whose design: sites, norm, activation."),
            Text(
                "bottleneck.sites",
                "design",
                rf"design|{SITES_PATTERN}",
                about="design, or sites joined by +: after_attention, after_ffn, parallel_attention, parallel_ffn, "
                "after_layer.",
            ),
            Choice("bottleneck.norm", ("design", "yes", "no"), "design", about="A layer norm in front of each."),
            Choice("bottleneck.activation", ACTIVATIONS, "design", about="Between the two layers."),
            Number("bottleneck.scale", 0.0, 64.0, 1.0, about="The adapter's output is multiplied by this."),
            dropout("bottleneck"),
        )
    ),
    menu=Space(
        (
            Choice("bottleneck.width", (16, 64, 256), 64),
            Choice("bottleneck.design", ("after_layer", "houlsby", "pfeiffer", "parallel"), "after_layer"),
        )
    ),
    traits=EDIT_TRAITS,
    rate_multiplier=10.0,
    short_run_multiplier=1.5,
    source="Houlsby et al. 2019 (1902.00751), Bapna & Firat 2019 (1909.08478), Pfeiffer et al. 2021 (2005.00247), "
    "He et al. 2022 (2110.04366), Yuan et al. 2020 (2001.04253); multipliers as for LoRA",
    knob="width",
    formula="sites·(2dm+m+d), with norm L·(m(2d+1)+3d)",
    count=_count,
    family="sublayer",
    example={"width": 4},
    notes=("before the residual connection, on the sub-layer's last linear layer",),
)
