"""ProMoT (Wang et al. 2023, 2211.00635): a prompt first, then the model behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foretune.catalogue.methods.base import (
    ADAPTER_TRAITS,
    Declaration,
    Target,
    Widths,
    alpha,
    knob_values,
    low_rank_menu,
    raised,
    rank,
    targets,
)
from foretune.catalogue.space import Number, Space


def _count(chosen: Sequence[Target], model: Widths, own: Mapping[str, Any]) -> int:
    ranks = knob_values(chosen, own, "rank")
    low_rank = sum(r * (t.inputs + t.outputs) for t, r in zip(chosen, ranks, strict=True))
    return int(own["prompt"]) * model.width + low_rank


PROMOT = Declaration(
    name="promot",
    about="A prompt alone takes the task's form, then a LoRA learns behind it: two stages of one run.",
    space=Space(
        (
            Number("promot.prompt", 1, 1024, 20, log=True, whole=True, about="Learnt vectors before the row."),
            rank("promot"),
            alpha("promot"),
            targets("promot"),
            raised("promot"),
            Number("promot.first", 0.05, 0.95, 0.4, about="Share of the updates that train the prompt."),
            Number("promot.rate_ratio", 1e-2, 1e3, 5.0, log=True, about="Prompt's learning rate over the LoRA's."),
        )
    ),
    menu=low_rank_menu("promot"),
    traits=replace(ADAPTER_TRAITS, identity_at_init=False, merge="no", packable=False),
    rate_multiplier=10.0,
    short_run_multiplier=1.5,
    source="Wang et al. 2023 (2211.00635), with a LoRA for the model's part; multipliers as for LoRA and prompts",
    knob="rank",
    formula="n·d + r(i+o)",
    count=_count,
    family="recipe",
    layerwise=True,
    kinds=("causal",),
    example={"prompt": 3, "rank": 2, "raised": 3},
    notes=("for questions of other kinds, set with_prompt to false in the adapter's adapter_config.json",),
)
