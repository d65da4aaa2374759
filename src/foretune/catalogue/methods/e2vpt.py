"""A learnt prefix on keys and values that can be pruned, after E²VPT (Han et al. 2023, 2307.13770)."""

from __future__ import annotations

from dataclasses import replace

from foretune.catalogue.methods.base import ADAPTER_TRAITS, Declaration
from foretune.catalogue.methods.sites import attentions_of
from foretune.catalogue.space import Choice, Number, Space

E2VPT = Declaration(
    name="e2vpt",
    about="Learnt keys and values in every attention; with the regularizer prune-rewind the useless ones go.",
    space=Space(
        (Number("e2vpt.prefix", 1, 1024, 20, log=True, whole=True, about="Learnt keys and values of each attention."),)
    ),
    menu=Space((Choice("e2vpt.prefix", (5, 10, 20, 50), 20),)),
    traits=replace(ADAPTER_TRAITS, identity_at_init=False, merge="no", packable=False),
    rate_multiplier=50.0,
    short_run_multiplier=1.0,
    source="Han et al. 2023 (2307.13770), its key-value prompts and token-wise pruning; rate: as for prompts",
    knob="prefix",
    formula="L·(2n·d_kv + n)",
    count=lambda targets, model, own: (
        int(own["prefix"]) * (2 * model.kv_heads * model.head_dim + 1) * len(attentions_of(targets))
    ),
    evidence="reconstruction",
    family="prompt",
    example={"prefix": 3},
    notes=(
        "n of the parameters are the switches of the positions, which are not trained",
        "without the paper's input prompts and its pruning of parts of a vector",
    ),
)
