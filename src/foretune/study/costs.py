"""What every arm cost: seconds of choosing rows, seconds of training, tokens trained; beside its result.

Choosing is charged in whole to every arm that uses the ranking, because whoever uses one arm alone pays for it in
whole; scores that were found from before count with what they took when they were made. Seconds are those of the
processors, which other load does not change, unless a run was on an accelerator; then they are seconds as they passed.
Averages are over the runs of an arm in a block, and of one machine: where a study was made on several, seconds are
compared on the one that has the most arms (then runs) whole, with the choice of their rows; other arms have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from foretune.study.results import FINISHED, Line

Arm = tuple[str, str, str, str]
"""Model, task, size and arm"""
HEADING = ["arm", "rows kept", "answer tokens a row", "selection s", "training s", "total s", "tokens trained"]


def arm_costs(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One entry a block and arm, in the order of the runs; empty where no arm selects rows."""
    if not any(entry.get("selection") for entry in lines):
        return []
    timed = _of_one_machine([entry for entry in lines if entry["status"] == FINISHED])
    chosen = [entry["selection"] for entry in timed if entry.get("selection")]
    on_processors = all(one.get("cpu_seconds") is not None for one in chosen)
    groups: dict[Arm, list[Line]] = {}
    for entry in timed:
        groups.setdefault(_arm(entry), []).append(entry)
    return [_cost(key, runs, on_processors) for key, runs in groups.items()]


def _arm(entry: Line) -> Arm:
    return entry["model"], entry["task"], entry["size"], entry["arm"]


def _of_one_machine(lines: Sequence[Line]) -> list[Line]:
    """The runs of the machine on which most arms were trained on rows that it chose itself."""
    whole: dict[str | None, list[Line]] = {}
    for entry in lines:
        chosen = entry.get("selection")
        if not chosen or chosen.get("machine") == entry.get("machine"):
            whole.setdefault(entry.get("machine"), []).append(entry)
    return max(whole.values(), key=lambda runs: (len(set(map(_arm, runs))), len(runs)), default=[])


def _cost(key: Arm, runs: Sequence[Line], on_processors: bool) -> dict[str, Any]:
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
        "runs": len(runs),
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
