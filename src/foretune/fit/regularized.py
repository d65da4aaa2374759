"""What the report says of regularizers: which, at what effective rates, and what they cost in measured time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foretune.catalogue.regularizers import NONE, SETTING
from foretune.search.runs import Run


def regularizer_notes(runs: Sequence[Run], winner: Mapping[str, Any], device: str) -> list[str]:
    """Sentences for the report; none where the winner was trained without regularizers.

    The cost is the winner's seconds a token over the default LoRA's: the whole of it, with the difference that another
    rank or method makes; each regularizer's own seconds stand beside it. Where ``device`` is ``cpu`` they are the
    processor's: those of the clock depend on what else the machine did.
    """
    chosen = next((run for run in runs if run.id == winner["run"]), None)
    if chosen is None or (text := str(chosen.config.get(SETTING, NONE))) == NONE:
        return []
    notes = [f"Regularizers, composed in this order: {text}."]
    if chosen.detail:
        notes.append(f"What they did: {chosen.detail}.")
    default = next((run for run in runs if run.is_default and run.id != chosen.id), None)
    if default is not None and (ratio := _ratio_of_a_token(chosen, default, device)) is not None:
        notes.append(f"A token took {ratio} that it took in the default LoRA, without them.")
    return notes


def _ratio_of_a_token(chosen: Run, default: Run, device: str) -> str | None:
    """ "1.30 times the seconds": what training on a token took in ``chosen`` over ``default``; None where unknown."""
    if not (default.tokens and chosen.tokens and default.train_s > 0):
        return None
    on_processor = device == "cpu" and min(chosen.train_cpu_s, default.train_cpu_s) > 0
    taken = [run.train_cpu_s if on_processor else run.train_s for run in (chosen, default)]
    ratio = taken[0] / chosen.tokens / (taken[1] / default.tokens)
    return f"{ratio:.2f} times the {'processor ' if on_processor else ''}seconds"
