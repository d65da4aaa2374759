"""Prompt tuning (Lester et al. 2021, 2104.08691)."""

from __future__ import annotations

from foretune.catalogue.methods.prompts import before_rows, length

PROMPT_TUNING = before_rows(
    "prompt_tuning",
    "Learnt vectors before every row, begun as tokens of the vocabulary.",
    "Lester et al. 2021 (2104.08691)",
    knob=length("prompt_tuning", "prompt", 20, "Learnt vectors before the row."),
    formula="n·d",
    count=lambda targets, model, own: int(own["prompt"]) * model.width,
    example={"prompt": 3},
)
