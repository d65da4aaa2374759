"""Cartridges (Eyuboglu et al. 2025, 2506.06266)."""

from __future__ import annotations

from foretune.catalogue.methods.prompts import before_rows, length
from foretune.catalogue.methods.sites import attentions_of
from foretune.catalogue.space import Choice

CARTRIDGE = before_rows(
    "cartridge",
    "The keys and values of a text, trained on as a prefix.",
    "Eyuboglu et al. 2025 (2506.06266), option 3 of its starts",
    knob=length("cartridge", "prefix", 64, "Keys and values of each attention."),
    more=(Choice("cartridge.start", ("rows", "random"), "rows", about="From training rows, or drawn."),),
    formula="2·n·L·d_kv",
    count=lambda targets, model, own: (
        2 * int(own["prefix"]) * model.kv_heads * model.head_dim * len(attentions_of(targets))
    ),
    example={"prefix": 4, "start": "random"},
    options=(32, 64, 128, 256),
    notes=("the first key and value of each attention are counted and held still",),
)
