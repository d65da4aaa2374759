"""DePT (Shi & Lipani 2023, 2309.05173): a short learnt prompt, and a low-rank change of the embeddings by position."""

from __future__ import annotations

from dataclasses import replace

from foretune.catalogue.methods.base import ADAPTER_TRAITS, Declaration, rank
from foretune.catalogue.space import Choice, Number, Space

DEPT = Declaration(
    name="dept",
    about="A short learnt prompt, and a low-rank change of the input embeddings position by position.",
    space=Space(
        (
            Number("dept.prompt", 1, 1024, 40, log=True, whole=True, about="Learnt vectors before the row."),
            rank("dept", 45, high=512, about="Rank of the change of the embeddings."),
            Number("dept.positions", 1, 8192, 256, log=True, whole=True, about="Positions whose embeddings change."),
            Number("dept.rate_ratio", 1e-4, 1e4, 600.0, log=True, about="Prompt's learning rate over the change's."),
        )
    ),
    menu=Space((Choice("dept.rank", (15, 30, 45, 60), 45), Choice("dept.prompt", (20, 40, 60), 40))),
    traits=replace(ADAPTER_TRAITS, identity_at_init=False, merge="no", packable=False),
    rate_multiplier=10.0,
    short_run_multiplier=1.0,
    source="Shi & Lipani 2023 (2309.05173), section 2.2; its learning rates are 0.3 and 5e-4, the run's is the latter",
    knob="rank",
    formula="m·d + r(s+d)",
    count=lambda targets, model, own: (
        int(own["prompt"]) * model.width + int(own["rank"]) * (int(own["positions"]) + model.width)
    ),
    family="prompt",
    layerwise=False,
    kinds=("causal",),
    example={"prompt": 3, "rank": 2, "positions": 6},
    notes=("with sliding windows every token sees the prompt, however far it is from it",),
)
