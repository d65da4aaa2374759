"""The on-task process: exact Gaussian-process inference over runs, rungs and two channels, in NumPy.

In units of the task's spread, the score of run i at rung t in channel p (validation loss, task metric) is

    y_p,i(t) = a_p + r_p·[ m(x_i) − d(x_i, t) + κ(t)·( (b − 1)·m(x_i) + Σ_k w_k·(m_k(x_i) − m(x_i)) + g(x_i) ) ]
               + u_p(t) + h_p,i(t) + ε

m is the transfer mean and m_k its bags (w_k ~ N(0, 1/K): which bag of tasks is right is learnt); b ~ N(1, ·) may
shrink to no transfer; g is Matérn-5/2 over configurations with length-scales from earlier tasks; d is how far a rung
lies below the end. Runs that end far apart are close together early on: κ grows from nearly nothing to 1. u is the
deviation of all curves of the task alike and h that of one run's curve, with the spread that rungs had in earlier
tasks, correlated in log steps and zero at the end (freezing and thawing, Swersky et al. 2014); ε is known from the
number of rows. The channels share what is in brackets (intrinsic coregionalisation, rank one: the loss with r = 1, the
metric with r the correlation seen in earlier tasks).

Everything is linear and Gaussian but the spread of a task and the size of h, which are chosen on a grid by marginal
likelihood under their priors. Nothing else is inferred on the task. What it does not do: learn length-scales or noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from foretune.search.encoding import Floats, Indices
from foretune.search.fidelity import LEVELS, RUNG_PERCENT

JITTER = 1e-6
SMALLEST_NOISE = 0.03
"""In task spreads: runs that differ in their seed alone differ at least this much."""
NOISE_NOT_GIVEN = 0.1
"""In task spreads, for an error of 0: it was not given. Of the 630 losses that ship with Foretune three in four have a
smaller paired error than this."""
CURVE_LENGTH = 0.7
"""Log steps over which the deviations of a single curve are correlated, before anything was learnt of it: a rung."""
COMMON_LENGTH = 4.0
"""Log steps over which the deviation of all curves of a task is correlated."""
SPREAD_FACTORS = (0.35, 0.6, 1.0, 1.7, 3.0)
PATH_FACTORS = (0.3, 1.0, 2.0)
LOG_PATH_SD = 1.0
"""The noise of early rungs is of another size on every task, like the spread: on these factors, with this deviation of
their log. Taken as given, quiet early rungs make a small spread of the ends."""
SPREAD_POINTS = 120
"""Observations that choose the spread and the noise of early rungs: more change them little and cost their cube."""
LOSS, METRIC = 0, 1
ALONE = "alone"
"""The name of the process that knows no experience"""
_LOG_SHARE = np.log(np.asarray(RUNG_PERCENT, dtype=float))


@dataclass(frozen=True)
class Points:
    """Observations: (n,) arrays."""

    place: Indices
    """Index of the configuration in the pool"""
    level: Indices
    channel: Indices
    value: Floats
    """Gain, or metric over the base"""
    error: Floats
    """Its standard error, 0 where none was given"""
    run: Indices
    """Number of the run: curves deviate run by run"""

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, int, float, float, int]]) -> Points:
        """From (place, level, channel, value, error, run)."""
        place, level, channel, value, error, run = zip(*rows, strict=True) if rows else ([],) * 6
        whole = (np.asarray(column, dtype=np.int64) for column in (place, level, channel, run))
        first, second, third, fourth = whole
        return cls(first, second, third, np.asarray(value, dtype=float), np.asarray(error, dtype=float), fourth)

    def __len__(self) -> int:
        return len(self.value)

    def head(self, count: int) -> Points:
        """The first ``count`` observations."""
        return Points(*(column[:count] for column in vars(self).values()))


@dataclass(frozen=True)
class Process:
    """A prior over the scores of a pool of n configurations on one task."""

    name: str
    mean: Floats
    """(n,): expected score of a whole run, in spreads around the centre"""
    deficits: Floats
    """(6, n): how far each rung lies below the end"""
    factors: Floats
    """(n, r): low-rank part of the covariance: bags and slope"""
    places: Floats
    """(n, dimensions): configurations in units of the length-scale"""
    residual_sd: float
    path_sd: Floats
    """(6,): deviation of single curves at each rung, 0 at the end"""
    centre: tuple[float, float]
    """Expected centre of gains, and of the metric over the base"""
    centre_sd: tuple[float, float]
    spread: tuple[float, float]
    """Expected spread of gains and of the metric"""
    log_spread_sd: float
    ties: tuple[float, float] = (1.0, 0.8)
    """r: how closely each channel follows the shared score"""
    growth: Floats = field(default_factory=lambda: np.ones(LEVELS))
    """(6,): κ, how much of what sets runs apart at their end shows at each rung"""
    common_sd: Floats = field(default_factory=lambda: np.zeros(LEVELS))
    """(6,): deviation that all curves of the task share at each rung, 0 at the end"""
    curve_length: float = CURVE_LENGTH
    """Over which log steps the deviation of a single curve is correlated"""

    @cached_property
    def curves(self) -> Floats:
        """(6, 6): covariance of the deviation of a single curve."""
        return _along(self.path_sd, self.curve_length)

    @cached_property
    def common(self) -> Floats:
        """(6, 6): covariance of the deviation that all curves share."""
        return _along(self.common_sd, COMMON_LENGTH)

    def covariance(self, one: Indices, other: Indices) -> Floats:
        """(len(one), len(other)): of shared scores of pool members by index."""
        low_rank = self.factors[one] @ self.factors[other].T
        return np.asarray(low_rank + self.residual_sd**2 * matern(self.places[one], self.places[other]))

    def variance(self) -> Floats:
        """(n,): prior variance of the shared scores of whole runs."""
        return np.asarray((self.factors**2).sum(1) + self.residual_sd**2)

    def varying(self, where: Indices, level: int) -> Floats:
        """(len(where),): prior variance at a rung, but for the shift of all runs."""
        return np.asarray(
            self.growth[level] ** 2 * self.variance()[where] + self.curves[level, level] + self.common[level, level]
        )


def _along(sd: Floats, length: float) -> Floats:
    """(6, 6): covariance of a deviation with so much spread at each rung, correlated over ``length`` log steps."""
    return np.asarray(sd[:, None] * sd[None, :] * np.exp(-np.abs(_LOG_SHARE[:, None] - _LOG_SHARE[None, :]) / length))


def matern(one: Floats, other: Floats) -> Floats:
    """Matérn-5/2 correlation of (n, d) and (m, d) points."""
    squared = (one**2).sum(1)[:, None] + (other**2).sum(1)[None, :] - 2.0 * one @ other.T
    scaled = np.sqrt(5.0 * np.maximum(squared, 0.0))
    return np.asarray((1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled))


@dataclass(frozen=True)
class Posterior:
    """What is believed after some observations, in spreads around the expected centre (the shift a included)."""

    process: Process
    points: Points
    scale: float
    """The spread of gains that the observations speak for"""
    weights: Floats
    """(n,): K⁻¹ (y − mean)"""
    root: Floats
    """(n, n): Cholesky factor of the observations' covariance, lower"""
    white: Floats
    """(n,): how far each observation was off given those before it, in standard deviations"""

    @property
    def log_density(self) -> float:
        """Of all observations, in spreads."""
        diagonal = np.log(np.diag(self.root)).sum() if len(self.white) else 0.0
        return float(-0.5 * self.white @ self.white - diagonal - 0.5 * len(self.white) * math.log(2 * math.pi))

    def predict(self, where: Indices, level: int) -> tuple[Floats, Floats]:
        """(mean, variance) of the loss score of a new run of pool members ``where`` at ``level``."""
        process = self.process
        mean = process.mean[where] - process.deficits[level][where]
        shift = (process.centre_sd[LOSS] / self.scale) ** 2
        variance = process.varying(where, level) + shift
        if len(self.points) == 0:
            return mean, variance
        return self._condition(self._cross(where, level), mean, variance)

    def predict_runs(self, places: Sequence[int], runs: Sequence[int], level: int) -> tuple[Floats, Floats]:
        """(mean, variance) at ``level`` of runs that have observations of their own."""
        where, numbers = np.asarray(places, dtype=np.int64), np.asarray(runs, dtype=np.int64)
        process = self.process
        mean = process.mean[where] - process.deficits[level][where]
        shift = (process.centre_sd[LOSS] / self.scale) ** 2
        variance = process.varying(where, level) + shift
        cross = self._cross(where, level)
        same = (self.points.run[:, None] == numbers[None, :]) & (self.points.channel == LOSS)[:, None]
        cross += same * process.curves[self.points.level, level][:, None]
        return self._condition(cross, mean, variance)

    def _cross(self, where: Indices, level: int) -> Floats:
        """(observations, places): covariance with the loss score of new runs at ``level``."""
        process, points = self.process, self.points
        ties = np.asarray(process.ties)[points.channel]
        grown = ties * process.growth[points.level] * process.growth[level]
        cross = grown[:, None] * process.covariance(points.place, where)
        shift = (process.centre_sd[LOSS] / self.scale) ** 2
        cross += ((points.channel == LOSS) * (shift + process.common[points.level, level]))[:, None]
        return np.asarray(cross)

    def _condition(self, cross: Floats, mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
        explained = _lower_solve(self.root, cross)
        return mean + cross.T @ self.weights, np.maximum(variance - (explained**2).sum(0), JITTER)

    def gain(self, score: float) -> float:
        """A score as a gain: log(base loss / loss)."""
        return self.process.centre[LOSS] + self.scale * score


def condition(process: Process, points: Points, *, like: Posterior | None = None) -> Posterior:
    """The posterior of ``process`` after ``points``, with the spread and the noise of early rungs that they speak for,
    or those of ``like``."""
    if len(points) == 0:
        empty = np.zeros(0)
        return Posterior(process, points, process.spread[LOSS], empty, np.zeros((0, 0)), empty)
    if like is not None:
        return _Terms(like.process, points).solved(like.process, like.scale)
    few = _Terms(process, points.head(SPREAD_POINTS))
    found: tuple[float, Process, float] | None = None
    for quieter, factor in itertools.product(PATH_FACTORS, SPREAD_FACTORS):
        candidate, scale = replace(process, path_sd=quieter * process.path_sd), factor * process.spread[LOSS]
        density = few.solved(candidate, scale).log_density - few.gains * math.log(scale)  # of values, not scaled ones
        density -= 0.5 * (math.log(factor) / max(process.log_spread_sd, 1e-3)) ** 2
        density -= 0.5 * (math.log(quieter) / LOG_PATH_SD) ** 2
        if found is None or density > found[0]:
            found = density, candidate, scale
    assert found is not None
    return _Terms(process, points).solved(*found[1:])


class _Terms:
    """What the covariance of ``points`` is made of, whatever the spread and the noise of early rungs."""

    def __init__(self, process: Process, points: Points) -> None:
        self.points = points
        ties = np.asarray(process.ties)[points.channel]
        self.expected = ties * (process.mean[points.place] - process.deficits[points.level, points.place])
        grown = ties * process.growth[points.level]
        self.fixed = grown[:, None] * grown[None, :] * process.covariance(points.place, points.place)
        self.pair = points.level[:, None], points.level[None, :]
        self.same_channel = points.channel[:, None] == points.channel[None, :]
        self.same_run = (points.run[:, None] == points.run[None, :]) & self.same_channel
        self.fixed += self.same_channel * process.common[self.pair]
        # a channel follows the shared score only so closely: what is its own is independent from run to run
        own = np.sqrt(np.maximum(0.0, 1.0 - ties**2)) * process.residual_sd
        self.fixed += self.same_run * own[:, None] * own[None, :]
        self.gains = int((points.channel == LOSS).sum())

    def solved(self, process: Process, scale: float) -> Posterior:
        """The posterior of ``process``, which may differ in the noise of its curves, with a spread of ``scale``."""
        points, units = self.points, np.asarray((scale, process.spread[METRIC] or 1.0))
        scales, shifts = units[points.channel], (np.asarray(process.centre_sd) / units)[points.channel] ** 2
        residual = (points.value - np.asarray(process.centre)[points.channel]) / scales - self.expected
        covariance = self.fixed + self.same_channel * shifts[:, None] + self.same_run * process.curves[self.pair]
        noise = np.where(points.error > 0, np.maximum(points.error / scales, SMALLEST_NOISE), NOISE_NOT_GIVEN)
        covariance[np.diag_indices_from(covariance)] += noise**2 + JITTER
        root = np.linalg.cholesky(covariance)
        white = _lower_solve(root, residual[:, None])[:, 0]
        return Posterior(process, points, scale, _upper_solve(root, white), root, white)


def _lower_solve(root: Floats, right: Floats) -> Floats:
    from scipy.linalg import solve_triangular

    return np.asarray(solve_triangular(root, right, lower=True, check_finite=False))


def _upper_solve(root: Floats, right: Floats) -> Floats:
    from scipy.linalg import solve_triangular

    return np.asarray(solve_triangular(root.T, right, lower=False, check_finite=False))


def no_growth() -> Floats:
    """(6,): κ before anything was learnt of it: between what the encoder tasks that ship have (0, 0.05, 0.1, 0.2, 0.5)
    and the causal ones (0, 0.2, 0.35, 0.65, 0.9)."""
    return np.asarray((0.05, 0.12, 0.2, 0.4, 0.7, 1.0))


def no_path() -> Floats:
    """(6,): spread of single curves at the rungs before anything was learnt of it, in spreads of a task; measured on
    the 18 tasks that ship, as `no_common`."""
    return np.asarray((0.1, 0.3, 0.5, 0.55, 0.5, 0.0))


def no_common() -> Floats:
    """(6,): how much the usual deficit differs between tasks."""
    return np.asarray((0.9, 0.8, 0.7, 0.45, 0.3, 0.0))
