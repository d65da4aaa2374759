"""What is believed after some observations: transfer and no transfer, weighted by how well each foretold them.

Each is a Gaussian process (`residual_gp`); the weight of each is its share of the product of the densities it gave to
the last gain of every run, each given the runs before it, with a Dirichlet-like prior and a floor for the process
without transfer: the guard against experience that misleads. The first run only sets the level and is not scored.

Source: Bayesian stacking by prequential scores (Dawid 1984); the floor is ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from foretune.search.encoding import Floats
from foretune.search.residual_gp import ALONE, LOSS, Points, Posterior, Process, condition
from foretune.search.task_prior import TaskPrior

TRUST = 0.8
"""Weight of the transfer before anything was seen."""
FLOOR = 0.1
"""The process without transfer always keeps this weight."""
HARDEST = 6.0
"""An observation counts at most this much (nats): one surprise must not decide alone."""
GRID = 400
"""Points on which quantiles of a mixture are read."""
NO_RESIDUAL_SD = 0.05
"""For an ablation: configurations hardly deviate from the transfer mean."""


@dataclass(frozen=True)
class Belief:
    """Weighted posteriors."""

    parts: tuple[Posterior, ...]
    weights: tuple[float, ...]

    @property
    def without_transfer(self) -> bool:
        """Whether it holds nothing that earlier tasks say."""
        return all(part.process.name == ALONE for part in self.parts)

    def drawn(self, chance: float) -> Belief:
        """One of the parts alone: the first whose cumulated weight exceeds ``chance``, a number in [0, 1).

        Under the mixture the vaguer part decides what to begin however little weight it has: where much is thought
        possible, much improvement is expected. Believing one part at a time, as often as it weighs, does not.
        """
        reached = np.cumsum(self.weights)
        return Belief((self.parts[min(int(np.searchsorted(reached, chance, "right")), len(self.parts) - 1)],), (1.0,))

    def gains(self, places: Sequence[int], runs: Sequence[int] | None, level: int) -> list[tuple[Floats, Floats]]:
        """(mean, standard deviation) of the gain at ``level`` under each part; ``runs`` for those under way."""
        found: list[tuple[Floats, Floats]] = []
        for part in self.parts:
            where = np.asarray(places, dtype=np.int64)
            mean, variance = part.predict(where, level) if runs is None else part.predict_runs(places, runs, level)
            found.append((part.process.centre[LOSS] + part.scale * mean, part.scale * np.sqrt(variance)))
        return found

    def mean(self, places: Sequence[int], runs: Sequence[int] | None, level: int) -> Floats:
        """Expected gain."""
        parts = self.gains(places, runs, level)
        return np.asarray(sum(weight * mean for weight, (mean, _) in zip(self.weights, parts, strict=True)))

    def improvement(self, places: Sequence[int], runs: Sequence[int] | None, level: int, best: float) -> Floats:
        """E[(gain − best)₊]."""
        parts = self.gains(places, runs, level)
        return np.asarray(
            sum(weight * expected_improvement(mean, sd, best)
                for weight, (mean, sd) in zip(self.weights, parts, strict=True))
        )  # fmt: skip

    def interval(self, place: int, run: int | None, level: int, share: float = 0.9) -> tuple[float, float, float]:
        """(low, mean, high) of the gain: the central ``share`` of the mixture, by its quantiles."""
        from scipy.special import ndtr

        parts = self.gains([place], None if run is None else [run], level)
        low = min(float(mean[0] - 4 * sd[0]) for mean, sd in parts)
        high = max(float(mean[0] + 4 * sd[0]) for mean, sd in parts)
        grid = np.linspace(low, high, GRID)
        below = sum(w * ndtr((grid - m[0]) / s[0]) for w, (m, s) in zip(self.weights, parts, strict=True))
        middle = sum(w * float(m[0]) for w, (m, _) in zip(self.weights, parts, strict=True))
        tail = (1 - share) / 2
        return float(np.interp(tail, below, grid)), middle, float(np.interp(1 - tail, below, grid))


def expected_improvement(mean: Floats, sd: Floats, best: float) -> Floats:
    """E[(f − best)₊] of a Gaussian f."""
    from scipy.special import ndtr

    z = (mean - best) / sd
    return np.asarray(sd * (z * ndtr(z) + np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)))


def believe(prior: TaskPrior, points: Points, *, guard: bool = True, residual: bool = True) -> Belief:
    """The belief after ``points``. Without ``guard`` the transfer alone counts; without ``residual`` it does not learn
    what single configurations do (both for ablations)."""
    alone = condition(prior.alone, points)
    if prior.transfer is None:
        return Belief((alone,), (1.0,))
    process = prior.transfer if residual else _without_residual(prior)
    transfer = condition(process, points)
    if not guard:
        return Belief((transfer,), (1.0,))
    scores = [foretold(part) for part in (transfer, alone)]
    odds = TRUST / (1 - TRUST) * math.exp(min(max(scores[0] - scores[1], -50.0), 50.0))
    share = min(odds / (1 + odds), 1 - FLOOR)
    return Belief((transfer, alone), (share, 1 - share))


def foretold(part: Posterior) -> float:
    """Summed log density of every run's last gain, each given the runs begun before it and cut off from below.

    A run counts once, and not by the course of its own curve: how losses fall, and how far, experience foretells well
    whatever it says about which configuration is better. The first run sets the level.
    """
    found, points, size = 0.0, part.points, len(part.points)
    lower = -HARDEST - math.log(part.scale)
    starts = np.flatnonzero(np.diff(points.run, prepend=-1))
    for start, end in itertools.islice(itertools.pairwise((*starts.tolist(), size)), 1, None):
        gains = np.flatnonzero(points.channel[start:end] == LOSS)
        if len(gains):
            row = part.root[start + int(gains[-1]), start:end]
            spread = float(np.sqrt(row @ row))
            off = float(row @ part.white[start:end]) / spread
            found += max(-0.5 * off**2 - math.log(spread * math.sqrt(2 * math.pi) * part.scale), lower)
    return found


def _without_residual(prior: TaskPrior) -> Process:
    assert prior.transfer is not None
    return replace(prior.transfer, residual_sd=NO_RESIDUAL_SD)
