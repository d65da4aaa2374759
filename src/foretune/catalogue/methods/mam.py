"""MAM (He et al. 2022, 2110.04366): a short learnt prefix in attention and a scaled parallel adapter at each FFN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foretune.catalogue.methods.base import ADAPTER_TRAITS, Declaration, Target, Widths, dropout
from foretune.catalogue.methods.bottleneck import adapter_count
from foretune.catalogue.methods.sites import attentions_of, sites_of
from foretune.catalogue.space import Choice, Number, Space


def _count(targets: Sequence[Target], model: Widths, own: Mapping[str, Any]) -> int:
    prefix = 2 * int(own["prefix"]) * model.kv_heads * model.head_dim * len(attentions_of(targets))
    adapter = adapter_count(model.width, int(own["width"]), norm=False)
    return prefix + adapter * len(sites_of(targets, "parallel_ffn"))


MAM = Declaration(
    name="mam",
    about="A short learnt prefix in attention and a scaled adapter beside each feed-forward layer.",
    space=Space(
        (
            Number("mam.width", 1, 16384, 512, log=True, whole=True, about="Inner width of the adapters."),
            Number("mam.prefix", 1, 1024, 30, log=True, whole=True, about="Learnt keys and values a layer."),
            Number("mam.scale", 0.0, 64.0, 4.0, about="The adapters' outputs are multiplied by this."),
            dropout("mam"),
        )
    ),
    menu=Space((Choice("mam.width", (64, 256, 512), 512), Choice("mam.prefix", (10, 30), 30))),
    traits=replace(ADAPTER_TRAITS, identity_at_init=False, merge="no", packable=False),
    rate_multiplier=10.0,
    short_run_multiplier=1.5,
    source="He et al. 2022 (2110.04366), section 4.6: prefix 30, width 512, s = 4; multipliers as for LoRA",
    knob="width",
    formula="L·2n·d_kv + L·(2dm+m+d)",
    count=_count,
    family="sublayer",
    example={"width": 4, "prefix": 3},
    notes=(
        "the learnt prefix takes attention away from the tokens from the start: not the identity",
        "prefix vectors are trained directly, without the paper's network that makes them",
    ),
)
