"""The strategy `transfer`: what earlier tasks say, corrected by what is seen, worth per second; torch-free.

1. The default LoRA in whole, where the caller wants it as the baseline.
2. While nothing was seen: the greedy portfolio over bags of earlier tasks (Nemhauser et al. 1978: each pick adds most
   to the best of the picks, on average over bags); without experience the rule's rate, three times and a third of it.
3. Then, again and again, what is worth most per second: beginning a configuration of the pool or taking a paused run
   on by one rung. Its worth is (1 − P(fail)) · E[(gain at a drawn rung − best gain so far)₊] (`belief`); the rung up to
   which it is judged is drawn anew for every proposal (as in ifBO, Rakotoarison et al. 2024), so that no one horizon
   has to be right. Runs under way count as if they had reached their next rung as expected (fantasies).
4. The search ends when the budget does, or, where it is not in time, when nothing is expected to improve.

Decisions depend on the prior, the observations, forecast seconds and the seed: a resumed search decides as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretune.files import fingerprint
from foretune.search.belief import Belief, believe
from foretune.search.encoding import Floats, Indices
from foretune.search.failures import seen_failures
from foretune.search.fidelity import LAST_LEVEL, LEVELS, RUNG_PERCENT, level_step, next_level
from foretune.search.horizon import early_level
from foretune.search.points import observed, pending, places_of
from foretune.search.ranking import Finalist, agreeing, finalists, has_risen
from foretune.search.reasons import beginning, going_on
from foretune.search.runs import Continue, Proposal, Run, Start, View
from foretune.search.task_prior import TaskPrior, share_of_rows
from foretune.search.types import Done, Wait
from foretune.seeding import generator

OVERHEAD_SHARE = 0.02
"""Beginning or resuming a run takes about as long as so much of a whole run: attaching, checkpoints."""
NEGLIGIBLE = 1e-3
"""An expected improvement of less than a thousandth in log loss is none."""
ALWAYS_END = 0.5
"""Half of the proposals are judged by the end of the run, the others by a rung drawn evenly."""


@dataclass(frozen=True)
class Transfer:
    """The strategy; `transfer_plan` builds one."""

    prior: TaskPrior
    horizon: int
    """Steps of a whole run of the pool's first member; others have as many rows"""
    base_losses: tuple[float, ...]
    """(6,): the untouched base's validation loss on the rows of each rung"""
    baseline: Mapping[str, Any] | None = None
    """Trained in whole before anything else; None for none"""
    portfolio: tuple[int, ...] = ()
    """Pool members to begin with where there is no experience"""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    max_trials: int | None = None
    metric: str = "loss"
    task_metric: tuple[str, float, float] | None = None
    """(name, +1 or −1 for its direction, the base's value): the second channel"""
    guard: bool = True
    residual: bool = True
    name: str = "transfer"

    def settings(self) -> dict[str, Any]:
        """See `Strategy.settings`."""
        return {
            "prior": fingerprint(self.prior.to_json()),
            "horizon": self.horizon,
            "base_losses": list(self.base_losses),
            "baseline": None if self.baseline is None else dict(self.baseline),
            "fixed": dict(self.fixed),
            "max_trials": self.max_trials,
            "guard": self.guard,
            "residual": self.residual,
        }

    def finalists(self, runs: tuple[Run, ...], count: int | None = None) -> list[Finalist]:
        """The runs to re-evaluate, best first; the baseline only where it agrees with what the user fixed."""
        return finalists(agreeing(runs, self.fixed), self.metric, count)

    def steps_of(self, config: Mapping[str, Any]) -> int:
        """Steps of a whole run of ``config``: as many rows as the pool's first member sees."""
        first = self.prior.pool[0]
        passes = share_of_rows(config) / share_of_rows(first)
        return max(1, round(self.horizon * passes * int(first["rows_per_update"]) / int(config["rows_per_update"])))

    def propose(self, view: View) -> Proposal:
        """See `Strategy.propose`."""
        if self.baseline is not None and not view.runs:
            if not view.affords(self.baseline, 0, self.horizon, new=True):
                return Done("the budget does not cover the default LoRA")
            why = "the default LoRA, trained in whole: what every other configuration is compared with"
            return Start(self.baseline, self.horizon, self.horizon, "default", why)
        points = observed(self, view.runs)
        places = places_of(self.prior, view.runs)
        may_start = self.max_trials is None or len(view.runs) < self.max_trials
        odds = seen_failures(self.prior.odds, self.prior.rows, view.runs, places)
        free = self._free(view, places) if may_start else np.zeros(0, dtype=np.int64)
        if len(points) == 0 or self._cold(view):
            pick = self._portfolio_pick(view, places, free, odds)
            if pick is not None:
                return self._start(pick, None)
            if len(points) == 0 and any(run.status == "running" for run in view.runs):
                return Wait("the first runs have to report")
        belief = believe(self.prior, points, guard=self.guard, residual=self.residual)
        belief = pending(self, belief, points, view.runs, places)
        return self._best(view, belief, places, free, odds)

    # -- what may be begun

    def _free(self, view: View, places: Sequence[int]) -> Indices:
        """Pool members that were not begun and agree with what the user fixed."""
        begun = set(places)
        members = [
            place for place, config in enumerate(self.prior.pool)
            if place not in begun and all(config.get(key, value) == value for key, value in self.fixed.items())
        ]  # fmt: skip
        return np.asarray(members, dtype=np.int64)

    def _cold(self, view: View) -> bool:
        """Whether the expert's portfolio has still to be begun."""
        return self.prior.transfer is None and len([run for run in view.runs if run.arm == "portfolio"]) < len(
            self.portfolio
        )

    def _portfolio_pick(self, view: View, places: Sequence[int], free: Any, odds: Floats) -> int | None:
        """The pool member that adds most to those begun, on average over bags; or the expert's next."""
        affordable = [int(place) for place in free if self._affords_whole(view, int(place))]
        if not affordable:
            return None
        if self.prior.transfer is None:
            return next((place for place in self.portfolio if place in affordable), None)
        bags = self.prior.bags
        begun = bags[:, list(places)].max(axis=1, initial=-np.inf) if places else np.full(len(bags), -np.inf)
        scores = np.maximum(bags[:, affordable], begun[:, None]).mean(0) - odds[affordable] * np.ptp(bags)
        return affordable[int(np.argmax(scores))]

    def _affords_whole(self, view: View, place: int) -> bool:
        config = self.prior.pool[place]
        return view.affords(config, 0, self.steps_of(config), new=True)

    # -- what is worth most

    def _best(self, view: View, belief: Belief, places: Sequence[int], free: Any, odds: Floats) -> Proposal:
        best = self._best_so_far(view, belief, places)
        target = self._drawn_level(view)
        options: list[tuple[float, float, Start | Continue]] = [
            *self._beginnings(view, belief, free, odds, target, best),
            *self._continuations(view, belief, places, target, best),
        ]
        in_time = view.budget.kind == "time"
        for rate, worth, proposal in sorted(options, key=lambda option: -option[0]):
            if worth < NEGLIGIBLE and not in_time and isinstance(proposal, Continue):
                continue
            if rate > 0 and self._affordable(view, proposal):
                return proposal
        if any(run.status == "running" for run in view.runs):
            return Wait("runs under way have to report first")
        if self.max_trials is not None and len(view.runs) >= self.max_trials:
            return Done(f"{len(view.runs)} configurations were tried, as many as were allowed")
        if any(worth >= NEGLIGIBLE for _, worth, _ in options) or not options:
            return Done("what is left of the budget does not cover another run")
        return Done("nothing is expected to improve the best by more than a thousandth")

    def _affordable(self, view: View, proposal: Start | Continue) -> bool:
        if isinstance(proposal, Start):
            return view.affords(proposal.config, 0, proposal.to_step, new=True)
        run = next(run for run in view.runs if run.id == proposal.run)
        return view.affords(run.config, run.step, proposal.to_step)

    def _best_so_far(self, view: View, belief: Belief, places: Sequence[int]) -> float:
        """The highest expected gain of any run at the rung it has reached; 0, the base itself, where none is better."""
        best = 0.0
        for number, (run, place) in enumerate(zip(view.runs, places, strict=True)):
            if run.failed or run.step == 0:
                continue
            level = next_level(run.horizon, run.step) - (0 if run.step >= run.horizon else 1)
            best = max(best, float(belief.mean([place], [number], max(0, level))[0]))
        return best

    def _drawn_level(self, view: View) -> int:
        seen = sum(len(run.curve) for run in view.runs)
        stream = generator(view.seed, "search", "judged", len(view.runs), seen)
        return LAST_LEVEL if stream.random() < ALWAYS_END else int(stream.integers(1, LEVELS))

    def _beginnings(
        self, view: View, belief: Belief, free: Any, odds: Floats, target: int, best: float
    ) -> list[tuple[float, float, Start]]:
        """(worth per second, worth, start) of the best pool member for each rung that the budget can reach."""
        if len(free) == 0:
            return []
        first = self.prior.pool[0]
        seconds = np.asarray([view.cost(first, 0, level_step(self.horizon, level)) for level in range(LEVELS)])
        prices = self._prices(view, seconds)
        room, dearer = _room(view), self.prior.cost[free] * self.prior.amount[free]
        reach = (prices[None, :] * dearer[:, None] <= room).sum(1) - 1
        levels = np.minimum(np.maximum(reach, -1), target)
        worth, rate = np.zeros(len(free)), np.zeros(len(free))
        for level in sorted(set(levels.tolist()) - {-1}):
            chosen = levels == level
            gain = belief.improvement(free[chosen].tolist(), None, level, best)
            worth[chosen] = (1 - odds[free[chosen]]) * gain
            spent = seconds[level] * dearer[chosen] + OVERHEAD_SHARE * seconds[LAST_LEVEL]
            rate[chosen] = worth[chosen] / spent
        order = np.argsort(-rate, kind="stable")[:LEVELS]
        return [(float(rate[k]), float(worth[k]), self._start(int(free[k]), belief)) for k in order]

    def _prices(self, view: View, seconds: Floats) -> Floats:
        """(6,): what a run to each rung takes of the budget, in its unit."""
        if view.budget.kind == "time":
            return seconds
        if view.budget.kind == "trials":
            return np.ones(LEVELS)
        return np.asarray([float(level_step(self.horizon, level)) for level in range(LEVELS)])

    def _continuations(
        self, view: View, belief: Belief, places: Sequence[int], target: int, best: float
    ) -> list[tuple[float, float, Continue]]:
        found = []
        overhead = OVERHEAD_SHARE * view.cost(self.prior.pool[0], 0, self.horizon)
        for number, (run, place) in enumerate(zip(view.runs, places, strict=True)):
            if run.status != "idle" or has_risen(run, self.metric):
                continue
            step = level_step(run.horizon, next_level(run.horizon, run.step))
            level = max(target, next_level(run.horizon, run.step))
            while level > 0 and not view.affords(run.config, run.step, level_step(run.horizon, level)):
                level -= 1
                if level_step(run.horizon, level) <= run.step:
                    break
            if level_step(run.horizon, level) <= run.step:
                continue
            worth = float(belief.improvement([place], [number], level, best)[0])
            rate = worth / (view.cost(run.config, run.step, level_step(run.horizon, level)) + overhead)
            found.append((rate, worth, Continue(run.id, step, going_on(belief, run, place, number, step))))
        return found

    def _start(self, place: int, belief: Belief | None) -> Start:
        config = self.prior.pool[place]
        steps = self.steps_of(config)
        early = early_level(steps, float(config.get("warmup_share", 0.0)))
        arm = "portfolio" if belief is None else "proposed"
        why = f"{beginning(self.prior, place, belief)}; first to {RUNG_PERCENT[early]} % of the steps"
        odds = float(self.prior.odds[place])
        return Start(config, steps, level_step(steps, early), arm, why, p_fail=odds)


def _room(view: View) -> float:
    """What a single further run may take of the budget."""
    left = view.budget.left()
    shared = view.budget.workers if view.budget.kind == "time" else 1
    return min(left, left * shared - view.held)
