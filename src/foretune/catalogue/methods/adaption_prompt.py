"""Adaption prompts (LLaMA-Adapter, Zhang et al. 2023, 2303.16199)."""

from __future__ import annotations

from dataclasses import replace

from foretune.catalogue.methods.prompts import before_rows, length
from foretune.catalogue.methods.sites import attentions_of

ADAPTION_PROMPT = replace(
    before_rows(
        "adaption_prompt",
        "A learnt prompt that each attention looks at apart, let in through a gate that starts shut.",
        "Zhang et al. 2023 (2303.16199)",
        knob=length("adaption_prompt", "prompt", 10, "Learnt vectors of each attention."),
        formula="L(n·d + 1)",
        count=lambda targets, model, own: (int(own["prompt"]) * model.width + 1) * len(attentions_of(targets)),
        example={"prompt": 3},
        options=(5, 10, 20, 50),
        layerwise=True,
        notes=("--layers last:30 is the paper's own choice of layers",),
    ),
)
ADAPTION_PROMPT = replace(ADAPTION_PROMPT, traits=replace(ADAPTION_PROMPT.traits, identity_at_init=True))
