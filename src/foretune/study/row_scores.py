"""What every run scored on every test row, as numbers: enough to compare arms over rows, and small enough to keep.

``answers/`` holds the answers themselves, with their texts; ``row-scores.jsonl`` holds, a line a run, what the outcome
is computed from: two numbers a row for a likelihood, a dozen for a corpus metric. A study that goes on in another
place, without its answers, still compares all of its runs over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foretune.evaluation.aggregate import statistics_of, whole
from foretune.evaluation.base import MetricResult
from foretune.evaluation.metrics import metric
from foretune.files import append_line, fingerprint, read_lines
from foretune.study.results import Line, read_answers

FILE = "row-scores.jsonl"


class RowScores:
    """The row scores of a study, by cell and test set; runs are given as `results.views`."""

    def __init__(self, root: Path) -> None:
        self.path = root / FILE
        self._root = root
        self._kept = {_key(entry): entry for entry in read_lines(self.path)}

    def keep(self, entry: Line) -> bool:
        """Write the scores of a run down, from its answers; False where neither they nor the answers are there."""
        if _key(entry) in self._kept:
            return True
        if entry["answers"] is None or not (answers := self._root / str(entry["answers"])).is_file():
            return False
        given = read_answers(answers, entry["tested_on"])[1]
        result = metric(entry["primary"]).score(given)
        kept = {
            "cell": entry["cell"],
            "tested_on": entry["tested_on"],
            "aggregate": result.aggregate,
            "rows": fingerprint([answer.row for answer in given]),
            "read": statistics_of(result).tolist(),
        }
        append_line(self.path, kept)
        self._kept[_key(entry)] = kept
        return True

    def of(self, entries: Sequence[Line]) -> tuple[MetricResult, list[int]]:
        """The outcome over the rows of several runs of one task, and which row each number is about.

        Raises `KeyError` for a run that `keep` does not know.
        """
        kept = [self._kept[_key(entry)] for entry in entries]
        if len({one["rows"] for one in kept}) > 1:
            raise AssertionError("runs that are compared answered different rows")
        read = tuple(tuple(map(float, row)) for one in kept for row in one["read"])
        aggregate = str(kept[0]["aggregate"])
        result = MetricResult(
            whole(aggregate, np.asarray(read)), 0.0, tuple(row[0] for row in read), aggregate=aggregate, statistics=read
        )
        return result, [row for one in kept for row in range(len(one["read"]))]


def _key(entry: Line) -> tuple[str, str]:
    return str(entry["cell"]), str(entry["tested_on"])
