"""LoRATRF: LoRA with a task-aware gate on the layer's own output; a reconstruction of Li et al. 2024 (2412.09827).

The paper's equations were in no source that could be reached; the form is that of `foretune.methods.loratrf`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foretune.catalogue.methods.base import (
    ADAPTER_TRAITS,
    Declaration,
    Target,
    Widths,
    knob_values,
    low_rank_menu,
    low_rank_space,
)
from foretune.catalogue.space import Choice, Number, Text

GATES = ("clamp_cos", "cos_scaled", "sigmoid", "channel", "none")
TOKENLESS = ("none", "channel")
"""Gates that are the same for every token, so that the edit is a fixed weight."""


def _count(targets: Sequence[Target], model: Widths, own: Mapping[str, Any]) -> int:
    """r(i+o) for the LoRA branch, and the edit: o(1 + 2r_t) a target, or d(1 + 2r_t) a block."""
    ranks = knob_values(targets, own, "rank")
    pairs = list(zip(targets, ranks, strict=True))
    lora = sum(rank * (t.inputs + t.outputs) for t, rank in pairs) if own["use_lora"] else 0
    task_vector = 0 if own["trf_gate"] == "none" else 1
    if own["trf_site"] == "block":
        blocks = {(t.name.split(".layer")[0], t.layer) for t in targets if t.layer is not None}
        edit = edit_rank(own, int(own["rank"]))
        return lora + (len(blocks) * model.width * (task_vector + 2 * edit) if edit else 0)
    edits = [edit_rank(own, rank) for rank in ranks]
    return lora + sum(t.outputs * (task_vector + 2 * r) for t, r in zip(targets, edits, strict=True) if r)


def edit_rank(own: Mapping[str, Any], rank: int) -> int:
    """r_t of a target: as set, or half the rank (rounded down, at least 1) where ``trf_rank`` is 0."""
    return 0 if own["trf_rank"] == 0 else int(own["trf_rank"]) if own["trf_rank"] > 0 else max(1, rank // 2)


def _merges(own: Mapping[str, Any]) -> bool:
    fixed = own["trf_gate"] in TOKENLESS and own["trf_positions"] == "all" and own["trf_site"] == "module"
    return bool(own["trf_rank"] == 0 or fixed)


LORATRF = Declaration(
    name="loratrf",
    about="LoRA and an edit of each layer's output, let through by its likeness to a learnt task vector.",
    space=low_rank_space(
        "loratrf",
        Number("loratrf.trf_rank", -1, 1024, -1, whole=True, about="Rank of the edit; -1: half the rank; 0: no edit."),
        Number("loratrf.trf_alpha", 0.0, 4096, 0.0, about="The edit is scaled by trf_alpha / trf_rank; 0: as LoRA is."),
        Choice("loratrf.trf_site", ("module", "block"), "module", about="An edit for each target, or for each block."),
        Choice("loratrf.trf_gate", GATES, "cos_scaled", about="How the edit is let through."),
        Choice("loratrf.trf_task_init", ("normal", "mean_hidden"), "normal", about="How the task vector starts."),
        Text("loratrf.trf_positions", "all", r"all|first:\d+", about="Positions edited: all, or first:4 of each row."),
        Choice("loratrf.use_lora", (True, False), True, about="Whether the LoRA branch is there."),
    ),
    menu=low_rank_menu("loratrf"),
    traits=replace(ADAPTER_TRAITS, merge="approximate"),
    merges=_merges,
    rate_multiplier=10.0,
    short_run_multiplier=1.5,
    source="Li, Ding, Luan, Di 2024 (2412.09827), reconstructed after TOAST (2305.15542); multipliers as for LoRA",
    knob="rank",
    formula="r(i+o) + o(1+2r_t)",
    count=_count,
    evidence="reconstruction",
    notes=("a reconstruction: the paper's own equations could not be read", "merged exactly only with trf_gate none"),
    example={"rank": 4, "alpha": 8, "raised": 3},
)
