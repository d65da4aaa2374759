"""Prefix tuning (Li & Liang 2021, 2101.00190)."""

from __future__ import annotations

from foretune.catalogue.methods.prompts import before_rows, length
from foretune.catalogue.methods.sites import attentions_of

PREFIX_TUNING = before_rows(
    "prefix_tuning",
    "Learnt keys and values before those of every row, in every attention.",
    "Li & Liang 2021 (2101.00190)",
    knob=length("prefix_tuning", "prefix", 20, "Learnt keys and values of each attention."),
    formula="2·n·L·d_kv",
    count=lambda targets, model, own: (
        2 * int(own["prefix"]) * model.kv_heads * model.head_dim * len(attentions_of(targets))
    ),
    example={"prefix": 3},
    kinds=("causal", "seq2seq", "encoder"),
    layerwise=True,
    notes=("the row keeps its positions, which peft moves behind the prefix",),
)
