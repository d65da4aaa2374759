"""What every arm cost: seconds of choosing rows, seconds of training, tokens trained; beside its result.

Choosing is charged in whole to every arm that uses the ranking, because whoever uses one arm alone pays for it in
whole; scores that were found from before count with what they took when they were made. Seconds are those of the
processors, which other load does not change, unless a run was on an accelerator; then they are seconds as they passed.
Averages are over the runs of an arm in a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from foretune.study.results import FINISHED, Line

HEADING = ["arm", "rows kept", "answer tokens a row", "selection s", "training s", "total s", "tokens trained"]


def arm_costs(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One entry a block and arm, in the order of the runs; empty where no arm selects rows."""
    if not any(entry.get("selection") for entry in lines):
        return []
    chosen = [entry["selection"] for entry in lines if entry.get("selection")]
    on_processors = all(one.get("cpu_seconds") is not None for one in chosen)
    groups: dict[tuple[str, str, str, str], list[Line]] = {}
    for entry in lines:
        if entry["status"] == FINISHED:
            key = (entry["model"], entry["task"], entry["size"], entry["arm"])
            groups.setdefault(key, []).append(entry)
    return [_cost(key, runs, on_processors) for key, runs in groups.items()]


def _cost(key: tuple[str, str, str, str], runs: Sequence[Line], on_processors: bool) -> dict[str, Any]:
    chosen = [run["selection"] for run in runs if run.get("selection")]
    selection_s = fmean(one["cpu_seconds" if on_processors else "seconds"] for one in chosen) if chosen else 0.0
    training_s = fmean(run["train_cpu_s" if on_processors else "train_s"] for run in runs)
    model, task, size, arm = key
    return {
        "model": model,
        "task": task,
        "size": size,
        "arm": arm,
        "rows_kept": fmean(one["kept"] for one in chosen) if chosen else fmean(run["rows"] for run in runs),
        "answer_tokens": fmean(one["answer_tokens"] for one in chosen) if chosen else None,
        "selection_s": selection_s,
        "training_s": training_s,
        "clock": "processor" if on_processors else "wall",
        "total_s": selection_s + training_s,
        "tokens": fmean(run["tokens"] for run in runs),
    }


def cost_rows(costs: Sequence[dict[str, Any]], model: str, task: str, size: str) -> list[list[str]]:
    """The costs of one block as text, under `HEADING`."""
    return [
        [
            one["arm"],
            f"{one['rows_kept']:.0f}",
            "" if one["answer_tokens"] is None else f"{one['answer_tokens']:.1f}",
            f"{one['selection_s']:.1f}",
            f"{one['training_s']:.1f}",
            f"{one['total_s']:.1f}",
            f"{one['tokens']:,.0f}",
        ]
        for one in costs
        if (one["model"], one["task"], one["size"]) == (model, task, size)
    ]
