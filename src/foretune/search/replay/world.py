"""A task's stored runs as a world to search: every configuration once, its curve, its seconds, its test score.

Choosing is by validation, scoring by test. Where a run was tested at one rung only, its test score at another is that
one moved by the difference of the validation gains; where it was never tested the validation gain stands in, and the
world says so. Seconds missing at a rung are interpolated by steps. Further seeds of a configuration measure the noise.

A sweep that kept only how its runs ended has no rungs: each of its runs is one step, for every contestant alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foretune.files import fingerprint
from foretune.search.encoding import Floats
from foretune.search.fidelity import LAST_LEVEL, LEVELS, RUNG_PERCENT
from foretune.search.horizon import EARLY_LEVEL
from foretune.search.past_tasks import PastCurve, PastTask

HORIZON = 200
"""Virtual steps of a whole run: every rung is a step of its own."""
WITHOUT_RUNGS = 1
"""Virtual steps of a run of which only the end is known."""
FEWEST_CONFIGS = 8
"""A smaller world is no search."""
FULL_RUNS = 20
"""The budget is the cost of so many whole runs."""


@dataclass(frozen=True)
class Entry:
    """One configuration of a world."""

    config: Mapping[str, Any]
    gains: Floats
    """(6,): validation gain at each rung"""
    errors: float
    tested: Floats
    """(6,): test gain at each rung"""
    seconds: Floats
    """(6,): until each rung, evaluation included"""
    training: Floats
    """(6,): what of it is training"""
    fails_at: int | None
    """The rung before which it fails, None for a run that ends well"""


@dataclass(frozen=True)
class World:
    """A task to search."""

    task: PastTask
    entries: tuple[Entry, ...]
    best: float
    """Test gain of the whole run that is best on validation"""
    reference: float
    """Median test gain of the whole runs that did not fail"""
    noise: float
    """Median difference in normalised regret between two seeds of one configuration; NaN where there is one seed"""
    has_test: bool
    horizon: int = HORIZON
    """`HORIZON`, or `WITHOUT_RUNGS`"""

    @property
    def budget_s(self) -> float:
        """The cost of `FULL_RUNS` whole runs."""
        whole = [entry.seconds[LAST_LEVEL] for entry in self.entries if entry.fails_at is None]
        return FULL_RUNS * float(np.mean(whole))

    def regret(self, tested: float) -> float:
        """(best − tested) / (best − reference): 0 is the best by validation, 1 the median run."""
        return (self.best - tested) / (self.best - self.reference)


def world_of(task: PastTask) -> World | None:
    """The world of a task; None where too few configurations end well or all are alike."""
    grouped: dict[str, list[PastCurve]] = {}
    for curve in _on_one_machine(task.curves):
        grouped.setdefault(fingerprint(dict(curve.config)), []).append(curve)
    entries = [entry for curves in grouped.values() if (entry := _entry(curves[0])) is not None]
    whole = [entry for entry in entries if entry.fails_at is None]
    if len(whole) < FEWEST_CONFIGS:
        return None
    best = max(whole, key=lambda entry: float(entry.gains[LAST_LEVEL])).tested[LAST_LEVEL]
    reference = float(np.median([entry.tested[LAST_LEVEL] for entry in whole]))
    if best - reference <= 1e-6:
        return None
    pairs = [
        abs(_tested(one)[LAST_LEVEL] - _tested(other)[LAST_LEVEL])
        for curves in grouped.values()
        for one, other in itertools.pairwise(curves)
        if math.isfinite(one.final) and math.isfinite(other.final)
    ]
    noise = float(np.median(pairs)) / (best - reference) if pairs else math.nan
    has_test = any(math.isfinite(curve.tested) for curve in task.curves)
    early = [bool(np.isfinite(curve.gains[: EARLY_LEVEL + 1]).any()) for curve in task.curves]
    horizon = HORIZON if 2 * sum(early) >= len(early) else WITHOUT_RUNGS
    return World(task, tuple(entries), float(best), reference, noise, has_test, horizon)


def _entry(curve: PastCurve) -> Entry | None:
    gains = _filled(curve.gains)
    seconds = _seconds(curve)
    training = np.minimum(_training(curve, seconds), seconds)
    if curve.failed:
        seen = [level for level in range(LEVELS) if math.isfinite(curve.gains[level])]
        return Entry(curve.config, gains, curve.error, gains, seconds, training, (seen[-1] + 1) if seen else 0)
    if not math.isfinite(curve.final):
        return None
    return Entry(curve.config, gains, curve.error, _tested(curve), seconds, training, None)


def _on_one_machine(curves: Sequence[PastCurve]) -> list[PastCurve]:
    """Curves with seconds as on the machine that most of them ran on: a search runs on one. By the ratio of medians, of
    training and of evaluation; curves without seconds stay as they are."""
    by: dict[str, list[PastCurve]] = {}
    for curve in curves:
        by.setdefault(curve.machine, []).append(curve)
    parts = {
        machine: np.asarray(
            [[np.mean(_training(c, _seconds(c))), np.mean(_seconds(c))] for c in group if c.train_s > 0]
        )
        for machine, group in by.items()
    }
    most = max(by, key=lambda machine: len(by[machine]))
    found = []
    for curve in curves:
        own, theirs = parts[curve.machine], parts[most]
        if curve.machine == most or not len(own) or not len(theirs):
            found.append(curve)
            continue
        train, whole = np.median(theirs, axis=0) / np.median(own, axis=0)
        rest = [np.median(part[:, 1] - part[:, 0]) for part in (theirs, own)]
        evaluation = rest[0] / rest[1] if rest[1] > 0 else whole
        seconds, training = _seconds(curve), _training(curve, _seconds(curve))
        moved = train * training + evaluation * (seconds - training)
        found.append(replace(curve, seconds=moved, train_s=float(train * curve.train_s)))
    return found


def _training(curve: PastCurve, seconds: Floats) -> Floats:
    """(6,): seconds of training until every rung, in proportion to the steps; all of them where it is not known."""
    if not curve.train_s > 0:
        return seconds
    shares = np.asarray(RUNG_PERCENT, dtype=float)
    known = [level for level in range(LEVELS) if math.isfinite(curve.seconds[level])]
    return np.asarray(curve.train_s * shares / shares[known[-1] if known else LAST_LEVEL])


def _tested(curve: PastCurve) -> Floats:
    gains = _filled(curve.gains)
    if not math.isfinite(curve.tested):
        return gains
    return np.asarray(curve.tested + gains - gains[curve.tested_level])


def _filled(gains: Floats) -> Floats:
    """A gain at every rung: what is missing is read off between its neighbours, in log steps; before the first that is
    known the gain grows with the steps, from none."""
    known = [level for level in range(LEVELS) if math.isfinite(gains[level])]
    if not known:
        return np.zeros(LEVELS)
    shares = np.asarray(RUNG_PERCENT, dtype=float)
    between = np.interp(np.log(shares), np.log(shares[known]), gains[known])
    return np.asarray(between * np.minimum(1.0, shares / shares[known[0]]))


def _seconds(curve: PastCurve) -> Floats:
    """Seconds until every rung; proportional to the steps where they were not measured."""
    shares = np.asarray(RUNG_PERCENT, dtype=float) / RUNG_PERCENT[LAST_LEVEL]
    known = [level for level in range(LEVELS) if math.isfinite(curve.seconds[level]) and curve.seconds[level] > 0]
    if not known:
        total = curve.train_s if curve.train_s > 0 else 1.0
        return np.asarray(total * shares)
    x, y = np.concatenate([[0.0], shares[known]]), np.concatenate([[0.0], curve.seconds[known]])
    last = known[-1]
    beyond = float(curve.seconds[last]) * shares / shares[last]
    found = np.where(shares <= shares[last], np.interp(shares, x, y), beyond)
    return np.asarray(np.maximum.accumulate(np.maximum(found, 1e-6)))
