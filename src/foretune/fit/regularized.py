"""What the report says of regularizers: which, at what effective rates, and what they cost in measured time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foretune.catalogue.regularizers import NONE, SETTING
from foretune.search.runs import Run


def regularizer_notes(runs: Sequence[Run], winner: Mapping[str, Any]) -> list[str]:
    """Sentences for the report; none where the winner was trained without regularizers.

    The cost is the winner's seconds a token over the default LoRA's: the whole of it, with the difference that another
    rank or method makes; each regularizer's own seconds stand beside it.
    """
    chosen = next((run for run in runs if run.id == winner["run"]), None)
    if chosen is None or (text := str(chosen.config.get(SETTING, NONE))) == NONE:
        return []
    notes = [f"Regularizers, composed in this order: {text}."]
    if chosen.detail:
        notes.append(f"What they did: {chosen.detail}.")
    default = next((run for run in runs if run.arm == "default" and run.id != chosen.id), None)
    if default is not None and default.tokens and chosen.tokens and default.train_s > 0:
        ratio = (chosen.train_s / chosen.tokens) / (default.train_s / default.tokens)
        notes.append(f"A token took {ratio:.2f} times the seconds that it took in the default LoRA, without them.")
    return notes
