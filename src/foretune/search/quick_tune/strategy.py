"""Quick-Tune's loop: every step starts or continues one pipeline by one rung, by expected improvement over cost.

EI(μ, σ, y_max at that rung or below) / seconds. The first pick is the one with the best prediction. ``refit="none"``:
what is seen on the task enters through the curve of a begun pipeline and through y_max alone (Strangmann et al. 2024).
``"full"``: both models are trained on with it before every decision (Arango et al. 2024). A pipeline is finished at its
horizon; one that is under way is not proposed again; observed seconds correct the forecast ones by a factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from foretune.search.belief import expected_improvement
from foretune.search.encoding import Floats
from foretune.search.fidelity import LEVELS, level_step, next_level
from foretune.search.points import level_of, observed, places_of
from foretune.search.pooled import Pooled
from foretune.search.quick_tune.inputs import Examples, curve_inputs
from foretune.search.quick_tune.surrogate import SMALLEST_SECONDS, Surrogate, plain
from foretune.search.residual_gp import LOSS
from foretune.search.runs import Continue, Proposal, Run, View
from foretune.search.types import Done, Wait

Refit = Literal["none", "full"]


@dataclass(frozen=True)
class QuickTune(Pooled):
    """The strategy; ``prior`` gives the pool alone."""

    surrogate: Surrogate | None = None
    features: Any = None
    """(f,): the task's features (`encoding.features`)"""
    refit: Refit = "none"
    refit_every: int = 1
    """Scores between two refits; more only where many searches are replayed"""
    last: dict[str, Surrogate] = field(default_factory=dict)
    """The latest refit, until the next is due"""
    name: str = "quick-tune"

    def settings(self) -> dict[str, Any]:
        """See `Strategy.settings`."""
        own = {key: value for key, value in super().settings().items() if key != "last"}
        assert self.surrogate is not None
        return {**own, "surrogate": self.surrogate.to_json(), "features": plain(np.asarray(self.features))}

    def propose(self, view: View) -> Proposal:
        """See `Strategy.propose`."""
        if (begun := self.first(view)) is not None:
            return begun
        places = places_of(self.prior, view.runs)
        scores = self.scores(view.runs)
        free = self.free(places).tolist() if self.may_start(view) else []
        idle = [number for number, run in enumerate(view.runs) if run.status == "idle"]
        candidates: list[tuple[int, int | None]] = [*((p, None) for p in free), *((places[n], n) for n in idle)]
        candidates = [each for each in candidates if self._covered(view, each)]
        if candidates:
            place, number = candidates[int(np.argmax(self._values(view, candidates, scores, places)))]
            if number is None:
                return self.start(place, "most expected improvement per second (quick-tune)", arm="proposed", level=0)
            run = view.runs[number]
            return Continue(run.id, self._next(run), "most expected improvement per second (quick-tune)")
        if any(run.status == "running" for run in view.runs):
            return Wait("runs under way have to report")
        return Done("the budget covers nothing more")

    def scores(self, runs: Sequence[Run]) -> Floats:
        """(runs, 6): scaled scores seen so far, NaN where there is none; losses of any size, higher is better."""
        assert self.surrogate is not None
        gains = np.full((len(runs), LEVELS), math.nan)
        points = observed(self, runs)
        for level, channel, value, number in zip(
            points.level, points.channel, points.value, points.run, strict=True
        ):  # fmt: skip
            if channel == LOSS:
                gains[number, level] = value
        return self.surrogate.scaling.scores(gains)

    def _values(
        self, view: View, candidates: Sequence[tuple[int, int | None]], scores: Floats, places: Sequence[int]
    ) -> Floats:
        assert self.surrogate is not None
        seen = self._seen(view.runs, places, scores)
        surrogate = self._refitted(seen) if self.refit == "full" else self.surrogate
        curves, levels = [], []
        for candidate in candidates:
            _, number = candidate
            own = np.full(LEVELS, math.nan) if number is None else scores[number]
            curves.append(curve_inputs(own))
            levels.append(self._reached(view.runs, candidate))
        rows = surrogate.scaling.configs([self.prior.rows[place] for place, _ in candidates])
        features = np.tile(surrogate.scaling.features(np.asarray(self.features)), (len(rows), 1))
        mean, sd = surrogate.predict(rows, features, np.asarray(curves))
        if not view.runs or not np.isfinite(scores).any():
            return mean
        best = best_so_far(scores)[levels]
        gain = np.asarray([float(expected_improvement(m, s, b)) for m, s, b in zip(mean, sd, best, strict=True)])
        pace = self.pace(surrogate, view.runs, places, scores)
        seconds = pace * surrogate.seconds(rows, features, np.asarray(curves))
        return np.asarray(gain / np.maximum(seconds, SMALLEST_SECONDS))

    def _refitted(self, seen: Examples) -> Surrogate:
        assert self.surrogate is not None
        due = len(seen.targets) <= 1 or len(seen.targets) % self.refit_every == 0
        if due or "refit" not in self.last:
            self.last["refit"] = self.surrogate.refitted(seen)
        return self.last["refit"]

    def pace(self, surrogate: Surrogate, runs: Sequence[Run], places: Sequence[int], scores: Floats) -> float:
        """Observed seconds over forecast ones, over all stretches of this task; 1 before any."""
        logs = []
        for number, run in enumerate(runs):
            measured = run.train_s + run.eval_s
            reached = level_of(run)
            if measured <= 0 or reached < 0:
                continue
            curves = [curve_inputs(np.where(np.arange(LEVELS) < level, scores[number], math.nan))
                      for level in range(reached + 1)]  # fmt: skip
            rows = np.repeat(surrogate.scaling.configs([self.prior.rows[places[number]]]), reached + 1, axis=0)
            features = np.tile(surrogate.scaling.features(np.asarray(self.features)), (reached + 1, 1))
            forecast = float(surrogate.seconds(rows, features, np.asarray(curves)).sum())
            logs.append(math.log(measured / forecast))
        return math.exp(float(np.mean(logs))) if logs else 1.0

    def _seen(self, runs: Sequence[Run], places: Sequence[int], scores: Floats) -> Examples:
        """What was seen on the task as rows for a refit."""
        assert self.surrogate is not None
        scaling, parts = self.surrogate.scaling, []
        features = scaling.features(np.asarray(self.features))
        for number in range(len(runs)):
            row = scaling.configs([self.prior.rows[places[number]]])[0]
            for level in range(LEVELS):
                if math.isfinite(scores[number, level]):
                    before = np.where(np.arange(LEVELS) < level, scores[number], math.nan)
                    seconds = self.surrogate.scaled_seconds(_stretch(runs[number], level))
                    parts.append((row, features, curve_inputs(before), scores[number, level], -1.0, seconds))
        if not parts:
            return Examples(*(np.zeros((0,)) for _ in range(6)))
        return Examples(*(np.asarray(column, dtype=float) for column in zip(*parts, strict=True)))

    def _next(self, run: Run) -> int:
        return level_step(run.horizon, next_level(run.horizon, run.step))

    def _reached(self, runs: Sequence[Run], candidate: tuple[int, int | None]) -> int:
        """The rung at which a candidate would be scored: the last of those that share the next step."""
        place, number = candidate
        horizon = self.steps_of(self.prior.pool[place]) if number is None else runs[number].horizon
        step = level_step(horizon, 0) if number is None else self._next(runs[number])
        return max(level for level in range(LEVELS) if level_step(horizon, level) <= step)

    def _covered(self, view: View, candidate: tuple[int, int | None]) -> bool:
        place, number = candidate
        if number is not None:
            run = view.runs[number]
            return run.step < run.horizon and view.affords(run.config, run.step, self._next(run))
        config = self.prior.pool[place]
        return view.affords(config, 0, level_step(self.steps_of(config), 0), new=True)


def best_so_far(scores: Floats) -> Floats:
    """(6,): the best of (runs, 6) scores at each rung or below; where nothing lies there, at the first above.

    So does the published tool (Rapant et al. 2024): a rung that nothing has reached is no free gain.
    """
    reached = np.max(np.where(np.isfinite(scores), scores, -np.inf), axis=0, initial=-np.inf)
    best = np.maximum.accumulate(reached)
    first = int(np.argmax(np.isfinite(best)))
    return np.asarray(np.where(np.isfinite(best), best, best[first]))


def _stretch(run: Run, level: int) -> float:
    """Seconds between a rung and what was measured before it; NaN where the rung's were not told."""
    step = level_step(run.horizon, level)
    before = max((run.seconds[other] for other in run.seconds if other < step), default=0.0)
    return run.seconds.get(step, math.nan) - before
