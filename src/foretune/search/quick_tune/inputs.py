"""The inputs of Quick-Tune's surrogates: configuration, task features and the curve so far, on one scale throughout.

The same `Scaling` serves meta-training and use. A curve is padded with zeros behind its length, which is given as well;
a rung that was not measured is not part of it. Scores are gains over the base, with one centre and one spread for all
tasks, as the published tool takes scores as they are: a task's own centre is not known before it is searched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretune.errors import StoreError
from foretune.search.encoding import Encoding, Floats
from foretune.search.fidelity import LEVELS
from foretune.search.past_tasks import SMALLEST_SPREAD, PastTask

FARTHEST = 5.0
"""Spreads: a model a thousand times smaller than all earlier ones is merely small."""
LARGEST_SCORE = 12.0
"""Spreads beyond which all scores are alike: the runs that ship lie within eleven."""
CURVE = LEVELS + 1
"""Scores at the rungs, and how many there are."""


@dataclass(frozen=True)
class Scaling:
    """Means and spreads of the columns, and what stands for a missing value: the mean."""

    encoding: Encoding
    feature_mean: tuple[float, ...]
    feature_spread: tuple[float, ...]
    gain_centre: float
    gain_spread: float
    """Mean and spread of all gains of meta-training"""

    @classmethod
    def of(cls, tasks: Sequence[PastTask]) -> Scaling:
        """From the tasks of meta-training."""
        table = np.stack([task.features for task in tasks])
        with np.errstate(invalid="ignore"):
            known = np.isfinite(table)
            count = np.maximum(known.sum(0), 1)
            mean = np.where(known, table, 0.0).sum(0) / count
            spread = np.sqrt((np.where(known, table - mean, 0.0) ** 2).sum(0) / count)
        encoding = Encoding.of(curve.row for task in tasks for curve in task.curves)
        gains = np.concatenate([curve.gains[np.isfinite(curve.gains)] for task in tasks for curve in task.curves])
        return cls(
            encoding, tuple(mean.tolist()), tuple(np.where(spread > 0, spread, 1.0).tolist()),
            float(gains.mean()), max(float(gains.std()), SMALLEST_SPREAD),
        )  # fmt: skip

    def configs(self, rows: Sequence[Mapping[str, float | str]]) -> Floats:
        """(n, d): numbers and every category's one-hot columns, all of them."""
        return self.encoding.dense(rows)

    def features(self, own: Floats) -> Floats:
        """(f,): a task's features in units of their spread over the tasks of meta-training, far ones held back."""
        scaled = (own - np.asarray(self.feature_mean)) / np.asarray(self.feature_spread)
        return np.asarray(np.where(np.isfinite(scaled), np.clip(scaled, -FARTHEST, FARTHEST), 0.0))

    def scores(self, gains: Floats) -> Floats:
        """Gains of any task, earlier or searched, in the one unit that the surrogate knows; NaN stays NaN."""
        scaled = (gains - self.gain_centre) / self.gain_spread
        return np.asarray(np.clip(scaled, -LARGEST_SCORE, LARGEST_SCORE))

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back."""
        encoding = {**vars(self.encoding), "categories": [[name, list(words)] for name, words in
                                                          self.encoding.categories]}  # fmt: skip
        return {
            "encoding": encoding, "mean": list(self.feature_mean), "spread": list(self.feature_spread),
            "gains": [self.gain_centre, self.gain_spread],
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Scaling:
        """The inverse of `to_json`. Raises `StoreError` for what an earlier version wrote."""
        if "gains" not in value:
            raise StoreError(
                "an earlier version of Quick-Tune was meta-trained for this, on scores of another scale.",
                remedy="Begin again in a new folder.",
            )
        own = value["encoding"]
        categories = tuple((str(name), tuple(words)) for name, words in own["categories"])
        encoding = Encoding(tuple(own["numbers"]), categories, tuple(own["low"]), tuple(own["high"]))
        centre, spread = value["gains"]
        return cls(encoding, tuple(value["mean"]), tuple(value["spread"]), centre, spread)


def curve_inputs(scores: Floats) -> Floats:
    """(CURVE,): the scores before the first that is missing, zeros behind them, and their number as a share."""
    length = next((level for level in range(len(scores)) if not math.isfinite(scores[level])), len(scores))
    padded = np.zeros(CURVE)
    padded[:length] = scores[:length]
    padded[-1] = length / LEVELS
    return padded


@dataclass(frozen=True)
class Examples:
    """Rows of meta-training."""

    configs: Floats
    features: Floats
    curves: Floats
    targets: Floats
    """(n,): scaled score at the rung behind the curve"""
    task: Floats
    """(n,): number of the task"""
    log_seconds: Floats
    """(n,): of the stretch to that rung; NaN where unknown"""


def examples(tasks: Sequence[PastTask], scaling: Scaling) -> Examples:
    """Every rung of every run, seen from the rungs before it."""
    parts: list[tuple[Floats, Floats, Floats, float, int, float]] = []
    for number, task in enumerate(tasks):
        configs, features = scaling.configs([curve.row for curve in task.curves]), scaling.features(task.features)
        for row, curve in zip(configs, task.curves, strict=True):
            scores = scaling.scores(curve.gains)
            spent = np.concatenate([[0.0], curve.seconds])
            for level in range(LEVELS):
                if not math.isfinite(scores[level]):
                    continue
                before = np.where(np.arange(LEVELS) < level, scores, math.nan)
                seconds = spent[level + 1] - spent[level]
                log = math.log(seconds) if math.isfinite(seconds) and seconds > 0 else math.nan
                parts.append((row, features, curve_inputs(before), float(scores[level]), number, log))
    columns = list(zip(*parts, strict=True))
    return Examples(*(np.asarray(column, dtype=float) for column in columns))
