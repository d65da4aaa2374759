"""What a comparison of fits found: every arm against the control, in pairs; as JSON and Markdown.

Scores of different metrics are put on one scale: the better-is-higher difference to the untouched base on the same test
rows, divided by its spread over all fits of the task. Beside it stand the plain scores by task, and how often the model
that would have been handed over was worse than the base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foretune.files import write_text
from foretune.report.text import markdown_table
from foretune.study.statistics import compare_arms

Lines = Sequence[Mapping[str, Any]]
Scores = dict[str, dict[Any, float]]
"""By arm or free system, and (task, seed)"""
FREE: Mapping[str, str] = {"zero-shot": "base", "base with examples": "examples", "default LoRA": "default"}
"""Systems that the control's fits measure beside their winner."""
WINNER = "winner"


def summarised(lines: Lines, arms: Sequence[str] | Mapping[str, Any], judged: Mapping[str, bool], reason: str) -> Any:
    """The JSON summary; ``judged``: arms that are handed over whatever the comparison says are False."""
    listed = list(arms)
    scores = _scores([line for line in lines if "error" not in line], listed)
    control, scaled = listed[0], _scaled(scores)
    expected = len({(line["task"], line["seed"]) for line in lines})
    differences = compare_arms(scaled, control, "higher", expected=expected) if control in scaled else ()
    tasks = list(dict.fromkeys(str(line["task"]) for line in lines))
    return {
        "reason": reason,
        "fits": len(lines),
        "failed": [f"{line['arm']} on {line['task']}: {line['error']}" for line in lines if "error" in line],
        "control": control,
        "tasks": {task: next((line["metric"] for line in lines if line["task"] == task and "metric" in line), None)
                  for task in tasks},
        "means": {name: {task: _mean([value for (own, _), value in by.items() if own == task]) for task in tasks}
                  for name, by in scores.items()},
        "differences": {difference.arm: difference.to_json() for difference in differences},
        "claims": {difference.arm: difference.claim for difference in differences},
        "worse_than_base": {arm: _worse(lines, arm, judged.get(arm, True)) for arm in listed},
        "used_s": {arm: _mean([line["used_s"] for line in lines if line["arm"] == arm and "used_s" in line])
                   for arm in listed},
    }  # fmt: skip


def _scores(lines: Lines, arms: Sequence[str]) -> Scores:
    """The primary metric on test rows, higher is better."""
    found: Scores = {}
    for line in lines:
        free = {name: role for name, role in FREE.items() if line["arm"] == arms[0]}
        for name, role in {str(line["arm"]): WINNER, **free}.items():
            value = line["systems"].get(role, {}).get(line["metric"])
            if value is not None:
                sign = 1.0 if line["direction"] == "higher" else -1.0
                found.setdefault(name, {})[line["task"], line["seed"]] = sign * value
    return found


def _scaled(scores: Scores) -> Scores:
    """In spreads of each task over all that was measured there."""
    values: dict[Any, list[float]] = {}
    for by in scores.values():
        for (task, _), value in by.items():
            values.setdefault(task, []).append(value)
    spread = {task: float(np.std(own)) or 1.0 for task, own in values.items()}
    middle = {task: float(np.mean(own)) for task, own in values.items()}
    return {
        name: {key: (value - middle[key[0]]) / spread[key[0]] for key, value in by.items()}
        for name, by in scores.items()
    }


def _worse(lines: Lines, arm: str, judged: bool) -> dict[str, int]:
    """Fits of an arm; how many ended worse than the base; how many of those would have been handed over unmarked."""
    own = [line for line in lines if line["arm"] == arm and "systems" in line]
    worse = [line for line in own if _below_base(line)]
    unmarked = [line for line in worse if not judged or line["verdict"] == "better"]
    return {"fits": len(own), "worse": len(worse), "unmarked": len(unmarked)}


def _below_base(line: Mapping[str, Any]) -> bool:
    metric, systems = line["metric"], line["systems"]
    values = [systems.get(role, {}).get(metric, math.nan) for role in (WINNER, "base")]
    gain = values[0] - values[1] if line["direction"] == "higher" else values[1] - values[0]
    return bool(gain < 0)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def markdown(name: str, about: str, summary: Mapping[str, Any]) -> str:
    """The report."""
    tasks = list(summary["tasks"])
    heading = ["arm", *(f"{task} ({summary['tasks'][task]})" for task in tasks), f"against {summary['control']}",
               "claim", "worse than base", "unmarked", "seconds"]  # fmt: skip
    lines = [f"# {name}", "", about, "", f"- {summary['fits']} fits; {summary['reason']}.",
             "- Scores on test rows, means over seeds, higher is better (errors and losses are negative).",
             f"- Against {summary['control']}: mean paired difference in spreads of the task, with its 95 % interval.",
             *(f"- Failed: {said}" for said in summary["failed"]), ""]  # fmt: skip
    rows = []
    for arm, by in summary["means"].items():
        worse, used = summary["worse_than_base"].get(arm), summary["used_s"].get(arm)
        rows.append([arm, *(_number(by[task]) for task in tasks), _interval(summary["differences"].get(arm)),
                     summary["claims"].get(arm, ""), "" if worse is None else f"{worse['worse']} of {worse['fits']}",
                     "" if worse is None else str(worse["unmarked"]),
                     "" if used is None else f"{used:.0f}"])  # fmt: skip
    return "\n".join([*lines, markdown_table(heading, rows), ""])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(difference: Mapping[str, Any] | None) -> str:
    if difference is None or difference["mean"] is None:
        return ""
    if difference["low"] is None:
        return f"{difference['mean']:+.2f}"
    return f"{difference['mean']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"


def write_report(output: Path, name: str, about: str, summary: Mapping[str, Any]) -> None:
    """Write ``table.md``."""
    write_text(output / "table.md", markdown(name, about, summary))
