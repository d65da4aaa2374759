"""AdaLink (Wang et al. 2023, 2310.12100): a small network on the input embeddings, nothing inside the model."""

from __future__ import annotations

from foretune.catalogue.methods.base import Declaration, dropout
from foretune.catalogue.methods.bottleneck import EDIT_TRAITS
from foretune.catalogue.space import Choice, Number, Space

ADALINK = Declaration(
    name="adalink",
    about="A small two-layer network on the input embeddings; the model itself is untouched.",
    space=Space(
        (
            Number("adalink.width", 1, 16384, 64, log=True, whole=True, about="Inner width."),
            Choice("adalink.activation", ("none", "relu", "gelu", "silu"), "none", about="Between the two layers."),
            dropout("adalink"),
        )
    ),
    menu=Space((Choice("adalink.width", (16, 64, 256), 64),)),
    traits=EDIT_TRAITS,
    rate_multiplier=50.0,
    short_run_multiplier=1.0,
    source="Wang et al. 2023 (2310.12100); rate: as for prompts, 1e-3 to 5e-3",
    knob="width",
    formula="2dm (twice for encoder and decoder)",
    count=lambda targets, model, own: 2 * model.width * int(own["width"]) * (2 if model.kind == "seq2seq" else 1),
    family="embedding",
    layerwise=False,
    example={"width": 4},
    notes=("the table itself is not changed, so that a tied output layer stays the base's",),
)
