"""How far the gates of LoRATRF's edits stood open on the test rows, by task and arm: means over runs.

The numbers are the method's own statistics, which a trial writes beside its answers (`execution.final`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from foretune.study.results import Line

STATISTICS = ("gate_mean", "gate_open_share", "gate_lowest_layer", "gate_highest_layer")
HEADING = ["task", "arm", "runs", "mean gate", "share of open gates", "least open layer", "most open layer"]


def gate_rows(lines: Sequence[Line]) -> list[list[str]]:
    """Rows under `HEADING`; empty where no run has gates."""
    groups: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    for entry in lines:
        if set(STATISTICS) <= set(entry.get("statistics", {})):
            groups.setdefault((entry["task"], entry["arm"]), []).append(entry["statistics"])
    return [
        [task, arm, str(len(own)), *(f"{fmean(one[name] for one in own):.3f}" for name in STATISTICS)]
        for (task, arm), own in groups.items()
    ]
