"""CPT (Blau et al. 2024, 2410.17222): training rows as a context whose embeddings may move."""

from __future__ import annotations

from dataclasses import replace

from foretune.catalogue.methods.prompts import before_rows, length
from foretune.catalogue.space import Number

CPT = replace(
    before_rows(
        "cpt",
        "Training rows before every row, whose embeddings may move a little.",
        "Blau et al. 2024 (2410.17222), without the loss on the context",
        knob=length("cpt", "prompt", 64, "Tokens of training rows before the row."),
        more=(Number("cpt.epsilon", 1e-4, 100, 0.1, log=True, about="Longest move of an embedding, at width 2048."),),
        formula="n·d",
        count=lambda targets, model, own: int(own["prompt"]) * model.width,
        example={"prompt": 4, "epsilon": 10.0},
        options=(32, 64, 128, 256),
        notes=("answers in the context do not move; they are counted",),
    ),
)
