"""The on-task process: exact Gaussian-process inference over runs, rungs and two channels, in NumPy.

In units of the task's spread, the score of run i at rung t in channel p (validation loss, task metric) is

    y_p,i(t) = a_p + r_p·[ m(x_i) + (b − 1)·m(x_i) + Σ_k w_k·(m_k(x_i) − m(x_i)) + g(x_i) ] − d(x_i, t) + h_p,i(t) + ε

m is the transfer mean and m_k its bags (w_k ~ N(0, 1/K): which bag of tasks is right is learnt); b ~ N(1, ·) may shrink
to no transfer; g is Matérn-5/2 over configurations with length-scales from earlier tasks; h is the deviation of one
run's curve, with the spread that rungs had in earlier tasks, correlated in log steps and zero at the end (freezing
and thawing, Swersky et al. 2014); ε is known from the number of rows. The channels share the bracket (intrinsic
coregionalisation, rank one: the loss with r = 1, the metric with r the correlation seen in earlier tasks).

Everything is linear and Gaussian but the spread, which is chosen on a grid by marginal likelihood under its prior.
Nothing else is inferred on the task. What it does not do: learn length-scales or noise here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foretune.search.encoding import Floats, Indices
from foretune.search.fidelity import LAST_LEVEL, LEVELS, RUNG_PERCENT

JITTER = 1e-6
SMALLEST_NOISE = 0.03
"""In task spreads: runs that differ in their seed alone differ at least this much."""
NOISE_NOT_GIVEN = 0.1
"""In task spreads, for an error of 0: it was not given. Of the 630 losses that ship with Foretune three in four have a
smaller paired error than this."""
CURVE_LENGTH = math.log(4.0)
"""Deviations of a curve are correlated over a factor of four in steps: two rungs."""
SPREAD_FACTORS = (0.35, 0.6, 1.0, 1.7, 3.0)
SPREAD_POINTS = 120
"""Observations that choose the spread: more change it little and cost their cube."""
LOSS, METRIC = 0, 1


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

    def covariance(self, one: Indices, other: Indices) -> Floats:
        """(len(one), len(other)): of shared scores of pool members by index."""
        low_rank = self.factors[one] @ self.factors[other].T
        return np.asarray(low_rank + self.residual_sd**2 * matern(self.places[one], self.places[other]))

    def variance(self) -> Floats:
        """(n,): prior variance of the shared scores."""
        return np.asarray((self.factors**2).sum(1) + self.residual_sd**2)


def matern(one: Floats, other: Floats) -> Floats:
    """Matérn-5/2 correlation of (n, d) and (m, d) points."""
    squared = (one**2).sum(1)[:, None] + (other**2).sum(1)[None, :] - 2.0 * one @ other.T
    scaled = np.sqrt(5.0 * np.maximum(squared, 0.0))
    return np.asarray((1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled))


_LOG_SHARE = np.log(np.asarray(RUNG_PERCENT, dtype=float))
CURVE_CORRELATION = np.exp(-np.abs(_LOG_SHARE[:, None] - _LOG_SHARE[None, :]) / CURVE_LENGTH)
"""(6, 6): correlation of a curve's deviation between rungs."""


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
    log_scores: Floats
    """(n,): log density of each observation given those before it"""

    def predict(self, where: Indices, level: int) -> tuple[Floats, Floats]:
        """(mean, variance) of the loss score of a new run of pool members ``where`` at ``level``."""
        process = self.process
        mean = process.mean[where] - process.deficits[level][where]
        shift = (process.centre_sd[LOSS] / self.scale) ** 2
        variance = process.variance()[where] + process.path_sd[level] ** 2 + shift
        if len(self.points) == 0:
            return mean, variance
        return self._condition(self._cross(where), mean, variance)

    def predict_runs(self, places: Sequence[int], runs: Sequence[int], level: int) -> tuple[Floats, Floats]:
        """(mean, variance) at ``level`` of runs that have observations of their own."""
        where, numbers = np.asarray(places, dtype=np.int64), np.asarray(runs, dtype=np.int64)
        process = self.process
        mean = process.mean[where] - process.deficits[level][where]
        shift = (process.centre_sd[LOSS] / self.scale) ** 2
        variance = process.variance()[where] + process.path_sd[level] ** 2 + shift
        cross = self._cross(where)
        same = (self.points.run[:, None] == numbers[None, :]) & (self.points.channel == LOSS)[:, None]
        curve = process.path_sd[self.points.level] * process.path_sd[level]
        cross += same * (curve * CURVE_CORRELATION[self.points.level, level])[:, None]
        return self._condition(cross, mean, variance)

    def _cross(self, where: Indices) -> Floats:
        """(observations, places): covariance with the loss score."""
        process, points = self.process, self.points
        ties = np.asarray(process.ties)[points.channel]
        cross = ties[:, None] * process.covariance(points.place, where)
        shift = (process.centre_sd[LOSS] / self.scale) ** 2
        cross += (points.channel == LOSS)[:, None] * shift
        return np.asarray(cross)

    def _condition(self, cross: Floats, mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
        explained = _lower_solve(self.root, cross)
        return mean + cross.T @ self.weights, np.maximum(variance - (explained**2).sum(0), JITTER)

    def gain(self, score: float) -> float:
        """A score as a gain: log(base loss / loss)."""
        return self.process.centre[LOSS] + self.scale * score


def condition(process: Process, points: Points, *, scale: float | None = None) -> Posterior:
    """The posterior of ``process`` after ``points``, with the spread they speak for unless a ``scale`` is given."""
    if scale is not None and len(points):
        return _solved(process, points, scale)
    if len(points) == 0:
        empty = np.zeros(0)
        return Posterior(process, points, process.spread[LOSS], empty, np.zeros((0, 0)), empty)
    few = points.head(SPREAD_POINTS)
    scored = []
    for factor in SPREAD_FACTORS:
        scale = factor * process.spread[LOSS]
        prior = -0.5 * (math.log(factor) / max(process.log_spread_sd, 1e-3)) ** 2
        jacobian = -len(few) * math.log(scale)  # densities of values, not of scaled values
        scored.append((float(_solved(process, few, scale).log_scores.sum()) + jacobian + prior, scale))
    return _solved(process, points, max(scored)[1])


def _solved(process: Process, points: Points, scale: float) -> Posterior:
    scales = np.asarray((scale, process.spread[METRIC] or 1.0))[points.channel]
    centres = np.asarray(process.centre)[points.channel]
    ties = np.asarray(process.ties)[points.channel]
    expected = ties * process.mean[points.place] - process.deficits[points.level, points.place]
    residual = (points.value - centres) / scales - expected
    covariance = _covariance(process, points, scale)
    noise = np.where(points.error > 0, np.maximum(points.error / scales, SMALLEST_NOISE), NOISE_NOT_GIVEN)
    covariance[np.diag_indices_from(covariance)] += noise**2 + JITTER
    root = np.linalg.cholesky(covariance)
    white = _lower_solve(root, residual[:, None])[:, 0]
    log_scores = -0.5 * white**2 - np.log(np.diag(root)) - 0.5 * math.log(2 * math.pi)
    return Posterior(process, points, scale, _upper_solve(root, white), root, log_scores)


def _covariance(process: Process, points: Points, scale: float) -> Floats:
    ties = np.asarray(process.ties)[points.channel]
    covariance = ties[:, None] * ties[None, :] * process.covariance(points.place, points.place)
    same_channel = points.channel[:, None] == points.channel[None, :]
    shifts = (np.asarray(process.centre_sd) / np.asarray((scale, process.spread[METRIC] or 1.0))) ** 2
    covariance += same_channel * shifts[points.channel][:, None]
    same_run = (points.run[:, None] == points.run[None, :]) & same_channel
    curve = process.path_sd[points.level]
    between = CURVE_CORRELATION[points.level[:, None], points.level[None, :]]
    covariance += same_run * curve[:, None] * curve[None, :] * between
    # a channel follows the shared score only so closely: what is its own is independent from run to run
    own = np.sqrt(np.maximum(0.0, 1.0 - ties**2)) * process.residual_sd
    covariance += same_run * own[:, None] * own[None, :]
    return np.asarray(covariance)


def _lower_solve(root: Floats, right: Floats) -> Floats:
    from scipy.linalg import solve_triangular

    return np.asarray(solve_triangular(root, right, lower=True, check_finite=False))


def _upper_solve(root: Floats, right: Floats) -> Floats:
    from scipy.linalg import solve_triangular

    return np.asarray(solve_triangular(root.T, right, lower=False, check_finite=False))


def no_path() -> Floats:
    """(6,): spread of curves at the rungs before anything was learnt of it: half a task's spread at the first."""
    return np.asarray([0.5 * (1 - level / LAST_LEVEL) for level in range(LEVELS)])
